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
from typing import Any

from torch import Tensor, nn

Grid = tuple[int, int]


class Stream(nn.Sequential):
    """Modules in a row, the output of each cast to the dtype of its input."""

    def forward(self, x: Tensor) -> Tensor:
        for module in self:
            x = module(x).to(x.dtype)
        return x


class Backbone(nn.Module):
    """Image classifier over a token grid.

    Args:
        stem: image BCHW -> tokens BHWC.
        stages: modules BHWC -> BHWC, each a run of blocks on one grid or a transition between two grids.
        norm: over the channels of the last stage; `nn.Identity()` where the paper has none.
        head: (B, C) -> (B, num_classes).
    """

    def __init__(self, stem: nn.Module, stages: Sequence[nn.Module], norm: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.stem = stem
        self.stages = Stream(*(Stream(*run) if isinstance(run, nn.Sequential) else run for run in stages))
        self.norm = norm
        self.head = head

    def blocks(self) -> list[nn.Module]:
        """Every block in order; a transition between two grids counts as one."""
        return [each for run in self.stages for each in (run if isinstance(run, nn.Sequential) else [run])]

    def tokens(self, x_BCHW: Tensor) -> Tensor:
        """What the stem makes of the image, BHWC, in the image's dtype: where the residual stream starts."""
        return self.stem(x_BCHW).to(x_BCHW.dtype)

    def features(self, x_BCHW: Tensor) -> Tensor:
        """Map of the last stage after the norm, BHWC, for dense use and probes."""
        return self.norm(self.stages(self.tokens(x_BCHW)))

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Depth of each parameter, as timm's layer decay asks for it: the stem, each block (or stage), the head.

        A transition between two grids is a stage of its own, and so a depth between those of its neighbours.
        """
        stages = (r"^stages\.(\d+)", None)
        # A block's parameters match the first pattern; those of a transition, which has no number in it, the second.
        blocks = [stages] if coarse else [(r"^stages\.(\d+)\.(\d+)\.", None), stages]
        return {"stem": r"^stem|^cls_token|^pos_embed", "blocks": blocks}

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Logits, (B, num_classes)."""
        return self.head(self.features(x_BCHW).mean((1, 2)))


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
