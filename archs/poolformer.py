"""PoolFormer: a MetaFormer whose token mixer is the mean of the neighbours minus the token itself.

The hole it fills: locality without a spatial weight. Next to `identityformer` it adds a fixed, symmetric exchange
between neighbours; next to `convmixer` it takes away every spatial parameter. Equivariant to shifts, free of the grid.

Deviations: the authors' is a pyramid of four stages, with a norm over channels and places together (which would read
the whole grid) and LayerScale; here it is the Mixer's isotropic frame with LayerNorm per token, as in the second
source, and no LayerScale. The border is averaged over the neighbours that exist, as in the authors' code. Sums of the
pooling are not MACs. `nano`, `1m` and `5m` are ours.
"""

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from archs import identityformer
from archs.attention import removed
from archs.attention.removed import Removable
from archs.identityformer import Norm
from archs.parts.backbone import Grid, grid_of, ramp, stage
from archs.parts.bias import Bias
from archs.parts.layers import OverMap, Patchify
from archs.parts.relabeling import Relabeling, mirror, on_stem
from archs.parts.weights import State

SOURCE = "arXiv 2111.11418, section 3.2, and 2210.13452; code: sail-sg/poolformer models/poolformer.py, Pooling"
BIAS = Bias(
    stem="shared", receptive_field="local", permutation_equivariant=False, shift_equivariant=True, grid_bound=False
)
SYMMETRY = ("within", "flip")
DROP_PATH = "ramp"
RATIO = "mlp_ratio"
# A mean minus the token itself is zero for what all tokens share, as the first norm's bias is.
INERT = ("*.0.norm.bias",)
VARIANTS = {
    "nano": {"img_size": 8, "num_classes": 10, "in_chans": 1, "patch_size": 2, "dim": 36, "depth": 3},
    "1m": {"img_size": 32, "num_classes": 10, "patch_size": 4, "dim": 144, "depth": 6},
    "5m": {"img_size": 32, "num_classes": 10, "patch_size": 4, "dim": 280, "depth": 8},
}
EXPECTED = {
    "nano": {"params": 32_698, "macs": 500_328},
    "1m": {"params": 1_011_898, "macs": 64_144_800},
    "5m": {"params": 5_054_850, "macs": 321_989_360},
}


Replacement = removed.Replacement  # `double` or `skip`


class Pooling(nn.AvgPool2d):
    """Mean over pool_size x pool_size neighbours minus x, BCHW -> BCHW."""

    def __init__(self, pool_size: int) -> None:
        super().__init__(pool_size, stride=1, padding=pool_size // 2, count_include_pad=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return super().forward(x_BCHW) - x_BCHW


def block(dim: int, grid: Grid, drop_path: float = 0.0, mlp_ratio: float = 4.0, pool_size: int = 3) -> nn.Module:
    """One PoolFormer layer, on any grid."""
    return identityformer.block(dim, grid, drop_path, mlp_ratio, OverMap(Pooling(pool_size)))


def build(
    *,
    img_size: int | Grid,
    num_classes: int,
    patch_size: int | Grid,
    dim: int,
    depth: int,
    in_chans: int = 3,
    mlp_ratio: float = 4.0,
    pool_size: int = 3,
    drop_path: float = 0.0,
    mlp_layers: Sequence[int] = (),
    replacement: Replacement = "double",
) -> Removable:
    """`mlp_layers` have lost what mixes tokens, and `replacement` stands there (archs/attention/removed.py)."""
    if pool_size % 2 == 0 or pool_size < 1:
        raise ValueError(f"pool_size {pool_size} must be odd and positive")
    make = partial(block, mlp_ratio=mlp_ratio, pool_size=pool_size)
    grid = grid_of(img_size, patch_size)
    blocks = stage(make, dim, grid, ramp(drop_path, depth))
    stages = removed.take([blocks], mlp_layers, replacement, partial(Norm, dim), dim, grid, free=True)
    return init(Removable(Patchify(patch_size, dim, in_chans), stages, Norm(dim), nn.Linear(dim, num_classes)))


def init(model: Removable) -> Removable:
    """As `identityformer`: Normal(0.02) weights and zero biases, in both sources."""
    return identityformer.init(model)


leftover = removed.leftover


def relabel(state_dict: State, relabeling: Relabeling) -> State | None:
    """No weight belongs to a place, and the mean has no direction."""
    return mirror(on_stem(state_dict, relabeling), relabeling, {})
