"""Test images as pixels from 0 to 1, and a model that takes them: for probes that change images as people see them.

A probe too dear for all test images looks at a fixed random part of them, the same for every model of a data set.
"""

from collections.abc import Callable
from io import BytesIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from analysis.bias.probe import Subject
from engine.rng import permutation

BATCH = 250  # images of one pass


def sample(subject: Subject, count: int) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """At most `count` test images: pixels (N, C, H, W) 0..1, labels (N,), and their numbers (N,) ascending."""
    labels = [y.cpu().numpy().copy() for _, y in subject.images]
    total = sum(map(len, labels))
    numbers = np.sort(permutation(total, 0, "probe sample")[:count])
    parts, start = [], 0
    for x_BCHW, y in subject.images:
        parts.append(to_pixels(subject, x_BCHW[numbers[(start <= numbers) & (numbers < start + len(y))] - start]))
        start += len(y)
    return torch.cat(parts), np.concatenate(labels)[numbers], numbers


def to_pixels(subject: Subject, x_BCHW: Tensor) -> Tensor:
    """What the model takes -> pixels from 0 to 1, in memory of their own."""
    mean, std = _statistics(subject, x_BCHW)
    return (x_BCHW * std + mean) / 255


def to_model(subject: Subject, pixels_BCHW: Tensor) -> Tensor:
    """Pixels from 0 to 1 -> what the model takes."""
    mean, std = _statistics(subject, pixels_BCHW)
    return (pixels_BCHW * 255 - mean) / std


def on_pixels(subject: Subject) -> Callable[[Tensor], Tensor]:
    """The model as a function of pixels from 0 to 1, standardisation included: (B, C, H, W) -> logits (B, classes)."""
    return lambda pixels_BCHW: subject.model(to_model(subject, pixels_BCHW))


@torch.no_grad()
def logits(subject: Subject, pixels_NCHW: Tensor) -> np.ndarray:
    """Of any number of images, (N, classes)."""
    model = on_pixels(subject)
    return np.concatenate([model(part).cpu().numpy() for part in pixels_NCHW.split(BATCH)])


def predict(subject: Subject, pixels_NCHW: Tensor) -> np.ndarray:
    """Class (N,) of any number of images."""
    return logits(subject, pixels_NCHW).argmax(1)


def png(tiles_RCHWD: np.ndarray, scale: int = 2) -> bytes:
    """Rows and columns of images 0..1, a pixel apart, D 1 or 3, each pixel `scale` on a side, as a PNG."""
    R, C, H, W, D = tiles_RCHWD.shape
    sheet = np.ones((R, H + 1, C, W + 1, D))
    sheet[:, :H, :, :W] = np.swapaxes(tiles_RCHWD, 1, 2)
    flat = np.round(255 * sheet.reshape(R * (H + 1), C * (W + 1), D).clip(0, 1)).astype(np.uint8)
    image, file = Image.fromarray(flat if D == 3 else flat[..., 0]), BytesIO()
    image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST).save(file, "PNG")
    return file.getvalue()


def _statistics(subject: Subject, like: Tensor) -> tuple[Tensor, Tensor]:
    return tuple(like.new_tensor(values).view(1, -1, 1, 1) for values in (subject.mean, subject.std))
