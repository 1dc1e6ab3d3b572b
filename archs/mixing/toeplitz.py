"""A matrix over the tokens with one weight per displacement: a convolution that reaches from any token to any other."""

from torch import Tensor

from archs.ingredients import places
from archs.ingredients.mixer import MatrixMixer, Start
from archs.parts.backbone import Grid
from archs.parts.relabeling import Relabeling
from archs.parts.weights import State

AXES = {"places": "displacement"}


class Mixing(MatrixMixer):
    """M[i, j] is the weight of j - i, of (groups, 2 H - 1, 2 W - 1)."""

    def __init__(self, dim: int, grid: Grid, start: Start, *, groups: int) -> None:
        super().__init__(dim, grid, start, groups, (2 * grid[0] - 1, 2 * grid[1] - 1), grid[0] * grid[1])

    def matrices(self) -> Tensor:
        return places.toeplitz(self.value("weight"), self.grid)

    def follow(self, state: State, relabeling: Relabeling) -> State | None:
        weight = places.turned(state["weight"], relabeling, wrap=False)
        return None if weight is None else {**state, "weight": weight}
