"""RandFormer: a MetaFormer whose token mixer is one random matrix over the tokens, drawn once and never trained.

The hole it fills: exchange between all places without learning where to look. Next to `identityformer` it adds a
global receptive field and nothing that is trained; next to `resmlp`, whose token mixer is a trained matrix of the same
shape, it takes the training away (and `resmlp` has affine maps and LayerScale where this has norms).

The matrix is a buffer: it is in checkpoints, it moves no gradient and it is not among the parameters that EXPECTED
counts; its product is among the MACs. It is drawn from torch's generator when the model is built, so a seed decides it.

Deviations: the authors mix randomly in the last two stages of a pyramid with StarReLU, ResScale and LayerNorm without
a bias; here every block of the Mixer's isotropic frame does. `nano`, `1m` and `5m` are ours.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from timm.layers import register_notrace_module
from torch import Tensor, nn

from archs import identityformer
from archs.attention import removed
from archs.attention.removed import Removable
from archs.identityformer import Norm
from archs.parts.backbone import Grid, grid_of, ramp, stage
from archs.parts.bias import Bias
from archs.parts.layers import Patchify, mix_tokens
from archs.parts.relabeling import Relabeling, along, on_stem
from archs.parts.weights import State, columns, frame

SOURCE = "arXiv 2210.13452, section 2.2; code: sail-sg/metaformer metaformer_baselines.py, RandomMixing"
BIAS = Bias(
    stem="shared", receptive_field="global", permutation_equivariant=False, shift_equivariant=False, grid_bound=True
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
    "nano": {"params": 32_698, "macs": 527_976},
    "1m": {"params": 1_011_898, "macs": 67_683_744},
    "5m": {"params": 5_054_850, "macs": 331_164_400},
}


Replacement = removed.Replacement  # `double`, `skip`, or a file of archs/mixing/


@register_notrace_module  # a leaf for torch.fx
class RandomMixing(nn.Module):
    """W @ x over the tokens of x_BHWC; the rows of W are the softmax of uniform numbers in [0, 1): nearly a mean."""

    def __init__(self, num_tokens: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.rand(num_tokens, num_tokens).softmax(-1))

    def forward(self, x_BHWC: Tensor) -> Tensor:
        return mix_tokens(x_BHWC.flatten(1, 2), self.weight, None).reshape(x_BHWC.shape)


def block(dim: int, grid: Grid, drop_path: float = 0.0, mlp_ratio: float = 4.0) -> nn.Module:
    """One RandFormer layer, with a matrix of its own."""
    return identityformer.block(dim, grid, drop_path, mlp_ratio, RandomMixing(grid[0] * grid[1]))


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
    mlp_layers: Sequence[int] = (),
    replacement: Replacement = "double",
) -> Removable:
    """`mlp_layers` have lost what mixes tokens, and `replacement` stands there (archs/attention/removed.py)."""
    make = partial(block, mlp_ratio=mlp_ratio)
    grid = grid_of(img_size, patch_size)
    blocks = stage(make, dim, grid, ramp(drop_path, depth))
    stages = removed.take([blocks], mlp_layers, replacement, partial(Norm, dim), dim, grid)
    return init(Removable(Patchify(patch_size, dim, in_chans), stages, Norm(dim), nn.Linear(dim, num_classes)))


def init(model: Removable) -> Removable:
    """As `identityformer`: Normal(0.02) weights and zero biases; the frozen matrices stay as drawn."""
    identityformer.init(model)
    removed.draw(model)
    return model


def implied(state_dict: State, own: Mapping[str, Any]) -> dict[str, Any]:
    return frame(state_dict, own, columns(state_dict, f"stages.0.{removed.kept(own)}.0.branch.weight"))


leftover = removed.leftover
afresh = removed.afresh


def relabel(state_dict: State, relabeling: Relabeling) -> State | None:
    """The frozen matrices follow the tokens; drawn alike everywhere, they are as likely as before."""
    if removed.moves(state_dict):
        return None
    return along(on_stem(state_dict, relabeling), relabeling.tokens, {"*.0.branch.weight": (0, 1)})
