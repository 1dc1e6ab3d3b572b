"""GFNet: a filter per channel, as large as the grid, applied in the frequency domain; then an MLP, in one residual.

The hole it fills: a global receptive field that is still a convolution. The filter wraps around the border, so a block
is exactly equivariant to circular shifts although every token reads every other: the corner of the ladder opposite to
`cyclemlp` (shifts, yet not equivariant) and between `convmixer` (local kernels) and `mixer` (a free matrix).

`pos_embed` adds learned positions, which end that equivariance; the published variants have them, ours do not.
MACs are matrix products and convolutions, as everywhere here. Left out are the transforms, about 5 N log2 N FLOPs per
channel for N tokens, both ways together, and the product of the spectra, 6 FLOPs per complex number: 1% of `ti`.

Deviations: none in the function of the isotropic variants; the authors' pyramids are left out. The spectrum is computed
in float32 under autocast, as in their code. `nano`, `1m` and `5m` are ours.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from timm.layers import register_notrace_module
from torch import Tensor, nn

from archs.parts.backbone import Backbone, Grid, grid_of, ramp, stage
from archs.parts.bias import Bias
from archs.parts.layers import Mlp, Patchify, Residual
from archs.parts.relabeling import Relabeling, along, on_stem
from archs.parts.weights import State, frame

SOURCE = "arXiv 2107.00645, table 1; code: raoyongming/GFNet gfnet.py"
BIAS = Bias(
    stem="shared", receptive_field="global", permutation_equivariant=False, shift_equivariant=True, grid_bound=True
)
VARIANT_BIAS = {
    "ti": {"shift_equivariant": False},
    "xs": {"shift_equivariant": False},
    "s": {"shift_equivariant": False},
    "b": {"shift_equivariant": False},
}
SYMMETRY = ("within", "shift", "flip")
DROP_PATH = "ramp"
RATIO = "mlp_ratio"
VARIANTS = {
    "nano": {"img_size": 8, "num_classes": 10, "in_chans": 1, "patch_size": 2, "dim": 36, "depth": 3},
    "1m": {"img_size": 32, "num_classes": 10, "patch_size": 4, "dim": 136, "depth": 6},
    "5m": {"img_size": 32, "num_classes": 10, "patch_size": 4, "dim": 272, "depth": 8},
    "ti": {"img_size": 224, "num_classes": 1000, "patch_size": 16, "dim": 256, "depth": 12, "pos_embed": True},
    "xs": {"img_size": 224, "num_classes": 1000, "patch_size": 16, "dim": 384, "depth": 12, "pos_embed": True},
    "s": {"img_size": 224, "num_classes": 1000, "patch_size": 16, "dim": 384, "depth": 19, "pos_embed": True},
    "b": {"img_size": 224, "num_classes": 1000, "patch_size": 16, "dim": 512, "depth": 19, "pos_embed": True},
}
EXPECTED = {
    "nano": {"params": 35_290, "macs": 500_328},
    "1m": {"params": 968_738, "macs": 57_238_864},
    "5m": {"params": 4_945_242, "macs": 303_876_768},
    "ti": {"params": 7_511_784, "macs": 1_271_916_544},
    "xs": {"params": 15_985_768, "macs": 2_832_718_848},
    "s": {"params": 24_869_608, "macs": 4_451_195_904},
    "b": {"params": 43_120_616, "macs": 7_887_376_384},
}

Norm = partial(nn.LayerNorm, eps=1e-6)


@register_notrace_module  # a leaf for torch.fx
class GlobalFilter(nn.Module):
    """Circular convolution of each channel with a filter as large as the grid, given by its half spectrum."""

    def __init__(self, dim: int, grid: Grid) -> None:
        super().__init__()
        self.grid = grid
        # Real and imaginary parts last, so that optimizers and checkpoints see real numbers.
        self.complex_weight = nn.Parameter(torch.empty(grid[0], grid[1] // 2 + 1, dim, 2))

    def forward(self, x_BHWC: Tensor) -> Tensor:
        if tuple(x_BHWC.shape[1:3]) != self.grid:
            raise ValueError(f"the filter is as large as its grid, {self.grid}, not {tuple(x_BHWC.shape[1:3])}")
        wide = torch.promote_types(x_BHWC.dtype, torch.float32)
        spectrum = torch.fft.rfft2(x_BHWC.to(wide), dim=(1, 2), norm="ortho")
        # `model.to(memory_format=torch.channels_last)` restrides all that has four axes; a pair must stay together.
        spectrum = spectrum * torch.view_as_complex(self.complex_weight.to(wide).contiguous())
        return torch.fft.irfft2(spectrum, s=self.grid, dim=(1, 2), norm="ortho").to(x_BHWC.dtype)


class Positions(nn.Module):
    """A learned vector added to each token."""

    def __init__(self, dim: int, grid: Grid) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(*grid, dim))

    def forward(self, x_BHWC: Tensor) -> Tensor:
        return x_BHWC + self.pos_embed


class GfNet(Backbone):
    """A Backbone that names what weight decay spares."""

    def no_weight_decay(self) -> set[str]:
        """Names that timm's optimizers spare, as in the authors' recipe."""
        return {key for key, _ in self.named_parameters() if key.endswith("pos_embed")}


def block(dim: int, grid: Grid, drop_path: float = 0.0, mlp_ratio: float = 4.0) -> nn.Module:
    """x + MLP(LN(filter(LN(x)))): one residual around both, as in the authors' code."""
    branch = nn.Sequential(GlobalFilter(dim, grid), Norm(dim), Mlp(dim, int(mlp_ratio * dim)))
    return Residual(Norm(dim), branch, drop_path)


def build(
    *,
    img_size: int | Grid,
    num_classes: int,
    patch_size: int | Grid,
    dim: int,
    depth: int,
    in_chans: int = 3,
    mlp_ratio: float = 4.0,
    pos_embed: bool = False,
    drop_path: float = 0.0,
) -> GfNet:
    grid = grid_of(img_size, patch_size)
    patches = Patchify(patch_size, dim, in_chans)
    stem = nn.Sequential(patches, Positions(dim, grid)) if pos_embed else patches
    blocks = stage(partial(block, mlp_ratio=mlp_ratio), dim, grid, ramp(drop_path, depth))
    return init(GfNet(stem, [blocks], Norm(dim), nn.Linear(dim, num_classes)))


def init(model: GfNet) -> GfNet:
    """Normal(0.02) weights, spectra and positions, zero biases; the stem keeps the convolution's default."""
    for module in [*model.stages.modules(), model.head]:
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
        elif isinstance(module, GlobalFilter):
            nn.init.normal_(module.complex_weight, std=0.02)
    for module in model.stem.modules():
        if isinstance(module, Positions):
            nn.init.trunc_normal_(module.pos_embed, std=0.02)
    return model


def implied(state_dict: State, own: Mapping[str, Any]) -> dict[str, Any]:
    """Without positions, a width of 2k or 2k + 1 has the same half spectrum: that of `own` if it fits, else square."""
    num_tokens, key = None, "stages.0.0.branch.0.complex_weight"
    if "stem.1.pos_embed" in state_dict:
        num_tokens = state_dict["stem.1.pos_embed"].shape[:2].numel()
    elif key in state_dict:
        h, w = grid_of(own["img_size"], own["patch_size"])
        num_tokens = h * w if state_dict[key].shape[:2] == (h, w // 2 + 1) else len(state_dict[key]) ** 2
    return frame(state_dict, own, num_tokens) | {"pos_embed": "stem.1.pos_embed" in state_dict}


def relabel(state_dict: State, relabeling: Relabeling) -> State | None:
    """Around the circle a shift changes no filter, a reversal turns each; positions follow their patches."""
    stem = "stem.0.proj.weight" if "stem.0.proj.weight" in state_dict else "stem.proj.weight"
    state, turns = on_stem(state_dict, relabeling, stem), relabeling.turns
    if state is None or turns is None:
        return None
    if (positions := "stem.1.pos_embed") in state:
        for axis, line in enumerate(relabeling.lines):
            state = along(state, line, {positions: (axis,)})
    for key in (key for key in state if key.endswith("complex_weight")):
        if turns[0] * turns[1] < 0:
            state[key] = state[key].flip(0).roll(1, 0)
        if turns[1] < 0:
            # The half spectrum holds no negative column: it is the conjugate at the negative row.
            state[key] = state[key] * state[key].new_tensor([1, -1])
    return state
