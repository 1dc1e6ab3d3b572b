"""IdentityFormer: a MetaFormer whose token mixer is the identity; patches meet only in the mean before the head.

The hole it fills: the floor of the ladder. It has the frame of `mixer`, `resmlp` and every other rung on patches
(shared stem, pre-norm, residuals, channel MLP, mean) and no exchange between places at all, so that what those gain
over it is the worth of their token mixer. It is a bag of patches.

Deviations: the authors' is a pyramid of four stages with StarReLU, ResScale and LayerNorm without a bias; here it is
the isotropic frame of the Mixer, with GELU and a full LayerNorm. Like the source, the identity stands after a norm
and inside a residual: x + LN(x). `nano`, `1m` and `5m` are ours; the paper's sizes belong to its pyramid.
"""

from functools import partial

from torch import nn

from archs.parts.backbone import Backbone, Grid, grid_of, ramp, stage
from archs.parts.bias import Bias
from archs.parts.init import normal_linears
from archs.parts.layers import Mlp, Patchify, Residual
from archs.parts.relabeling import Relabeling, on_stem
from archs.parts.weights import State

SOURCE = "arXiv 2210.13452, section 2.1; initialisation and drop-path ramp: sail-sg/metaformer metaformer_baselines.py"
BIAS = Bias(
    stem="shared", receptive_field="token", permutation_equivariant=True, shift_equivariant=True, grid_bound=False
)
SYMMETRY = ("patches",)
DROP_PATH = "ramp"
RATIO = "mlp_ratio"
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

Norm = partial(nn.LayerNorm, eps=1e-6)


def block(
    dim: int, grid: Grid, drop_path: float = 0.0, mlp_ratio: float = 4.0, mixer: nn.Module | None = None
) -> nn.Module:
    """A MetaFormer layer around `mixer`, a module x_BHWC -> x_BHWC; without one, the identity."""
    return nn.Sequential(
        Residual(Norm(dim), nn.Identity() if mixer is None else mixer, drop_path),
        Residual(Norm(dim), Mlp(dim, int(mlp_ratio * dim)), drop_path),
    )


def build(
    *,
    img_size: int | Grid,
    num_classes: int,
    patch_size: int | Grid,
    dim: int,
    depth: int,
    in_chans: int = 3,
    mlp_ratio: float = 4.0,
    drop_path: float = 0.0,
) -> Backbone:
    make = partial(block, mlp_ratio=mlp_ratio)
    blocks = stage(make, dim, grid_of(img_size, patch_size), ramp(drop_path, depth))
    return init(Backbone(Patchify(patch_size, dim, in_chans), [blocks], Norm(dim), nn.Linear(dim, num_classes)))


def init(model: Backbone) -> Backbone:
    """Normal(0.02) weights and zero biases everywhere, stem and head included."""
    normal_linears(model)
    return model


def relabel(state_dict: State, relabeling: Relabeling) -> State | None:
    """No weight belongs to a place."""
    return on_stem(state_dict, relabeling)
