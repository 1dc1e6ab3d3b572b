"""Convolutions as dense weights and back, against torch's convolution and least squares, in float64."""

import pytest
import torch
from torch.nn.functional import conv2d, pad

from archs.ingredients import places
from archs.ingredients.lift import Geometry, lift, nearest, project


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def near(a, b):
    return torch.allclose(a, b, rtol=1e-12, atol=1e-12)


FIRST_LAYERS = [
    ((6, 8), 1, 3, 3, False),
    ((6, 8), 2, 3, 3, False),
    ((6, 8), 2, 2, 1, False),
    ((8, 12), 4, 5, 2, False),
    ((8, 12), 4, 2, 2, False),  # a window smaller than the stride
    ((6, 8), 1, (3, 5), 3, False),
    ((5, 6), 1, 4, 2, False),
    ((5, 6), 1, 3, 2, True),
    ((6, 6), 3, 5, 1, True),
]

WHOLE = [((4, 6), 2, None, 2, False), ((4, 4), 1, None, 1, True)]


@pytest.mark.parametrize(("grid", "stride", "kernel_size", "in_chans", "wrap"), FIRST_LAYERS)
def test_a_lifted_first_layer_is_the_convolution(grid, stride, kernel_size, in_chans, wrap):
    geometry = Geometry(grid=grid, stride=stride, in_chans=in_chans, wrap=wrap)
    kernels, x = normal(4, in_chans, *geometry.kernel(kernel_size)), normal(3, in_chans, *grid, seed=1)
    (top, left), (kh, kw) = geometry.padding(kernel_size), geometry.kernel(kernel_size)
    below, right = (geometry.stride * (side - 1) - before + k - whole for side, before, k, whole in zip(
        geometry.out_grid, (top, left), (kh, kw), grid, strict=True
    ))  # fmt: skip
    y = conv2d(pad(x, [left, right, top, below], mode="circular" if wrap else "constant"), kernels, stride=stride)
    weight = lift(kernels, geometry).flatten(0, 1)
    assert near(x.flatten(1) @ weight.T, y.flatten(1))
    if not wrap and min(top, left) >= 0 and (top, left) == (below, right):
        assert near(conv2d(x, kernels, padding=(top, left), stride=stride), y), "the padding that it names is torch's"
    assert near(project(weight, geometry, kernel_size), kernels)


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_lifted_token_mixing_is_the_lattices(kernel_size, wrap):
    grid, kernels = (5, 6), normal(4, kernel_size, kernel_size)
    mixing = places.toeplitz(places.widened(kernels, grid, wrap), grid)
    geometry = Geometry(grid=grid, wrap=wrap)
    assert torch.equal(lift(kernels[:, None], geometry), mixing)
    assert near(project(mixing, geometry, kernel_size)[:, 0], kernels)
    # Of all displacements, those outside the window are 0.
    whole = project(mixing, geometry)
    assert near(lift(whole, geometry), mixing)
    if not wrap:
        assert whole.shape[2:] == (9, 11) and near(whole[:, 0], places.widened(kernels, grid, False))
    assert torch.equal(geometry.inside(kernel_size), places.window(grid, kernel_size, wrap))


@pytest.mark.parametrize(("grid", "stride", "kernel_size", "in_chans", "wrap"), [*FIRST_LAYERS, *WHOLE])
def test_the_projection_is_the_least_squares_solution(grid, stride, kernel_size, in_chans, wrap):
    """Of V against the dense weights of every kernel of one 1, which shares no formula with it."""
    geometry = Geometry(grid=grid, stride=stride, in_chans=in_chans, wrap=wrap)
    V = normal(2, geometry.out_places, in_chans * geometry.in_places)
    shape = (in_chans, *geometry.kernel(kernel_size))
    basis = lift(torch.eye(shape[0] * shape[1] * shape[2], dtype=torch.float64).unflatten(1, shape), geometry)
    solution = torch.linalg.lstsq(basis.flatten(1).T, V.flatten(1).T, driver="gelsd").solution.T
    assert near(project(V, geometry, kernel_size), solution.unflatten(1, shape))


def test_the_nearest_convolution_is_a_projection():
    geometry = Geometry(grid=(6, 8), stride=2, in_chans=3)
    V = normal(24, 144)
    for kernel_size in (3, 5, None):
        close = nearest(V, geometry, kernel_size)
        assert close.shape == V.shape and near(nearest(close, geometry, kernel_size), close)
        assert abs(((V - close) * close).sum()) < 1e-10
        if kernel_size:  # P_T and M_k commute
            masked = geometry.view(V) * geometry.inside(kernel_size)[:, None]
            assert near(nearest(masked.reshape(V.shape), geometry), close)


def test_lift_and_project_have_gradients():
    geometry = Geometry(grid=(4, 4), stride=2, in_chans=2)
    assert torch.autograd.gradcheck(lambda k: lift(k, geometry), normal(2, 2, 3, 3).requires_grad_())
    assert torch.autograd.gradcheck(lambda v: project(v, geometry, 3), normal(8, 32).requires_grad_())


def test_what_does_not_fit_is_one_line():
    with pytest.raises(ValueError, match="stride 3 does not divide the grid of 8 x 8 places"):
        Geometry(grid=(8, 8), stride=3)
    with pytest.raises(ValueError, match="70 units do not stand on 4 x 4 places; nearest: 64"):
        project(normal(70, 64), Geometry(grid=(8, 8), stride=2))
    with pytest.raises(ValueError, match="64 inputs are not 3 x 64 channels and places"):
        project(normal(16, 64), Geometry(grid=(8, 8), stride=2, in_chans=3))
    with pytest.raises(ValueError, match="kernel_size 5 around the border of 4 x 8 places meets itself"):
        lift(normal(1, 1, 5, 5), Geometry(grid=(4, 8), wrap=True))
