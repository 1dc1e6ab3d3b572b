"""How weights start where two or more papers mean the same start."""

import torch
from torch import Tensor, nn

from archs.ingredients.lift import Geometry, lift


def normal_linears(*parts: nn.Module) -> None:
    """Linear layers of these parts: Normal(0.02) weights (cut off at 100 deviations, so never), zero biases."""
    for module in (each for part in parts for each in part.modules()):
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


@torch.no_grad()
def as_convolution(layer: nn.Linear, geometry: Geometry, kernel_size: int, impulse: bool = False) -> None:
    """Start a layer that reads all places as a convolution on them, one that PyTorch's defaults have drawn.

    Its units are channels at the places of `geometry`; the weights, and a bias for each channel, are uniform within
    1 / sqrt(fan in) of the kernel, so that a unit starts as large as a dense one. All of them are free afterwards.

    Args:
        impulse: each channel reads one place of the window, drawn at random (arXiv 2505.19985), and all its colours.

    Raises ValueError where the units do not stand on the places.
    """
    num_chans = len(geometry.view(layer.weight))
    if layer.weight.is_meta:
        return
    kernels = layer.weight.new_empty(num_chans, geometry.in_chans, kernel_size, kernel_size)
    bound = (1 if impulse else kernel_size**2) ** -0.5 * geometry.in_chans**-0.5
    kernels.uniform_(-bound, bound)
    if impulse:
        kernels *= _one_place(num_chans, kernel_size).to(kernels)[:, None]
    layer.weight.copy_(lift(kernels, geometry).flatten(0, 1))
    layer.bias.copy_(layer.bias.new_empty(num_chans).uniform_(-bound, bound).repeat_interleave(geometry.out_places))


def _one_place(count: int, side: int) -> Tensor:
    """(count, side, side): a 1 in one place each."""
    return nn.functional.one_hot(torch.randint(side**2, (count,)), side**2).unflatten(1, (side, side))
