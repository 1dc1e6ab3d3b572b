"""One matrix over the rows and one over the columns, R x Q^T on the map: M = R kron Q.

The sum of a matrix over the rows and one over the columns (Vision Permutator, sparse MLP) would change reach and places
as well.
"""

from torch import Tensor

from archs.ingredients.mixer import Mixer, Start
from archs.parts.backbone import Grid
from archs.parts.layers import mix_tokens
from archs.parts.relabeling import Relabeling
from archs.parts.weights import State

AXES = {"form": "kron"}


class Mixing(Mixer):
    """`rows` is R, (H, H), `columns` Q, (W, W)."""

    def __init__(self, dim: int, grid: Grid, start: Start) -> None:
        super().__init__(dim, grid, start)
        h, w = grid
        self.hold("columns", (w, w), w**-0.5)
        self.hold("rows", (h, h), start.g0 * h**-0.5)

    def mix(self, x_BHWC: Tensor) -> Tensor:
        y_BHWC = mix_tokens(x_BHWC.flatten(0, 1), self.value("columns"), None).reshape(x_BHWC.shape)
        return mix_tokens(y_BHWC.flatten(2), self.value("rows"), None).reshape(x_BHWC.shape)

    def follow(self, state: State, relabeling: Relabeling) -> State | None:
        if relabeling.lines is None:
            return None
        rows, columns = relabeling.lines
        return {**state, "rows": state["rows"][rows][:, rows], "columns": state["columns"][columns][:, columns]}

    def macs(self) -> tuple[int, int]:
        count = self.dim * self.num_tokens * sum(self.grid)
        return count, count
