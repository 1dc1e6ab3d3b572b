"""One kernel for all places and channels: a convolution that mixes no channels and treats all alike."""

from torch import Tensor

from archs.ingredients import places
from archs.ingredients.mixer import MatrixMixer, Start
from archs.parts.backbone import Grid
from archs.parts.relabeling import Relabeling
from archs.parts.weights import State

AXES = {"reach": "window", "places": "displacement"}


class Mixing(MatrixMixer):
    """M[i, j] is the weight of j - i, of (groups, k, k), and zero outside the window."""

    def __init__(self, dim: int, grid: Grid, start: Start, *, kernel_size: int, wrap: bool, groups: int) -> None:
        places.check_kernel(kernel_size, grid, wrap)
        reads = places.reads(grid, kernel_size, wrap)
        super().__init__(dim, grid, start, groups, (kernel_size, kernel_size), reads)
        self.wrap = wrap

    def matrices(self) -> Tensor:
        return places.toeplitz(places.widened(self.value("weight"), self.grid, self.wrap), self.grid)

    def follow(self, state: State, relabeling: Relabeling) -> State | None:
        weight = places.turned(state["weight"], relabeling, self.wrap)
        return None if weight is None else {**state, "weight": weight}
