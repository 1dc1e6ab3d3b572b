"""uint8 images of a loader -> what a model takes: normalised, and where a run asks for it with the pixels shuffled."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.data.sets import lookup
from engine.fields.sizes import pair
from engine.rng import permutation
from engine.run import Run


class Normalize:
    """uint8 BHWC on any device -> float32 BCHW, (x - mean) / std on the 0..255 scale, in memory still BHWC.

    On the CPU the result stands in one buffer and is overwritten by the next batch of the same shape.

    Args:
        places: (H*W,) int64, which pixel comes to each place of the image; None: they stay.
    """

    def __init__(
        self, mean: list[float], std: list[float], device: torch.device, places: np.ndarray | None = None
    ) -> None:
        self.mean = torch.tensor(mean, device=device)
        self.scale = 1 / torch.tensor(std, device=device)
        self.device = device
        self.places = None if places is None else torch.from_numpy(places).to(device)
        self._rows = (self.mean, self.scale)
        self._buffer = torch.empty(0)

    @torch.inference_mode(False)  # the buffer outlives an evaluation, and training may not write what inference made
    def __call__(self, images: Tensor) -> Tensor:
        count, height, width, chans = images.shape
        # A whole image as one row: with rows of three channels torch is seven times slower.
        if len(self._rows[0]) != height * width * chans:
            self._rows = (self.mean.repeat(height * width), self.scale.repeat(height * width))
        mean, scale = self._rows
        if self.device.type == "cpu":  # fresh pages cost as much as the arithmetic
            if self._buffer.shape != images.shape:
                self._buffer = torch.empty(images.shape)
            x = self._buffer.copy_(images)
        else:
            x = images.to(self.device, torch.float32, non_blocking=True)
        x_BHWC = x.view(count, -1).sub_(mean).mul_(scale).view_as(images)
        if self.places is not None:
            x_BHWC = x_BHWC.flatten(1, 2)[:, self.places].view_as(x_BHWC)
        return x_BHWC.permute(0, 3, 1, 2)


def make_prepare(run: Run, facts: dict[str, Any], device: torch.device, *, training: bool = False) -> Normalize:
    """What stands between a run's loaders and its model; when `training` the loader may have shuffled the pixels."""
    mean, std = channel_statistics(run, facts)
    return Normalize(mean, std, device, None if training and is_first(run) else places(run))


def is_first(run: Run) -> bool:
    """Whether training images are shuffled before they are augmented, by the loader."""
    return run.permute == "pixels_first"


def places(run: Run) -> np.ndarray | None:
    """The run's `permute` as an index of pixels, (H*W,): pixel `places[i]` comes to place i; None for "none".

    Of one seed it is the same before augmentation and after.

    The same for all images, splits and models; another one for each seed, so that an interval over seeds is one over
    permutations, too (arXiv 2105.01601, section 3.4).
    """
    if run.permute == "none":
        return None
    height, width = pair(run.img_size)
    if run.permute in ("pixels", "pixels_first"):
        return permutation(height * width, run.seed, "permute", 0)
    patch = run.patch_size
    rows, columns = height // patch, width // patch
    index_gpgp = np.arange(height * width).reshape(rows, patch, columns, patch)
    index_SP = index_gpgp.transpose(0, 2, 1, 3).reshape(rows * columns, patch**2)
    within = permutation(patch**2, run.seed, "permute", 2)
    index_SP = index_SP[permutation(rows * columns, run.seed, "permute", 1)][:, within]
    return index_SP.reshape(rows, columns, patch, patch).transpose(0, 2, 1, 3).reshape(-1)


def channel_statistics(run: Run, facts: dict[str, Any]) -> tuple[list[float], list[float]]:
    """Mean and deviation per input channel, from the table of data sets, else as measured when the file was written."""
    entry = lookup(run.dataset)
    return (list(entry.mean), list(entry.std)) if entry else (facts["mean"], facts["std"])
