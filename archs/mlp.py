"""Plain MLPs on raw pixels: flatten, hidden layers, head; the image is one token, read as (channel, row, column).

Two published kinds, which differ only in what stands around the linear layers, named by `layer`:
- "norm_gelu_linear", the StandardMLP of Scaling MLPs: after the first linear, each layer is W GELU(LN(z)), and nothing
  stands between the last hidden linear and the head;
- "linear_relu" and "linear_relu_norm", the MLPs of the rank-pruning study (`two` ... `twelve`): each layer is ReLU(W x)
  or BN(ReLU(W x)), and there is ONE BatchNorm per width, its weights and running statistics shared by all layers of
  that width. Their `state_dict` therefore lists each shared tensor once per layer, which safetensors refuses to write
  (scripts/export_model.py writes copies), and torch.func.functional_call leaves its own tensors in what is shared, as
  in any such module. `six` has skips around two layers.

There is no residual stream but for those skips: from layer to layer goes what the layer before put out.

Deviations: the rank-pruning `six` and `twelve` were trained with CIFAR images of ImageNet statistics, a matter of the
data pipeline here; Scaling MLPs' pixels are standardised in 0..255 units. No stochastic depth, as in both sources.
`nano`, `1m` and `5m` are ours.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, get_args

from torch import nn

from archs.ingredients.lift import Geometry
from archs.parts.backbone import Backbone, Grid, pair
from archs.parts.bias import Bias
from archs.parts.init import as_convolution
from archs.parts.layers import OverMap, Patchify, Residual
from archs.parts.relabeling import Relabeling
from archs.parts.weights import State, pixels

SOURCE = (
    "arXiv 2306.13575, code: gregorbachmann/scaling_mlps models/networks.py, StandardMLP; "
    "two to twelve: amazon-science/mlp-rank-pruning"
)
BIAS = Bias(
    stem="dense", receptive_field="global", permutation_equivariant=False, shift_equivariant=False, grid_bound=True
)
SYMMETRY = ("pixels", "rotation")
VARIANTS = {
    "nano": {"img_size": 8, "num_classes": 10, "in_chans": 1, "dim": 112, "depth": 3},
    "1m": {"img_size": 32, "num_classes": 10, "dim": 232, "depth": 6},
    "5m": {"img_size": 32, "num_classes": 10, "dim": 656, "depth": 8},
    "b6_w512": {"img_size": 64, "num_classes": 1000, "dim": 512, "depth": 6},
    "b12_w512": {"img_size": 64, "num_classes": 1000, "dim": 512, "depth": 12},
    "b6_w1024": {"img_size": 64, "num_classes": 1000, "dim": 1024, "depth": 6},
    "b12_w1024": {"img_size": 64, "num_classes": 1000, "dim": 1024, "depth": 12},
    "two": {"img_size": 28, "num_classes": 10, "in_chans": 1, "dim": 256, "depth": 1, "layer": "linear_relu"},
    "three": {"img_size": 28, "num_classes": 10, "in_chans": 1, "dim": 512, "depth": 2, "layer": "linear_relu"},
    "six": {
        "img_size": 32,
        "num_classes": 10,
        "dim": [512, 512, 256, 256, 128],
        "depth": 5,
        "layer": "linear_relu_norm",
        "skips": [1, 3],
    },
    "twelve": {
        "img_size": 32,
        "num_classes": 100,
        "dim": [2048, 2048, 1024, 1024, 1024, 1024, 512, 512, 256, 256, 256],
        "depth": 11,
        "layer": "linear_relu_norm",
    },
}
EXPECTED = {
    "nano": {"params": 34_170, "macs": 33_376},
    "1m": {"params": 987_866, "macs": 984_144},
    "5m": {"params": 5_048_586, "macs": 5_034_144},
    "b6_w512": {"params": 8_123_368, "macs": 8_114_176},
    "b12_w512": {"params": 9_705_448, "macs": 9_687_040},
    "b6_w1024": {"params": 18_867_176, "macs": 18_849_792},
    "b12_w1024": {"params": 25_177_064, "macs": 25_141_248},
    "two": {"params": 203_530, "macs": 203_264},
    "three": {"params": 669_706, "macs": 668_672},
    "six": {"params": 2_069_130, "macs": 2_065_664},
    "twelve": {"params": 16_820_580, "macs": 16_802_816},
}

Layer = Literal["norm_gelu_linear", "linear_relu", "linear_relu_norm"]
LAYERS = get_args(Layer)
Start = Literal["default", "kernel", "impulse"]
STARTS = get_args(Start)


def block(dim: int, out: int, layer: Layer, norm: nn.Module, skip: bool = False) -> nn.Module:
    """One hidden layer, `dim` to `out` channels; `norm` is over `dim` before the linear or over `out` after it."""
    if layer == "norm_gelu_linear":
        body = nn.Sequential(norm, nn.GELU(), nn.Linear(dim, out))
    else:
        body = nn.Sequential(nn.Linear(dim, out), nn.ReLU(), norm)
    return Residual(nn.Identity(), body) if skip else body


def build(
    *,
    img_size: int | Grid,
    num_classes: int,
    dim: int | Sequence[int],
    depth: int,
    in_chans: int = 3,
    layer: Layer = "norm_gelu_linear",
    skips: Sequence[int] = (),
    start: Start = "default",
    kernel_size: int = 3,
    stride: int = 1,
) -> Backbone:
    """An MLP of `depth` hidden layers, the first of which is the stem.

    Args:
        dim: width of every hidden layer, or `depth` widths.
        layer: what stands around each linear layer.
        skips: hidden layers, counted from 0, whose input is added to their output; the two must be equally wide.
        start: of the first layer, which is free afterwards: PyTorch's default; a convolution's, of kernel_size and
            stride, whose outputs the units are, channel by channel; or one with a single place in each kernel.
    """
    widths = [dim] * depth if isinstance(dim, int) else list(dim)
    if len(widths) != depth:
        raise ValueError(f"dim has {len(widths)} widths, depth is {depth}")
    if layer not in LAYERS:
        raise ValueError(f"layer '{layer}' is unknown; known: {', '.join(LAYERS)}")
    if start not in STARTS:
        raise ValueError(f"start '{start}' is unknown; known: {', '.join(STARTS)}")
    if start == "default" and (kernel_size, stride) != (3, 1):
        raise ValueError("kernel_size and stride are of start kernel or impulse; give one, or leave them out")
    for i in skips:
        if not 0 < i < depth or widths[i - 1] != widths[i]:
            raise ValueError(f"skips: layer {i} has no input as wide as its output")
    shared = {width: OverMap(nn.BatchNorm2d(width)) for width in widths} if layer == "linear_relu_norm" else {}

    def norm(before: int, after: int) -> nn.Module:
        return nn.LayerNorm(before) if layer == "norm_gelu_linear" else shared.get(after, nn.Identity())

    stem = [Patchify(img_size, widths[0], in_chans)]
    if layer != "norm_gelu_linear":
        stem += [nn.ReLU(), shared.get(widths[0], nn.Identity())]
    hidden = [block(*pair, layer, norm(*pair), i in skips) for i, pair in enumerate(pairwise(widths), start=1)]
    head = nn.Linear(widths[-1], num_classes)
    model = init(Backbone(nn.Sequential(*stem), [nn.Sequential(*hidden)], nn.Identity(), head))
    if start != "default":
        geometry = Geometry(grid=pair(img_size), stride=stride, in_chans=in_chans)
        as_convolution(stem[0].proj, geometry, kernel_size, impulse=start == "impulse")
    return model


def init(model: Backbone) -> Backbone:
    """PyTorch's defaults, as in both sources: uniform within 1 / sqrt(fan in), weights and biases."""
    return model


def implied(state_dict: State, own: Mapping[str, Any]) -> dict[str, Any]:
    return pixels(state_dict, own, "stem.0.proj.weight")


def relabel(state_dict: State, relabeling: Relabeling) -> State | None:
    """The first layer reads every pixel where it is now."""
    return {**state_dict, "stem.0.proj.weight": relabeling.follow(state_dict["stem.0.proj.weight"])}
