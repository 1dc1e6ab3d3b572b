"""ResMLP: one linear layer across patches, then an MLP across channels, with affine maps where others normalise.

Deviations: none in the function. timm's models of the same name differ in initialisation (LayerScale 1e-4 for 12
layers, xavier, zero head); here it is the authors'. `nano`, `1m` and `5m` are ours, shallow, so LayerScale is s12's.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from timm.layers import LayerScale
from torch import Tensor, nn

from archs.attention import removed
from archs.attention.removed import Removable
from archs.parts.backbone import Grid, grid_of
from archs.parts.bias import Bias
from archs.parts.init import normal_linears
from archs.parts.layers import Mlp, OverTokens, Patchify, Residual, TokenLinear
from archs.parts.relabeling import Relabeling, along, on_stem
from archs.parts.weights import State, columns, frame

SOURCE = "arXiv 2105.03404, table 1; initialisation and drop-path: facebookresearch/deit resmlp_models.py"
BIAS = Bias(
    stem="shared", receptive_field="global", permutation_equivariant=False, shift_equivariant=False, grid_bound=True
)
SYMMETRY = ("patches",)
DROP_PATH = "constant"
RATIO = "mlp_ratio"
VARIANTS = {
    "nano": {"img_size": 8, "num_classes": 10, "in_chans": 1, "patch_size": 2, "dim": 32, "depth": 3},
    "1m": {"img_size": 32, "num_classes": 10, "patch_size": 4, "dim": 144, "depth": 6},
    "5m": {"img_size": 32, "num_classes": 10, "patch_size": 4, "dim": 280, "depth": 8},
    "s12": {"img_size": 224, "num_classes": 1000, "patch_size": 16, "dim": 384, "depth": 12, "init_values": 0.1},
    "s24": {"img_size": 224, "num_classes": 1000, "patch_size": 16, "dim": 384, "depth": 24, "init_values": 1e-5},
    "s36": {"img_size": 224, "num_classes": 1000, "patch_size": 16, "dim": 384, "depth": 36, "init_values": 1e-6},
    "b24_8": {"img_size": 224, "num_classes": 1000, "patch_size": 8, "dim": 768, "depth": 24, "init_values": 1e-6},
}
EXPECTED = {
    "nano": {"params": 27_002, "macs": 420_160},
    "1m": {"params": 1_038_586, "macs": 67_683_744},
    "5m": {"params": 5_092_610, "macs": 331_164_400},
    "s12": {"params": 15_350_872, "macs": 3_009_739_776},
    "s24": {"params": 30_020_680, "macs": 5_961_292_800},
    "s36": {"params": 44_690_488, "macs": 8_912_845_824},
    "b24_8": {"params": 129_138_280, "macs": 100_230_739_968},
}

Replacement = removed.Replacement  # `double`, `skip`, or a file of archs/mixing/


class Affine(nn.Module):
    """alpha * x + beta, per channel."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(dim))
        self.beta = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.beta, self.alpha, x)


def block(
    dim: int,
    grid: Grid,
    drop_path: float = 0.0,
    mlp_ratio: float = 4.0,
    init_values: float = 0.1,
    mixer: nn.Module | None = None,
    instead: nn.Module | None = None,
) -> nn.Module:
    """One ResMLP layer around `mixer`, a module x_BHWC -> x_BHWC; without one, a full matrix over the tokens.

    `init_values` is where LayerScale starts; `instead` stands in place of the mixer and its residual.
    """
    if instead is None:
        num_tokens = grid[0] * grid[1]
        mixer = mixer or OverTokens(TokenLinear(num_tokens, num_tokens), transpose=False)
        instead = Residual(Affine(dim), mixer, drop_path, LayerScale(dim, init_values))
    mlp = Residual(Affine(dim), Mlp(dim, int(mlp_ratio * dim)), drop_path, LayerScale(dim, init_values))
    return nn.Sequential(instead, mlp)


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
    mlp_layers: Sequence[int] = (),
    replacement: Replacement = "double",
) -> Removable:
    """`mlp_layers` have lost what mixes tokens, and `replacement` stands there (archs/attention/removed.py)."""
    removed.check(mlp_layers, replacement, depth)
    grid = grid_of(img_size, patch_size)
    gone = {i: removed.half(replacement, partial(Affine, dim), dim, grid, depth) for i in sorted(mlp_layers)}
    # Every layer has the same rate in the authors' code, not a ramp.
    make = partial(block, dim, grid, drop_path, mlp_ratio, init_values)
    blocks = nn.Sequential(*(make(instead=gone.get(i)) for i in range(depth)))
    return init(Removable(Patchify(patch_size, dim, in_chans), [blocks], Affine(dim), nn.Linear(dim, num_classes)))


def init(model: Removable) -> Removable:
    """Normal(0.02) weights and zero biases, the head's too; the stem keeps the convolution's default."""
    normal_linears(model.stages, model.head)
    removed.draw(model)
    return model


def implied(state_dict: State, own: Mapping[str, Any]) -> dict[str, Any]:
    return frame(state_dict, own, columns(state_dict, f"stages.0.{removed.kept(own)}.0.branch.mix.weight"))


leftover = removed.leftover
afresh = removed.afresh


def relabel(state_dict: State, relabeling: Relabeling) -> State | None:
    """Rows and columns of the matrices across patches follow the patches."""
    if removed.moves(state_dict):
        return None
    places = {"*.0.branch.mix.weight": (0, 1), "*.0.branch.mix.bias": (0,)}
    return along(on_stem(state_dict, relabeling), relabeling.tokens, places)
