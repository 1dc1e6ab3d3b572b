"""O softmax(b[j - i]) V x: averages whose weights depend on the displacement, in groups of channels.

It is `attention` without the content: with b = 0, and W_q = 0 there, both are one function. Weight decay pulls learned
averages nowhere, as it spares b, where it pulls a free matrix to zero.
"""

import torch
from torch import Tensor, nn

from archs.ingredients import places
from archs.ingredients.mixer import Mixer, Start, check_groups
from archs.parts.backbone import Grid
from archs.parts.relabeling import Relabeling
from archs.parts.weights import State

AXES = {"places": "displacement", "channels": "groups", "projected": "yes", "rows": "average"}


class Mixing(Mixer):
    """`table` is b, (num_heads, 2 H - 1, 2 W - 1), zero at the start."""

    def __init__(self, dim: int, grid: Grid, start: Start, *, num_heads: int) -> None:
        check_groups(dim, num_heads, "num_heads")
        super().__init__(dim, grid, start)
        self.num_heads = num_heads
        self.table = nn.Parameter(torch.empty(num_heads, 2 * grid[0] - 1, 2 * grid[1] - 1))
        self.deviation["table"] = 0.0
        self.project("v")
        self.project("proj")
        self.scaled = "proj.weight"

    def linear(self, x_BHWC: Tensor) -> Tensor:
        return places.product(places.toeplitz(self.table, self.grid).softmax(-1), x_BHWC, self.num_heads)

    def mix(self, x_BHWC: Tensor) -> Tensor:
        return self.proj(self.linear(self.v(x_BHWC)))

    def follow(self, state: State, relabeling: Relabeling) -> State | None:
        table = places.turned(state["table"], relabeling, wrap=False)
        return None if table is None else {**state, "table": table}

    def macs(self) -> tuple[int, int]:
        count = 2 * self.num_tokens * self.dim**2 + self.dim * self.num_tokens**2
        return count, count

    def spared(self) -> set[str]:
        return {"table"}
