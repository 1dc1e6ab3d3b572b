"""CycleMLP: linear layers over channels, each channel read from a neighbouring place, in a pyramid of grids.

A Cycle FC is a fixed shift per channel followed by a linear layer: channel i is read at ((i + K // 2) mod K) - K // 2
places along one axis, zero beyond the border. Two of them (rows, columns) and a plain linear layer are weighed as in
the Vision Permutator. That weighting is an MLP of a mean over the whole grid: a block is neither local nor exactly
equivariant to shifts, although every Cycle FC alone is both.

`skeleton` names what stands around the blocks:
- "overlap", the published B-series: a 7 x 7 stem of stride 4, whose patches overlap by three pixels (BIAS has no
  word for that and says shared), and 3 x 3 transitions of stride 2;
- "patch", ours, for small images: disjoint patches, then the same transitions;
- "swin": disjoint patches and a norm, 2 x 2 merging with a norm, and no weighting but a plain sum of three Cycle FCs.
`t`, `s` and `b` are a hypothesis: their code was never published, and this skeleton reproduces every figure of their
table (28M/4.4G, 50M/8.5G, 88M/15.2G) where the others do not; which steps they use cannot be known without the files.

Deviations: K = 3 as in the authors' code, the paper says 7. Shifts are exact copies, not deformable convolutions.
`nano`, `1m` and `5m` are ours, and so is their form on one grid, the frame of the other rungs: `*_isotropic`.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
from timm.layers import register_notrace_module
from torch import Tensor, nn

from archs.attention import removed
from archs.attention.removed import Removable
from archs.parts.backbone import Grid, grid_of, ramp
from archs.parts.bias import Bias
from archs.parts.init import normal_linears
from archs.parts.layers import Mlp, OverMap, Patchify, Residual, Reweight
from archs.parts.relabeling import Relabeling, on_stem
from archs.parts.weights import State, frame

SOURCE = "arXiv 2107.10224, table 1; code: ShoufaChen/CycleMLP cycle_mlp.py; t, s, b: its README, code unpublished"
BIAS = Bias(
    stem="shared", receptive_field="global", permutation_equivariant=False, shift_equivariant=False, grid_bound=False
)
VARIANT_BIAS = {
    "t": {"receptive_field": "local", "shift_equivariant": True},
    "s": {"receptive_field": "local", "shift_equivariant": True},
    "b": {"receptive_field": "local", "shift_equivariant": True},
}
SYMMETRY = ("within",)
VARIANT_SYMMETRY = {"b1": (), "b2": (), "b3": (), "b4": (), "b5": ()}
DROP_PATH = "ramp"
RATIO = "mlp_ratio"
VARIANTS = {
    "nano": {
        "img_size": 8,
        "num_classes": 10,
        "in_chans": 1,
        "patch_size": 2,
        "dim": [16, 32],
        "depth": [2, 2],
        "skeleton": "patch",
    },
    "1m": {
        "img_size": 32,
        "num_classes": 10,
        "patch_size": 4,
        "dim": [64, 128],
        "depth": [2, 4],
        "skeleton": "patch",
    },
    "5m": {
        "img_size": 32,
        "num_classes": 10,
        "patch_size": 4,
        "dim": [128, 256],
        "depth": [3, 5],
        "skeleton": "patch",
    },
    "nano_isotropic": {
        "img_size": 8,
        "num_classes": 10,
        "in_chans": 1,
        "patch_size": 2,
        "dim": [28],
        "depth": [3],
        "skeleton": "patch",
    },
    "1m_isotropic": {
        "img_size": 32,
        "num_classes": 10,
        "patch_size": 4,
        "dim": [112],
        "depth": [6],
        "skeleton": "patch",
    },
    "5m_isotropic": {
        "img_size": 32,
        "num_classes": 10,
        "patch_size": 4,
        "dim": [220],
        "depth": [8],
        "skeleton": "patch",
    },
    "b1": {"img_size": 224, "num_classes": 1000, "dim": [64, 128, 320, 512], "depth": [2, 2, 4, 2]},
    "b2": {"img_size": 224, "num_classes": 1000, "dim": [64, 128, 320, 512], "depth": [2, 3, 10, 3]},
    "b3": {
        "img_size": 224,
        "num_classes": 1000,
        "dim": [64, 128, 320, 512],
        "depth": [3, 4, 18, 3],
        "mlp_ratio": [8, 8, 4, 4],
    },
    "b4": {
        "img_size": 224,
        "num_classes": 1000,
        "dim": [64, 128, 320, 512],
        "depth": [3, 8, 27, 3],
        "mlp_ratio": [8, 8, 4, 4],
    },
    "b5": {"img_size": 224, "num_classes": 1000, "dim": [96, 192, 384, 768], "depth": [3, 4, 24, 3]},
    "t": {
        "img_size": 224,
        "num_classes": 1000,
        "dim": [96, 192, 384, 768],
        "depth": [2, 2, 6, 2],
        "skeleton": "swin",
    },
    "s": {
        "img_size": 224,
        "num_classes": 1000,
        "dim": [96, 192, 384, 768],
        "depth": [2, 2, 18, 2],
        "skeleton": "swin",
    },
    "b": {
        "img_size": 224,
        "num_classes": 1000,
        "dim": [128, 256, 512, 1024],
        "depth": [2, 2, 18, 2],
        "skeleton": "swin",
    },
}
EXPECTED = {
    "nano": {"params": 39_858, "macs": 218_944},
    "1m": {"params": 1_046_762, "macs": 20_325_632},
    "5m": {"params": 5_228_714, "macs": 106_154_496},
    "nano_isotropic": {"params": 32_343, "macs": 456_008},
    "1m_isotropic": {"params": 995_522, "macs": 58_223_200},
    "5m_isotropic": {"params": 5_073_870, "macs": 298_434_840},
    "b1": {"params": 15_155_400, "macs": 2_121_523_200},
    "b2": {"params": 26_802_504, "macs": 3_875_766_272},
    "b3": {"params": 38_385_720, "macs": 6_830_968_832},
    "b4": {"params": 51_796_552, "macs": 10_027_163_648},
    "b5": {"params": 75_747_280, "macs": 12_232_436_736},
    "t": {"params": 28_265_032, "macs": 4_350_425_088},
    "s": {"params": 49_558_600, "macs": 8_512_223_232},
    "b": {"params": 87_704_680, "macs": 15_126_077_440},
}

Skeleton = Literal["overlap", "patch", "swin"]
SKELETONS = get_args(Skeleton)
Replacement = removed.Replacement  # `double` or `skip`


@register_notrace_module  # a leaf for torch.fx
class CycleFc(nn.Linear):
    """Linear layer whose input channel i is read `displacement(i)` places further along `axis` of x_BHWC."""

    def __init__(self, dim: int, axis: Literal[1, 2], steps: int) -> None:
        super().__init__(dim, dim)
        self.axis, self.steps = axis, steps

    def forward(self, x_BHWC: Tensor) -> Tensor:
        return super().forward(_Shift.apply(x_BHWC, self.axis, self.steps, 1))


class _Shift(torch.autograd.Function):
    """Every K-th channel copied at its displacement into a zero map; the gradient is the opposite shift.

    On one thread, 14 x 14 x 320 to 56 x 56 x 64, the shift and its linear layer train at 1.04 to 1.25 times the cost of
    the linear layer alone; the same copies under autograd at 1.13 to 1.65, torch.where at 1.2 to 1.9, torchvision's
    deformable convolution at 7 to 26. A depthwise convolution with one-hot kernels is as fast, but is no exact copy
    under TF32 and is counted as MACs.
    """

    generate_vmap_rule = True  # so that torch.func gives gradients per sample

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.given = inputs[1:]

    @staticmethod
    def forward(x_BHWC: Tensor, axis: int, steps: int, sign: int) -> Tensor:
        size, y_BHWC = x_BHWC.shape[axis], torch.zeros_like(x_BHWC)
        for first in range(min(steps, x_BHWC.shape[3])):
            by = sign * displacement(first, steps)
            if (length := size - abs(by)) > 0:
                source = x_BHWC[..., first::steps].narrow(axis, max(by, 0), length)
                y_BHWC[..., first::steps].narrow(axis, max(-by, 0), length).copy_(source)
        return y_BHWC

    @staticmethod
    def backward(ctx: Any, gradient_BHWC: Tensor) -> tuple[Tensor, None, None, None]:
        axis, steps, sign = ctx.given
        return _Shift.apply(gradient_BHWC, axis, steps, -sign), None, None, None


def displacement(channel: int, steps: int) -> int:
    """Where a channel is read: 0, 1, -1, 0, 1, -1, ... for three steps."""
    return (channel + steps // 2) % steps - steps // 2


class CycleMixer(nn.Module):
    """Cycle FCs along the columns of a row and along the rows of a column, a linear layer, weighed or summed."""

    def __init__(self, dim: int, steps: int, reweight: bool) -> None:
        super().__init__()
        # Names as in the authors' code, where "h" moves along the width.
        self.sfc_h = CycleFc(dim, axis=2, steps=steps)
        self.sfc_w = CycleFc(dim, axis=1, steps=steps)
        # Without the weighting all three are Cycle FCs, the third of one step; those have a bias.
        self.mlp_c = nn.Linear(dim, dim, bias=not reweight)
        self.reweight = Reweight(dim) if reweight else None
        self.proj = nn.Linear(dim, dim)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        branches = self.sfc_h(x_BHWC), self.sfc_w(x_BHWC), self.mlp_c(x_BHWC)
        return self.proj(sum(branches) if self.reweight is None else self.reweight(*branches))


class OverlapPatchify(nn.Module):
    """Convolution over patches that overlap, BCHW -> BHWC."""

    def __init__(self, patch_size: int, dim: int, in_chans: int) -> None:
        super().__init__()
        self.patch_size = (patch_size, patch_size)
        # 7 x 7, stride 4, padding 2 in the authors' code: one less than centring would take.
        self.proj = nn.Conv2d(in_chans, dim, 2 * patch_size - 1, stride=patch_size, padding=patch_size // 2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.proj(x_BCHW).permute(0, 2, 3, 1)


class Merge(nn.Module):
    """Four neighbours into one token: concatenated, normed, projected without a bias; the grid is halved."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, out, bias=False)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        # Column outside row, as in Swin.
        four_BHWqpC = x_BHWC.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).permute(0, 1, 3, 4, 2, 5)
        return self.reduction(self.norm(four_BHWqpC.flatten(3)))


def block(
    dim: int, grid: Grid, drop_path: float = 0.0, mlp_ratio: float = 4.0, steps: int = 3, reweight: bool = True
) -> nn.Module:
    """One CycleMLP layer, on any grid."""
    return nn.Sequential(
        Residual(nn.LayerNorm(dim), CycleMixer(dim, steps, reweight), drop_path),
        Residual(nn.LayerNorm(dim), Mlp(dim, int(mlp_ratio * dim)), drop_path),
    )


def build(
    *,
    img_size: int | Grid,
    num_classes: int,
    dim: Sequence[int],
    depth: Sequence[int],
    patch_size: int = 4,
    in_chans: int = 3,
    mlp_ratio: float | Sequence[float] = 4.0,
    steps: int = 3,
    skeleton: Skeleton = "overlap",
    drop_path: float = 0.0,
    mlp_layers: Sequence[int] = (),
    replacement: Replacement = "double",
) -> Removable:
    """A pyramid with one stage per entry of `dim` and `depth`, each on half the grid of the one before.

    Args:
        patch_size: stride of the stem; where patches overlap they are 2 * patch_size - 1 wide.
        mlp_ratio: one for all stages, or one per stage.
        steps: the pseudo-kernel K, odd.
        mlp_layers: those of a single stage that have lost what mixes tokens; `replacement` stands there
            (archs/attention/removed.py).
    """
    if skeleton not in SKELETONS:
        raise ValueError(f"skeleton '{skeleton}' is unknown; known: {', '.join(SKELETONS)}")
    if steps % 2 == 0 or steps < 1:
        raise ValueError(f"steps {steps} must be odd and positive")
    ratios = [mlp_ratio] * len(dim) if isinstance(mlp_ratio, int | float) else list(mlp_ratio)
    if not len(dim) == len(depth) == len(ratios):
        raise ValueError(f"dim has {len(dim)} stages, depth {len(depth)}, mlp_ratio {len(ratios)}")
    if wrong := [width for width in dim if width % 4]:
        raise ValueError(f"dim {wrong} is not a multiple of 4")
    grid = grid_of(img_size, patch_size)
    halvings = len(dim) - 1
    if skeleton == "swin" and any(side % 2**halvings for side in grid):
        raise ValueError(f"the grid of {grid[0]} x {grid[1]} tokens cannot be halved {halvings} times by merging")
    rates = iter(ramp(drop_path, sum(depth)))
    stages: list[nn.Module] = []
    for i, (width, layers) in enumerate(zip(dim, depth, strict=True)):
        if i:
            stages.append(_transition(dim[i - 1], width, skeleton))
            grid = (-(-grid[0] // 2), -(-grid[1] // 2))
        make = [block(width, grid, next(rates), ratios[i], steps, skeleton != "swin") for _ in range(layers)]
        stages.append(nn.Sequential(*make))
    stages = removed.take(stages, mlp_layers, replacement, partial(nn.LayerNorm, dim[0]), dim[0], grid, free=True)
    stem = _stem(patch_size, dim[0], in_chans, skeleton)
    return init(Removable(stem, stages, nn.LayerNorm(dim[-1]), nn.Linear(dim[-1], num_classes)))


def _stem(patch_size: int, dim: int, in_chans: int, skeleton: Skeleton) -> nn.Module:
    if skeleton == "overlap":
        return OverlapPatchify(patch_size, dim, in_chans)
    patches = Patchify(patch_size, dim, in_chans)
    return nn.Sequential(patches, nn.LayerNorm(dim)) if skeleton == "swin" else patches


def _transition(dim: int, out: int, skeleton: Skeleton) -> nn.Module:
    if skeleton != "swin":
        return OverMap(nn.Conv2d(dim, out, kernel_size=3, stride=2, padding=1))
    return Merge(dim, out)


def width_step(given: Mapping[str, Any]) -> int:
    """What widths must be multiples of, whatever is given: the weighting has a quarter of them."""
    return 4


def init(model: Removable) -> Removable:
    """Normal(0.02) linears and Cycle FCs, zero biases; convolutions keep their default (authors' code)."""
    normal_linears(model.stages, model.head)
    return model


def implied(state_dict: State, own: Mapping[str, Any]) -> dict[str, Any]:
    """`steps` too, from the `offset` buffers, which are taken out: their shape does not tell it, their values do.

    Raises ValueError for offsets that are no cycle, or not the same one everywhere.
    """
    offsets = {key: state_dict.pop(key) for key in list(state_dict) if key.endswith(".offset")}
    said = frame(state_dict, own, None)
    for key, offset in offsets.items():
        # (1, 2C), interleaved: down, right, down, right, ...
        moves = offset.reshape(-1, 2)
        steps = 2 * int(moves.max()) + 1
        cycle = torch.zeros_like(moves)
        cycle[:, 1 if ".sfc_h." in key else 0] = torch.tensor([displacement(i, steps) for i in range(len(moves))])
        if not torch.equal(moves, cycle) or said.setdefault("steps", steps) != steps:
            raise ValueError(f"{key} is not the cycle of one and the same step count in all layers")
    return said


leftover = removed.leftover


def relabel(state_dict: State, relabeling: Relabeling) -> State | None:
    """Every channel has its direction, one for both axes, so that no mirror is left; and patches must not overlap."""
    key = "stem.0.proj.weight" if "stem.0.proj.weight" in state_dict else "stem.proj.weight"
    if state_dict[key].ndim == 4 or relabeling.mirrored != (False, False):
        return None
    return on_stem(state_dict, relabeling, key)
