"""Penalties against closed forms, entry by entry, their gradients, and which weights of which model they hold."""

import itertools

import pytest
import torch

import archs
from archs.ingredients import penalised, penalties
from archs.ingredients.lift import Geometry, lift


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def entries(V, geometry):
    """(value, output place, input place, input channel, unit) of each, the places as row and column in pixels."""
    at_out = list(itertools.product(range(geometry.out_grid[0]), range(geometry.out_grid[1])))
    at_in = list(itertools.product(range(geometry.grid[0]), range(geometry.grid[1])))
    rows = V.reshape(-1, V.shape[-1])
    for u, i in itertools.product(range(rows.shape[0]), range(rows.shape[1])):
        chan, place = divmod(i, len(at_in))
        yield rows[u, i].item(), at_out[u % len(at_out)], at_in[place], chan, u


SHAPES = [
    (Geometry(grid=(4, 5)), (2, 20, 20)),
    (Geometry(grid=(4, 4), stride=2, in_chans=3), (8, 48)),
    (Geometry(grid=(6, 4), stride=1, wrap=True), (24, 24)),
]
IDS = ["tokens", "first layer", "wrap"]


@pytest.mark.parametrize(("geometry", "shape"), SHAPES[:2], ids=IDS[:2])
def test_distance_is_the_sum_over_entries(geometry, shape):
    V, s = normal(*shape), geometry.stride
    expected = sum(
        v**2 * ((x - s * i - (s - 1) / 2) ** 2 + (y - s * j - (s - 1) / 2) ** 2)
        for v, (i, j), (x, y), _, _ in entries(V, geometry)
    )
    assert penalties.distance(V, geometry).item() == pytest.approx(expected, rel=1e-12)
    # Units that stand nowhere: the best of all middles.
    found = penalties.distance(V, geometry, placed=False).item()
    for shift in (0.0, 0.1):
        total = 0.0
        for u in {each[4] for each in entries(V, geometry)}:
            own = [(v**2, x, y) for v, _, (x, y), _, unit in entries(V, geometry) if unit == u]
            mass = sum(m for m, _, _ in own)
            at = [sum(m * place for m, *p in own for place in [p[axis]]) / mass + shift for axis in (0, 1)]
            total += sum(m * ((x - at[0]) ** 2 + (y - at[1]) ** 2) for m, x, y in own)
        assert found == pytest.approx(total, rel=1e-12) if not shift else found < total
    assert found < expected


@pytest.mark.parametrize(("geometry", "shape"), SHAPES, ids=IDS)
def test_toeplitz_and_mask_split_what_a_kernel_leaves(geometry, shape):
    """|V|^2 = |P M V|^2 + toeplitz; outside the window is mask; toeplitz with no window is the variance in classes."""
    V, k = normal(*shape), 3
    before = [(side_k - geometry.stride + 1) // 2 for side_k in (k, k)]

    def apart(out, into):
        d = [b - geometry.stride * a + p for a, b, p in zip(out, into, before, strict=True)]
        return tuple(x % side for x, side in zip(d, geometry.grid, strict=True)) if geometry.wrap else tuple(d)

    classes, outside = {}, 0.0
    for v, out, into, chan, u in entries(V, geometry):
        kind = (u // geometry.out_places, chan, apart(out, into))
        if all(0 <= x < k for x in kind[2]):
            classes.setdefault(kind, []).append(v)
        else:
            outside += v**2
    within = sum(sum((v - sum(own) / len(own)) ** 2 for v in own) for own in classes.values())
    assert penalties.mask(V, geometry, k).item() == pytest.approx(outside, rel=1e-12)
    assert penalties.toeplitz(V, geometry, k).item() == pytest.approx(outside + within, rel=1e-12)
    kernel = lift(normal(2, geometry.in_chans, k, k), geometry)
    assert penalties.toeplitz(kernel, geometry, k).item() < 1e-24
    assert penalties.toeplitz(kernel, geometry).item() < 1e-24 == penalties.mask(kernel, geometry, k).item() + 1e-24
    assert penalties.toeplitz(V, geometry).item() < penalties.toeplitz(V, geometry, k).item()


@pytest.mark.parametrize(("geometry", "shape"), SHAPES, ids=IDS)
def test_gradients(geometry, shape):
    V = normal(*shape).requires_grad_()
    for penalty in (
        lambda v: penalties.distance(v, geometry),
        lambda v: penalties.distance(v, geometry, placed=False),  # the centroid moves, and its gradient is 0
        lambda v: penalties.toeplitz(v, geometry, 3),
        lambda v: penalties.toeplitz(v, geometry),
        lambda v: penalties.mask(v, geometry, 3),
        penalties.lasso,
    ):
        assert torch.autograd.gradcheck(penalty, V, fast_mode=True)
    assert penalties.lasso(torch.tensor([1.5, 0.0, -2.0])).item() == 3.5


def test_threshold_zeroes_what_is_below_it_and_nothing_else():
    weight = torch.tensor([[0.5, -0.49, 0.0], [-0.5, 0.51, -3.0]])
    assert penalties.threshold_(weight, 0.5).tolist() == [[0.5, 0.0, 0.0], [-0.5, pytest.approx(0.51), -3.0]]


FOUND = {
    "mlp_nano": {"stem.0.proj.weight": False},
    "bmlp_nano": {"stem.proj.weight": False},
    "resmlp_nano": {"stages.0.0.0.branch.mix.weight": True},
    "gmlp_nano": {"stages.0.0.branch.": True},
    "mixer_nano": {"stages.0.0.0.branch.mix.fc1.weight": False},
    "lattice_nano": {"stages.0.0.0.branch.weight": True},
    "lattice_nano mixer=dial": {"stages.0.0.0.branch.rest": True},
    "lattice_nano mixer=banded": {"stages.0.0.0.branch.weight": True},
    "lattice_nano mixer=two": {"stages.0.0.0.branch.fc1": False},
    "lattice_nano mixer=kernel stem=pixels": {"stem.weight": True},
    "lattice_nano mixer=kernel": {},
    "deit_nano": {},
    "convmixer_nano": {},
}


@pytest.mark.parametrize("words", FOUND)
def test_what_is_held_is_what_reads_places(words):
    name, *given = words.split()
    model = archs.create(name, **dict(word.split("=") for word in given)).double()
    found = penalised.find(model)
    first = {matrix.name: matrix.placed for matrix in found[:1]}
    assert len(first) == len(FOUND[words]) and all(
        key.startswith(expected) and first[key] == placed
        for (expected, placed), key in zip(FOUND[words].items(), first, strict=True)
    )
    parameters = dict(model.named_parameters())
    for matrix in found:
        assert matrix.stored is parameters[matrix.name] and (
            not matrix.placed or matrix.geometry.view(matrix.dense()).numel()
        )


def test_dense_weights_are_what_the_layer_computes():
    """A first layer whose units stand on the tokens: read channel by channel, as a convolution's outputs are."""
    model = archs.create("lattice_nano", mixer="banded", stem="pixels", in_chans=2).double()
    stem, *mixers = penalised.find(model)
    x = normal(3, 2, 8, 8)
    y_BCHW = (model.stem(x) - model.stem.bias).permute(0, 3, 1, 2)
    weight = stem.dense().flatten(0, 1)
    torch.testing.assert_close(x.flatten(1) @ weight.T, y_BCHW.flatten(1))
    assert stem.geometry == Geometry(grid=(8, 8), stride=2, in_chans=2)
    assert mixers[0].dense().shape == (1, 16, 16) and mixers[0].stored.shape == (1, 100)
    assert mixers[0].constant == pytest.approx((16 / 6.25) ** 0.5)
