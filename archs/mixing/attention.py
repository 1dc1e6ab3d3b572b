"""O softmax(q k^T / sqrt(C / heads) + b[j - i]) V x: multi-head attention with a table of relative positions.

It starts as the function that `distance` starts as: W_q = 0 and b = 0, uniform averages.
"""

from torch import Tensor

from archs.ingredients import places
from archs.ingredients.mixer import Start
from archs.mixing import distance
from archs.parts.backbone import Grid

AXES = {"places": "displacement", "channels": "groups", "projected": "yes", "rows": "average", "content": "yes"}


class Mixing(distance.Mixing):
    """`q` and `k` map the channels as `v` does; `q` starts at zero."""

    def __init__(self, dim: int, grid: Grid, start: Start, *, num_heads: int) -> None:
        super().__init__(dim, grid, start, num_heads=num_heads)
        self.project("q")
        self.project("k")
        self.deviation["q.weight"] = 0.0

    def logits(self) -> Tensor:
        """What is added to those of the content: (heads, N, N)."""
        return places.toeplitz(self.table, self.grid)

    def linear(self, x_BHWC: Tensor) -> Tensor:
        return places.product(self.logits().softmax(-1), x_BHWC, self.num_heads)

    def mix(self, x_BHWC: Tensor) -> Tensor:
        x_BNC = x_BHWC.flatten(1, 2)
        q, k, v = (each(x_BNC).unflatten(2, (self.num_heads, -1)).transpose(1, 2) for each in (self.q, self.k, self.v))
        of_content = (q * q.shape[-1] ** -0.5) @ k.transpose(2, 3)
        weights = (of_content + self.logits()).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(x_BHWC.shape))

    def macs(self) -> tuple[int, int]:
        count = 4 * self.num_tokens * self.dim**2 + 2 * self.dim * self.num_tokens**2
        return count, count
