"""x * (M x), elementwise: gating as one ingredient.

gMLP's gate (arXiv 2105.08050) also halves the channels, norms one half, starts at one and closes the residual
elsewhere.
"""

from torch import Tensor

from archs.ingredients import places
from archs.ingredients.mixer import GATE_SQUARE, Start
from archs.mixing import dense
from archs.parts.backbone import Grid

AXES = {"gate": "yes"}


class Mixing(dense.Mixing):
    """M as that of `dense`; its start makes up for the product."""

    def __init__(self, dim: int, grid: Grid, start: Start) -> None:
        super().__init__(dim, grid, start, groups=1)
        self.target /= GATE_SQUARE
        self.hold("weight", self.weight.shape, self.target**0.5 * self.num_tokens**-0.5)

    def linear(self, x_BHWC: Tensor) -> Tensor:
        return places.product(self.matrices(), x_BHWC, self.num_groups)

    def mix(self, x_BHWC: Tensor) -> Tensor:
        return x_BHWC * self.linear(x_BHWC)
