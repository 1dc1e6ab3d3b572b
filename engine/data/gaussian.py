"""Gaussian clones: images of each class drawn from the normal distribution with its mean and covariance.

A clone has the labels, the mean images and every correlation between two pixels of the original, within each class, and
nothing else: no edges, no objects. What a model learns from the original and not from its clone, it learned from
structure beyond correlations; a locality of weights that both teach follows from correlations alone.

Each image is the class mean plus a random combination of the class's own training images about it,

    g = mean + sum_i z_i (x_i - mean) / sqrt(n - 1)        z_i independent, standard normal

whose covariance is that of the class exactly. It is stored at half of its contrast about 127.5, as bytes end where a
normal number does not: of CIFAR-10 one value in 20,000 is cut off then. The table's mean and deviation undo that.

Source: the control of Ingrosso and Goldt, PNAS 119 (2022); one per class, Refinetti et al., arXiv 2211.11567.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from engine.rng import derive

CONTRAST, MIDDLE = 0.5, 127.5


class Clone(Sequence):
    """The clone of a split as (image, label): as many images of each class, in the order of its labels.

    Args:
        train: the samples that mean and covariance are those of.
        like: the split to clone: its labels are taken, and its names of classes.
        number: of the split; each has draws of its own.
    """

    def __init__(self, train: Sequence[tuple[Any, int]], like: Sequence[tuple[Any, int]], number: int) -> None:
        self.labels = np.array([like[i][1] for i in range(len(like))])
        self.classes, self.raw = getattr(like, "classes", None), getattr(like, "raw", None)
        samples = [train[i] for i in range(len(train))]
        pixels, labels = np.stack([np.asarray(image) for image, _ in samples]), np.array([y for _, y in samples])
        shape = pixels.shape[1:]
        grey = bool((pixels[..., :1] == pixels).all())  # stored with three equal channels
        pixels = (pixels[..., :1] if grey else pixels).reshape(len(labels), -1)
        drawn = np.empty((len(self.labels), pixels.shape[1]), np.uint8)
        for label in np.unique(self.labels):
            places = np.flatnonzero(self.labels == label)
            drawn[places] = to_bytes(draw(pixels[labels == label], len(places), number, int(label)))
        self.images = drawn.reshape(len(drawn), *shape[:2], -1).repeat(3 if grey else 1, axis=3)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self.images[index], int(self.labels[index])


def draw(x_ND: np.ndarray, count: int, *position: int) -> np.ndarray:
    """Of the normal distribution with the mean and the sample covariance of these rows, (count, D) float32."""
    rng = np.random.Generator(np.random.Philox(derive(0, "gaussian clone", *position)))
    mean_D = x_ND.mean(0, dtype=np.float64)
    away_ND = (x_ND - mean_D).astype(np.float32)
    z_CN = rng.standard_normal((count, len(x_ND)), np.float32) / math.sqrt(max(len(x_ND) - 1, 1))
    return z_CN @ away_ND + mean_D.astype(np.float32)


def to_bytes(values: np.ndarray) -> np.ndarray:
    """At the contrast of a clone, rounded and cut off at 0 and 255."""
    return np.round(MIDDLE + CONTRAST * (values - MIDDLE)).clip(0, 255).astype(np.uint8)
