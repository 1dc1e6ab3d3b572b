"""W2 W1, two linear maps over the tokens without an activation: a matrix of at most the rank of the hidden tokens."""

from torch import Tensor

from archs.ingredients.mixer import Mixer, Start
from archs.parts.backbone import Grid
from archs.parts.layers import mix_tokens
from archs.parts.relabeling import Relabeling, along
from archs.parts.weights import State

AXES = {"form": "two"}


class Mixing(Mixer):
    """`fc1` of (hidden, N), `fc2` of (N, hidden)."""

    def __init__(self, dim: int, grid: Grid, start: Start, *, hidden: int) -> None:
        super().__init__(dim, grid, start)
        self.hidden = hidden
        self.hold("fc1", (hidden, self.num_tokens), self.num_tokens**-0.5)
        self.hold("fc2", (self.num_tokens, hidden), start.g0 * hidden**-0.5)

    def mix(self, x_BHWC: Tensor) -> Tensor:
        hidden_BMC = mix_tokens(x_BHWC.flatten(1, 2), self.value("fc1"), None)
        return mix_tokens(hidden_BMC, self.value("fc2"), None).reshape(x_BHWC.shape)

    def follow(self, state: State, relabeling: Relabeling) -> State | None:
        return along(state, relabeling.tokens, {"fc1": (1,), "fc2": (0,)})

    def macs(self) -> tuple[int, int]:
        count = 2 * self.dim * self.num_tokens * self.hidden
        return count, count
