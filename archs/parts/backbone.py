"""The skeleton that every family shares: stem -> stages of blocks -> norm -> mean over the grid -> head.

Shape letters for all of archs/: B batch, C channels, H x W token grid, N = H*W tokens. Images are BCHW; between stem
and head everything is BHWC, and a layer that wants another layout permutes inside itself.

A block is any module x_BHWC -> x_BHWC made by `block(dim, grid, drop_path, ...)`. What a paper invented stays in the
family's file; nothing here knows a family.

What goes from block to block, the residual stream, has the dtype of the image, so under autocast it is float32 in every
family: autocast would leave it bfloat16 or not according to the last operation of a stem or block, a difference
between architectures that no paper means.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
from timm.models import checkpoint
from timm.models._features import feature_take_indices
from torch import Tensor, nn

Grid = tuple[int, int]


class Stream(nn.Sequential):
    """Modules in a row, the output of each cast to the dtype of its input."""

    def forward(self, x: Tensor) -> Tensor:
        for module in self:
            x = module(x).to(x.dtype)
        return x


class Backbone(nn.Module):
    """Image classifier over a token grid, with the methods by which timm and what is built on it use any model.

    Features are BHWC throughout; `forward_intermediates` gives BCHW, too. A family that leaves the grid between stem
    and head overrides `embed`, `to_map` and `pool`, and nothing else.

    Args:
        stem: image BCHW -> tokens BHWC.
        stages: modules BHWC -> BHWC, each a run of blocks on one grid or a transition between two grids.
        norm: over the channels of the last stage; `nn.Identity()` where the paper has none.
        head: (B, C) -> (B, num_classes).
    """

    output_fmt, feature_dim = "NHWC", -1
    __jit_unused_properties__ = ("feature_info", "in_chans")
    own_pool = "avg"
    default_cfg: dict[str, Any]
    """What timm wants to know of a model beside its weights; `archs.create` sets it, timm's create_model its own."""
    input_size: tuple[int, int, int]
    """Channels, height and width of the image that the model was built for; `archs.create` sets it."""

    def __init__(self, stem: nn.Module, stages: Sequence[nn.Module], norm: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.stem = stem
        self.stages = Stream(
            *(run if isinstance(run, Stream) or not isinstance(run, nn.Sequential) else Stream(*run) for run in stages)
        )
        self.norm = norm
        self.head = head
        self.num_classes, self.global_pool = head.out_features, self.own_pool
        self.num_features = self.head_hidden_size = head.in_features
        self.grad_checkpointing = False

    # --- from image to logits

    def embed(self, x_BCHW: Tensor) -> Tensor:
        """What the first block reads, in the image's dtype: where the residual stream starts."""
        return self.stem(x_BCHW).to(x_BCHW.dtype)

    def to_map(self, x: Tensor, grid: Grid) -> Tensor:
        """What a block gave, as a map BHWC; `grid` is the stem's."""
        return x

    def pool(self, x: Tensor) -> Tensor:
        """Normed features -> (B, C)."""
        return x.mean((1, 2))

    def forward_features(self, x_BCHW: Tensor) -> Tensor:
        """What the head pools: the output of the last block, normed."""
        x = self.embed(x_BCHW)
        if self.grad_checkpointing and self.training and not torch.jit.is_scripting():
            for block in self.blocks():
                x = checkpoint(block, x).to(x.dtype)
            return self.norm(x)
        return self.norm(self.stages(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (B, num_classes) of `forward_features`; before the classifier (B, C) with `pre_logits`."""
        x = self.pool(x) if self.global_pool else x
        return x if pre_logits else self.head(x)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Logits, (B, num_classes); without a classifier the pooled features, (B, C)."""
        return self.forward_head(self.forward_features(x_BCHW))

    def features(self, x_BCHW: Tensor) -> Tensor:
        """Map of the last stage after the norm, BHWC, for dense use and probes."""
        return self.to_map(self.forward_features(x_BCHW), self.grid(x_BCHW))

    # --- what is inside

    def blocks(self) -> list[nn.Module]:
        """Every block in order; a transition between two grids counts as one."""
        return [each for run in self.stages for each in (run if isinstance(run, nn.Sequential) else [run])]

    @property
    def in_chans(self) -> int:
        """Channels of the image."""
        return self.input_size[0]

    def grid(self, x_BCHW: Tensor) -> Grid:
        """Token grid (H, W) of the stem for these images."""
        sizes = [module.patch_size for module in self.stem.modules() if hasattr(module, "patch_size")]
        (h, w), (p, q) = x_BCHW.shape[2:], sizes[0] if sizes else (1, 1)
        return -(-h // p), -(-w // q)

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """Of each block: `module` (its name), `num_chs`, `reduction` (pixels a token's side), as timm's extractors ask.

        From one pass on the meta device over a copy without weights.
        """
        if not self.blocks():
            return []
        memo = {id(tensor): tensor.to("meta") for tensor in (*self.parameters(), *self.buffers())}
        images = torch.empty(2, *self.input_size, device="meta", dtype=next(self.parameters()).dtype)
        with torch.no_grad():
            maps = deepcopy(self, memo).eval().forward_intermediates(images, intermediates_only=True)
        names = {id(module): name for name, module in self.named_modules()}
        return [
            {"module": names[id(block)], "num_chs": x_BCHW.shape[1], "reduction": images.shape[2] // x_BCHW.shape[2]}
            for block, x_BCHW in zip(self.blocks(), maps, strict=True)
        ]

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The maps that blocks give, and what `forward_features` gives; arguments and meaning are timm's.

        Args:
            x: images BCHW.
            indices: blocks to take: the last n, those numbered, or all.
            norm: the last norm over each; where stages differ in width, over those of the last width only.
            stop_early: leave out the blocks after the last one taken.
            output_fmt: NCHW or NHWC, of the maps.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ValueError(f"output_fmt {output_fmt} is unknown; known: NCHW, NHWC")
        blocks = self.blocks()
        taken, last = feature_take_indices(len(blocks), indices)
        grid, maps = self.grid(x), []
        x = self.embed(x)
        for i, block in enumerate(blocks[: last + 1] if stop_early else blocks):
            x = (checkpoint(block, x) if self.grad_checkpointing and self.training else block(x)).to(x.dtype)
            if i in taken:
                same = norm and x.shape[-1] == self.num_features
                x_BHWC = self.to_map(self.norm(x) if same else x, grid)
                maps.append(x_BHWC if output_fmt == "NHWC" else x_BHWC.permute(0, 3, 1, 2))
        # Stopped early at another width, there is no norm for it.
        return maps if intermediates_only else (self.norm(x) if x.shape[-1] == self.num_features else x, maps)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] | None = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the blocks after the last one taken, and norm and head where asked for; the blocks taken.

        What is of the width of blocks that are dropped, norm and head, goes with them.
        """
        taken, last = feature_take_indices(len(self.blocks()), indices)
        width = self.feature_info[last]["num_chs"]
        kept, stages = last + 1, []
        for run in self.stages:
            part = run[:kept] if isinstance(run, nn.Sequential) else run
            stages += [part] if kept > 0 else []
            kept -= len(run) if isinstance(run, nn.Sequential) else 1
        self.stages = Stream(*stages)
        narrow = width != self.num_features
        self.num_features = self.head_hidden_size = width
        if prune_norm or narrow:
            self.norm = nn.Identity()
        if prune_head or narrow:
            self.reset_classifier(0, "")
        return taken

    # --- what trainers ask for

    def get_classifier(self) -> nn.Module:
        """The head."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Another number of classes, with a fresh linear head; 0 is no head at all, "" as pool no pooling."""
        if global_pool not in (None, "", self.own_pool):
            raise ValueError(f"global_pool '{global_pool}' is unknown here; known: {self.own_pool}, and '' for none")
        self.global_pool = self.global_pool if global_pool is None else global_pool
        like = next(self.parameters())
        self.num_classes = num_classes
        self.head = (
            nn.Linear(self.num_features, num_classes, device=like.device, dtype=like.dtype)
            if num_classes
            else nn.Identity()
        )
        self.head.train(self.training)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute each block's forward pass again in the backward pass instead of keeping what it gave."""
        self.grad_checkpointing = enable

    def init_non_persistent_buffers(self) -> None:
        """Fill the buffers that no checkpoint holds, after a model was built on the meta device."""
        for module in self.modules():
            if module is not self and hasattr(module, "init_non_persistent_buffers"):
                module.init_non_persistent_buffers()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Depth of each parameter, as timm's layer decay asks for it: the stem, each block (or stage), the head.

        A transition between two grids is a stage of its own, and so a depth between those of its neighbours.
        """
        stages = (r"^stages\.(\d+)", None)
        # A block's parameters match the first pattern; those of a transition, which has no number in it, the second.
        blocks = [stages] if coarse else [(r"^stages\.(\d+)\.(\d+)\.", None), stages]
        return {"stem": r"^stem|^cls_token|^pos_embed", "blocks": blocks}


def stage(block: Callable[..., nn.Module], dim: int, grid: Grid, drop_paths: Sequence[float]) -> nn.Sequential:
    """One block per entry of `drop_paths`, all on one grid."""
    return nn.Sequential(*(block(dim, grid, drop_path=rate) for rate in drop_paths))


def ramp(drop_path: float, depth: int) -> list[float]:
    """Stochastic-depth rate per block, linear from 0 to `drop_path` (Huang et al., arXiv 1603.09382, section 3)."""
    return [drop_path * i / max(depth - 1, 1) for i in range(depth)]


def grid_of(img_size: int | Grid, patch_size: int | Grid) -> Grid:
    """Token grid (H, W). Raises ValueError, naming the nearest sizes, unless the patches tile the image."""
    image, patch = pair(img_size), pair(patch_size)
    for pixels, side in zip(image, patch, strict=True):
        if pixels % side or pixels < side:
            below = pixels - pixels % side
            near = ", ".join(str(size) for size in (below, below + side) if size)
            raise ValueError(f"img_size {pixels} is not a multiple of patch_size {side}; nearest: {near}")
    return image[0] // patch[0], image[1] // patch[1]


def pair(size: int | Sequence[int]) -> Grid:
    """An int as (int, int); a pair (a list too, as YAML gives it) as a tuple."""
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
