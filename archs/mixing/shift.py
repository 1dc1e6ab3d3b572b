"""Each channel moved by one displacement of a window, channel c by number c mod k * k, read row by row.

As in S2-MLP (arXiv 2106.07477), but for all displacements of the window, without its linear maps, and with zeros beyond
the border where S2-MLP keeps what was there.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from archs.ingredients import places
from archs.ingredients.mixer import Mixer, Start
from archs.parts.backbone import Grid
from archs.parts.relabeling import Relabeling
from archs.parts.weights import State

AXES = {
    "reach": "window",
    "places": "displacement",
    "channels": "each",
    "learned": "no",
    "start": "impulse",
}


class Mixing(Mixer):
    """M of channel c has one entry in the window, the same number for all channels."""

    def __init__(self, dim: int, grid: Grid, start: Start, *, kernel_size: int, wrap: bool) -> None:
        places.check_kernel(kernel_size, grid, wrap)
        super().__init__(dim, grid, start)
        self.kernel_size, self.wrap = kernel_size, wrap
        self.fix()

    def mix(self, x_BHWC: Tensor) -> Tensor:
        (h, w), k = self.grid, self.kernel_size
        x_BCHW = x_BHWC.permute(0, 3, 1, 2)
        wide = pad(x_BCHW, [k // 2] * 4, mode="circular" if self.wrap else "constant").permute(0, 2, 3, 1)
        moved = [wide[:, i : i + h, j : j + w, i * k + j :: k * k] for i in range(k) for j in range(k)]
        back = [n for i in range(k * k) for n in range(i, self.dim, k * k)]
        return self.value("weight") * torch.cat(moved, 3)[..., torch.tensor(back, device=wide.device).argsort()]

    def follow(self, state: State, relabeling: Relabeling) -> State | None:
        """A mirror would swap channels, and at most widths some have no partner."""
        turns = relabeling.turns if self.wrap else relabeling.mirrored
        return state if turns in ((1, 1), (False, False)) else None
