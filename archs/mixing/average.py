"""The mean of all tokens at every token, times a number that is not learned."""

from torch import Tensor

from archs.ingredients.mixer import Mixer, Start
from archs.parts.backbone import Grid

AXES = {"learned": "no", "start": "mean"}


class Mixing(Mixer):
    """M has equal entries."""

    def __init__(self, dim: int, grid: Grid, start: Start) -> None:
        super().__init__(dim, grid, start)
        self.fix()

    def mix(self, x_BHWC: Tensor) -> Tensor:
        return (self.value("weight") * x_BHWC.mean((1, 2), keepdim=True)).expand_as(x_BHWC)
