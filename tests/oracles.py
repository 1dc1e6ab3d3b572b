"""What the loader gives, written a second time with NumPy alone: slow, and independent of FFCV and numba."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from engine.data import beton
from engine.data.augment.pipeline import Augmentation
from engine.data.loaders import Batch, Loader


class MemoryLoader(Loader):
    """The same batches from arrays in memory, with NumPy only: slow, and independent of FFCV and numba.

    Raises ValueError for what it cannot do: another augmentation than places, crops and hflip, JPEGs, resizing.
    """

    def _open(self, path: Path) -> int:
        known = replace(self.augmentation, crop_pad=0, crop_fill="zeros", crop_step=1, hflip=0.0, places=None)
        if known != Augmentation(known.img_size, known.mean, known.std):
            raise ValueError("the oracle knows places, crop_pad, crop_fill, crop_step and hflip only")
        data = np.fromfile(path, "u1")
        header = data[: beton._HEADER.itemsize].view(beton._HEADER)[0]
        start = beton._HEADER.itemsize + 2 * beton._FIELD.itemsize
        end = start + int(header["num_samples"]) * beton._SAMPLE.itemsize
        samples = np.frombuffer(data[start:end].tobytes(), beton._SAMPLE)
        size = self.augmentation.img_size
        for key, wanted in (("height", size), ("width", size), ("mode", beton.RAW)):
            if (samples["f0"][key] != wanted).any():
                raise ValueError(f"the oracle reads raw pixels of img_size only, and {path} holds others")
        pixels = [data[p : p + 3 * size * size] for p in samples["f0"]["data_ptr"].astype(int)]
        self._images = np.stack(pixels).reshape(-1, size, size, 3)[..., : len(self.augmentation.mean)]
        if self.augmentation.places is not None:
            rows = [self._images[:, place // size, place % size] for place in self.augmentation.places]
            self._images = np.stack(rows, 1).reshape(self._images.shape)
        self._labels = samples["f1"].copy()
        return len(samples)

    def epoch(self, epoch: int, first_batch: int = 0) -> Iterator[Batch]:
        order = self._order(epoch, first_batch)
        own = self.augmentation
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            images = read_numpy(
                self._images, chosen, self._key(epoch), own.crop_pad, own.hflip, own.crop_fill, own.crop_step
            )
            yield torch.from_numpy(images), torch.from_numpy(self._labels[chosen % self.count])


def read_numpy(images_NHWC, samples, key, crop_pad, hflip, fill="zeros", step=1):
    """The crop and flip of `pipeline.read`, over an array in memory."""
    with np.errstate(over="ignore"):
        mixed = [_draw(key, samples, operation) for operation in (1, 2, 3)]
    _, height, width, _ = images_NHWC.shape
    chosen = images_NHWC[samples % len(images_NHWC)]
    mode = "wrap" if fill == "wrap" else "constant"
    padded = np.pad(chosen, ((0, 0), (crop_pad, crop_pad), (crop_pad, crop_pad), (0, 0)), mode)
    places = [range(0, 2 * crop_pad + 1, step)] * 2
    if fill == "wrap":  # a shift by +half a side is one by -half a side
        places = [[place for place in range(0, 2 * crop_pad + 1, step) if place < side] for side in (height, width)]
    out = np.empty_like(chosen)
    for i in range(len(samples)):
        top, left = (own[int(draw[i] % np.uint64(len(own)))] for own, draw in zip(places, mixed, strict=False))
        crop = padded[i, top : top + height, left : left + width]
        out[i] = crop[:, ::-1] if mixed[2][i] / 2**53 < hflip else crop
    return out


def _draw(key, samples, operation):
    """53 random bits per sample: splitmix64's finaliser (Steele, Lea and Flood 2014), twice."""

    def mix(x):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))

    place = samples.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(operation)
    return mix(np.uint64(key) ^ mix(place)) >> np.uint64(11)
