"""A full matrix over the tokens: every token reads every token with weights of its own. The default of every axis."""

from torch import Tensor

from archs.ingredients.mixer import MatrixMixer, Start
from archs.parts.backbone import Grid
from archs.parts.relabeling import Relabeling, along
from archs.parts.weights import State

AXES = {}


class Mixing(MatrixMixer):
    """M = a W, W of (groups, N, N)."""

    def __init__(self, dim: int, grid: Grid, start: Start, *, groups: int) -> None:
        num_tokens = grid[0] * grid[1]
        super().__init__(dim, grid, start, groups, (num_tokens, num_tokens), num_tokens)

    def matrices(self) -> Tensor:
        return self.value("weight")

    def follow(self, state: State, relabeling: Relabeling) -> State | None:
        return along(state, relabeling.tokens, {"weight": (1, 2)})
