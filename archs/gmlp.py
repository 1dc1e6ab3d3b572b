"""gMLP: channel MLPs whose hidden layer is gated by a linear map across tokens; one residual branch per block.

Deviations: there is no public code of the authors. Norm epsilons, initialisation, mean pooling and the constant
drop-path rate are timm's; its parameter counts, and so these, fall short of the paper's by about dim^2, unexplained.
The paper trains `s16` and `b16` with drop-path 0.05 and 0.2, a matter of the recipe. `nano`, `1m` and `5m` are ours.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from timm.layers import lecun_normal_
from torch import Tensor, nn

from archs.parts.backbone import Backbone, Grid, grid_of, stage
from archs.parts.bias import Bias
from archs.parts.layers import OverTokens, Patchify, Residual, TokenLinear
from archs.parts.relabeling import Relabeling, along, on_stem
from archs.parts.weights import State, columns, frame

SOURCE = "arXiv 2105.08050, table 1; timm models/mlp_mixer.py, SpatialGatingBlock"
BIAS = Bias(
    stem="shared", receptive_field="global", permutation_equivariant=False, shift_equivariant=False, grid_bound=True
)
SYMMETRY = ("patches",)
DROP_PATH = "constant"
RATIO = "mlp_ratio"
VARIANTS = {
    "nano": {"img_size": 8, "num_classes": 10, "in_chans": 1, "patch_size": 2, "dim": 32, "depth": 3},
    "1m": {"img_size": 32, "num_classes": 10, "patch_size": 4, "dim": 136, "depth": 6},
    "5m": {"img_size": 32, "num_classes": 10, "patch_size": 4, "dim": 264, "depth": 8},
    "ti16": {"img_size": 224, "num_classes": 1000, "patch_size": 16, "dim": 128, "depth": 30},
    "s16": {"img_size": 224, "num_classes": 1000, "patch_size": 16, "dim": 256, "depth": 30},
    "b16": {"img_size": 224, "num_classes": 1000, "patch_size": 16, "dim": 512, "depth": 30},
}
EXPECTED = {
    "nano": {"params": 30_458, "macs": 518_464},
    "1m": {"params": 1_044_290, "macs": 74_368_336},
    "5m": {"params": 5_099_186, "macs": 347_925_072},
    "ti16": {"params": 5_867_328, "macs": 1_328_989_184},
    "s16": {"params": 19_422_656, "macs": 4_392_060_928},
    "b16": {"params": 73_075_392, "macs": 15_720_452_096},
}

Norm = partial(nn.LayerNorm, eps=1e-6)


class SpatialGate(nn.Module):
    """u * (W LN(v) + b) over the tokens, where u and v are the halves of the channels: (B,H,W,2C) -> (B,H,W,C)."""

    def __init__(self, dim: int, num_tokens: int) -> None:
        super().__init__()
        # 1e-5 here and 1e-6 elsewhere, as in timm.
        self.norm = nn.LayerNorm(dim, eps=1e-5)
        self.spatial = OverTokens(TokenLinear(num_tokens, num_tokens), transpose=False)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        u, v = x_BHWC.chunk(2, dim=-1)
        return u * self.spatial(self.norm(v))


class GatedMlp(nn.Sequential):
    """Linear -> GELU -> spatial gate, which halves the channels -> Linear."""

    def __init__(self, dim: int, hidden: int, num_tokens: int) -> None:
        gate = SpatialGate(hidden // 2, num_tokens)
        super().__init__(nn.Linear(dim, hidden), nn.GELU(), gate, nn.Linear(hidden // 2, dim))


def block(dim: int, grid: Grid, drop_path: float = 0.0, mlp_ratio: float = 6.0) -> nn.Module:
    """One gMLP layer; `mlp_ratio * dim` channels before the gate, half of them after it."""
    return Residual(Norm(dim), GatedMlp(dim, 2 * int(mlp_ratio * dim / 2), grid[0] * grid[1]), drop_path)


def build(
    *,
    img_size: int | Grid,
    num_classes: int,
    patch_size: int | Grid,
    dim: int,
    depth: int,
    in_chans: int = 3,
    mlp_ratio: float = 6.0,
    drop_path: float = 0.0,
) -> Backbone:
    make = partial(block, mlp_ratio=mlp_ratio)
    blocks = stage(make, dim, grid_of(img_size, patch_size), [drop_path] * depth)
    return init(Backbone(Patchify(patch_size, dim, in_chans), [blocks], Norm(dim), nn.Linear(dim, num_classes)))


def init(model: Backbone) -> Backbone:
    """Each gate starts as the constant 1 (paper, section 2.1); the rest as in timm: xavier, zero head, lecun stem."""
    for module in model.stages.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.normal_(module.bias, std=1e-6)
    for module in model.stages.modules():
        if isinstance(module, SpatialGate):
            nn.init.normal_(module.spatial.mix.weight, std=1e-6)
            nn.init.ones_(module.spatial.mix.bias)
    lecun_normal_(model.stem.proj.weight)
    for zero in (model.stem.proj.bias, model.head.weight, model.head.bias):
        nn.init.zeros_(zero)
    return model


def implied(state_dict: State, own: Mapping[str, Any]) -> dict[str, Any]:
    return frame(state_dict, own, columns(state_dict, "stages.0.0.branch.2.spatial.mix.weight"))


def relabel(state_dict: State, relabeling: Relabeling) -> State | None:
    """Rows and columns of the gates' matrices follow the patches."""
    places = {"*.spatial.mix.weight": (0, 1), "*.spatial.mix.bias": (0,)}
    return along(on_stem(state_dict, relabeling), relabeling.tokens, places)
