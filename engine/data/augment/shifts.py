"""All shifts that a random crop after padding can give, one by one, for an average over them after training.

With `wrap` and a padding of half a side they are a group: the average of a model over it does not change when its
images are shifted, whatever the model, at as many times its cost (Puny et al., arXiv 2110.03336, eq. 2).
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from engine.fields.sizes import Size, pair

Shift = tuple[int, int]


def shifts(img_size: Size, crop_pad: int, crop_step: int = 1, fill: str = "zeros") -> list[Shift]:
    """(top, left) of every crop that training draws with equal probability, row by row."""
    rows, columns = (
        [start for start in range(-crop_pad, crop_pad + 1, crop_step) if fill != "wrap" or start + crop_pad < side]
        for side in pair(img_size)
    )
    return [(top, left) for top in rows for left in columns]


def shifted(images_BHWC: Tensor, shift: Shift, fill: str = "zeros") -> Tensor:
    """The crop that begins at `shift`: its pixel (y, x) is the image's (y + top, x + left)."""
    top, left = shift
    moved = images_BHWC.roll((-top, -left), (1, 2))
    if fill == "wrap":
        return moved
    H, W = images_BHWC.shape[1:3]
    there = torch.zeros(H, W, dtype=torch.bool)
    there[max(0, -top) : max(0, H - top), max(0, -left) : max(0, W - left)] = True
    return moved * there.to(images_BHWC.device)[:, :, None]


class Shifted:
    """A loader of images as they are, read as views: epoch i is shift i of all of them."""

    def __init__(self, loader: Any, views: list[Shift], fill: str) -> None:
        self.loader, self.views, self.fill = loader, views, fill
        self.num_samples = loader.num_samples

    def epoch(self, view: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of images (B, H, W, C) uint8 and labels."""
        for images, labels in self.loader.epoch(0):
            yield shifted(images, self.views[view], self.fill), labels
