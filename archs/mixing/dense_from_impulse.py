"""`dense`, which starts as an impulse filter: each group of channels reads one place of a window beside each token.

The start of Zheng et al., arXiv 2505.19985, for a matrix of free weights: the displacement is drawn at random from the
window, one for each group, and its weight is the same everywhere. The functions are all those of `dense`.
"""

import torch

from archs.ingredients.mixer import Start
from archs.mixing import dense_from_kernel, kernel
from archs.parts.backbone import Grid

AXES = {"start": "impulse"}


class Mixing(dense_from_kernel.Mixing):
    """M starts as a kernel with one weight in its window, of the mean square that the start's rule asks for."""

    def __init__(self, dim: int, grid: Grid, start: Start, *, kernel_size: int, groups: int) -> None:
        super().__init__(dim, grid, start, kernel_size=kernel_size, groups=groups)

    def first(self, twin: kernel.Mixing, generator: torch.Generator) -> None:
        weight = twin.weight.flatten(1)
        place = torch.randint(weight.shape[1], (len(weight), 1), generator=generator, device="cpu")
        weight.zero_().scatter_(1, place.to(weight.device), 1.0)
        twin.weight.mul_((twin.target / twin.mean_square()) ** 0.5)
