"""One weight per displacement and channel: a depthwise convolution whose kernel reaches everywhere."""

from archs.ingredients.mixer import Start
from archs.mixing import toeplitz
from archs.parts.backbone import Grid

AXES = {"places": "displacement", "channels": "each"}


class Mixing(toeplitz.Mixing):
    """`toeplitz` with a group per channel."""

    def __init__(self, dim: int, grid: Grid, start: Start) -> None:
        super().__init__(dim, grid, start, groups=dim)
