"""Receptive field: what the first layer reads, and how many tokens one token reads in one block.

Pure functions of a module and an input, in the dtype of both: give them float64. On random weights they measure what
the architecture is forced to be (`mass=1`: every token that is read at all), on a checkpoint what it has learned.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from archs.parts.backbone import Backbone, Grid, pair

UNITS = {"share": "share of tokens"}

# Relative to the largest gradient: float64 rounding stays below it, a weight of 1e-6 stays above.
NOTHING = 1e-11


def measure(model: Backbone, x_BCHW: Tensor, mass: float = 0.95) -> dict[str, float]:
    """`token_share` of each block at its own input: {"share_block0": ...}. The model itself is left untouched."""
    model = copy.deepcopy(model).double().eval()
    inputs = {}
    for i, block in enumerate(model.blocks()):
        block.register_forward_pre_hook(lambda _, given, i=i: inputs.__setitem__(i, given[0].detach()))
    with torch.no_grad():
        model.features(x_BCHW.double())
    return {f"share_block{i}": token_share(block, inputs[i], mass=mass) for i, block in enumerate(model.blocks())}


def token_share(f: Callable[[Tensor], Tensor], x: Tensor, token: int | None = None, mass: float = 1.0) -> float:
    """Smallest share of the tokens of x (B, ..., C) that carry `mass` of the squared gradient of one token of f(x).

    Args:
        f: module from tokens to tokens: all axes of x and of f(x) but the first and the last are tokens.
        token: flat index of the token that reads; the middle one if None.
        mass: 1 counts each token with any gradient at all.
    """
    x = x.detach().requires_grad_()
    y = f(x)
    token = _middle(y.shape[1:-1]) if token is None else token  # of the output: a transition has fewer tokens
    y = y.reshape(len(y), -1, y.shape[-1])
    # One random direction sees every token that the Jacobian sees, with probability one.
    direction = torch.randn(y[:, token].shape, dtype=y.dtype, generator=torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad((y[:, token] * direction.to(y.device)).sum(), x)
    energy = gradient.square().sum(-1).flatten(1).mean(0)
    energy = energy.sort(descending=True).values
    if mass >= 1:
        return (energy > NOTHING**2 * energy[0]).double().mean().item()
    return ((energy.cumsum(0) < mass * energy.sum()).sum().item() + 1) / len(energy)


def stem_reads(stem: nn.Module, x_BCHW: Tensor, patch_size: int | Grid) -> Literal["dense", "local", "shared"]:
    """What the first layer reads: several patches; one patch with weights of its own; one patch with shared weights."""
    if patches_read(stem, x_BCHW, patch_size) > 1:
        return "dense"
    return "shared" if sharing_error(stem, x_BCHW, patch_size) < 1e-10 else "local"


@torch.no_grad()
def patches_read(stem: nn.Module, x_BCHW: Tensor, patch_size: int | Grid) -> int:
    """Largest number of patches that change one output of `stem` when replaced one by one, over the images of x."""
    p, q = pair(patch_size)
    h, w = x_BCHW.shape[-2] // p, x_BCHW.shape[-1] // q
    # Image i of `only` is one in patch i and zero elsewhere.
    only = torch.eye(h * w, dtype=x_BCHW.dtype, device=x_BCHW.device).reshape(-1, 1, h, w)
    only = only.repeat_interleave(p, 2).repeat_interleave(q, 3)
    most = 0
    for x_CHW, other in zip(x_BCHW, x_BCHW.flip(0) + 1, strict=True):
        change = (stem(torch.lerp(x_CHW, other, only)) - stem(x_CHW[None])).flatten(1).abs()
        most = max(most, (change > NOTHING * change.max()).sum(0).max().item())
    return most


@torch.no_grad()
def sharing_error(stem: nn.Module, x_BCHW: Tensor, patch_size: int | Grid) -> float:
    """Relative L2 spread over the positions of a stem's response to one patch repeated everywhere.

    The outputs must be ordered by position, then channel. What positions add whatever the image is taken away first.
    """
    p, q = pair(patch_size)
    h, w = x_BCHW.shape[-2] // p, x_BCHW.shape[-1] // q
    tiled = stem(x_BCHW[..., :p, :q].repeat(1, 1, h, w)) - stem(torch.zeros_like(x_BCHW))
    response = tiled.reshape(len(tiled), h * w, -1)
    return ((response - response[:, :1]).norm() / response.norm()).item()


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draw every parameter and running statistic, so that none is at zero or one and no claim holds by initialisation.

    Matrices have unit gain (normal, 1 / sqrt(fan in)); vectors lie in +-[0.5, 1.5], variances in [0.5, 1.5].
    """
    generator = torch.Generator().manual_seed(seed)
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if not value.is_floating_point():
            continue
        drawn = torch.rand(value.shape, generator=generator, dtype=torch.float64) + 0.5
        if name.endswith("running_var"):
            pass
        elif value.ndim > 1:
            drawn = torch.randn(value.shape, generator=generator, dtype=torch.float64) * value[0].numel() ** -0.5
        else:
            drawn *= torch.randint(0, 2, value.shape, generator=generator) * 2 - 1
        value.data.copy_(drawn)
    return model


def _middle(lengths: Sequence[int]) -> int:
    """Flat index of the middle of a block of these lengths."""
    flat = 0
    for length in lengths:
        flat = flat * length + length // 2
    return flat
