"""Mixers that must be one function are, in float64; and each has the symmetries that follow from its axes."""

import copy

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, softmax

import archs
from analysis.bias import symmetry
from analysis.bias.symmetry import GROUPS, expected, signature, verdict
from archs import lattice
from archs.ingredients import declared
from archs.ingredients.mixer import Mixer
from archs.parts.relabeling import Relabeling
from engine.optim import make_optimizer
from engine.run import Run

SIDE, DIM = 6, 8
SMALL = {"img_size": 2 * SIDE, "patch_size": 2, "dim": DIM, "depth": 2}
MIXERS = declared.names()


def model(mixer: str, **given: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return archs.create("lattice_s", mixer=mixer, **{**SMALL, **given}).double()


def mixer(name: str, **given: object) -> Mixer:
    """One with random numbers."""
    made = next(module for module in model(name, **given).modules() if isinstance(module, Mixer))
    generator = torch.Generator().manual_seed(1)
    for value in made.parameters():
        value.data.copy_(torch.randn(value.shape, generator=generator, dtype=torch.float64))
    return made


def tokens(width: int = SIDE) -> Tensor:
    return torch.randn(3, SIDE, width, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


# --- identities


@pytest.mark.parametrize("wrap", [False, True])
def test_depthwise_is_its_matrices(wrap):
    convolution, matrices = mixer("depthwise", wrap=wrap), mixer("kernel", wrap=wrap, groups=DIM)
    matrices.load_state_dict(convolution.state_dict())
    same(convolution(tokens()), matrices(tokens()))


@pytest.mark.parametrize("name", ["kernel", "depthwise", "banded", "pooling", "shift"])
@pytest.mark.parametrize("wrap", [False, True])
def test_windows_read_what_is_beside_a_token(name, wrap):
    """Against a sum over displacements, place by place."""
    made, x = mixer(name, wrap=wrap), tokens()
    y = torch.zeros_like(x)
    value = made.value("weight").detach() if name != "pooling" else None
    entry = 0
    for i in range(SIDE):
        for j in range(SIDE):
            # Banded weights stand in the order of the tokens that are read.
            near = sorted(
                ((i + a) % SIDE * SIDE + (j + b) % SIDE, a, b)
                for a in (-1, 0, 1)
                for b in (-1, 0, 1)
                if wrap or (0 <= i + a < SIDE and 0 <= j + b < SIDE)
            )
            for token, a, b in near:
                read = x[:, token // SIDE, token % SIDE]
                if name == "banded":
                    y[:, i, j] += value[0, entry] * read
                    entry += 1
                elif name == "pooling":
                    y[:, i, j] += made.weight.item() / 9 * read
                elif name == "shift":
                    for c in range(DIM):
                        y[:, i, j, c] += made.weight.item() * (c % 9 == 3 * (a + 1) + b + 1) * read[:, c]
                else:
                    y[:, i, j] += value[:, a + 1, b + 1] * read
    same(made(x), y)


def test_circulant_is_a_filter_in_fourier_space():
    made, x = mixer("circulant_c"), tokens()
    spectrum = torch.fft.fft2(made.value("weight").permute(1, 2, 0), dim=(0, 1)).conj()
    same(made(x), torch.fft.ifft2(torch.fft.fft2(x, dim=(1, 2)) * spectrum, dim=(1, 2)).real)


def test_monarch_of_equal_blocks_is_axial_and_axial_a_kronecker_product():
    axial, monarch = mixer("axial"), mixer("monarch")
    for key, source in (("in_rows", "columns"), ("in_columns", "rows")):
        ratio = axial.constant[source] / monarch.constant[key]
        getattr(monarch, key).data.copy_(ratio * getattr(axial, source).data.expand(SIDE, -1, -1))
    same(monarch(tokens()), axial(tokens()))
    m = torch.kron(axial.value("rows"), axial.value("columns"))
    same(axial(tokens()), torch.einsum("ij,bjc->bic", m, tokens().flatten(1, 2)).unflatten(1, (SIDE, SIDE)))


def test_a_window_over_the_whole_grid_is_no_window():
    wide = 2 * SIDE - 1
    for local, everywhere in (("kernel", "toeplitz"), ("depthwise", "toeplitz_c"), ("attention_window", "attention")):
        one, other = mixer(local, kernel_size=wide), mixer(everywhere)
        other.load_state_dict(one.state_dict())
        same(one(tokens()), other(tokens()))
        wider = mixer(local, kernel_size=wide + 2)  # its rim has nothing to read
        key = "table" if local == "attention_window" else "weight"
        other.load_state_dict({**wider.state_dict(), key: wider.state_dict()[key][:, 1:-1, 1:-1]})
        same(wider(tokens()), other(tokens()))
    banded, dense = mixer("banded", kernel_size=wide), mixer("dense")
    dense.weight.data.copy_(banded.weight.data.reshape(dense.weight.shape))
    same(banded(tokens()), dense(tokens()))


@pytest.mark.parametrize("given", [{}, {"kernel_size": 5}])
def test_a_banded_matrix_of_shared_weights_is_a_kernel(given):
    kernel, banded = mixer("kernel", **given), mixer("banded", **given)
    banded.weight.data.copy_(kernel.matrices().flatten()[banded.entries] / banded.constant["weight"])
    same(banded(tokens()), kernel(tokens()))


@pytest.mark.parametrize(
    "pair", [("dense", "dense_c"), ("banded", "banded_c"), ("toeplitz", "toeplitz_c"), ("kernel", "depthwise")]
)
def test_equal_weights_in_all_channels_are_one_matrix(pair):
    one, each = (mixer(name) for name in pair)
    each.weight.data.copy_(one.weight.data.expand_as(each.weight))
    same(each(tokens()), one(tokens()))
    groups = mixer(pair[0], groups=4)
    groups.weight.data.copy_(one.weight.data.expand_as(groups.weight))
    same(groups(tokens()), one(tokens()))


def test_attention_without_queries_is_distance():
    distance, attention = mixer("distance"), mixer("attention")
    attention.q.weight.data.zero_()
    for key in ("table", "v.weight", "proj.weight"):
        attention.state_dict()[key].copy_(distance.state_dict()[key])
    same(attention(tokens()), distance(tokens()))
    # As models they start as one function, whatever their keys.
    x = torch.randn(2, 3, 2 * SIDE, 2 * SIDE, dtype=torch.float64)
    same(model("attention")(x), model("distance")(x))
    distance.table.data.zero_()
    average = mixer("average")
    average.weight.fill_(1)
    same(distance(tokens()), distance.proj(average(distance.v(tokens()))))


def test_attention_is_softmax_attention():
    made, x = mixer("attention"), tokens().flatten(1, 2)
    y = torch.empty_like(x)
    for head in range(4):
        mine = slice(2 * head, 2 * head + 2)
        q, k, v = (x @ getattr(made, key).weight.T[:, mine] for key in "qkv")
        b = torch.empty(SIDE**2, SIDE**2, dtype=torch.float64)
        for i in range(SIDE**2):
            for j in range(SIDE**2):
                b[i, j] = made.table[head, j // SIDE - i // SIDE + SIDE - 1, j % SIDE - i % SIDE + SIDE - 1]
        y[..., mine] = softmax(q @ k.transpose(1, 2) / 2**0.5 + b, -1) @ v
    same(made(tokens()).flatten(1, 2), y @ made.proj.weight.T)


def test_gate_two_and_token_mlp_are_their_formulas():
    gate, two, mlp, x = mixer("gate"), mixer("two"), mixer("token_mlp"), tokens().flatten(1, 2)
    same(gate(tokens()).flatten(1, 2), x * torch.einsum("ij,bjc->bic", gate.value("weight")[0], x))
    for made, act in ((two, lambda z: z), (mlp, torch.nn.functional.gelu)):
        expected = torch.einsum(
            "ih,bhc->bic", made.value("fc2"), act(torch.einsum("hj,bjc->bhc", made.value("fc1"), x))
        )
        same(made(tokens()).flatten(1, 2), expected)


def losses(net: torch.nn.Module, batches: list[tuple[Tensor, Tensor]]) -> list[float]:
    optimizer, found = make_optimizer(Run(opt="adamw", lr=1e-2, weight_decay=0.05), net), []
    for x, y in batches:
        loss = cross_entropy(net(x), y)
        found.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return found


@pytest.mark.parametrize("name", ["kernel", "depthwise", "monarch", "toeplitz_c"])
def test_a_scrambled_mixer_is_the_ordinary_one_on_images_whose_patches_are_shuffled(name):
    """Training as well, with the order handed over."""
    scrambled, plain = model(name, scrambled=True), model(name)
    weights = {key: value for key, value in scrambled.state_dict().items() if not key.endswith("order")}
    plain.load_state_dict(weights)
    order = scrambled.state_dict()["stages.0.0.0.branch.order"]
    shuffle = Relabeling.of_patches((3, 2 * SIDE, 2 * SIDE), 2, order)
    generator = torch.Generator().manual_seed(3)
    batches = []
    for _ in range(6):
        x = torch.randn(8, 3, 2 * SIDE, 2 * SIDE, dtype=torch.float64, generator=generator)
        batches.append((x, torch.randint(10, (8,), generator=generator)))
    straight = losses(copy.deepcopy(plain), batches)
    shuffled = losses(plain, [(shuffle(x), y) for x, y in batches])
    assert losses(scrambled, batches) == pytest.approx(shuffled, rel=1e-10)
    assert abs(straight[-1] - shuffled[-1]) > 1e-4


def test_grids_need_not_be_square_and_every_mixer_runs_on_them():
    for name in MIXERS:
        assert model(name, img_size=(12, 8))(torch.randn(2, 3, 12, 8).double()).isfinite().all()


# --- symmetry


CELLS = [(name, {}) for name in MIXERS]
CELLS += [(name, {"wrap": True}) for name in MIXERS if "wrap" in declared.read(name).takes]
CELLS += [(name, {"scrambled": True}) for name in ("kernel", "monarch", "shift", "attention")]
CELLS += [("dense", {"frozen": True}), ("depthwise", {"frozen": True}), ("dense", {"groups": 4})]
CELLS += [(name, {"stem": stem}) for name in ("dense", "kernel") for stem in ("unshared", "pixels")]
CELLS += [
    ("dense", {"position": "learned"}),
    ("set_attention", {"position": "learned"}),
    ("kernel", {"position": "learned"}),
]
CELLS += [(name, {"frame": frame}) for name in ("dense", "depthwise") for frame in ("resmlp", "convmixer")]
IDS = [" ".join([name, *(f"{key}={value}" for key, value in given.items())]) for name, given in CELLS]


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(symmetry, "STEPS", 5)
    monkeypatch.setattr(symmetry, "LR", 1e-2)


def passing(name: str, opt: str = "adamw", **given: object) -> set[str]:
    verdicts = {
        group: verdict(gap)
        for group, gap in signature("lattice_nano", opt, mixer=name, dim=12, depth=1, **given).items()
    }
    assert "undetermined" not in verdicts.values(), verdicts
    return {group for group, word in verdicts.items() if word == "pass"}


@pytest.mark.parametrize(("name", "given"), CELLS, ids=IDS)
def test_a_mixer_has_the_symmetries_that_follow_from_its_axes(name, given):
    found, claimed = passing(name, **given), expected("lattice_nano", "adamw", mixer=name, **given)
    # Of a full matrix each step is blind to more than its start is, if that is a kernel.
    assert claimed < found if name.startswith("dense_from") else claimed == found


def test_pixels_stems_survive_a_rotation_under_sgd():
    assert (
        passing("kernel", "sgd", stem="pixels")
        == expected("lattice_nano", "sgd", mixer="kernel", stem="pixels")
        == set(GROUPS)
    )


def test_the_variants_claim_is_that_of_its_mixer():
    assert set(lattice.SYMMETRY) == set(archs.symmetry("lattice_nano"))
    table = {
        "kernel": {"within", "flip"},
        "circulant_c": {"within", "flip", "shift"},
        "axial": {"within", "rows_columns"},
        "two": {"within", "patches"},
        "shift": {"within"},
    }
    assert {name: set(archs.symmetry("lattice_s", mixer=name)) for name in table} == table
