"""Inverted-bottleneck MLP on raw pixels: flatten, project, then residual MLPs on one vector.

It lives on a 1 x 1 grid: the patch is the image, read in the order (channel, row, column).

Deviations: the authors feed pixels standardised in 0..255 units, which is the data pipeline's choice here; their
`batch` and `none` normalisations are left out; they have no stochastic depth, `drop_path` (a linear ramp) is ours.
The published variants have the 11,230 classes of the authors' ImageNet-21k. `nano`, `1m` and `5m` are ours.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

from archs.parts.backbone import Backbone, Grid, ramp, stage
from archs.parts.bias import Bias
from archs.parts.layers import Mlp, Patchify, Residual
from archs.parts.relabeling import Relabeling
from archs.parts.weights import State, pixels

SOURCE = "arXiv 2306.13575, section 3; code: gregorbachmann/scaling_mlps models/networks.py, BottleneckMLP"
BIAS = Bias(
    stem="dense", receptive_field="global", permutation_equivariant=False, shift_equivariant=False, grid_bound=True
)
SYMMETRY = ("pixels", "rotation")
DROP_PATH = "ramp"
RATIO = "expansion"
VARIANTS = {
    "nano": {"img_size": 8, "num_classes": 10, "in_chans": 1, "dim": 40, "depth": 2},
    "1m": {"img_size": 32, "num_classes": 10, "dim": 112, "depth": 6},
    "5m": {"img_size": 32, "num_classes": 10, "dim": 256, "depth": 8},
    "b6_w512": {"img_size": 64, "num_classes": 11230, "dim": 512, "depth": 6},
    "b12_w512": {"img_size": 64, "num_classes": 11230, "dim": 512, "depth": 12},
    "b6_w1024": {"img_size": 64, "num_classes": 11230, "dim": 1024, "depth": 6},
    "b12_w1024": {"img_size": 64, "num_classes": 11230, "dim": 1024, "depth": 12},
}
EXPECTED = {
    "nano": {"params": 29_170, "macs": 28_560},
    "1m": {"params": 952_122, "macs": 947_296},
    "5m": {"params": 4_997_898, "macs": 4_983_296},
    "b6_w512": {"params": 24_657_374, "macs": 24_624_128},
    "b12_w512": {"params": 37_261_790, "macs": 37_207_040},
    "b6_w1024": {"params": 74_469_342, "macs": 74_414_080},
    "b12_w1024": {"params": 124_843_998, "macs": 124_745_728},
}


def block(dim: int, grid: Grid, drop_path: float = 0.0, expansion: float = 4.0) -> nn.Module:
    """x + W2 GELU(W1 LN(x)), the hidden layer `expansion` times as wide."""
    return Residual(nn.LayerNorm(dim), Mlp(dim, int(expansion * dim)), drop_path)


def build(
    *,
    img_size: int | Grid,
    num_classes: int,
    dim: int,
    depth: int,
    in_chans: int = 3,
    expansion: float = 4.0,
    drop_path: float = 0.0,
) -> Backbone:
    blocks = stage(partial(block, expansion=expansion), dim, (1, 1), ramp(drop_path, depth))
    # No final norm in the authors' code.
    return init(Backbone(Patchify(img_size, dim, in_chans), [blocks], nn.Identity(), nn.Linear(dim, num_classes)))


def init(model: Backbone) -> Backbone:
    """PyTorch's defaults, as in the authors' code: uniform within 1 / sqrt(fan in), weights and biases."""
    return model


def implied(state_dict: State, own: Mapping[str, Any]) -> dict[str, Any]:
    return pixels(state_dict, own, "stem.proj.weight")


def relabel(state_dict: State, relabeling: Relabeling) -> State | None:
    """The first layer reads every pixel where it is now."""
    return {**state_dict, "stem.proj.weight": relabeling.follow(state_dict["stem.proj.weight"])}
