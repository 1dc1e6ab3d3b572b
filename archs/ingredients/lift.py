"""Convolutions as dense weights, and the nearest convolution of dense weights, exactly.

A dense matrix reads places of one grid and writes places of the same or of a coarser one:

    token mixing            (G, N, N)                       a matrix per group of channels
    a flat first layer      (dim, in_chans * H * W)         dim = A * P units, read as A channels on P places

Both are (A, P, B * Q): A channels out at P places, B channels in at Q places, pixels in the order (channel, row,
column). The convolution with kernels (A, B, k, k) has in the entry of an output place i and an input place j the weight
of the displacement j - stride * i, and 0 beyond the window; that is `lift`. `project` is the mean over the entries of
each displacement, which is the least squares solution, as each entry belongs to one displacement alone: P_T M_k V for
the projector P_T onto Toeplitz matrices and the mask M_k of the window.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from archs.parts.backbone import Grid, pair


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Where the inputs and outputs of a dense matrix stand.

    Args:
        grid: rows and columns of the inputs' places.
        stride: outputs stand at every so many places, from the upper left on; it must divide both sides.
        in_chans: channels of the inputs.
        wrap: displacements go around the border; else zeros are beyond it.
    """

    grid: Grid
    stride: int = 1
    in_chans: int = 1
    wrap: bool = False

    def __post_init__(self) -> None:
        if self.stride < 1 or any(side % self.stride for side in self.grid):
            raise ValueError(f"stride {self.stride} does not divide the grid of {self.grid[0]} x {self.grid[1]} places")

    @property
    def out_grid(self) -> Grid:
        """Rows and columns of the outputs' places."""
        return self.grid[0] // self.stride, self.grid[1] // self.stride

    @property
    def out_places(self) -> int:
        return self.out_grid[0] * self.out_grid[1]

    @property
    def in_places(self) -> int:
        return self.grid[0] * self.grid[1]

    def view(self, weight: Tensor) -> Tensor:
        """Dense weights of either spelling as (A, P, B, Q). Raises ValueError where their number does not fit."""
        inputs, units = weight.shape[-1], weight.shape[:-1].numel()
        if inputs != self.in_chans * self.in_places:
            raise ValueError(f"{inputs} inputs are not {self.in_chans} x {self.in_places} channels and places")
        if units % self.out_places:
            raise ValueError(
                f"{units} units do not stand on {self.out_grid[0]} x {self.out_grid[1]} places; nearest: "
                f"{max(units // self.out_places, 1) * self.out_places}"
            )
        return weight.reshape(-1, self.out_places, self.in_chans, self.in_places)

    def kernel(self, kernel_size: int | Grid | None) -> Grid:
        """Rows and columns of the window; None: all displacements that there are.

        Raises ValueError for one that goes around the border and meets itself.
        """
        if kernel_size is None:
            # From the last output to the first input and back; around the border each input once.
            return self.grid if self.wrap else (2 * self.grid[0] - self.stride, 2 * self.grid[1] - self.stride)
        sides = pair(kernel_size)
        if self.wrap and any(k > side for k, side in zip(sides, self.grid, strict=True)):
            raise ValueError(
                f"kernel_size {max(sides)} around the border of {self.grid[0]} x {self.grid[1]} places meets itself"
            )
        return sides

    def padding(self, kernel_size: int | Grid | None = None) -> Grid:
        """Zeros before the first row and column, of `torch.nn.Conv2d` too, that centre the window on an output's own
        places: half of what it is larger than the stride, rounded up. Negative where it is smaller."""
        return tuple((k - self.stride + 1) // 2 for k in self.kernel(kernel_size))

    def kinds(self, kernel_size: int | Grid | None = None, device: torch.device | str = "cpu") -> Tensor:
        """(P, Q): which weight of the kernel, read row by row, stands there; their number beyond the window."""
        (kh, kw), own = self.kernel(kernel_size), []
        for side, before in zip(self.grid, self.padding(kernel_size), strict=True):
            out, into = torch.arange(0, side, self.stride, device=device), torch.arange(side, device=device)
            number = into - out[:, None] + before
            own.append(number % side if self.wrap else number)
        rows, columns = own[0][:, None, :, None], own[1][None, :, None, :]
        inside = (rows >= 0) & (rows < kh) & (columns >= 0) & (columns < kw)
        return torch.where(inside, rows * kw + columns, kh * kw).flatten(2).flatten(0, 1)

    def inside(self, kernel_size: int | Grid | None = None, device: torch.device | str = "cpu") -> Tensor:
        """(P, Q), M_k: true where an input is in the window of an output."""
        kh, kw = self.kernel(kernel_size)
        return self.kinds(kernel_size, device) < kh * kw


def sums(entries: Tensor, kinds: Tensor, number: int) -> Tensor:
    """Entries (..., M) added up over those of each kind, (..., number)."""
    return entries.new_zeros(*entries.shape[:-1], number).index_add_(-1, kinds.to(entries.device), entries)


def lift(kernels_ABkk: Tensor, geometry: Geometry) -> Tensor:
    """The convolution as dense weights, (A, P, B * Q); `.flatten(0, 1)` is the weight of a linear layer.

    Its bias, one per channel, is `bias.repeat_interleave(geometry.out_places)` there.
    """
    kinds = geometry.kinds(tuple(kernels_ABkk.shape[2:]), kernels_ABkk.device)
    beyond = kernels_ABkk.new_zeros(*kernels_ABkk.shape[:2], 1)
    entries = torch.cat([kernels_ABkk.flatten(2), beyond], 2)[..., kinds]  # (A, B, P, Q)
    return entries.transpose(1, 2).flatten(2)


def project(weight: Tensor, geometry: Geometry, kernel_size: int | Grid | None = None) -> Tensor:
    """Kernels (A, B, k, k) of the convolution that is nearest to dense weights; 0 where no two places are so apart.

    Args:
        weight: (A, P, B * Q), or all units of a first layer, (A * P, B * Q).
        kernel_size: of the window; None: all displacements that there are.
    """
    (kh, kw), V_APBQ = geometry.kernel(kernel_size), geometry.view(weight)
    kinds = geometry.kinds(kernel_size, weight.device).flatten()
    entries = V_APBQ.transpose(1, 2).flatten(2)
    pairs = sums(torch.ones_like(entries[0, 0]), kinds, kh * kw + 1).clamp(min=1)
    found = sums(entries, kinds, kh * kw + 1) / pairs
    return found[..., : kh * kw].unflatten(2, (kh, kw))


def nearest(weight: Tensor, geometry: Geometry, kernel_size: int | Grid | None = None) -> Tensor:
    """P_T M_k V: dense weights of the nearest convolution, in the shape of `weight`."""
    return lift(project(weight, geometry, kernel_size), geometry).reshape(weight.shape)
