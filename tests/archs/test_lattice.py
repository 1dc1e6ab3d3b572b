"""The lattice's frame is the same for every mixer: weights, stream, start, decay, costs; and mixers' identities."""

import pytest
import torch
from timm.optim import param_groups_weight_decay
from torch import Tensor

import archs
from archs import lattice
from archs.ingredients import declared
from archs.ingredients.mixer import Mixer
from engine.cost.profile import profile
from engine.cost.record import record

MIXERS = declared.names()
FRAMES = ("metaformer", "resmlp", "convmixer")
SMALL = {"img_size": 12, "patch_size": 2, "dim": 12, "depth": 2}


def make(mixer: str, seed: int = 0, name: str = "lattice_s", **given: object) -> torch.nn.Module:
    torch.manual_seed(seed)
    return archs.create(name, mixer=mixer, **given)


def mixers_of(model: torch.nn.Module) -> list[Mixer]:
    return [module for module in model.modules() if isinstance(module, Mixer)]


def images(size: int = 12, batch: int = 3) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


# --- one frame


@pytest.mark.parametrize("frame", FRAMES)
def test_the_frames_weights_are_bit_for_bit_the_same_for_every_mixer(frame):
    def frame_of(mixer: str, **given: object) -> dict[str, Tensor]:
        model = make(mixer, 3, frame=frame, **SMALL, **given)
        inside = tuple(key for key, module in model.named_modules() if isinstance(module, Mixer))
        return {key: value for key, value in model.state_dict().items() if not key.startswith(inside)}

    dense = frame_of("dense")
    cells = [(mixer, {}) for mixer in MIXERS] + [("kernel", {"scrambled": True}), ("dense", {"frozen": True})]
    for mixer, given in cells:
        other = frame_of(mixer, **given)
        assert other.keys() == dense.keys() and all(torch.equal(other[key], dense[key]) for key in dense), mixer
    # Positions, another stem and another number of classes leave the blocks alone as well.
    for given in ({"position": "learned"}, {"stem": "unshared"}, {"num_classes": 7}):
        other = frame_of("dense", **given)
        assert all(torch.equal(other[key], dense[key]) for key in dense if key.startswith("stages"))
    assert not torch.equal(make("dense", 4, frame=frame, **SMALL).head.weight, dense["head.weight"])


def test_blocks_and_seeds_have_mixers_of_their_own_and_all_blocks_one_order():
    one, two = mixers_of(make("kernel", 0, **SMALL, scrambled=True))
    other = mixers_of(make("kernel", 1, **SMALL, scrambled=True))[0]
    again = mixers_of(make("depthwise", 0, **SMALL, scrambled=True))[0]
    assert not torch.equal(one.weight, two.weight) and not torch.equal(one.weight, other.weight)
    assert torch.equal(one.order, two.order) and torch.equal(one.order, again.order)
    assert not torch.equal(one.order, other.order) and torch.equal(one.order.sort().values, torch.arange(36))
    assert "stages.0.0.0.branch.order" in make("kernel", **SMALL, scrambled=True).state_dict()


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("mixer", MIXERS)
def test_the_stream_is_float32_and_products_are_bfloat16_under_autocast(mixer, frame):
    model, stream = make(mixer, frame=frame, **SMALL), []
    for each in [*model.blocks(), *(block[i] for block in model.blocks() for i in (0, 1)), model.norm]:
        each.register_forward_pre_hook(lambda _, given: stream.append(given[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(images())
    logits.float().sum().backward()
    assert set(stream) == {torch.float32} and len(stream) == 7 and logits.dtype == torch.bfloat16
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_decayed_are_all_matrices_but_tables_and_positions():
    for mixer in MIXERS:
        model = make(mixer, **SMALL, position="learned")
        decayed, _ = (
            {id(weight) for weight in group["params"]}
            for group in sorted(
                param_groups_weight_decay(model, 0.05, no_weight_decay_list=model.no_weight_decay()),
                key=lambda group: -group["weight_decay"],
            )
        )
        names = {key for key, weight in model.named_parameters() if id(weight) in decayed}
        tables = {key for key, _ in model.named_parameters() if key.endswith((".table", "pos_embed"))}
        assert names == {key for key, weight in model.named_parameters() if weight.ndim > 1} - tables
        own = {key for key, _ in mixers_of(model)[0].named_parameters()} - {"table"}
        assert {f"stages.0.0.0.branch.{key}" for key in own} <= names, mixer


def test_frozen_mixers_have_no_parameters_and_stay():
    for mixer in (name for name in MIXERS if "frozen" in declared.read(name).takes):
        model, live = make(mixer, **SMALL, frozen=True), make(mixer, **SMALL)
        assert not list(mixers_of(model)[0].parameters())
        state = live.state_dict()
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items()), "its own start"
        assert torch.equal(model(images()), live(images()))


@pytest.mark.parametrize("stem", ["shared", "unshared", "pixels"])
def test_stems_are_linear_maps_with_one_bias_per_channel(stem):
    model = make("none", stem=stem, **SMALL).double()
    x, weight = images().double(), model.stem.weight.data
    model.stem.bias.data.normal_()
    each = torch.stack([x[:, :, i : i + 2, j : j + 2].flatten(1) for i in range(0, 12, 2) for j in range(0, 12, 2)], 1)
    if stem == "shared":
        expected = each @ weight.T
    elif stem == "unshared":
        expected = torch.einsum("bnp,ncp->bnc", each, weight)
    else:
        expected = (x.flatten(1) @ weight.T).reshape(3, 36, 12)
    expected = (expected + model.stem.bias).reshape(3, 6, 6, 12)
    torch.testing.assert_close(model.stem(x), expected, rtol=1e-10, atol=1e-10)
    assert model.stem.bias.shape == (12,) and weight.std().item() == pytest.approx(weight.shape[-1] ** -0.5, rel=0.15)


def test_frames_are_what_they_say():
    """Each frame's block against the formulas, with `none` as the mixer."""
    x = torch.randn(5, 3, 3, 8, dtype=torch.float64)
    gelu, linear = torch.nn.functional.gelu, torch.nn.functional.linear
    given = {"img_size": 6, "patch_size": 2, "dim": 8, "depth": 1}

    def normed(x: Tensor) -> Tensor:
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()

    def batch_normed(x: Tensor) -> Tensor:
        axes = tuple(range(x.ndim - 1))
        return (x - x.mean(axes)) / (x.var(axes, unbiased=False) + 1e-5).sqrt()

    for frame, norm, scale in (("metaformer", normed, 1.0), ("resmlp", lambda x: x, 0.1)):
        model = make("none", frame=frame, **given).double()
        block, g0 = model.blocks()[0], mixers_of(model)[0].weight.item()
        assert g0 == pytest.approx(2**-0.5 if frame == "metaformer" else 1.0, rel=1e-6)
        mlp = block[1].branch
        y = x + scale * g0 * norm(x)
        hidden = gelu(linear(norm(y), mlp.fc1.weight))
        expected = y + scale * linear(hidden, mlp.fc2.weight)
        torch.testing.assert_close(block(x), expected, rtol=1e-6, atol=1e-6)
    model = make("none", frame="convmixer", **given).double().train()
    block = model.blocks()[0]
    y = x + batch_normed(gelu(mixers_of(model)[0].weight.item() * x))
    expected = batch_normed(gelu(linear(y, block[1][0].weight)))
    torch.testing.assert_close(block(x), expected, rtol=1e-6, atol=1e-6)
    assert isinstance(model.norm, torch.nn.Identity)
    eps = {
        type(m).__name__: m.eps for f in FRAMES for m in make("none", frame=f, **given).modules() if hasattr(m, "eps")
    }
    assert eps == {"LayerNorm": 1e-6, "BatchNorm2d": 1e-5}


def test_a_batch_is_judged_in_running_statistics():
    """The frame with BN gives an image the same logits alone and among others once it is not in training."""
    model = make("depthwise", frame="convmixer", **SMALL).train()
    x = images(batch=16)
    model(x)
    model.eval()
    torch.testing.assert_close(model(x)[:1], model(x[:1]), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(model.train()(x)[:1], model.eval()(x[:1]), rtol=1e-2)


# --- costs


COSTS = {  # parameters of a block, nominal and executed MACs of a block, of the model: 10 ** 3 and 10 ** 6
    "none": (0, 0, 0, 8.59, 8.59),
    "average": (0, 0, 0, 8.59, 8.59),
    "pooling": (0, 0, 0, 8.59, 8.59),
    "shift": (0, 0, 0, 8.59, 8.59),
    "dense": (4_096, 262, 262, 9.63, 9.63),
    "dense_from_kernel": (4_096, 262, 262, 9.63, 9.63),
    "dense_from_impulse": (4_096, 262, 262, 9.63, 9.63),
    "dial": (4_105, 262, 262, 9.63, 9.63),
    "banded": (484, 31, 262, 8.71, 9.63),
    "toeplitz": (225, 262, 262, 9.63, 9.63),
    "kernel": (9, 31, 262, 8.71, 9.63),
    "dense_c": (262_144, 262, 262, 9.63, 9.63),
    "banded_c": (30_976, 31, 262, 8.71, 9.63),
    "toeplitz_c": (14_400, 262, 262, 9.63, 9.63),
    "depthwise": (576, 31, 37, 8.71, 8.73),
    "circulant_c": (4_096, 262, 262, 9.63, 9.63),
    "two": (4_096, 262, 262, 9.63, 9.63),
    "token_mlp": (4_096, 262, 262, 9.63, 9.63),
    "gate": (4_096, 262, 262, 9.63, 9.63),
    "axial": (128, 66, 66, 8.85, 8.85),
    "monarch": (1_024, 66, 66, 8.85, 8.85),
    "toeplitz_projected": (9_092, 786, 786, 11.73, 11.73),
    "distance": (9_092, 786, 786, 11.73, 11.73),
    "attention": (17_284, 1573, 1573, 14.88, 14.88),
    "attention_window": (16_420, 1111, 1573, 13.03, 14.88),
    "set_attention": (16_384, 1573, 1573, 14.88, 14.88),
}
FRAME = (137_290, 8_585_856)


def counted(mixer: str, **given: object) -> tuple[int, int]:
    with torch.device("meta"):
        model = make(mixer, **given)
        macs = record(model, torch.empty(1, 3, 32, 32)).macs
    return sum(parameter.numel() for parameter in model.parameters()), macs


@pytest.mark.parametrize("mixer", MIXERS)
def test_parameters_and_macs_by_the_counter(mixer):
    params, nominal, executed, nominal_model, executed_model = COSTS[mixer]
    found, macs = counted(mixer)
    assert found == FRAME[0] + 4 * params
    own = mixers_of(make(mixer))[0].macs()
    assert [round(count / 1e3) for count in own] == [nominal, executed]
    assert macs == FRAME[1] + 4 * own[1], "what the mixer says it executes is what is counted"
    given = archs.arguments("lattice_s", mixer=mixer)
    assert round(macs / 1e6, 2) == executed_model
    assert round(lattice.nominal_macs(macs, given) / 1e6, 2) == nominal_model


@pytest.mark.parametrize(
    ("mixer", "given", "params", "macs"),
    [
        ("two", {"hidden": 64}, 137_290 + 4 * 8_192, 10.68),
        ("dense", {"stem": "unshared"}, 153_674 + 63 * 64 * 48, 9.63),
        ("dense", {"stem": "pixels"}, 153_674 - 3_072 + 3_072 * 4_096, 22.02),
        ("dense", {"position": "learned"}, 153_674 + 4_096, 9.63),
        ("dense", {"groups": 16}, 137_290 + 4 * 65_536, 9.63),
        ("depthwise", {"wrap": True}, 139_594, 8.73),
        ("dial", {"groups": 64, "gated": True}, 137_290 + 4 * (262_144 + 576 + 1), 9.63),
        ("dense", {"frame": "convmixer", "dim": 160}, None, 9.67),
        ("depthwise", {"frame": "convmixer", "dim": 160}, None, 7.42),
        ("attention", {"dim": 56}, None, 11.64),
        ("attention", {"dim": 48}, None, 8.80),
    ],
)
def test_costs_of_other_arguments(mixer, given, params, macs):
    found = counted(mixer, **given)
    assert params in (None, found[0]) and round(found[1] / 1e6, 2) == macs


def test_one_product_counts_the_same_however_it_is_written():
    """An expanded matrix, a product per channel and an einsum."""
    x, m = torch.randn(1, 64, 64), torch.randn(64, 64)

    class Written(torch.nn.Module):
        def __init__(self, how):
            super().__init__()
            self.how = how

        def forward(self, x):
            return self.how(x)

    ways = (
        lambda x: torch.bmm(m.expand(len(x), -1, -1), x),
        lambda x: torch.bmm(m.expand(64, -1, -1), x.permute(2, 1, 0)).permute(2, 1, 0),
        lambda x: torch.einsum("ij,bjc->bic", m, x),
    )
    assert {record(Written(way), x).macs for way in ways} == {64**3}


# --- start


def second_moment(side: int) -> Tensor:
    """R by its formula, token by token."""
    far = [[max(abs(i // side - j // side), abs(i % side - j % side)) for j in range(side**2)] for i in range(side**2)]
    return torch.tensor(
        [[0.19 + 0.81 * 2.718281828459045 ** (-d / 1.1) for d in row] for row in far], dtype=torch.float64
    )


def mean_square(mixer: Mixer, side: int) -> float:
    """trace(M R M^T) / N, M read off token by token."""
    matrices = torch.zeros(mixer.dim, side**2, side**2, dtype=torch.float64)
    for j in range(side**2):
        token = torch.zeros(1, side**2, mixer.dim, dtype=torch.float64)
        token[0, j] = 1
        matrices[:, :, j] = mixer(token.unflatten(1, (side, side))).detach().flatten(1, 2)[0].T
    return sum((m @ second_moment(side) @ m.T).trace().item() for m in matrices) / matrices[0, 0].numel() / mixer.dim


@pytest.mark.parametrize(("frame", "g0"), [("metaformer", 0.5), ("resmlp", 1.0), ("convmixer", 1.0)])
def test_every_linear_mixer_starts_with_one_mean_square(frame, g0):
    """Frozen, fixed, factored or scrambled ones, too; of projected ones, what stands between the maps."""
    for name in MIXERS:
        takes = declared.read(name).takes
        if {"gate": 1, "token_mlp": 1}.get(name) or declared.read(name).axes["rows"] == "average":
            continue
        for given in ({}, *({key: True} for key in ("scrambled", "wrap", "frozen") if key in takes)):
            (mixer, _) = mixers_of(make(name, 2, frame=frame, **SMALL, **given).double())
            for key in ("v", "proj"):
                if hasattr(mixer, key):
                    getattr(mixer, key).weight.data.copy_(torch.eye(12))
            assert mean_square(mixer, 6) == pytest.approx(g0**2, rel=1e-5), (name, given)


@pytest.mark.parametrize("mixer", ["dense", "kernel", "gate", "token_mlp"])
def test_arguments_of_the_start_have_their_effect(mixer):
    """White tokens, another gain, another exponent: what M is follows the first two and not the third."""
    plain, white, soft, stored = (
        mixers_of(make(mixer, **given))[0]
        for given in ({}, {"correlation_floor": 0, "correlation_length": 0}, {"gain": 0.2}, {"storage_exponent": 0})
    )
    last = list(plain.constant)[-1]
    assert plain.start.second_moment((2, 2)).tolist()[0] == pytest.approx([1.0] + 3 * [0.19 + 0.81 / 2.4823], rel=1e-4)
    assert torch.equal(white.start.second_moment((2, 2)), torch.eye(4, dtype=torch.float64))
    torch.testing.assert_close(soft.value(last), 0.2 * plain.value(last))
    torch.testing.assert_close(stored.value(last), plain.value(last))
    assert stored.constant[last] == 1 and (mixer == "dense") == (plain.constant[last] == 1)


@pytest.mark.parametrize("mixer", [name for name in MIXERS if declared.read(name).axes["learned"] == "yes"])
def test_mixing_tensors_are_stored_with_the_deviation_of_denses(mixer):
    """g0 / sqrt(N), to the draw and what the start's rule changes; maps of the channels as W1's, 1 / sqrt(C)."""
    model = make(mixer, groups=4) if mixer in ("kernel", "toeplitz") else make(mixer)
    (first, *_), g0 = mixers_of(model), 8**-0.5
    for key in first.constant:
        spread = 0.5 if mixer in ("kernel", "dial", "dense_from_kernel") else 0.2
        assert getattr(first, key).square().mean().sqrt().item() == pytest.approx(g0 / 8, rel=spread), key
    for key in ("v", "k"):
        if hasattr(first, key):
            assert getattr(first, key).weight.std().item() == pytest.approx(1 / 8, rel=0.05)
    for key in ("q", "table"):
        if hasattr(first, key):
            assert not any(value.any() for name, value in first.named_parameters() if name.startswith(key))


@pytest.mark.parametrize(("mixer", "trace"), [("distance", 0.274), ("attention", 0.274), ("attention_window", 0.525)])
def test_averages_start_uniform_and_the_map_behind_makes_up_for_it(mixer, trace):
    first = mixers_of(make(mixer))[0]
    assert first.proj.weight.std().item() == pytest.approx((1 / 8 / 64 / trace) ** 0.5, rel=0.03)
    assert first.mean_square() == pytest.approx(trace, abs=5e-4)


def test_the_frames_branches_and_tokens_start_as_large_as_they_should():
    model = make("dense")
    block = model.blocks()[2]
    assert block[1].branch.fc1.weight.std().item() == pytest.approx(1 / 8, rel=0.02)
    assert block[1].branch.fc2.weight.std().item() == pytest.approx((8 * 0.4252 * 256) ** -0.5, rel=0.02)
    assert model.stem.weight.std().item() == pytest.approx(48**-0.5, rel=0.03)
    assert model.head.weight.std().item() == pytest.approx(0.02, rel=0.06)
    assert make("none", position="learned").stem.pos_embed.std().item() == pytest.approx(0.02, rel=0.03)
    x = torch.randn(64, 8, 8, 64)
    channels = block[1].branch(torch.nn.functional.layer_norm(x, (64,)))
    assert channels.square().mean().item() == pytest.approx(1 / 8, rel=0.05)
    for frame, deviation in (("resmlp", 0.02), ("convmixer", 1 / 8)):
        second = make("dense", frame=frame).blocks()[0][1]
        weight = second.branch.fc2.weight if frame == "resmlp" else second[0].weight
        assert weight.std().item() == pytest.approx(deviation, rel=0.03)
    for name, value in model.named_parameters():
        assert not name.endswith("bias") or not value.any()


# --- refusals


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"mixer": "kernal"}, "lattice_s: mixer 'kernal' is unknown; close: kernel"),
        ({"mixer": "dense", "kernel_size": 5}, "lattice_s: mixer dense has no kernel_size; it has: groups, frozen"),
        ({"mixer": "none", "frozen": True}, "lattice_s: mixer none has no frozen; it has: no arguments"),
        ({"mixer": "attention", "frozen": True}, "mixer attention has no frozen; it has: num_heads, scrambled"),
        ({"mixer": "dense", "scrambled": True}, "mixer dense has no scrambled"),
        ({"mixer": "kernel", "kernel_size": 2}, "kernel_size 2 must be odd"),
        (
            {"mixer": "depthwise", "kernel_size": 9, "wrap": True},
            "kernel_size 9 with wrap is wider than the grid of 8 x 8 tokens, .*; at most 7",
        ),
        ({"mixer": "dense", "groups": 3}, "dim 64 is not a multiple of groups 3"),
        ({"mixer": "distance", "num_heads": 5}, "dim 64 is not a multiple of num_heads 5"),
        ({"frame": "resnet"}, "frame 'resnet' is unknown; known: metaformer, resmlp, convmixer"),
        ({"stem": "conv"}, "stem 'conv' is unknown; known: shared, unshared, pixels"),
        ({"position": "sine"}, "position 'sine' is unknown; known: none, learned"),
        ({"frame": "convmixer", "mlp_ratio": 2.0}, "frame convmixer has no mlp_ratio"),
        ({"gain": 0}, "gain 0 is not a number above 0"),
        ({"wrap": 1}, "wrap 1 is neither true nor false"),
    ],
)
def test_what_makes_no_sense_is_one_line(given, words):
    with pytest.raises(ValueError, match=words) as caught:
        archs.create("lattice_s", **given)
    assert "\n" not in str(caught.value)


def test_costs_that_the_family_tells_of_mixers_are_counted_ones():
    for text, told in lattice.EXPECTED_WITH.items():
        variant, *words = text.split()
        own = lattice.VARIANTS[variant]
        shape = {key: own[key] for key in ("img_size", "in_chans", "num_classes")}
        counted = profile(f"lattice_{variant}", **shape, **dict(word.split("=") for word in words))
        assert {key: counted[key] for key in told} == told, text
