"""DeiT: a vision transformer with learned positions, and its form with the attention of some layers removed.

With `global_pool="token"` (the paper) a class token is prepended and read by the head, so inside `stages` the model
leaves the grid: tokens are B(1+N)C, the class token first, and `features` returns the patch tokens as BHWC again.
With "avg" there is no class token and the head reads the mean of the patches, as in every other family here.

`mlp_layers` are the blocks whose attention is removed as in "MLP can be a good Transformer learner", in the form left
when training has replaced attention by the identity of the block's input: x <- 2x, then x <- x + MLP(LN(x)). Such a
block has neither its first norm nor attention. `dilute` puts attention on the way there (archs/attention/diluted.py).
`replacement` says what else may stand there: nothing, or a mixer of the lattice (archs/attention/removed.py).

`merge_r` tokens are merged in each block that keeps its attention, from number `merge_start` of those on
(archs/attention/merging.py); no weight depends on it, so a model may be trained with it or given it afterwards.

Without `pos_embed` and with "avg" the image is a set of patches (`*_set`, ours): what is left is attention's choice by
content, the control for what the positions are worth.

Deviations: no distillation token and no dropout; drop-path is a linear ramp everywhere (the authors of the removal
keep it constant for their base model). `nano`, `1m` and `5m` are ours.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from archs.attention import removed
from archs.attention.diluted import Diluted
from archs.attention.merging import MergingBlock, MergingStream
from archs.attention.removed import Removable
from archs.kernels.attention import attention
from archs.parts.backbone import Grid, grid_of, ramp
from archs.parts.bias import Bias
from archs.parts.init import normal_linears
from archs.parts.layers import Mlp, Patchify, Residual
from archs.parts.relabeling import Relabeling, along, on_stem
from archs.parts.weights import State, frame

SOURCE = (
    "arXiv 2012.12877, table 1; code: facebookresearch/deit models.py on timm's VisionTransformer; "
    "removal: arXiv 2404.05657, code: sihaoevery/lambda_vit"
)
BIAS = Bias(
    stem="shared", receptive_field="global", permutation_equivariant=False, shift_equivariant=False, grid_bound=True
)
VARIANT_BIAS = {
    "nano_set": {"permutation_equivariant": True, "shift_equivariant": True, "grid_bound": False},
    "1m_set": {"permutation_equivariant": True, "shift_equivariant": True, "grid_bound": False},
    "5m_set": {"permutation_equivariant": True, "shift_equivariant": True, "grid_bound": False},
}
SYMMETRY = ("patches",)
DROP_PATH = "ramp"
RATIO = "mlp_ratio"
WEIGHTLESS = ("merge_r", "merge_start", "merge_proportional")
VARIANTS = {
    "nano": {"img_size": 8, "num_classes": 10, "in_chans": 1, "patch_size": 2, "dim": 32, "depth": 2, "num_heads": 4},
    "1m": {"img_size": 32, "num_classes": 10, "patch_size": 4, "dim": 120, "depth": 6, "num_heads": 4},
    "5m": {"img_size": 32, "num_classes": 10, "patch_size": 4, "dim": 224, "depth": 8, "num_heads": 7},
    "nano_set": {
        "img_size": 8,
        "num_classes": 10,
        "in_chans": 1,
        "patch_size": 2,
        "dim": 32,
        "depth": 2,
        "num_heads": 4,
        "global_pool": "avg",
        "pos_embed": False,
    },
    "1m_set": {
        "img_size": 32,
        "num_classes": 10,
        "patch_size": 4,
        "dim": 120,
        "depth": 6,
        "num_heads": 4,
        "global_pool": "avg",
        "pos_embed": False,
    },
    "5m_set": {
        "img_size": 32,
        "num_classes": 10,
        "patch_size": 4,
        "dim": 224,
        "depth": 8,
        "num_heads": 7,
        "global_pool": "avg",
        "pos_embed": False,
    },
    "ti16": {"img_size": 224, "num_classes": 1000, "patch_size": 16, "dim": 192, "depth": 12, "num_heads": 3},
    "s16": {"img_size": 224, "num_classes": 1000, "patch_size": 16, "dim": 384, "depth": 12, "num_heads": 6},
    "b16": {"img_size": 224, "num_classes": 1000, "patch_size": 16, "dim": 768, "depth": 12, "num_heads": 12},
    "ti16_mlp024": {
        "img_size": 224,
        "num_classes": 1000,
        "patch_size": 16,
        "dim": 192,
        "depth": 12,
        "num_heads": 3,
        "mlp_layers": [0, 2, 4],
    },
    "ti16_mlp0246": {
        "img_size": 224,
        "num_classes": 1000,
        "patch_size": 16,
        "dim": 192,
        "depth": 12,
        "num_heads": 3,
        "mlp_layers": [0, 2, 4, 6],
    },
    "s16_mlp024": {
        "img_size": 224,
        "num_classes": 1000,
        "patch_size": 16,
        "dim": 384,
        "depth": 12,
        "num_heads": 6,
        "mlp_layers": [0, 2, 4],
    },
    "s16_mlp0246": {
        "img_size": 224,
        "num_classes": 1000,
        "patch_size": 16,
        "dim": 384,
        "depth": 12,
        "num_heads": 6,
        "mlp_layers": [0, 2, 4, 6],
    },
    "b16_mlp01346": {
        "img_size": 224,
        "num_classes": 1000,
        "patch_size": 16,
        "dim": 768,
        "depth": 12,
        "num_heads": 12,
        "mlp_layers": [0, 1, 3, 4, 6],
    },
    "b16_mlp013469": {
        "img_size": 224,
        "num_classes": 1000,
        "patch_size": 16,
        "dim": 768,
        "depth": 12,
        "num_heads": 12,
        "mlp_layers": [0, 1, 3, 4, 6, 9],
    },
}
EXPECTED = {
    "nano": {"params": 26_538, "macs": 457_152},
    "1m": {"params": 1_061_410, "macs": 73_845_840},
    "5m": {"params": 4_868_650, "macs": 328_931_008},
    "nano_set": {"params": 25_962, "macs": 428_352},
    "1m_set": {"params": 1_053_490, "macs": 72_623_280},
    "5m_set": {"params": 4_853_866, "macs": 323_651_776},
    "ti16": {"params": 5_717_416, "macs": 1_253_683_200},
    "s16": {"params": 22_050_664, "macs": 4_598_882_304},
    "b16": {"params": 86_567_656, "macs": 17_563_828_224},
    "ti16_mlp024": {"params": 5_271_592, "macs": 1_121_828_736},
    "ti16_mlp0246": {"params": 5_122_984, "macs": 1_077_877_248},
    "s16_mlp024": {"params": 20_274_280, "macs": 4_160_880_384},
    "s16_mlp0246": {"params": 19_682_152, "macs": 4_014_879_744},
    "b16_mlp01346": {"params": 74_748_136, "macs": 14_941_868_544},
    "b16_mlp013469": {"params": 72_384_232, "macs": 14_417_476_608},
}

Replacement = removed.Replacement  # `double`, `skip`, or a file of archs/mixing/
Norm = partial(nn.LayerNorm, eps=1e-6)


class Attention(nn.Module):
    """Multi-head softmax attention over all axes between batch and channel: (B, ..., C) -> (B, ..., C)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(x)[0]

    def attend(self, x: Tensor, size_BN: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What `forward` gives, and the keys averaged over the heads, (B, N, C / num_heads).

        Args:
            size_BN: how often each token counts; None: once.
        """
        qkv = self.qkv(x.flatten(1, -2)).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        bias = None if size_BN is None else size_BN.log().to(q.dtype)[:, None, None]
        mixed = attention(q, k, v, bias)
        return self.proj(mixed.transpose(1, 2).reshape(x.shape)), k.mean(1)


class Deit(Removable):
    """A Backbone whose stages see one sequence: positions added, the class token first where there is one.

    `forward_features` gives the sequence, (B, N, C), as timm's does.
    """

    mixing = "attention"

    def __init__(
        self,
        stem: nn.Module,
        stage: nn.Sequential,
        norm: nn.Module,
        head: nn.Linear,
        class_token: bool,
        positions: int,
    ) -> None:
        self.own_pool = "token" if class_token else "avg"
        super().__init__(stem, [stage], norm, head)
        self.cls_token = nn.Parameter(torch.zeros(1, head.in_features)) if class_token else None
        self.pos_embed = nn.Parameter(torch.zeros(positions, head.in_features)) if positions else None

    def no_weight_decay(self) -> set[str]:
        """Names that timm's optimizers spare, as in the authors' recipe."""
        return {"cls_token", "pos_embed"} | super().no_weight_decay()

    def embed(self, x_BCHW: Tensor) -> Tensor:
        x_BNC = super().embed(x_BCHW).flatten(1, 2)
        if self.cls_token is not None:
            x_BNC = torch.cat([self.cls_token.expand(x_BNC.shape[0], 1, -1), x_BNC], dim=1)
        return x_BNC if self.pos_embed is None else x_BNC + self.pos_embed

    @property
    def merging(self) -> bool:
        """Whether its layers merge tokens."""
        return isinstance(self.stages[0], MergingStream)

    def dilute(self, layers: Sequence[int]) -> list[Diluted]:
        halves = super().dilute(layers)
        if self.merging:
            self.stages[0].place()
        return halves

    def forward_intermediates(self, *given: Any, **named: Any) -> Any:
        """As every family's. Raises ValueError where tokens are merged: then there are no maps."""
        self._refuse_merging("maps of its blocks")
        return super().forward_intermediates(*given, **named)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        if enable:
            self._refuse_merging("gradient checkpointing")
        super().set_grad_checkpointing(enable)

    def _refuse_merging(self, what: str) -> None:
        if self.merging:
            raise ValueError(f"a model that merges tokens has no {what}; leave out merge_r")

    def to_map(self, x_BNC: Tensor, grid: Grid) -> Tensor:
        self._refuse_merging("maps of its blocks")
        return x_BNC[:, self.cls_token is not None :].unflatten(1, grid)

    def pool(self, x_BNC: Tensor) -> Tensor:
        return x_BNC.mean(1) if self.cls_token is None else x_BNC[:, 0]


def block(
    dim: int,
    grid: Grid,
    drop_path: float = 0.0,
    num_heads: int = 3,
    mlp_ratio: float = 4.0,
    instead: nn.Module | None = None,
) -> nn.Module:
    """One transformer layer, with its attention or with what stands there `instead` once it is removed."""
    first = instead or Residual(Norm(dim), Attention(dim, num_heads), drop_path)
    return nn.Sequential(first, Residual(Norm(dim), Mlp(dim, int(mlp_ratio * dim)), drop_path))


def build(
    *,
    img_size: int | Grid,
    num_classes: int,
    patch_size: int | Grid,
    dim: int,
    depth: int,
    num_heads: int,
    in_chans: int = 3,
    mlp_ratio: float = 4.0,
    mlp_layers: Sequence[int] = (),
    replacement: Replacement = "double",
    global_pool: Literal["token", "avg"] = "token",
    pos_embed: bool = True,
    drop_path: float = 0.0,
    merge_r: int = 0,
    merge_start: int = 0,
    merge_proportional: bool = True,
) -> Deit:
    if dim % num_heads:
        raise ValueError(f"dim {dim} is not a multiple of num_heads {num_heads}")
    removed.check(mlp_layers, replacement, depth)
    if merge_r and replacement not in removed.PLAIN:
        raise ValueError(f"replacement {replacement} needs every patch in its place; leave out merge_r")
    if global_pool not in ("token", "avg"):
        raise ValueError(f"global_pool '{global_pool}' is unknown; known: token, avg")
    grid = grid_of(img_size, patch_size)
    make = partial(block, dim, grid, num_heads=num_heads, mlp_ratio=mlp_ratio)
    gone = {i: removed.half(replacement, partial(Norm, dim), dim, grid, depth) for i in sorted(mlp_layers)}
    blocks = [make(rate, instead=gone.get(i)) for i, rate in enumerate(ramp(drop_path, depth))]
    stem, head = Patchify(patch_size, dim, in_chans), nn.Linear(dim, num_classes)
    class_token = global_pool == "token"
    stage = nn.Sequential(*blocks)
    if merge_r:
        merging = partial(MergingBlock, class_token=class_token, proportional=merge_proportional)
        stage = MergingStream(*(merging(*halves) for halves in blocks), merge_r=merge_r, merge_start=merge_start)
    elif merge_start or not merge_proportional:
        raise ValueError("merge_start and merge_proportional say how tokens are merged; give merge_r, too")
    positions = (grid[0] * grid[1] + class_token) * pos_embed
    return init(Deit(stem, stage, Norm(dim), head, class_token, positions))


def width_step(given: Mapping[str, Any]) -> int:
    """What `dim` must be a multiple of, given the other arguments of `build`."""
    return given["num_heads"]


def init(model: Deit) -> Deit:
    """Normal(0.02) weights, positions and class token, zero biases; the stem keeps the convolution's default."""
    normal_linears(model.stages, model.head)
    for embedding in (model.cls_token, model.pos_embed):
        if embedding is not None:
            nn.init.trunc_normal_(embedding, std=0.02)
    removed.draw(model)
    return model


def implied(state_dict: State, own: Mapping[str, Any]) -> dict[str, Any]:
    """The layers without attention too, unless the model is given some: then the file must have those."""
    class_token = "cls_token" in state_dict
    num_tokens = len(state_dict["pos_embed"]) - class_token if "pos_embed" in state_dict else None
    said = frame(state_dict, own, num_tokens) | {"global_pool": "token" if class_token else "avg"}
    if not own["mlp_layers"]:
        halves = {tuple(key.split(".")[2:4]) for key in state_dict if key.startswith("stages.0.")}
        said["mlp_layers"] = sorted(int(i) for i, half in halves if half == "1" and (i, "0") not in halves)
    return said


def leftover(state_dict: State, own: Mapping[str, Any]) -> tuple[set[str], str]:
    """Attention in layers that have none: files of the removal keep it, trained away, and so inert."""
    keys, why = removed.leftover(state_dict, own)
    return keys, why.replace("mixing", Deit.mixing)


afresh = removed.afresh


def resize(state_dict: State, grid_from: Grid, grid_to: Grid) -> State:
    """Positions interpolated bicubically, the class token's kept, as in the authors' fine-tuning."""
    if "pos_embed" not in state_dict:
        return state_dict
    prefix = len(state_dict["pos_embed"]) - grid_from[0] * grid_from[1]
    positions = state_dict["pos_embed"][None]
    positions = resample_abs_pos_embed(positions, list(grid_to), list(grid_from), num_prefix_tokens=prefix)
    return {**state_dict, "pos_embed": positions[0]}


def relabel(state_dict: State, relabeling: Relabeling) -> State | None:
    """The positions follow the patches; the class token has none of them."""
    state, tokens = on_stem(state_dict, relabeling), relabeling.tokens
    if removed.moves(state_dict):
        return None
    if state is None or "pos_embed" not in state:
        return state
    if "cls_token" in state:
        tokens = torch.cat([torch.zeros(1, dtype=torch.long), tokens + 1])
    return along(state, tokens, {"pos_embed": (0,)})
