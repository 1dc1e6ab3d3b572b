"""y = x, times a number that is not learned: a token reads itself alone."""

from torch import Tensor

from archs.ingredients.mixer import Mixer, Start
from archs.parts.backbone import Grid

AXES = {"reach": "self", "learned": "no", "start": "mean"}


class Mixing(Mixer):
    """The number is the start's g0, so that the branch is as large as those of other mixers."""

    def __init__(self, dim: int, grid: Grid, start: Start) -> None:
        super().__init__(dim, grid, start)
        self.fix()

    def mix(self, x_BHWC: Tensor) -> Tensor:
        return self.value("weight") * x_BHWC
