"""Every mixer stands on every axis where it says, measured on random weights in float64; a wrong word is caught.

What is measured is the module alone: nothing here reads a declaration before the comparison.
"""

import copy
import functools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import archs
from archs import lattice
from archs.ingredients import declared
from archs.ingredients.axes import AXES, DASH, MEANING, base, dashed
from archs.ingredients.mixer import Mixer
from archs.parts.family import FamilyError

# As many channels as a window of 3 x 3 has displacements, which `shift` deals out.
GRID, DIM, EPS = (5, 6), 9, 1e-9
TOKENS = GRID[0] * GRID[1]
OWN = {"img_size": GRID, "patch_size": 1, "dim": DIM, "depth": 2, "num_classes": 3, "num_heads": 3, "hidden": 7}
MORE = [
    ("dense", {"groups": 3}),
    ("dense", {"groups": 9}),
    ("toeplitz", {"groups": 3}),
    ("kernel", {"kernel_size": 5}),
    ("attention_window", {"wrap": True}),
    ("attention_window", {"scrambled": True}),
    ("two", {"hidden": 12}),
    ("dial", {"strictness": 0}),
    ("dial", {"strictness": 1}),
    ("dial", {"strictness": 1, "groups": 9, "wrap": True, "scrambled": True}),
    ("dial", {"gated": True, "groups": 3}),
    ("dense_from_kernel", {"kernel_size": 5, "groups": 3}),
    ("dense_from_impulse", {"kernel_size": 5}),
]
CELLS = [(name, {}) for name in declared.names()] + MORE
CELLS += [
    (name, {key: True})
    for name in declared.names()
    for key in ("frozen", "scrambled")
    if key in declared.read(name).takes
]
CELLS += [(name, {"wrap": True}) for name in ("kernel", "banded", "depthwise", "banded_c", "pooling", "shift")]
IDS = [" ".join([name, *(f"{key}={value}" for key, value in given.items())]) for name, given in CELLS]


def given_of(name: str, own: dict) -> dict:
    return {**lattice.DEFAULTS, **OWN, **own, "mixer": name}


def fresh(name: str, own: dict, seed: int = 0) -> Mixer:
    """As a model starts with it."""
    given = given_of(name, own)
    given = {
        key: value
        for key, value in given.items()
        if key not in declared.of_mixers() or key in declared.read(name).takes
    }
    mixer = lattice._mixer({**lattice.DEFAULTS, **given}).double()
    order = torch.randperm(TOKENS, generator=torch.Generator().manual_seed(5))
    mixer.draw(torch.Generator().manual_seed(seed), order)
    return mixer


def randomised(name: str, own: dict, content: bool = True, identity: bool = False) -> Mixer:
    """With random numbers everywhere; no content: queries are zero; `identity`: so are the maps of the channels."""
    mixer, generator = fresh(name, own), torch.Generator().manual_seed(1)
    for value in mixer.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.randn(value.shape, generator=generator, dtype=torch.float64))
    maps = {key: value for key, value in mixer.named_parameters() if key.endswith(".weight")}
    if identity:
        for key in maps.keys() & {"v.weight", "proj.weight"}:
            maps[key].data.copy_(torch.eye(DIM))
    if not content and "q.weight" in maps:
        maps["q.weight"].data.zero_()
    return mixer.eval()


def tokens(seed: int = 2, batch: int = 1) -> Tensor:
    return torch.randn(batch, *GRID, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def jacobian(mixer: Mixer, x: Tensor) -> Tensor:
    """(N, C, N, C)."""
    with torch.enable_grad():
        full = torch.func.jacrev(lambda each: mixer(each[None])[0])(x[0])
    return full.detach().reshape(TOKENS, DIM, TOKENS, DIM)


def near(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-9, atol=EPS)


def places_of(index: int) -> tuple[int, int]:
    return divmod(index, GRID[1])


@functools.cache
def displacements(wrap: bool) -> Tensor:
    """(N, N): a number for each displacement from i to j."""
    rows, columns = torch.arange(TOKENS) // GRID[1], torch.arange(TOKENS) % GRID[1]
    down, right = rows[None] - rows[:, None], columns[None] - columns[:, None]
    if wrap:
        down, right = down % GRID[0], right % GRID[1]
    return down * 100 + right


def one_per_displacement(m: Tensor, average: bool, wrap: bool) -> bool:
    """Whether M depends on the displacement alone; of averages, up to the sum of their rows."""
    m = m / m.diagonal()[:, None] if average else m
    classes = displacements(wrap)
    return all(near(m[classes == d], m[classes == d][0]) for d in classes.unique())


def around(support: Tensor, kernel: int, wrap: bool) -> bool:
    """Whether the support is the window on the grid."""
    rows, columns = torch.arange(TOKENS) // GRID[1], torch.arange(TOKENS) % GRID[1]
    down, right = (rows[None] - rows[:, None]).abs(), (columns[None] - columns[:, None]).abs()
    if wrap:
        down, right = torch.minimum(down, GRID[0] - down), torch.minimum(right, GRID[1] - right)
    return torch.equal(support, torch.maximum(down, right) <= kernel // 2)


def rank_one(stack: Tensor) -> bool:
    values = torch.linalg.svdvals(stack)
    return bool((values[..., 1] < 1e-9 * values[..., 0]).all())


def form_of(m: Tensor) -> str:
    """Of an M of random weights: a product of two, in the grid's rows and columns, or neither."""
    h, w = GRID
    blocks = m.reshape(h, w, h, w)
    if rank_one(blocks.permute(0, 2, 1, 3).reshape(h * h, w * w)):
        return "kron"
    if rank_one(blocks.permute(1, 2, 0, 3)):
        return "monarch"
    rank = int(torch.linalg.matrix_rank(m, rtol=1e-9))
    return "full" if rank == TOKENS else f"two({rank})"


def measured(name: str, own: dict) -> dict[str, str]:
    """All axes of the module, dashes included."""
    x, axes = 0.1 * tokens(), {}  # small, for activations to be bent and not flat
    bare = randomised(name, own, content=False, identity=True)
    x_more = 0.1 * tokens(3)
    # act, gate: bare of content and maps, a channel is a function of itself.
    axes["gate"] = "yes" if near(bare(2 * x), 4 * bare(x)) else "no"
    linear = near(bare(2 * x), 2 * bare(x)) and near(bare(x + x_more), bare(x) + bare(x_more))
    axes["act"] = "none" if linear or axes["gate"] == "yes" else "gelu"
    # projected: only the maps let a channel read another.
    mapped = jacobian(randomised(name, own, content=False), x).abs().amax((0, 2))
    axes["projected"] = "yes" if (mapped - mapped.diagonal().diag()).max() > EPS else "no"
    # content: with queries, weights of a channel move with others.
    moved = x.clone()
    moved[..., 1:] = x_more[..., 1:]
    whole = randomised(name, own, identity=True)
    of_content = jacobian(whole, x)[:, 0, :, 0]
    axes["content"] = "no" if near(of_content, jacobian(whole, moved)[:, 0, :, 0]) else "yes"
    whole = whole if axes["content"] == "yes" else None

    each = torch.stack([jacobian(bare, x)[:, c, :, c] for c in range(DIM)])
    if axes["gate"] == "yes":  # of x M x without what stands on the diagonal beside M
        mixed = jacobian(bare, x)
        each = torch.stack([mixed[:, c, :, c] / x[0].reshape(TOKENS, DIM)[:, c, None] for c in range(DIM)])
        each.diagonal(dim1=1, dim2=2).copy_(torch.ones(DIM, TOKENS))
    support = (each.abs() > EPS).any(0)
    own_sum = each.sum(2)
    axes["rows"] = "average" if (each > -EPS).all() and near(own_sum, torch.ones_like(own_sum)) else "free"
    # channels: which two may be swapped.
    swaps = torch.zeros(DIM, DIM, dtype=torch.bool)
    for a in range(DIM):
        for b in range(DIM):
            order = torch.arange(DIM)
            order[[a, b]] = order[[b, a]]
            swaps[a, b] = near(swapped(bare, whole, x, order), (bare if whole is None else whole)(x)[..., order])
    count = len({tuple(row.tolist()) for row in swaps})
    axes["channels"] = "one" if count == 1 else "each" if count == DIM else f"groups({count})"
    # Blind: any order of the tokens goes through.
    order = torch.randperm(TOKENS, generator=torch.Generator().manual_seed(3))
    shuffled = x.flatten(1, 2)[:, order].unflatten(1, GRID)
    blind = near(bare(shuffled), bare(x).flatten(1, 2)[:, order].unflatten(1, GRID))
    # reach: the most that one token reads.
    most = int(support.sum(1).max())
    alone = torch.equal(support, torch.eye(TOKENS, dtype=torch.bool))
    axes["reach"] = "self" if alone else "all" if support.all() else f"window({round(most**0.5)})"
    axes["start"], axes["learned"] = start_of(name, own), "no" if not list(bare.parameters()) else "yes"
    # places, border, form, geometry: on the grid as it is, or else with the mixer's own order undone.
    average, fixed = axes["rows"] == "average", axes["start"] != "random"
    found = []
    for undo in (None, bare.order):
        matrices = each if undo is None else each[:, undo][:, :, undo]
        inside, m = (matrices.abs() > EPS).any(0), matrices[0]
        shared = {wrap: all(one_per_displacement(m, average, wrap) for m in matrices) for wrap in (False, True)}
        window = {wrap: base(axes["reach"]) == "window" and around(inside, round(most**0.5), wrap) for wrap in shared}
        if one_each(matrices):  # one weight in each row: the window is of all channels together
            window = {wrap: shared[wrap] and around(inside, round(most**0.5), wrap) for wrap in shared}
        form = "full" if fixed else form_of(m if whole is None else of_content)
        on_grid = any(shared.values()) or any(window.values()) or form in ("kron", "monarch")
        wraps = window[True] if base(axes["reach"]) == "window" else shared[True]
        found.append((on_grid, "blind" if blind else "displacement" if any(shared.values()) else "own", wraps, form))
        if bare.order is None:
            break
    right = next((i for i, (on_grid, *_) in enumerate(found) if on_grid), 0)
    _, axes["places"], wraps, axes["form"] = found[right]
    axes["border"], axes["geometry"] = "wrap" if wraps else "zeros", "scrambled" if right else "true"
    return dashed({axis: axes[axis] for axis in AXES})


def swapped(bare: Mixer, whole: Mixer | None, x: Tensor, order: Tensor) -> Tensor:
    """The output with channels of the input in another order; where content matters, of the values alone."""
    if whole is None:
        return bare(x[..., order])
    other = copy.deepcopy(whole)
    other.v.weight.data.copy_(torch.eye(DIM)[order])
    return other(x)


def one_each(matrices: Tensor) -> bool:
    return bool(((matrices.abs() > EPS).sum(2) <= 1).all())


def start_of(name: str, own: dict) -> str:
    """By the stored numbers of a model that starts."""
    mixer = fresh(name, own)
    stored = [value for value in [*mixer.parameters(), *mixer.buffers()] if value.is_floating_point()]
    if any(value.unique().numel() > 1 for value in stored):
        return narrower(name, own)
    each = jacobian(mixer, tokens()).diagonal(dim1=1, dim2=3)
    alone = all(torch.equal(each[..., c] != 0, torch.eye(TOKENS, dtype=torch.bool)) for c in range(DIM))
    return "impulse" if not alone and ((each != 0).sum(1) <= 1).all() else "mean"


def narrower(name: str, own: dict) -> str:
    """Of random numbers: whether all matrices over several draws are kernels, where those of any numbers are not."""
    if declared.read(name).axes["content"] == "yes" or kernels(randomised(name, own)):
        return "random"
    drawn = [fresh(name, own, seed) for seed in range(20)]
    if not all(map(kernels, drawn)):
        return "random"
    support = torch.stack([jacobian(mixer, tokens()).diagonal(dim1=1, dim2=3) != 0 for mixer in drawn])
    rows, columns = torch.arange(TOKENS) // GRID[1], torch.arange(TOKENS) % GRID[1]
    far = torch.maximum((rows[None] - rows[:, None]).abs(), (columns[None] - columns[:, None]).abs())
    side = 2 * int(far[support.any(0).any(-1)].max()) + 1
    return f"impulse({side})" if (support.sum(2) <= 1).all() else f"kernel({side})"


def kernels(mixer: Mixer) -> bool:
    """Whether each channel's matrix is zero somewhere, and one per displacement."""
    each = jacobian(mixer, tokens()).diagonal(dim1=1, dim2=3).permute(2, 0, 1)
    return bool((each == 0).any()) and all(one_per_displacement(m, False, False) for m in each)


@functools.cache
def _measured(index: int) -> dict[str, str]:
    return measured(*CELLS[index])


def _declared(index: int) -> dict[str, str]:
    name, own = CELLS[index]
    return declared.read(name).at(given_of(name, own))


@pytest.mark.parametrize("index", range(len(CELLS)), ids=IDS)
def test_a_mixer_stands_where_it_says(index):
    assert _measured(index) == _declared(index)


@pytest.mark.parametrize("axis", AXES)
def test_a_wrong_declaration_is_caught(axis):
    """Each mixer with each other value of the axis, unless a dash says that it cannot matter."""
    caught, seen = 0, set()
    for index, (name, own) in enumerate(CELLS[: len(declared.names())]):
        right = declared.read(name)
        for wrong in set(AXES[axis]) - {right.axes[axis]}:
            claimed = replace(right, axes={**right.axes, axis: wrong}).at(given_of(name, own))
            if _declared(index)[axis] == DASH or claimed == _declared(index):
                continue
            assert _measured(index) != claimed, (name, axis, wrong)
            caught += 1
            seen.add(wrong)
    assert caught > 3 and len(seen) >= len(AXES[axis]) - 1


def test_the_module_of_another_mixer_is_caught():
    """Of two cells with one declaration, `archs.difference` finds no axis either; dials also differ in what they are
    held to, which is no constraint on M."""
    for i, (name, own) in enumerate(CELLS):
        for j, (other, theirs) in enumerate(CELLS):
            if _declared(i) == _measured(j) and i != j and "dial" not in (name, other):
                a, b = (
                    ("lattice_nano", {"mixer": m, "dim": DIM, **kept(m, o)}) for m, o in ((name, own), (other, theirs))
                )
                assert not {each.what for each in archs.difference(a, b)} & AXES.keys()


def kept(name: str, own: dict) -> dict:
    """OWN's arguments of a mixer, and the cell's."""
    return {key: value for key, value in {**OWN, **own}.items() if key in declared.read(name).takes}


def test_every_value_of_every_axis_is_measured_on_some_mixer():
    seen = {(axis, base(value)) for i in range(len(CELLS)) for axis, value in _measured(i).items()}
    assert {(axis, value) for axis, values in AXES.items() for value in values} <= seen
    assert MEANING.keys() == AXES.keys()


# --- dashes


@pytest.mark.parametrize(
    ("name", "own"),
    [("dense", {}), ("two", {}), ("token_mlp", {}), ("gate", {}), ("set_attention", {}), ("average", {}), ("none", {})],
)
def test_scrambling_is_a_renaming_where_geometry_has_a_dash(name, own):
    """Moved weights do in the true order what the others do in a scrambled one."""
    assert _declared(declared.names().index(name))["geometry"] == DASH
    mixer, scrambled = randomised(name, own), randomised(name, own)
    scrambled.scramble()
    order = torch.randperm(TOKENS, generator=torch.Generator().manual_seed(7))
    scrambled.order.copy_(order)
    from archs.parts.relabeling import Relabeling

    relabeling = Relabeling.of_patches((1, *GRID), 1, order.argsort())
    moved = mixer.follow(mixer.state_dict(), relabeling)
    mixer.load_state_dict(moved)
    assert near(mixer(tokens()), scrambled(tokens()))


def test_places_and_channels_of_fixed_equal_weights_are_one():
    """With one number for all entries, a kernel of each place or channel's own is the same function."""
    pooling = fresh("pooling", {})
    for name in ("kernel", "banded", "depthwise", "banded_c"):
        mixer = fresh(name, {"frozen": True})
        mixer.weight.fill_(pooling.weight.item() / 9 / mixer.constant["weight"])
        assert near(mixer(tokens()), pooling(tokens()))


def test_border_has_a_dash_where_all_places_are_read_with_their_own_weights():
    """A matrix of own weights around the border is a matrix of own weights."""
    assert dashed({axis: values[0] for axis, values in AXES.items()})["border"] == DASH


# --- files


MIXER = (declared.MIXING / "dense.py").read_text()
MISTAKES = {
    "no AXES": ("AXES = {}", "", "has no AXES; add it"),
    "no literal": ("AXES = {}", "AXES = dict(a=1)", "has an AXES that is no literal; write it out"),
    "axis": ("AXES = {}", 'AXES = {"chanels": "each"}', "has the axis 'chanels' in AXES; did you mean 'channels'?"),
    "value": ("AXES = {}", 'AXES = {"reach": "near"}', "has reach='near' in AXES; it is one of all, window, self"),
    "class": ("class Mixing", "class Mixer", "has no class Mixing; class Mixing(Mixer), of archs/ingredients/mixer.py"),
    "init": ("def __init__", "def other", "has a Mixing without __init__"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_mixers_file_is_one_line(mistake, tmp_path):
    old, new, line = MISTAKES[mistake]
    (tmp_path / "mine.py").write_text(MIXER.replace(old, new))
    with pytest.raises(FamilyError) as caught:
        declared.read("mine", tmp_path)
    assert str(caught.value).startswith(f"archs/mixing/mine.py {line}") and "\n" not in str(caught.value)


def test_what_a_mixers_source_says_is_what_its_module_takes():
    """Arguments are of `build`, and mixers' files are named as modules."""
    import importlib
    import inspect

    for name in declared.names():
        module = importlib.import_module(f"archs.mixing.{name}")
        parameters = inspect.signature(module.Mixing).parameters.values()
        assert tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY) == declared.read(name).arguments
        assert set(declared.read(name).arguments) <= lattice.DEFAULTS.keys()
        assert module.AXES.items() <= declared.read(name).axes.items() and module.__doc__
