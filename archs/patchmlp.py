"""Patchified MLP: one small projection per patch, the embeddings concatenated, then the inverted-bottleneck trunk.

Next to `bmlp` it adds locality in the first layer and, unless `shared` is off, weight sharing there; nothing else.
The source fixes only that idea, so three decisions are ours:
- the embeddings are concatenated, not pooled, and `dim`, the trunk's width, is tokens x channels per patch, without
  another dense layer between them: a dense layer there would be a second, global first layer;
- no positions are added, because the trunk has its own weights for each place;
- `1m` and `5m` are matched in parameters by `expansion`, because `dim` moves in steps of the number of tokens.
Pixels of a patch are read in the order (channel, row, column). `drop_path` is a linear ramp, as in `bmlp`.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from archs.bmlp import block
from archs.parts.backbone import Backbone, Grid, grid_of, pair, ramp, stage
from archs.parts.bias import Bias
from archs.parts.layers import Patchify, patches
from archs.parts.relabeling import Relabeling, along, on_stem
from archs.parts.weights import State, columns, frame

SOURCE = "the patchified rung between arXiv 2306.13575 (trunk) and arXiv 2105.01601 (stem); no published configuration"
BIAS = Bias(
    stem="shared", receptive_field="global", permutation_equivariant=False, shift_equivariant=False, grid_bound=True
)
VARIANT_BIAS = {"nano_unshared": {"stem": "local"}, "1m_unshared": {"stem": "local"}, "5m_unshared": {"stem": "local"}}
SYMMETRY = ("patches",)
VARIANT_SYMMETRY = {"nano_unshared": ("patches_own",), "1m_unshared": ("patches_own",), "5m_unshared": ("patches_own",)}
DROP_PATH = "ramp"
RATIO = "expansion"
# At 64 px, 256 patches of 4 x 4 are more than the trunk is wide.
AT_64_PX = {"patch_size": 8}
VARIANTS = {
    "nano": {"img_size": 8, "num_classes": 10, "in_chans": 1, "patch_size": 2, "dim": 48, "depth": 2},
    "1m": {"img_size": 32, "num_classes": 10, "patch_size": 4, "dim": 128, "depth": 6, "expansion": 5.0},
    "5m": {"img_size": 32, "num_classes": 10, "patch_size": 4, "dim": 256, "depth": 8, "expansion": 4.75},
    "nano_unshared": {
        "img_size": 8,
        "num_classes": 10,
        "in_chans": 1,
        "patch_size": 2,
        "dim": 48,
        "depth": 2,
        "shared": False,
    },
    "1m_unshared": {
        "img_size": 32,
        "num_classes": 10,
        "patch_size": 4,
        "dim": 128,
        "depth": 6,
        "expansion": 5.0,
        "shared": False,
    },
    "5m_unshared": {
        "img_size": 32,
        "num_classes": 10,
        "patch_size": 4,
        "dim": 256,
        "depth": 8,
        "expansion": 4.75,
        "shared": False,
    },
}
EXPECTED = {
    "nano": {"params": 38_041, "macs": 37_536},
    "1m": {"params": 990_572, "macs": 990_464},
    "5m": {"params": 4_999_374, "macs": 4_995_584},
    "nano_unshared": {"params": 38_266, "macs": 37_536},
    "1m_unshared": {"params": 996_746, "macs": 990_464},
    "5m_unshared": {"params": 5_011_722, "macs": 4_995_584},
}


class OwnProjections(nn.Module):
    """Linear projection of non-overlapping patches with weights of its own at each position, BCHW -> BHWC."""

    def __init__(self, grid: Grid, patch_size: int | Grid, dim: int, in_chans: int) -> None:
        super().__init__()
        self.grid, self.patch_size = grid, pair(patch_size)
        pixels = in_chans * self.patch_size[0] * self.patch_size[1]
        self.weight = nn.Parameter(torch.empty(*grid, dim, pixels).uniform_(-(pixels**-0.5), pixels**-0.5))
        self.bias = nn.Parameter(torch.empty(*grid, dim).uniform_(-(pixels**-0.5), pixels**-0.5))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return torch.einsum("bhwi,hwoi->bhwo", patches(x_BCHW, self.patch_size), self.weight) + self.bias


class Concatenate(nn.Module):
    """All tokens as one, in the order of places: BHWC -> (B, 1, 1, H*W*C)."""

    def forward(self, x_BHWC: Tensor) -> Tensor:
        return x_BHWC.flatten(1)[:, None, None]


def build(
    *,
    img_size: int | Grid,
    num_classes: int,
    patch_size: int | Grid,
    dim: int,
    depth: int,
    in_chans: int = 3,
    expansion: float = 4.0,
    shared: bool = True,
    drop_path: float = 0.0,
) -> Backbone:
    grid = grid_of(img_size, patch_size)
    num_tokens = grid[0] * grid[1]
    if dim % num_tokens:
        near = ", ".join(str(size) for size in (dim - dim % num_tokens, dim - dim % num_tokens + num_tokens) if size)
        raise ValueError(f"dim {dim} is not a multiple of the {num_tokens} patches; nearest: {near}")
    each = dim // num_tokens
    project = Patchify(patch_size, each, in_chans) if shared else OwnProjections(grid, patch_size, each, in_chans)
    stem = nn.Sequential(project, Concatenate())
    blocks = stage(partial(block, expansion=expansion), dim, (1, 1), ramp(drop_path, depth))
    return init(Backbone(stem, [blocks], nn.Identity(), nn.Linear(dim, num_classes)))


def width_step(given: Mapping[str, Any]) -> int:
    """What `dim` must be a multiple of, given the other arguments of `build`."""
    height, width = grid_of(given["img_size"], given["patch_size"])
    return height * width


def init(model: Backbone) -> Backbone:
    """PyTorch's defaults, as in `bmlp`: uniform within 1 / sqrt(fan in), the stem's fan in being one patch."""
    return model


def implied(state_dict: State, own: Mapping[str, Any]) -> dict[str, Any]:
    stem = "stem.0.proj.weight" if own["shared"] else "stem.0.weight"
    each = state_dict[stem].shape[-2] if stem in state_dict else 0
    return frame(state_dict, own, (columns(state_dict, "head.weight") or 0) // each if each else None, stem)


def relabel(state_dict: State, relabeling: Relabeling) -> State | None:
    """The trunk's channels follow their patch; projections of their own follow theirs, inner order and all."""
    if relabeling.tokens is None:
        return None
    tokens, key = relabeling.tokens, "stem.0.weight"
    if key in state_dict:
        grid, stem = relabeling.grid, {name: state_dict[name].flatten(0, 1)[tokens] for name in (key, "stem.0.bias")}
        within = relabeling.within.expand(len(tokens), -1)[:, None].expand_as(stem[key])
        stem[key] = stem[key].gather(2, within)
        state = {**state_dict, **{name: value.unflatten(0, grid) for name, value in stem.items()}}
    else:
        state = on_stem(state_dict, relabeling, "stem.0.proj.weight")
    each = state_dict["head.weight"].shape[1] // len(tokens)
    channels = (tokens[:, None] * each + torch.arange(each)).flatten()
    trunk = {"stages.*.norm.*": (0,), "stages.*.fc1.weight": (1,), "stages.*.fc2.*": (0,), "head.weight": (1,)}
    return along(state, channels, trunk)
