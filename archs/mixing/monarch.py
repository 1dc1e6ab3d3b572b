"""A matrix for each row, then one for each column: a Monarch matrix (arXiv 2204.00595) with blocks of the grid's sides.

In this order of the tokens it is no structure without geometry: it is rows and columns. `scrambled` takes that away.
"""

import torch
from torch import Tensor

from archs.ingredients.mixer import Mixer, Start
from archs.parts.backbone import Grid
from archs.parts.relabeling import Relabeling
from archs.parts.weights import State

AXES = {"form": "monarch"}


class Mixing(Mixer):
    """`in_rows` of (H, W, W) is applied first, then `in_columns` of (W, H, H)."""

    def __init__(self, dim: int, grid: Grid, start: Start) -> None:
        super().__init__(dim, grid, start)
        h, w = grid
        self.hold("in_rows", (h, w, w), w**-0.5)
        self.hold("in_columns", (w, h, h), start.g0 * h**-0.5)

    def mix(self, x_BHWC: Tensor) -> Tensor:
        x_HWM = x_BHWC.permute(1, 2, 0, 3).flatten(2)
        y_WHM = torch.bmm(self.value("in_rows"), x_HWM).transpose(0, 1)
        return torch.bmm(self.value("in_columns"), y_WHM).unflatten(2, (-1, self.dim)).permute(2, 1, 0, 3)

    def follow(self, state: State, relabeling: Relabeling) -> State | None:
        if relabeling.lines is None:
            return None
        rows, columns = relabeling.lines
        in_rows = state["in_rows"][rows][:, columns][:, :, columns]
        return {**state, "in_rows": in_rows, "in_columns": state["in_columns"][columns][:, rows][:, :, rows]}

    def macs(self) -> tuple[int, int]:
        count = self.dim * self.num_tokens * sum(self.grid)
        return count, count
