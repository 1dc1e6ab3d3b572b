"""MLP-Mixer: an MLP across tokens, shared by the channels, then an MLP across channels, shared by the tokens.

Deviations: GELU is exact (erf) as in timm, the authors' Flax code uses the tanh approximation; a kept branch of
stochastic depth is scaled by 1 / (1 - rate), which the authors' mask is not. `nano`, `1m` and `5m` are ours.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from einops import rearrange
from timm.layers import lecun_normal_
from torch import nn

from archs.attention import removed
from archs.attention.removed import Removable
from archs.parts.backbone import Grid, grid_of, ramp
from archs.parts.bias import Bias
from archs.parts.layers import Mlp, OverTokens, Patchify, Residual, TokenLinear
from archs.parts.relabeling import Relabeling, along, on_stem
from archs.parts.weights import State, columns, frame

SOURCE = "arXiv 2105.01601, table 1; initialisation and drop-path ramp: big_vision models/mlp_mixer.py"
BIAS = Bias(
    stem="shared", receptive_field="global", permutation_equivariant=False, shift_equivariant=False, grid_bound=True
)
SYMMETRY = ("patches",)
# The token MLP's second bias is constant over the channels, so every later LayerNorm removes it: its gradient is zero.
INERT = ("*.mix.fc2.bias",)
DROP_PATH = "ramp"
RATIO = "channel_ratio"
VARIANTS = {
    "nano": {"img_size": 8, "num_classes": 10, "in_chans": 1, "patch_size": 2, "dim": 32, "depth": 3},
    "1m": {"img_size": 32, "num_classes": 10, "patch_size": 4, "dim": 136, "depth": 6},
    "5m": {"img_size": 32, "num_classes": 10, "patch_size": 4, "dim": 272, "depth": 8},
    "s32": {"img_size": 224, "num_classes": 1000, "patch_size": 32, "dim": 512, "depth": 8},
    "s16": {"img_size": 224, "num_classes": 1000, "patch_size": 16, "dim": 512, "depth": 8},
    "b32": {"img_size": 224, "num_classes": 1000, "patch_size": 32, "dim": 768, "depth": 12},
    "b16": {"img_size": 224, "num_classes": 1000, "patch_size": 16, "dim": 768, "depth": 12},
    "l32": {"img_size": 224, "num_classes": 1000, "patch_size": 32, "dim": 1024, "depth": 24},
    "l16": {"img_size": 224, "num_classes": 1000, "patch_size": 16, "dim": 1024, "depth": 24},
    "h14": {"img_size": 224, "num_classes": 1000, "patch_size": 14, "dim": 1280, "depth": 32},
}
EXPECTED = {
    "nano": {"params": 27_626, "macs": 444_736},
    "1m": {"params": 956_474, "macs": 64_341_328},
    "5m": {"params": 4_912_026, "macs": 341_756_576},
    "s32": {"params": 19_104_624, "macs": 1_002_426_368},
    "s16": {"params": 18_528_264, "macs": 3_776_958_464},
    "b32": {"params": 60_293_428, "macs": 3_237_722_112},
    "b16": {"params": 59_880_472, "macs": 12_601_767_936},
    "l32": {"params": 206_939_264, "macs": 11_253_293_056},
    "l16": {"params": 208_196_168, "macs": 44_547_678_208},
    "h14": {"params": 432_350_952, "macs": 120_989_911_040},
}

Replacement = removed.Replacement  # `double`, `skip`, or a file of archs/mixing/
Norm = partial(nn.LayerNorm, eps=1e-6)


def block(
    dim: int,
    grid: Grid,
    drop_path: float = 0.0,
    token_ratio: float = 0.5,
    channel_ratio: float = 4.0,
    instead: nn.Module | None = None,
) -> nn.Module:
    """One Mixer layer; the token MLP is `token_ratio * dim` wide, whatever the number of tokens (table 1).

    `instead` stands in place of the token MLP and its residual.
    """
    if instead is None:
        tokens = Mlp(grid[0] * grid[1], int(token_ratio * dim), TokenLinear)
        instead = Residual(Norm(dim), OverTokens(tokens, transpose=False), drop_path)
    return nn.Sequential(instead, Residual(Norm(dim), Mlp(dim, int(channel_ratio * dim)), drop_path))


def build(
    *,
    img_size: int | Grid,
    num_classes: int,
    patch_size: int | Grid,
    dim: int,
    depth: int,
    in_chans: int = 3,
    token_ratio: float = 0.5,
    channel_ratio: float = 4.0,
    drop_path: float = 0.0,
    mlp_layers: Sequence[int] = (),
    replacement: Replacement = "double",
) -> Removable:
    """`mlp_layers` have lost what mixes tokens, and `replacement` stands there (archs/attention/removed.py)."""
    removed.check(mlp_layers, replacement, depth)
    grid = grid_of(img_size, patch_size)
    gone = {i: removed.half(replacement, partial(Norm, dim), dim, grid, depth) for i in sorted(mlp_layers)}
    make = partial(block, dim, grid, token_ratio=token_ratio, channel_ratio=channel_ratio)
    blocks = nn.Sequential(*(make(rate, instead=gone.get(i)) for i, rate in enumerate(ramp(drop_path, depth))))
    return init(Removable(Patchify(patch_size, dim, in_chans), [blocks], Norm(dim), nn.Linear(dim, num_classes)))


def init(model: Removable) -> Removable:
    """Lecun-normal kernels, zero biases, zero head: Flax's defaults, as in the authors' code."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            lecun_normal_(module.weight)
            if module.bias is not None:  # of a mixer that stands in place of a token MLP
                nn.init.zeros_(module.bias)
    nn.init.zeros_(model.head.weight)
    removed.draw(model)
    return model


def implied(state_dict: State, own: Mapping[str, Any]) -> dict[str, Any]:
    """The width of the token MLP too: it grows with `resize`."""
    key = f"stages.0.{removed.kept(own)}.0.branch.mix.fc1.weight"
    said = frame(state_dict, own, columns(state_dict, key))
    if key in state_dict:
        hidden, dim = len(state_dict[key]), own["dim"]
        said["token_ratio"] = own["token_ratio"] if int(own["token_ratio"] * dim) == hidden else hidden / dim
    return said


leftover = removed.leftover
afresh = removed.afresh


def resize(state_dict: State, grid_from: Grid, grid_to: Grid) -> State:
    """Token MLPs that do on each sub-grid of the larger grid what the old ones do on theirs (paper, appendix C).

    Their matrices stand along the block diagonal, a block for each sub-grid, so that `token_ratio` grows as the number
    of tokens. Raises ValueError unless the old grid tiles the new one.
    """
    (h, w), (rows, cols) = grid_from, grid_to
    if rows % h or cols % w:
        raise ValueError(f"token weights of a {h} x {w} grid fit whole multiples of it, not {rows} x {cols}")
    # place[b, s]: token of the new grid that is token s of sub-grid b.
    place = rearrange(torch.arange(rows * cols), "(a h b w) -> (a b) (h w)", h=h, b=cols // w, w=w)
    resized = dict(state_dict)
    for key, value in state_dict.items():
        if key.endswith(".0.branch.mix.fc1.weight"):
            blocks = value.new_zeros(len(place), len(value), place.numel())
            for block, columns_of in zip(blocks, place, strict=True):
                block[:, columns_of] = value
            resized[key] = blocks.flatten(0, 1)
        elif key.endswith(".0.branch.mix.fc2.weight"):
            blocks = value.new_zeros(place.numel(), len(place), value.shape[1])
            for i, rows_of in enumerate(place):
                blocks[rows_of, i] = value
            resized[key] = blocks.flatten(1)
        elif key.endswith(".0.branch.mix.fc1.bias"):
            resized[key] = value.repeat(len(place))
        elif key.endswith(".0.branch.mix.fc2.bias"):
            resized[key] = value.new_empty(place.numel()).index_copy_(0, place.flatten(), value.repeat(len(place)))
    return resized


def relabel(state_dict: State, relabeling: Relabeling) -> State | None:
    """What the token MLPs read and write follows the patches."""
    if removed.moves(state_dict):
        return None
    places = {"*.0.branch.mix.fc1.weight": (1,), "*.0.branch.mix.fc2.*": (0,)}
    return along(on_stem(state_dict, relabeling), relabeling.tokens, places)
