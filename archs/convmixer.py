"""ConvMixer: a depthwise convolution mixes places, a 1 x 1 convolution mixes channels, at one resolution throughout.

The activation stands before BatchNorm, and the residual closes after the depthwise BatchNorm. So nothing is carried
past a pointwise convolution: from block to block goes the output of its BatchNorm, to which the next branch is added.

Deviations: none in the function. The authors have no stochastic depth; `drop_path` here (a linear ramp) drops the
depthwise branch, the only residual one. Their file says GELU for `w768_d32`, whose weights need ReLU (their README).
`nano`, `1m` and `5m` are ours.
"""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from functools import partial
from typing import Any, Literal

from torch import nn

from archs.attention import removed
from archs.attention.removed import Removable
from archs.kernels.depthwise import DepthwiseConv2d
from archs.parts.backbone import Grid, grid_of, ramp, stage
from archs.parts.bias import Bias
from archs.parts.layers import OverMap, Patchify, Residual
from archs.parts.relabeling import Relabeling, mirror, on_stem
from archs.parts.weights import State, frame

SOURCE = "arXiv 2201.09792, table 1; code: locuslab/convmixer convmixer.py; w256_d8: locuslab/convmixer-cifar10"
BIAS = Bias(
    stem="shared", receptive_field="local", permutation_equivariant=False, shift_equivariant=True, grid_bound=False
)
SYMMETRY = ("within", "flip")
DROP_PATH = "ramp"
VARIANTS = {
    "nano": {"img_size": 8, "num_classes": 10, "in_chans": 1, "patch_size": 2, "dim": 96, "depth": 3, "kernel_size": 3},
    "1m": {"img_size": 32, "num_classes": 10, "patch_size": 4, "dim": 392, "depth": 6, "kernel_size": 5},
    "5m": {"img_size": 32, "num_classes": 10, "patch_size": 4, "dim": 768, "depth": 8, "kernel_size": 5},
    "w256_d8": {"img_size": 32, "num_classes": 10, "patch_size": 2, "dim": 256, "depth": 8, "kernel_size": 5},
    "w1536_d20": {"img_size": 224, "num_classes": 1000, "patch_size": 7, "dim": 1536, "depth": 20, "kernel_size": 9},
    "w768_d32": {
        "img_size": 224,
        "num_classes": 1000,
        "patch_size": 7,
        "dim": 768,
        "depth": 32,
        "kernel_size": 7,
        "act": "relu",
    },
    "w1024_d20": {"img_size": 224, "num_classes": 1000, "patch_size": 14, "dim": 1024, "depth": 20, "kernel_size": 9},
}
EXPECTED = {
    "nano": {"params": 33_610, "macs": 490_944},
    "1m": {"params": 1_018_818, "macs": 63_978_320},
    "5m": {"params": 4_955_914, "macs": 314_187_264},
    "w256_d8": {"params": 594_186, "macs": 148_113_920},
    "w1536_d20": {"params": 51_625_960, "macs": 51_099_168_768},
    "w768_d32": {"params": 21_110_248, "macs": 20_676_851_712},
    "w1024_d20": {"params": 24_383_464, "macs": 5_948_547_072},
}

ACTS = {"gelu": nn.GELU, "relu": nn.ReLU}
Act = Literal["gelu", "relu"]
Replacement = removed.Replacement  # `double` or `skip`


def _act_norm(dim: int, act: Act) -> tuple[nn.Module, nn.Module]:
    return ACTS[act](), nn.BatchNorm2d(dim)


def block(dim: int, grid: Grid, drop_path: float = 0.0, kernel_size: int = 9, act: Act = "gelu") -> nn.Module:
    """x + BN(act(depthwise(x))), then BN(act(pointwise(x))) without a residual; zeros beyond the border."""
    places = OverMap(nn.Sequential(DepthwiseConv2d(dim, kernel_size), *_act_norm(dim, act)))
    channels = OverMap(nn.Sequential(nn.Conv2d(dim, dim, kernel_size=1), *_act_norm(dim, act)))
    return nn.Sequential(Residual(nn.Identity(), places, drop_path), channels)


def build(
    *,
    img_size: int | Grid,
    num_classes: int,
    patch_size: int | Grid,
    dim: int,
    depth: int,
    kernel_size: int,
    in_chans: int = 3,
    act: Act = "gelu",
    drop_path: float = 0.0,
    mlp_layers: Sequence[int] = (),
    replacement: Replacement = "double",
) -> Removable:
    """`mlp_layers` have lost what mixes tokens, and `replacement` stands there (archs/attention/removed.py)."""
    if act not in ACTS:
        raise ValueError(f"act '{act}' is unknown; known: {', '.join(ACTS)}")
    stem = nn.Sequential(Patchify(patch_size, dim, in_chans), OverMap(nn.Sequential(*_act_norm(dim, act))))
    make = partial(block, kernel_size=kernel_size, act=act)
    grid = grid_of(img_size, patch_size)
    blocks = stage(make, dim, grid, ramp(drop_path, depth))
    stages = removed.take([blocks], mlp_layers, replacement, nn.Identity, dim, grid, free=True)
    return init(Removable(stem, stages, nn.Identity(), nn.Linear(dim, num_classes)))


def init(model: Removable) -> Removable:
    """PyTorch's defaults, as in the authors' code: uniform within 1 / sqrt(fan in), weights and biases."""
    return model


def implied(state_dict: State, own: Mapping[str, Any]) -> dict[str, Any]:
    return frame(state_dict, own, None)


leftover = removed.leftover


def relabel(state_dict: State, relabeling: Relabeling) -> State | None:
    """Kernels are mirrored as the image is; one of even size has no middle to be mirrored at."""
    kernels = {"*.0.branch.layer.0.weight": (2, 3)}
    if any(value.shape[-1] % 2 == 0 for key, value in state_dict.items() if fnmatch(key, next(iter(kernels)))):
        return on_stem(state_dict, relabeling, "stem.0.proj.weight") if relabeling.mirrored == (False, False) else None
    return mirror(on_stem(state_dict, relabeling, "stem.0.proj.weight"), relabeling, kernels)
