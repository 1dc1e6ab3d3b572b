"""Toeplitz mixing: ResMLP whose matrix across patches has one weight per displacement, at whatever distance.

The hole it fills: sharing without locality, one corner of the two by two of token mixing
                 every token reads all     every token reads 3 x 3
    own weights  `resmlp`                  `banded`
    shared       `toeplitz`                `bandedtoeplitz`
whose four families differ in nothing else: ResMLP's frame (affine maps, LayerScale from 0.1), recipe of initialisation
and matrix product. What is shared is all that belongs to a place: of the weights one per displacement, and one bias
instead of one per token. An entry of any of the four matrices, where it is not forced to be zero, starts as
Normal(0.02), as ResMLP's; so a token that reads fewer others starts with a smaller update, which LayerScale dwarfs.

It is a convolution, with zeros beyond the border, whose kernel reaches from any token to any other: it is not exactly
equivariant to shifts, because what is shifted in at the border is read everywhere. The matrix is written out from the
kernel and applied as ResMLP's is, and those MACs are counted; every product is with a weight that is used, so that the
nominal MACs are the same. `nano`, `1m` and `5m` are ours, ResMLP's widths; no published size.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from archs import resmlp
from archs.parts.backbone import Backbone, Grid, grid_of, pair, stage
from archs.parts.bias import Bias
from archs.parts.layers import Patchify, mix_tokens
from archs.parts.relabeling import Relabeling, mirror, on_stem
from archs.parts.weights import State, frame
from archs.resmlp import Affine

SOURCE = "ours: arXiv 2105.03404 (frame) with the shared weights of a convolution; no published configuration"
BIAS = Bias(
    stem="shared", receptive_field="global", permutation_equivariant=False, shift_equivariant=False, grid_bound=True
)
SYMMETRY = ("within", "flip")
DROP_PATH = "constant"
RATIO = "mlp_ratio"
VARIANTS = {
    "nano": {"img_size": 8, "num_classes": 10, "in_chans": 1, "patch_size": 2, "dim": 32, "depth": 3},
    "1m": {"img_size": 32, "num_classes": 10, "patch_size": 4, "dim": 144, "depth": 6},
    "5m": {"img_size": 32, "num_classes": 10, "patch_size": 4, "dim": 280, "depth": 8},
}
EXPECTED = {
    "nano": {"params": 26_336, "macs": 420_160},
    "1m": {"params": 1_014_982, "macs": 67_683_744},
    "5m": {"params": 5_061_138, "macs": 331_164_400},
}


class ToeplitzMixing(nn.Module):
    """Sum over all tokens of x_BHWC, each weighted by its displacement from the reading one, plus one bias."""

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.grid = grid
        self.weight = nn.Parameter(torch.empty(2 * grid[0] - 1, 2 * grid[1] - 1))
        self.bias = nn.Parameter(torch.empty(1))

    def forward(self, x_BHWC: Tensor) -> Tensor:
        return mix_tokens(x_BHWC.flatten(1, 2), matrix(self.weight, self.grid), self.bias).reshape(x_BHWC.shape)


def matrix(kernel: Tensor, grid: Grid) -> Tensor:
    """The N x N matrix whose entry (i, j) is `kernel` at the displacement j - i, which is (0, 0) in its middle.

    Args:
        kernel: (2H - 1, 2W - 1), all displacements within the grid.
    """
    # windows[a, b, c, d] = kernel[a + c, b + d], a view; row i of the matrix is the window that starts at H - 1 - i.
    windows = kernel.unfold(0, grid[0], 1).unfold(1, grid[1], 1)
    return windows.flip(0, 1).reshape(grid[0] * grid[1], -1)


def block(dim: int, grid: Grid, drop_path: float = 0.0, mlp_ratio: float = 4.0, init_values: float = 0.1) -> nn.Module:
    """One layer; `init_values` is where LayerScale starts."""
    return resmlp.block(dim, grid, drop_path, mlp_ratio, init_values, ToeplitzMixing(grid))


def build(
    *,
    img_size: int | Grid,
    num_classes: int,
    patch_size: int | Grid,
    dim: int,
    depth: int,
    in_chans: int = 3,
    mlp_ratio: float = 4.0,
    init_values: float = 0.1,
    drop_path: float = 0.0,
) -> Backbone:
    make = partial(block, mlp_ratio=mlp_ratio, init_values=init_values)
    blocks = stage(make, dim, grid_of(img_size, patch_size), [drop_path] * depth)
    return init(Backbone(Patchify(patch_size, dim, in_chans), [blocks], Affine(dim), nn.Linear(dim, num_classes)))


def init(model: Backbone) -> Backbone:
    """As `resmlp`: Normal(0.02) weights, the kernels' too, zero biases; the stem keeps the convolution's default."""
    for module in model.stages.modules():
        if isinstance(module, ToeplitzMixing):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
    return resmlp.init(model)


def implied(state_dict: State, own: Mapping[str, Any]) -> dict[str, Any]:
    """The grid too, from the kernel, which is (2H - 1) x (2W - 1)."""
    said, key = frame(state_dict, own, None), "stages.0.0.0.branch.weight"
    if key in state_dict:
        h, w = (
            (side + 1) // 2 * patch for side, patch in zip(state_dict[key].shape, pair(own["patch_size"]), strict=True)
        )
        said["img_size"] = h if h == w else (h, w)
    return said


def relabel(state_dict: State, relabeling: Relabeling) -> State | None:
    """Kernels are mirrored as the image is."""
    return mirror(on_stem(state_dict, relabeling), relabeling, {"*.0.branch.weight": (0, 1)})
