"""A locally connected layer: a token reads those in a window around it, with weights of its own.

Weights stand only where the window meets the image: there are no inert ones, which would decay and be counted.
"""

import torch
from torch import Tensor

from archs.ingredients import places
from archs.ingredients.mixer import MatrixMixer, Start
from archs.parts.backbone import Grid
from archs.parts.relabeling import Relabeling
from archs.parts.weights import State

AXES = {"reach": "window"}


class Mixing(MatrixMixer):
    """M is zero but for the entries of the window, row by row in `weight`, (groups, entries)."""

    def __init__(self, dim: int, grid: Grid, start: Start, *, kernel_size: int, wrap: bool, groups: int) -> None:
        places.check_kernel(kernel_size, grid, wrap)
        inside = places.window(grid, kernel_size, wrap)
        entries = int(inside.sum())
        super().__init__(dim, grid, start, groups, (entries,), entries / len(inside))
        self.window = (grid, kernel_size, wrap)
        self.register_buffer("entries", None, persistent=False)
        self.init_non_persistent_buffers()

    def init_non_persistent_buffers(self) -> None:
        """Made anew where the weights are, which may have come from the meta device."""
        self.entries = places.window(*self.window).flatten().nonzero()[:, 0].to(self.weight.device)

    def matrices(self) -> Tensor:
        weight = self.value("weight")
        whole = weight.new_zeros(len(weight), self.num_tokens**2)
        return whole.scatter(1, self.entries.expand_as(weight), weight).unflatten(1, (self.num_tokens, -1))

    def follow(self, state: State, relabeling: Relabeling) -> State | None:
        inside, tokens, weight = places.window(*self.window), relabeling.tokens, state["weight"]
        if not torch.equal(inside[tokens][:, tokens], inside):
            return None
        number = torch.full(inside.shape, -1)
        number[inside] = torch.arange(weight.shape[1])
        return {**state, "weight": weight[:, number[tokens][:, tokens][inside]]}
