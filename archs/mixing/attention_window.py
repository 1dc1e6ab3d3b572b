"""Attention to the tokens in a window, those that the image has, with a table of relative positions as wide."""

import torch
from torch import Tensor, nn

from archs.ingredients import places
from archs.ingredients.mixer import Start
from archs.mixing import attention
from archs.parts.backbone import Grid
from archs.parts.relabeling import Relabeling
from archs.parts.weights import State

AXES = {
    "reach": "window",
    "places": "displacement",
    "channels": "groups",
    "projected": "yes",
    "rows": "average",
    "content": "yes",
}


class Mixing(attention.Mixing):
    """As `attention`, with `table` of (num_heads, k, k)."""

    def __init__(self, dim: int, grid: Grid, start: Start, *, kernel_size: int, wrap: bool, num_heads: int) -> None:
        places.check_kernel(kernel_size, grid, wrap)
        super().__init__(dim, grid, start, num_heads=num_heads)
        self.window = (grid, kernel_size, wrap)
        self.table = nn.Parameter(torch.empty(num_heads, kernel_size, kernel_size))
        self.register_buffer("outside", None, persistent=False)
        self.init_non_persistent_buffers()

    def init_non_persistent_buffers(self) -> None:
        """Made anew where the weights are, which may have come from the meta device."""
        self.outside = ~places.window(*self.window).to(self.table.device)

    def logits(self) -> Tensor:
        grid, _, wrap = self.window
        return places.toeplitz(places.widened(self.table, grid, wrap), grid).masked_fill(self.outside, -torch.inf)

    def follow(self, state: State, relabeling: Relabeling) -> State | None:
        table = places.turned(state["table"], relabeling, self.window[2])
        return None if table is None else {**state, "table": table}

    def macs(self) -> tuple[int, int]:
        maps, pairs = 4 * self.num_tokens * self.dim**2, self.num_tokens**2
        return maps + 2 * self.dim * int(places.window(*self.window).sum()), maps + 2 * self.dim * pairs
