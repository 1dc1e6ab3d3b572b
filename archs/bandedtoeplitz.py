"""Banded Toeplitz mixing: ResMLP whose matrix across patches is one 3 x 3 kernel, the same for all places and channels.

The hole it fills: locality and sharing together, in the two by two of token mixing that `toeplitz` explains. Next to
`banded` it shares the weights and the bias between the places, next to `toeplitz` it takes the distant ones away, and
next to a depthwise convolution (`convmixer`) it has one kernel for all channels. Equivariant to shifts, free of the
grid; zeros beyond the border.

MACs, as counted, are those of the whole matrix, which is written out and applied as ResMLP's is, so that the four
corners cost the same; `nominal_macs` leaves out the products with its zeros. A depthwise convolution with the kernel
repeated for each channel would take 0.55 to 0.94 of the time (16 and 64 tokens, training, one thread, float32 and
bfloat16). `nano`, `1m` and `5m` are ours, ResMLP's widths; no published size.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from archs import banded, resmlp
from archs.banded import check_kernel
from archs.parts.backbone import Backbone, Grid, grid_of, stage
from archs.parts.bias import Bias
from archs.parts.layers import Patchify, mix_tokens
from archs.parts.relabeling import Relabeling, mirror, on_stem
from archs.parts.weights import State
from archs.resmlp import Affine
from archs.toeplitz import matrix

SOURCE = "ours: arXiv 2105.03404 (frame) with a convolution shared by the channels; no published configuration"
BIAS = Bias(
    stem="shared", receptive_field="local", permutation_equivariant=False, shift_equivariant=True, grid_bound=False
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
    "nano": {"params": 26_216, "macs": 420_160},
    "1m": {"params": 1_013_686, "macs": 67_683_744},
    "5m": {"params": 5_059_410, "macs": 331_164_400},
}


class KernelMixing(nn.Module):
    """One kernel over the places of x_BHWC, on any grid, plus one bias."""

    def __init__(self, kernel_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.empty(1))

    def forward(self, x_BHWC: Tensor) -> Tensor:
        h, w, radius = x_BHWC.shape[1], x_BHWC.shape[2], self.weight.shape[0] // 2
        # To all displacements of the grid; fewer than none where the grid is smaller than the kernel.
        kernel = pad(self.weight, [w - 1 - radius] * 2 + [h - 1 - radius] * 2)
        return mix_tokens(x_BHWC.flatten(1, 2), matrix(kernel, (h, w)), self.bias).reshape(x_BHWC.shape)


def nominal_macs(macs: int, given: Mapping[str, Any]) -> int:
    """As `banded`: `macs` without the token mixers' products with zeros."""
    return banded.nominal_macs(macs, given)


def block(
    dim: int,
    grid: Grid,
    drop_path: float = 0.0,
    mlp_ratio: float = 4.0,
    init_values: float = 0.1,
    kernel_size: int = 3,
) -> nn.Module:
    """One layer, on any grid; `init_values` is where LayerScale starts."""
    return resmlp.block(dim, grid, drop_path, mlp_ratio, init_values, KernelMixing(kernel_size))


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
    """As `resmlp`: Normal(0.02) weights, the kernels' too, zero biases; the stem keeps the convolution's default."""
    for module in model.stages.modules():
        if isinstance(module, KernelMixing):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
    return resmlp.init(model)


def relabel(state_dict: State, relabeling: Relabeling) -> State | None:
    """Kernels are mirrored as the image is."""
    return mirror(on_stem(state_dict, relabeling), relabeling, {"*.0.branch.weight": (0, 1)})
