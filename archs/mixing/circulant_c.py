"""One weight per displacement and channel, around the border: the functions of GFNet's filter (arXiv 2107.00645).

GFNet stores the filter's transform, 80 numbers for the 64 free ones of a channel on 8 x 8 tokens. That is another
parametrisation, and another training under AdamW.
"""

from torch import Tensor

from archs.ingredients import places
from archs.ingredients.mixer import MatrixMixer, Start
from archs.parts.backbone import Grid
from archs.parts.relabeling import Relabeling
from archs.parts.weights import State

AXES = {"places": "displacement", "channels": "each", "border": "wrap"}


class Mixing(MatrixMixer):
    """M[i, j] is the weight of j - i, modulo the grid, of (C, H, W)."""

    def __init__(self, dim: int, grid: Grid, start: Start) -> None:
        super().__init__(dim, grid, start, dim, grid, grid[0] * grid[1])

    def matrices(self) -> Tensor:
        return places.toeplitz(places.around(self.value("weight")), self.grid)

    def follow(self, state: State, relabeling: Relabeling) -> State | None:
        if relabeling.turns is None:
            return None
        weight = state["weight"]
        for axis, turn in zip((1, 2), relabeling.turns, strict=True):
            weight = weight if turn == 1 else weight.flip(axis).roll(1, axis)
        return {**state, "weight": weight}
