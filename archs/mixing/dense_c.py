"""A full matrix over the tokens for each channel."""

from archs.ingredients.mixer import Start
from archs.mixing import dense
from archs.parts.backbone import Grid

AXES = {"channels": "each"}


class Mixing(dense.Mixing):
    """`dense` with a group per channel."""

    def __init__(self, dim: int, grid: Grid, start: Start) -> None:
        super().__init__(dim, grid, start, groups=dim)
