"""The image that excites a unit of a model most, among those as far from the mean image as images are.

A unit is a channel of what a module puts out, in the middle of its map where it has one. With the norm fixed the answer
for a unit that is linear in the image is known, its weights at that norm, and what does not excite the unit is left
empty instead of noise (Erhan et al., technical report 1341, Montreal 2009, section 3.2).
"""

import copy
from collections.abc import Callable, Iterable
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn

from analysis.bias.probe import Subject
from analysis.measures import pixels
from archs.parts.backbone import Backbone
from engine.errors import Refusal
from engine.rng import derive
from engine.run import unknown

LOGITS = "logits"
Read = Callable[[Tensor], Tensor]


def layers(model: nn.Module) -> dict[str, str]:
    """What is looked at if nobody says: modules by what they are called here, `first`, `middle`, `last` and `logits`.

    The blocks of our families, the stages of timm's models, else the children that have weights, which is three or
    fewer; the whole model is the module "".
    """
    inner = inner_of(model)
    names = {id(module): name for name, module in inner.named_modules()}
    if isinstance(inner, Backbone):
        rows = [names[id(block)] for block in inner.blocks()]
    elif isinstance(info := getattr(inner, "feature_info", None), list):
        rows = [each["module"] for each in info if each["module"] in names.values()]
    else:
        rows = [name for name, child in inner.named_children() if any(True for _ in child.parameters())]
    places = {"first": 0, "middle": (len(rows) - 1) // 2, "last": len(rows) - 1}
    found: dict[str, str] = {}
    for label, place in places.items():
        if rows and rows[place] not in found.values():
            found[label] = rows[place]
    return found | {LOGITS: ""}


def reader(subject: Subject, model: nn.Module, module: str) -> Read:
    """Pixels from 0 to 1 (B, C, H, W) -> what each unit of a module gives, (B, units).

    Raises Refusal for a module that the model has not, ValueError for one whose output is no tensor (B, ...).
    """
    inner = inner_of(model)
    modules = dict(inner.named_modules())
    if module not in modules:
        raise Refusal(unknown("module", module, [name for name in modules if name]))
    channels_last = getattr(inner, "output_fmt", "NCHW") == "NHWC"

    def read(pixels_BCHW: Tensor) -> Tensor:
        kept: list[Tensor] = []
        handle = modules[module].register_forward_hook(lambda _, given, y: kept.append(y))
        try:
            model(pixels.to_model(subject, pixels_BCHW))
        finally:
            handle.remove()
        return _middle(kept[-1], channels_last, module)

    return read


def most_exciting(
    read: Read, units: Tensor, start_SUCHW: Tensor, centre_CHW: Tensor, radius: float, steps: int
) -> tuple[Tensor, Tensor]:
    """Ascent on the sphere of this radius about the centre, each step an angle of at most 45 degrees that shrinks.

    Args:
        units: (U,) of what `read` gives.
        start_SUCHW: S images for each unit to start from; the best end counts.

    Returns:
        the images (U, C, H, W) and what they give, (U,).
    """
    S, U = start_SUCHW.shape[:2]
    away = _unit(start_SUCHW.flatten(0, 1) - centre_CHW)
    own = units.to(away.device).repeat(S)
    best, value = away.clone(), torch.full((S * U,), -torch.inf, device=away.device)
    for step in range(steps + 1):
        with torch.enable_grad():
            x = (centre_CHW + radius * away).requires_grad_()
            found = read(x).gather(1, own[:, None])[:, 0]
            (up,) = torch.autograd.grad(found.sum(), x)
        better = found.detach() >= value  # of equal ones the last, which has had more steps
        value = torch.where(better, found.detach(), value)
        best[better] = away[better]
        rate = 1 - step / (steps + 1)
        away = _unit(away + rate * _unit(up))
    value, which = value.view(S, U).max(0)
    best = best.view(S, U, *best.shape[1:])[which, torch.arange(U, device=best.device)]
    return centre_CHW + radius * best, value


def shuffled(model: nn.Module, seed: int = 0) -> nn.Module:
    """A copy whose matrices hold the same numbers in random order: what the architecture and their scale make of it."""
    model = copy.deepcopy(model)
    for number, weight in enumerate(model.parameters()):
        if weight.ndim > 1:
            generator = torch.Generator().manual_seed(derive(seed, "shuffled weights", number) >> 1)
            order = torch.randperm(weight.numel(), generator=generator).to(weight.device)
            weight.data = weight.data.flatten()[order].view_as(weight)
    return model


def inner_of(model: nn.Module) -> nn.Module:
    """The model itself, without the shuffle of pixels before it."""
    return model.model if hasattr(model, "places") else model


@torch.no_grad()
def responses(read: Read, pixels_NCHW: Tensor) -> np.ndarray:
    """What every unit gives of all images, (N, units)."""
    return np.concatenate([read(part).float().cpu().numpy() for part in pixels_NCHW.split(pixels.BATCH)])


def some(count: int, most: int) -> Iterable[int]:
    """At most `most` of so many units, evenly over all of them."""
    return islice(range(0, count, -(-count // most)), most)


def _middle(y: Tensor, channels_last: bool, module: str) -> Tensor:
    if not isinstance(y, Tensor) or y.ndim < 2:
        raise ValueError(f"module '{module}' puts out no tensor with images and units; name one inside it")
    if y.ndim == 4 and not channels_last:
        y = y.permute(0, 2, 3, 1)
    places = y.shape[1:-1]
    return y[(slice(None), *(side // 2 for side in places))]


def _unit(x_NCHW: Tensor) -> Tensor:
    """Each image at norm 1; one that is nothing stays so."""
    norm = x_NCHW.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    return x_NCHW / torch.where(norm > 0, norm, 1)
