"""A locally connected layer with weights of its own for each channel, too."""

from archs.ingredients.mixer import Start
from archs.mixing import banded
from archs.parts.backbone import Grid

AXES = {"reach": "window", "channels": "each"}


class Mixing(banded.Mixing):
    """`banded` with a group per channel."""

    def __init__(self, dim: int, grid: Grid, start: Start, *, kernel_size: int, wrap: bool) -> None:
        super().__init__(dim, grid, start, kernel_size=kernel_size, wrap=wrap, groups=dim)
