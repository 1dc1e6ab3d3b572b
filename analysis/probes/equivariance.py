"""Equivariance: does moving the patches of an image move the features in the same way, and change nothing else?

Pure functions of a map and an input, in the dtype of both: give them float64. `f` is any function of an image: a
model's `features` (BHWC) or the model itself (logits, which must then not change at all). On random weights they
measure what the architecture is forced to be, on a checkpoint what it has learned to be.
"""

import copy
from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor

from archs.parts.backbone import Backbone, Grid, grid_of, pair

UNITS = {"permutation_error": "relative L2", "shift_error": "relative L2"}


def measure(model: Backbone, x_BCHW: Tensor, patch_size: int | Grid) -> dict[str, float]:
    """Both errors of the model's feature map, or of its logits where the grid is 1 x 1. The model is left untouched."""
    model = copy.deepcopy(model).double().eval()
    x_BCHW = x_BCHW.double()
    with torch.no_grad():
        f = model if model.features(x_BCHW[:1]).shape[1:3] == (1, 1) else model.features
    return {
        "permutation_error": permutation_error(f, x_BCHW, patch_size),
        "shift_error": shift_error(f, x_BCHW, patch_size),
    }


@torch.no_grad()
def permutation_error(f: Callable[[Tensor], Tensor], x_BCHW: Tensor, patch_size: int | Grid, seed: int = 0) -> float:
    """|f(permuted x) - permuted f(x)| / |f(x)| for one random order of the patches; logits must stay as they are."""
    grid = grid_of(tuple(x_BCHW.shape[-2:]), patch_size)
    order = torch.randperm(grid[0] * grid[1], generator=torch.Generator().manual_seed(seed)).to(x_BCHW.device)
    y, y_permuted = f(x_BCHW), f(permute_patches(x_BCHW, patch_size, order))
    if y.ndim == 4:
        _check_grid(y, grid)
        y, y_permuted = y.flatten(1, 2)[:, order], y_permuted.flatten(1, 2)
    return _relative(y_permuted, y)


@torch.no_grad()
def shift_error(f: Callable[[Tensor], Tensor], x_BCHW: Tensor, patch_size: int | Grid, margin: int = 1) -> float:
    """|f(shifted x) - shifted f(x)| / |f(x)| for a roll by one patch, the larger of the two axes.

    Args:
        margin: tokens this near to the border are not compared. It must be at least the receptive radius of `f` for
            the error to be free of what rolled in and of padding.
    """
    grid = grid_of(tuple(x_BCHW.shape[-2:]), patch_size)
    y, errors = f(x_BCHW), []
    for axis, step in enumerate(pair(patch_size)):
        y_shifted = f(x_BCHW.roll(step, dims=2 + axis))
        if y.ndim != 4:
            errors.append(_relative(y_shifted, y))
            continue
        _check_grid(y, grid)
        lengths = [size - 2 * margin - (i == axis) for i, size in enumerate(grid)]
        if min(lengths) < 1:
            raise ValueError(f"margin {margin} leaves nothing of the grid {grid[0]} x {grid[1]} to compare")
        before, after = y, y_shifted
        for i, length in enumerate(lengths):
            before = before.narrow(1 + i, margin, length)
            after = after.narrow(1 + i, margin + (i == axis), length)
        errors.append(_relative(after, before))
    return max(errors)


def permute_patches(x_BCHW: Tensor, patch_size: int | Grid, order: Tensor) -> Tensor:
    """The image whose patch i, counted row by row, is patch `order[i]` of x."""
    p, q = pair(patch_size)
    patches = rearrange(x_BCHW, "b c (h p) (w q) -> b (h w) c p q", p=p, q=q)[:, order]
    return rearrange(patches, "b (h w) c p q -> b c (h p) (w q)", h=x_BCHW.shape[-2] // p)


def _check_grid(y_BHWC: Tensor, grid: Grid) -> None:
    if tuple(y_BHWC.shape[1:3]) != grid:
        raise ValueError(f"the feature map is {tuple(y_BHWC.shape[1:3])}, the patches are {grid}: wrong patch_size")


def _relative(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()
