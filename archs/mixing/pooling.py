"""Equal weights in a window that are not learned: `kernel`, frozen, with one weight.

Zeros beyond the border count, as for a kernel. PoolFormer (arXiv 2111.11418) averages over the neighbours that there
are, another rule at the border, and subtracts the token itself, another start.
"""

from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from archs.ingredients import places
from archs.ingredients.mixer import Mixer, Start
from archs.parts.backbone import Grid
from archs.parts.relabeling import Relabeling
from archs.parts.weights import State

AXES = {"reach": "window", "places": "displacement", "learned": "no", "start": "mean"}


class Mixing(Mixer):
    """M has equal entries in the window."""

    def __init__(self, dim: int, grid: Grid, start: Start, *, kernel_size: int, wrap: bool) -> None:
        places.check_kernel(kernel_size, grid, wrap)
        super().__init__(dim, grid, start)
        self.kernel_size, self.wrap = kernel_size, wrap
        self.fix()

    def mix(self, x_BHWC: Tensor) -> Tensor:
        x_BCHW, radius = x_BHWC.permute(0, 3, 1, 2), self.kernel_size // 2
        wide = pad(x_BCHW, [radius] * 4, mode="circular" if self.wrap else "constant")
        return self.value("weight") * avg_pool2d(wide, self.kernel_size, stride=1).permute(0, 2, 3, 1)

    def follow(self, state: State, relabeling: Relabeling) -> State | None:
        return state if (relabeling.turns if self.wrap else relabeling.mirrored) else None
