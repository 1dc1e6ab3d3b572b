"""Receptive field: from which pixels does a token read, block by block?

The effective receptive field of block l is the mean over images of g(i) = sum over channels of |dE / dx_i|, where E is
half the sum of squares of what the block puts out at the middle token, and x_i the pixel i of the original image:

    share_l    smallest share of the pixels that carries 95 % of the mass of g
    radius_l   pixels: R50 of g about its centroid
    axes_l     share of the mass in the rows and columns of the token's own patch

l counts blocks from 1. A flat net has one token, which reads everything: of it radius_l is the mean over 16 of the
block's channels, each with its own gradient; share and axes are left out.

Source: Luo et al., arXiv 1701.04128.
Null: the same of the weights at the start of training, what the architecture does untrained; NaN without them. The
interval is over images, of a flat net over channels.
Expect: convolution grows with depth, token mixing reads everything at once, Permutators a cross.
Cost: a forward and a backward pass of 64 images per block, twice.

The other functions here want a module and an input in float64. On random weights they measure what the architecture is
forced to be (`mass=1`: every token that is read at all), on a checkpoint what it has learned.
"""

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from analysis.bias.probe import Estimate, Rearranged, Subject, over_images
from analysis.measures import fields
from analysis.measures.pictures import sheet
from archs.parts.backbone import Backbone, Grid, pair

PROTOCOL = {"images": 64, "channels": 16, "mass": 0.95}
UNITS = {"share_#": "ratio", "radius_#": "px", "axes_#": "ratio", "share": "ratio", "radius": "px", "axes": "ratio"}
HEADLINE = ("share_1", "share", "radius_1", "radius", "axes_1")
TITLE = "Receptive field: share of pixels that the middle token reads, in the first and the last block"
WORDS = {"share_1": "share, block 1", "share": "share, last block", "radius": "R50, last block"}
COST = (0.5, 2)

# Relative to the largest gradient: float64 rounding stays below it, a weight of 1e-6 stays above.
NOTHING = 1e-11


class Field(NamedTuple):
    """The maps g of one block: (images, H, W) of its middle token, or (channels, H, W) where it has one token only."""

    maps: np.ndarray
    grid: Grid

    def measured(self) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
        """What is measured of maps (..., H, W)."""
        if self.grid == (1, 1):
            return {"radius": fields.half_radius}
        return {"share": partial(share, mass=PROTOCOL["mass"]), "radius": fields.half_radius, "axes": self.axes}

    def axes(self, maps: np.ndarray) -> np.ndarray:
        """Share of the mass in the rows and columns of the middle token's patch."""
        middle = (
            np.arange(side) * tokens // side == tokens // 2
            for side, tokens in zip(maps.shape[-2:], self.grid, strict=True)
        )
        rows, columns = middle
        return (maps * (rows[:, None] | columns)).sum((-2, -1)) / maps.sum((-2, -1))


def measure(subject: Subject) -> dict[str, Estimate]:
    """Of every block; a key without a number is the last block's. {} for a model that is none of ours."""
    found = gradients(subject.model, subject)
    before = gradients(subject.start, subject) if subject.start is not None else []
    result: dict[str, Estimate] = {}
    for i, (maps, grid) in enumerate(found):
        for key, f in found[i].measured().items():
            one_token = grid == (1, 1)
            null = math.nan
            if before:
                null = float(f(before[i].maps).mean() if one_token else f(before[i].maps.mean(0)))
            scores = f(maps)[:, None] if one_token else maps.reshape(len(maps), -1)
            result[f"{key}_{i + 1}"] = over_images(scores, partial(_of_means, f, maps.shape[1:]), null)
    return result | {key: result[f"{key}_{len(found)}"] for key in (found[-1].measured() if found else ())}


def gradients(model: nn.Module, subject: Subject) -> list[Field]:
    """Of each block; [] for a model that is none of ours."""
    inner = model.model if isinstance(model, Rearranged) else model
    if not isinstance(inner, Backbone):
        return []
    x_BCHW = _images(subject).requires_grad_()
    read = model.arrange(x_BCHW) if isinstance(model, Rearranged) else x_BCHW
    found = []
    for y_BHWC in inner.forward_intermediates(read, output_fmt="NHWC", intermediates_only=True):
        h, w, C = y_BHWC.shape[1:]
        middle_BC = y_BHWC[:, h // 2, w // 2]
        if (h, w) == (1, 1):
            some = range(0, C, -(-C // PROTOCOL["channels"]))
            parts = [torch.autograd.grad(middle_BC[:, c].sum(), x_BCHW, retain_graph=True)[0] for c in some]
            g = torch.stack([part.abs().sum(1).mean(0) for part in parts])
        else:
            g = torch.autograd.grad(middle_BC.square().sum() / 2, x_BCHW, retain_graph=True)[0].abs().sum(1)
        found.append(Field(g.double().cpu().numpy(), (h, w)))
    return found


def share(maps: np.ndarray, mass: float) -> np.ndarray:
    """Smallest share of the pixels of maps (..., H, W) with so much of the mass."""
    flat = np.sort(maps.reshape(*maps.shape[:-2], -1), -1)[..., ::-1].cumsum(-1)
    return ((flat < mass * flat[..., -1:]).sum(-1) + 1) / flat.shape[-1]


def draw(subject: Subject) -> bytes | None:
    """The fields of all blocks side by side, of the trained weights and below of those at the start."""
    models = [model for model in (subject.model, subject.start) if model is not None]
    found = [gradients(model, subject) for model in models]
    if not found[0]:
        return None
    return sheet([np.stack([maps[0] if grid == (1, 1) else maps.mean(0) for maps, grid in each]) for each in found])


def _of_means(f: Callable[[np.ndarray], np.ndarray], shape: Grid, means: np.ndarray) -> np.ndarray:
    """f of the mean map, given flat; a single number is one already."""
    return means[..., 0] if means.shape[-1] == 1 else f(means.reshape(*means.shape[:-1], *shape))


def _images(subject: Subject) -> Tensor:
    found: list[Tensor] = []
    for x_BCHW, _ in subject.images:
        found.append(x_BCHW.clone())
        if sum(map(len, found)) >= PROTOCOL["images"]:
            break
    return torch.cat(found)[: PROTOCOL["images"]]


def token_shares(model: Backbone, x_BCHW: Tensor, mass: float = 0.95) -> dict[str, float]:
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

    Matrices have unit gain (normal, 1 / sqrt(fan in)); vectors lie in +-[0.5, 1.5], variances in [0.5, 1.5]. What no
    checkpoint holds follows from arguments and stays.
    """
    generator, held = torch.Generator().manual_seed(seed), model.state_dict()
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if not value.is_floating_point() or name not in held:
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
