"""The dial: its ends are a kernel and a full matrix, and what stands between them is what it says."""

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy

import archs
from archs.ingredients import places
from archs.ingredients.lift import Geometry, nearest
from archs.ingredients.mixer import Mixer
from engine.optim import make_optimizer
from engine.run import make_run

SMALL = {"img_size": 12, "patch_size": 2, "dim": 6, "depth": 2}


def make(mixer, **given):
    torch.manual_seed(0)
    return archs.create("lattice_s", mixer=mixer, **SMALL, **given).double()


def mixers_of(model):
    return [module for module in model.modules() if isinstance(module, Mixer)]


def images(seed=1):
    return torch.randn(5, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


ENDS = [
    (1, {}, "kernel", {}),
    (1, {"groups": 2, "kernel_size": 5}, "kernel", {"groups": 2, "kernel_size": 5}),
    (1, {"groups": 6}, "depthwise", {}),
    (1, {"groups": 6, "wrap": True}, "depthwise", {"wrap": True}),
    (1, {"wrap": True, "scrambled": True}, "kernel", {"wrap": True, "scrambled": True}),
    (0, {}, "dense", {}),
    (0, {"groups": 3, "wrap": True}, "dense", {"groups": 3}),
    (0, {"groups": 6, "kernel_size": 5}, "dense_c", {}),
]


@pytest.mark.parametrize(("strictness", "own", "mixer", "theirs"), ENDS)
@pytest.mark.parametrize("frame", ["metaformer", "convmixer"])
def test_the_ends_start_as_their_mixers_do(strictness, own, mixer, theirs, frame):
    """From one seed, float32 starts compared in float64: the function is one to rounding."""
    dial, other = make("dial", strictness=strictness, frame=frame, **own), make(mixer, frame=frame, **theirs)
    torch.testing.assert_close(dial(images()), other(images()), rtol=0, atol=1e-6)
    # and with any numbers: those of the other in the dial's place
    for mine, their in zip(mixers_of(dial), mixers_of(other), strict=True):
        if strictness:
            assert torch.equal(mine.weight, their.weight), "bit for bit"
        else:
            mine.rest.data.normal_()
            close = nearest(mine.rest.data, mine.geometry, mine.kernel_size)
            mine.weight.data.copy_(_kernel(close, mine) / mine.constant["weight"])
            their.weight.data.copy_(mine.rest / their.constant["weight"])
    torch.testing.assert_close(dial(images(2)), other(images(2)), rtol=1e-12, atol=1e-12)


def _kernel(matrices, mixer):
    """The numbers of matrices that are kernels, read off the rows of a token in the middle."""
    from archs.ingredients.lift import project

    return project(matrices, mixer.geometry, mixer.kernel_size)[:, 0]


@pytest.mark.parametrize(("own", "mixer", "theirs"), [each[1:] for each in ENDS if each[0] == 1])
def test_at_its_strict_end_it_trains_as_the_kernel(own, mixer, theirs):
    """Twelve steps of AdamW with decay and clipping in float64."""
    dial, other = make("dial", strictness=1, **own), make(mixer, **theirs)
    run = make_run({"model": "lattice_s", "lr": 1e-2})
    for model in (dial, other):
        optimizer = make_optimizer(run, model)
        for step in range(12):
            loss = cross_entropy(model(images(step)), torch.arange(5))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
    state = other.state_dict()
    assert mixers_of(dial)[0].weight.sub(mixers_of(make("dial", strictness=1, **own))[0].weight).abs().min() > 1e-4
    for key, value in dial.state_dict().items():
        if not key.endswith(".rest"):
            torch.testing.assert_close(value, state[key], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("wrap", [False, True])
def test_between_its_ends_it_is_the_formula(groups, wrap):
    """K + (1 - s) (R - P R), with P by the general projection and K as the lattice writes a kernel out."""
    (mixer, _) = mixers_of(make("dial", strictness=0.3, groups=groups, wrap=wrap))
    K = places.toeplitz(places.widened(mixer.value("weight"), (6, 6), wrap), (6, 6))
    R = mixer.value("rest")
    expected = K + 0.7 * (R - nearest(R, Geometry(grid=(6, 6), wrap=wrap), 3))
    torch.testing.assert_close(mixer.matrices(), expected, rtol=1e-12, atol=1e-12)
    mixer.dial(0.8)
    torch.testing.assert_close(mixer.matrices(), K + 2 / 7 * (expected - K), rtol=1e-12, atol=1e-12)
    off = mixer.matrices() - K
    assert nearest(off, mixer.geometry, 3).abs().max() < 1e-12, "what it adds has no kernel in it"


@pytest.mark.parametrize("strictness", [0.2, 0.5, 0.9])
def test_it_starts_between_the_starts_of_its_ends(strictness):
    """sqrt(1 - (1 - s)^2) K0 + (1 - s) W0, from the same random numbers, up to the start's rule."""
    starts = (make("dial", strictness=strictness), make("kernel"), make("dense"))
    for dial, kernel, dense in zip(*map(mixers_of, starts), strict=True):
        soft = 1 - strictness
        expected = (1 - soft**2) ** 0.5 * kernel.matrices() + soft * dense.matrices()
        factor = (dial.matrices() * expected).sum() / expected.square().sum()
        torch.testing.assert_close(dial.matrices(), factor * expected, rtol=1e-5, atol=1e-6)
        assert 0.8 < factor < 1.25 and dial.mean_square() == pytest.approx(dial.target, rel=1e-6)


def test_a_gate_starts_where_it_is_told_and_learns_in_each_layer():
    model, fixed = make("dial", strictness=0.3, gated=True), make("dial", strictness=0.3)
    torch.testing.assert_close(model(images()), fixed(images()), rtol=1e-6, atol=1e-6)
    cross_entropy(model(images()), torch.arange(5)).backward()
    gates = [mixer.gate for mixer in mixers_of(model)]
    assert len({gate.grad.item() for gate in gates}) == 2 and all(gate.grad.abs() > 0 for gate in gates)
    run = make_run({"model": "lattice_s"})
    decayed = next(group for group in make_optimizer(run, model).param_groups if group["weight_decay"])
    assert not any(gate is weight for gate in gates for weight in decayed["params"])
    with pytest.raises(ValueError, match="a gate learns it"):
        mixers_of(model)[0].dial(0.5)


def test_gradients_are_those_of_the_formula():
    (mixer, _) = mixers_of(make("dial", strictness=0.4, groups=2, gated=True))
    weight, rest, gate = (value.detach().requires_grad_() for value in (mixer.weight, mixer.rest, mixer.gate))

    def matrices(weight, rest, gate):
        return torch.func.functional_call(mixer, {"weight": weight, "rest": rest, "gate": gate}, (x,))

    x = torch.randn(1, 6, 6, 6, dtype=torch.float64)
    assert torch.autograd.gradcheck(matrices, (weight, rest, gate), fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_keeps_its_dtype_and_comes_from_the_meta_device(dtype):
    model = make("dial").to(dtype)
    assert all(mixer.matrices().dtype == dtype for mixer in mixers_of(model))
    with torch.device("meta"):
        empty = make("dial").to(dtype)
    empty.to_empty(device="cpu")
    for mixer in mixers_of(empty):
        mixer.init_non_persistent_buffers()
        mixer.to(dtype)
    empty.load_state_dict(model.state_dict())
    assert torch.equal(empty(images().to(dtype)), model(images().to(dtype)))
    assert torch.equal(copy.deepcopy(model)(images().to(dtype)), model(images().to(dtype)))


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"strictness": 1.5}, "strictness 1.5 is not from 0, a full matrix, to 1, the kernel"),
        ({"strictness": 1, "gated": True}, "strictness 1 is an end, and a gate starts between 0 and 1"),
        ({"gated": True, "frozen": True}, "a frozen mixer learns no gate"),
    ],
)
def test_what_makes_no_sense_is_one_line(given, line):
    with pytest.raises(ValueError, match=line) as caught:
        make("dial", **given)
    assert "\n" not in str(caught.value)


def test_dense_from_kernel_starts_as_the_kernel_and_an_impulse_reads_one_place():
    for groups in (1, 6):
        kernel, free = make("kernel", groups=groups), make("dense_from_kernel", groups=groups)
        torch.testing.assert_close(free(images()), kernel(images()), rtol=1e-6, atol=1e-7)
        assert sum(p.numel() for p in free.parameters()) == sum(
            p.numel() for p in make("dense", groups=groups).parameters()
        )
    (impulse, other) = mixers_of(make("dense_from_impulse", groups=6))
    M = impulse.matrices()
    assert ((M != 0).sum(2) <= 1).all() and len(M[M != 0].unique()) == 1
    kernels = _kernel(M, impulse_geometry := _At(impulse))
    assert (kernels != 0).sum((1, 2)).tolist() == [1] * 6 and impulse_geometry.kernel_size == 3
    torch.testing.assert_close(nearest(M, impulse_geometry.geometry, 3), M, rtol=1e-12, atol=1e-12)
    assert not torch.equal(M, other.matrices())


class _At:
    def __init__(self, mixer):
        self.geometry, self.kernel_size = Geometry(grid=mixer.grid), mixer.kernel_size
