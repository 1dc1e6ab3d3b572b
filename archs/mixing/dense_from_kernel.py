"""`dense`, which starts as a kernel: every place has weights of its own, and at first they are those of a convolution.

One bias in two places: `kernel` holds the constraint throughout, this one starts on it and is then free; the functions
are all those of `dense`. d'Ascoli et al., arXiv 1911.05012, train convolutions on as such unshared, full layers.
"""

import torch
from torch import Tensor

from archs.ingredients import places
from archs.ingredients.mixer import Start
from archs.mixing import dense, kernel
from archs.parts.backbone import Grid

AXES = {"start": "kernel"}


class Mixing(dense.Mixing):
    """M starts as that of `kernel`, from the same random numbers."""

    def __init__(self, dim: int, grid: Grid, start: Start, *, kernel_size: int, groups: int) -> None:
        places.check_kernel(kernel_size, grid, wrap=False)
        super().__init__(dim, grid, start, groups=groups)
        self.kernel_size = kernel_size

    @torch.no_grad()
    def draw(self, generator: torch.Generator, order: Tensor) -> None:
        own = {"kernel_size": self.kernel_size, "wrap": False, "groups": self.num_groups}
        twin = kernel.Mixing(self.dim, self.grid, self.start, **own).to(self.weight.device)
        self.first(twin, generator)
        self.weight.copy_(twin.matrices() / self.constant["weight"])

    def first(self, twin: kernel.Mixing, generator: torch.Generator) -> None:
        """Start the kernel."""
        twin.draw(generator, torch.arange(self.num_tokens))
