"""Matrices over the places of a grid, from numbers per displacement or per neighbour, and their product with tokens.

Letters as in archs/parts/backbone.py; G is a number of groups of channels, which are contiguous. Entry (i, j) of a
matrix is what token i reads of token j; tokens are counted row by row.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from archs.parts.backbone import Grid
from archs.parts.layers import mix_tokens
from archs.parts.relabeling import Relabeling


def product(matrices_GNN: Tensor, x_BHWC: Tensor, num_groups: int) -> Tensor:
    """Each group of channels of x with its matrix; how many there are is told, as a tracer knows no shapes."""
    x_BNC = x_BHWC.flatten(1, 2)
    if num_groups == 1:
        return mix_tokens(x_BNC, matrices_GNN[0], None).reshape(x_BHWC.shape)
    # One product per group, over all images at once; channels in front by transposing a matrix, the fastest way there.
    x_CR = transposed(x_BNC.flatten(0, 1))
    y_GRN = torch.bmm(x_CR.reshape(num_groups, -1, x_BNC.shape[1]), matrices_GNN.transpose(1, 2))
    return transposed(y_GRN.reshape(x_CR.shape)).reshape(x_BHWC.shape)


@torch.fx.wrap  # a leaf: a graph holds no condition
def transposed(x_MN: Tensor) -> Tensor:
    """x_NM as a copy, of which the gradient is a copy, too.

    torch copies a matrix into its transpose in blocks, and other permutations of axes number by number: on a CPU three
    to seven times as long on maps of up to 256 tokens. A gradient that stays a view is permuted so by whoever reads it.
    """
    if not torch.is_grad_enabled() or not x_MN.requires_grad or torch.jit.is_tracing() or torch.compiler.is_compiling():
        return x_MN.t().clone(memory_format=torch.contiguous_format)
    return _Transposed.apply(x_MN)


class _Transposed(torch.autograd.Function):
    generate_vmap_rule = True  # so that torch.func gives gradients per sample

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def forward(x_MN: Tensor) -> Tensor:
        return x_MN.t().clone(memory_format=torch.contiguous_format)

    @staticmethod
    def backward(ctx: Any, gradient_NM: Tensor) -> Tensor:
        return transposed(gradient_NM)

    @staticmethod
    def jvp(ctx: Any, along_MN: Tensor) -> Tensor:
        return transposed(along_MN)


def toeplitz(kernels_GHW: Tensor, grid: Grid) -> Tensor:
    """(G, N, N): entry (i, j) is the kernel's at the displacement j - i, which is (0, 0) in its middle.

    Args:
        kernels_GHW: (G, 2 H - 1, 2 W - 1), all displacements within the grid.
    """
    # windows[g, a, b, c, d] = kernel[g, a + c, b + d], a view; row i of a matrix is the window from H - 1 - i on.
    windows = kernels_GHW.unfold(1, grid[0], 1).unfold(2, grid[1], 1)
    return windows.flip(1, 2).flatten(3).flatten(1, 2)


def widened(kernels_Gkk: Tensor, grid: Grid, wrap: bool) -> Tensor:
    """k x k kernels as numbers for all displacements within the grid, zeros outside the window."""
    radius = kernels_Gkk.shape[-1] // 2
    (h, w) = grid
    if wrap:
        at_zero = pad(kernels_Gkk, [0, w - 2 * radius - 1, 0, h - 2 * radius - 1])
        return around(at_zero.roll((-radius, -radius), (1, 2)))
    # Fewer than none where the grid is smaller than the kernel.
    return pad(kernels_Gkk, [w - 1 - radius] * 2 + [h - 1 - radius] * 2)


def around(filters_GHW: Tensor) -> Tensor:
    """Numbers per displacement around the border, (0, 0) first, as numbers for all displacements within the grid."""
    filters = torch.cat([filters_GHW[:, 1:], filters_GHW], 1)
    return torch.cat([filters[:, :, 1:], filters], 2)


def window(grid: Grid, kernel_size: int, wrap: bool) -> Tensor:
    """(N, N), true where token j is in the window around token i; on the CPU."""
    kernel = torch.ones(1, kernel_size, kernel_size, device="cpu")
    return toeplitz(widened(kernel, grid, wrap), grid)[0] > 0


def reads(grid: Grid, kernel_size: int, wrap: bool) -> float:
    """Mean number of tokens in a window."""
    return int(window(grid, kernel_size, wrap).sum()) / (grid[0] * grid[1])


def check_kernel(kernel_size: int, grid: Grid, wrap: bool) -> None:
    """Raises ValueError unless the kernel has a middle, and goes around the border without meeting itself."""
    if kernel_size % 2 == 0:
        raise ValueError(f"kernel_size {kernel_size} must be odd")
    if wrap and kernel_size > min(grid):
        raise ValueError(
            f"kernel_size {kernel_size} with wrap is wider than the grid of {grid[0]} x {grid[1]} tokens, so that its "
            f"weights would fall on one another; at most {min(grid) - 1 + min(grid) % 2}"
        )


def turned(kernels: Tensor, relabeling: Relabeling, wrap: bool) -> Tensor | None:
    """Numbers per displacement, rows and columns the last two axes and (0, 0) in the middle, as the grid is turned.

    With wrap the grid may be shifted as well, which leaves them alone; None for any other order.
    """
    backwards = relabeling.mirrored
    if wrap:
        backwards = None if relabeling.turns is None else [turn == -1 for turn in relabeling.turns]
    if backwards is None:
        return None
    return kernels.flip([axis for axis, back in zip((-2, -1), backwards, strict=True) if back])


def distances(grid: Grid) -> Tensor:
    """(N, N): the larger of row and column distance of two tokens."""
    rows, columns = (torch.arange(side, dtype=torch.float64) for side in grid)
    apart = ((rows[:, None] - rows).abs()[:, None, :, None], (columns[:, None] - columns).abs()[None, :, None, :])
    return torch.maximum(*apart).flatten(2).flatten(0, 1)
