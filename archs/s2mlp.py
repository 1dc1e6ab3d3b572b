"""S2-MLP: linear layers over channels with a shift between them, a quarter of the channels to each neighbour.

The hole it fills: directed exchange between neighbours without a spatial weight. Where `poolformer` gives every
channel the same symmetric mean, here channels know which neighbour they came from, so the channel weights can tell
left from right; and unlike `cyclemlp`, no weighting over the whole grid undoes locality: local, equivariant to shifts,
free of the grid, and `convmixer` without its kernels.

Deviations: there is no code of the authors; an unofficial one was read for the order of layers. The border keeps its
own values, as in the paper's pseudo-code, and each quarter is read from the unshifted map (an in-place PyTorch
rendering of that pseudo-code would overwrite what it reads). `nano`, `1m` and `5m` are ours, on the Mixer's frame; no
published size is here, because none could be checked.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from archs import identityformer
from archs.attention import removed
from archs.attention.removed import Removable
from archs.identityformer import Norm
from archs.parts.backbone import Grid, grid_of, ramp, stage
from archs.parts.bias import Bias
from archs.parts.layers import Patchify
from archs.parts.relabeling import Relabeling, along, on_stem
from archs.parts.weights import State

SOURCE = "arXiv 2106.07477, section 3; unofficial code: liuruiyang98/Jittor-MLP models_pytorch/s2_mlp_v1.py"
BIAS = Bias(
    stem="shared", receptive_field="local", permutation_equivariant=False, shift_equivariant=True, grid_bound=False
)
SYMMETRY = ("within", "flip")
DROP_PATH = "ramp"
RATIO = "mlp_ratio"
VARIANTS = {
    "nano": {"img_size": 8, "num_classes": 10, "in_chans": 1, "patch_size": 2, "dim": 32, "depth": 3},
    "1m": {"img_size": 32, "num_classes": 10, "patch_size": 4, "dim": 128, "depth": 6},
    "5m": {"img_size": 32, "num_classes": 10, "patch_size": 4, "dim": 248, "depth": 8},
}
EXPECTED = {
    "nano": {"params": 32_330, "macs": 493_888},
    "1m": {"params": 999_306, "macs": 63_309_056},
    "5m": {"params": 4_957_282, "macs": 315_664_816},
}


Replacement = removed.Replacement  # `double` or `skip`


class SpatialShift(nn.Module):
    """A quarter of the channels each from the place above, below, left and right; the border keeps its own."""

    def forward(self, x_BHWC: Tensor) -> Tensor:
        down, up, right, left = x_BHWC.chunk(4, dim=-1)
        return torch.cat(
            [
                torch.cat([down[:, :1], down[:, :-1]], 1),
                torch.cat([up[:, 1:], up[:, -1:]], 1),
                torch.cat([right[:, :, :1], right[:, :, :-1]], 2),
                torch.cat([left[:, :, 1:], left[:, :, -1:]], 2),
            ],
            dim=-1,
        )


def block(dim: int, grid: Grid, drop_path: float = 0.0, mlp_ratio: float = 4.0) -> nn.Module:
    """One S2-MLP layer: linear, GELU, shift, linear; then the channel MLP."""
    mixer = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), SpatialShift(), nn.Linear(dim, dim))
    return identityformer.block(dim, grid, drop_path, mlp_ratio, mixer)


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
    if dim % 4:
        raise ValueError(f"dim {dim} is not a multiple of 4, one quarter for each neighbour")
    make = partial(block, mlp_ratio=mlp_ratio)
    grid = grid_of(img_size, patch_size)
    blocks = stage(make, dim, grid, ramp(drop_path, depth))
    stages = removed.take([blocks], mlp_layers, replacement, partial(Norm, dim), dim, grid, free=True)
    return init(Removable(Patchify(patch_size, dim, in_chans), stages, Norm(dim), nn.Linear(dim, num_classes)))


def width_step(given: Mapping[str, Any]) -> int:
    """What `dim` must be a multiple of, whatever is given."""
    return 4


def init(model: Removable) -> Removable:
    """As `identityformer`: Normal(0.02) weights and zero biases; the paper does not say."""
    return identityformer.init(model)


leftover = removed.leftover


def relabel(state_dict: State, relabeling: Relabeling) -> State | None:
    """Where the image is mirrored, the quarters of channels that come from both sides change places."""
    mirrored, hidden = relabeling.mirrored, len(state_dict["norm.weight"])
    if mirrored is None:
        return None
    down, up, right, left = torch.arange(hidden).chunk(4)
    quarters = [*((up, down) if mirrored[0] else (down, up)), *((left, right) if mirrored[1] else (right, left))]
    channels = {"*.0.branch.0.*": (0,), "*.0.branch.3.weight": (1,)}
    return along(on_stem(state_dict, relabeling), torch.cat(quarters), channels)
