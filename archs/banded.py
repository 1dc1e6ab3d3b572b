"""Banded mixing: ResMLP whose matrix across patches is zero but for the 3 x 3 neighbours of each token.

The hole it fills: locality without sharing, in the two by two of token mixing that `toeplitz` explains: a locally
connected layer, with its own weights and bias at each place, the same for all channels.

The weights of a place that point beyond the border are there and inert, as in any locally connected layer on zeros.
MACs, as counted, are those of the whole matrix, which is written out and applied as ResMLP's is, so that the four
corners cost the same; `nominal_macs` leaves out the products with its zeros. `nano`, `1m` and `5m` are ours, ResMLP's
widths; no published size.
"""

from collections.abc import Mapping
from fnmatch import fnmatch
from functools import partial
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn

from archs import resmlp
from archs.parts.backbone import Backbone, Grid, grid_of, stage
from archs.parts.bias import Bias
from archs.parts.layers import Patchify, mix_tokens
from archs.parts.relabeling import Relabeling, along, mirror, on_stem
from archs.parts.weights import State, frame
from archs.resmlp import Affine

SOURCE = "ours: arXiv 2105.03404 (frame) with a locally connected layer; no published configuration"
BIAS = Bias(
    stem="shared", receptive_field="local", permutation_equivariant=False, shift_equivariant=False, grid_bound=True
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
    "nano": {"params": 26_666, "macs": 420_160},
    "1m": {"params": 1_017_466, "macs": 67_683_744},
    "5m": {"params": 5_064_450, "macs": 331_164_400},
}


class BandedMixing(nn.Module):
    """Sum over the neighbours of each token of x_BHWC, with weights and a bias of its own at each place."""

    def __init__(self, grid: Grid, kernel_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(grid[0] * grid[1], kernel_size**2))
        self.bias = nn.Parameter(torch.empty(grid[0] * grid[1]))
        self.grid, self.kernel_size = grid, kernel_size
        self.register_buffer("neighbours", None, persistent=False)
        self.init_non_persistent_buffers()

    def init_non_persistent_buffers(self) -> None:
        """Made anew where the weights are, which may have come from the meta device."""
        self.neighbours = neighbours(self.grid, self.kernel_size).to(self.weight.device)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        num_tokens = self.weight.shape[0]
        # One column more for what lies beyond the border.
        matrix = self.weight.new_zeros(num_tokens, num_tokens + 1).scatter(1, self.neighbours, self.weight)
        return mix_tokens(x_BHWC.flatten(1, 2), matrix[:, :-1], self.bias).reshape(x_BHWC.shape)


def neighbours(grid: Grid, kernel_size: int) -> Tensor:
    """The token in each place of the kernel around each token, (N, kernel_size ** 2); N beyond the border."""
    (h, w), steps = grid, torch.arange(kernel_size) - kernel_size // 2
    rows, columns = torch.arange(h)[:, None] + steps, torch.arange(w)[:, None] + steps
    inside = ((rows >= 0) & (rows < h))[:, None, :, None] & ((columns >= 0) & (columns < w))[None, :, None]
    token = rows[:, None, :, None] * w + columns[None, :, None]
    return torch.where(inside, token, h * w).reshape(h * w, -1)


def check_kernel(kernel_size: int) -> None:
    """Raises ValueError unless a kernel of this size has a middle."""
    if kernel_size % 2 == 0 or kernel_size < 1:
        raise ValueError(f"kernel_size {kernel_size} must be odd and positive")


def nominal_macs(macs: int, given: Mapping[str, Any]) -> int:
    """`macs`, as counted for the arguments `given` of `build`, without the token mixers' products with zeros."""
    grid, radius = grid_of(given["img_size"], given["patch_size"]), given.get("kernel_size", 3) // 2
    used = 1
    for side in grid:
        used *= sum(max(side - abs(step), 0) for step in range(-radius, radius + 1))
    return macs - given["depth"] * given["dim"] * ((grid[0] * grid[1]) ** 2 - used)


def block(
    dim: int,
    grid: Grid,
    drop_path: float = 0.0,
    mlp_ratio: float = 4.0,
    init_values: float = 0.1,
    kernel_size: int = 3,
) -> nn.Module:
    """One layer; `init_values` is where LayerScale starts."""
    return resmlp.block(dim, grid, drop_path, mlp_ratio, init_values, BandedMixing(grid, kernel_size))


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
    kernel_size: int = 3,
    drop_path: float = 0.0,
) -> Backbone:
    check_kernel(kernel_size)
    make = partial(block, mlp_ratio=mlp_ratio, init_values=init_values, kernel_size=kernel_size)
    blocks = stage(make, dim, grid_of(img_size, patch_size), [drop_path] * depth)
    return init(Backbone(Patchify(patch_size, dim, in_chans), [blocks], Affine(dim), nn.Linear(dim, num_classes)))


def init(model: Backbone) -> Backbone:
    """As `resmlp`: Normal(0.02) weights, the band's too, and zero biases; the stem keeps the convolution's default."""
    for module in model.stages.modules():
        if isinstance(module, BandedMixing):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
    return resmlp.init(model)


def implied(state_dict: State, own: Mapping[str, Any]) -> dict[str, Any]:
    weight = state_dict.get("stages.0.0.0.branch.weight")
    return frame(state_dict, own, None if weight is None else len(weight))


def relabel(state_dict: State, relabeling: Relabeling) -> State | None:
    """Where the image is mirrored, weights and biases follow their places, and each place's kernel is mirrored."""
    places = {"*.0.branch.weight": (0,), "*.0.branch.bias": (0,)}
    state = along(on_stem(state_dict, relabeling), relabeling.tokens, places)
    if state is None:
        return None
    kernels = {key: value for key, value in state.items() if fnmatch(key, "*.0.branch.weight")}
    side = {key: isqrt(value.shape[1]) for key, value in kernels.items()}
    unfolded = {key: value.unflatten(1, (side[key], side[key])) for key, value in kernels.items()}
    turned = mirror(unfolded, relabeling, {"*": (1, 2)})
    return None if turned is None else {**state, **{key: value.flatten(1) for key, value in turned.items()}}
