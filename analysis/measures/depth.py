"""What a model holds after each of its blocks: for probes that ask by depth."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from analysis.bias.probe import Subject
from analysis.measures import pixels


def count(subject: Subject) -> int:
    """How many blocks there are to look at; 0 for a model that does not show them."""
    if not hasattr(_inner(subject.model), "forward_intermediates"):
        return 0
    images, _, _ = pixels.sample(subject, 2)
    return len(next(batches(subject, images)))


@torch.no_grad()
def batches(subject: Subject, pixels_NCHW: Tensor, size: int = pixels.BATCH) -> Iterator[list[Tensor]]:
    """Per batch of images what every block gives, each (B, C, H, W)."""
    inner = _inner(subject.model)
    for part in pixels_NCHW.split(size):
        x_BCHW = pixels.to_model(subject, part)
        if inner is not subject.model:  # a shuffle of the pixels stands before it
            x_BCHW = x_BCHW.flatten(2)[..., subject.model.places].view(x_BCHW.shape)
        yield inner.forward_intermediates(x_BCHW, intermediates_only=True)


@torch.no_grad()
def block(subject: Subject, pixels_NCHW: Tensor, index: int) -> Tensor:
    """What one block gives of all images, (N, C, H, W) on the CPU."""
    return torch.cat([maps[index].float().cpu() for maps in batches(subject, pixels_NCHW)])


def _inner(model: nn.Module) -> nn.Module:
    return model.model if hasattr(model, "places") else model
