"""Attention between tokens as members of a set: `attention` without the table. With learned positions, a ViT's."""

from torch import Tensor

from archs.ingredients.mixer import Start
from archs.mixing import attention
from archs.parts.backbone import Grid
from archs.parts.relabeling import Relabeling
from archs.parts.weights import State

AXES = {"places": "blind", "channels": "groups", "projected": "yes", "rows": "average", "content": "yes"}


class Mixing(attention.Mixing):
    """As `attention`, whatever the places."""

    def __init__(self, dim: int, grid: Grid, start: Start, *, num_heads: int) -> None:
        super().__init__(dim, grid, start, num_heads=num_heads)
        del self.table, self.deviation["table"]

    def logits(self) -> Tensor:
        return self.q.weight.new_zeros(self.num_heads, self.num_tokens, self.num_tokens)

    def follow(self, state: State, relabeling: Relabeling) -> State | None:
        return state

    def spared(self) -> set[str]:
        return set()
