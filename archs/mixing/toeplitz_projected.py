"""O M V x: `toeplitz` in groups of channels between two linear maps of the channels."""

from torch import Tensor

from archs.ingredients import places
from archs.ingredients.mixer import Start, check_groups
from archs.mixing import toeplitz
from archs.parts.backbone import Grid

AXES = {"places": "displacement", "channels": "groups", "projected": "yes"}


class Mixing(toeplitz.Mixing):
    """`v` and `proj` are V and O, which keep the mean square; M starts as without them."""

    def __init__(self, dim: int, grid: Grid, start: Start, *, num_heads: int) -> None:
        check_groups(dim, num_heads, "num_heads")
        super().__init__(dim, grid, start, groups=num_heads)
        self.project("v")
        self.project("proj")

    def linear(self, x_BHWC: Tensor) -> Tensor:
        return places.product(self.matrices(), x_BHWC, self.num_groups)

    def mix(self, x_BHWC: Tensor) -> Tensor:
        return self.proj(self.linear(self.v(x_BHWC)))

    def macs(self) -> tuple[int, int]:
        maps = 2 * self.num_tokens * self.dim**2
        nominal, executed = super().macs()
        return nominal + maps, executed + maps
