"""Loaders: FFCV's, mended, and one over an array in memory with the same interface, the oracle of the tests.

A loader gives `epoch(epoch, first_batch)` -> iterator of (images (B, H, W, C) uint8, labels (B,) int64), both owned by
the caller until it asks for the next batch. Order and augmentation are functions of (seed, epoch, sample index).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from engine import augment, beton
from engine.errors import DATA, Refusal
from engine.rng import derive, permutation
from engine.run import How, Run

Batch = tuple[Tensor, Tensor]


class Loader(Protocol):
    """What the engine needs of a loader."""

    num_samples: int
    """Images that one epoch scores: all of them, or for training the whole batches."""

    def __len__(self) -> int:
        """Batches per epoch."""

    def epoch(self, epoch: int, first_batch: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from `first_batch` on. Close the iterator to leave early."""


class Normalize:
    """uint8 BHWC on any device -> float32 BCHW, (x - mean) / std on the 0..255 scale, in memory still BHWC."""

    def __init__(self, mean: list[float], std: list[float], device: torch.device) -> None:
        self.mean = torch.tensor(mean, device=device)
        self.scale = 1 / torch.tensor(std, device=device)
        self.device = device

    def __call__(self, images: Tensor) -> Tensor:
        x_BHWC = images.to(self.device, torch.float32, non_blocking=True, copy=True)
        return x_BHWC.sub_(self.mean).mul_(self.scale).permute(0, 3, 1, 2)


def make_loaders(run: Run, how: How) -> tuple[Loader, Loader, dict[str, Any]]:
    """Training and validation loader of a run, and the facts of the training file (mean, std, num_classes, sha256).

    Raises Refusal (DATA) for a missing, damaged or foreign file, or a training set smaller than a batch.
    """
    kind = FfcvLoader if how.loader == "ffcv" else MemoryLoader
    files = [beton.path_of(run.dataset, split, run.img_size, how.data_dir) for split in ("train", "val")]
    facts, val_facts = (beton.check(path, run.dataset, run.img_size) for path in files)
    if facts["write_mode"] != val_facts["write_mode"]:
        raise Refusal(f"{files[0].name} and {files[1].name} differ in write_mode; write both alike", DATA)
    indices = None
    if run.train_samples is not None:
        if run.train_samples > facts["samples"]:
            raise Refusal(f"train_samples {run.train_samples} is more than the {facts['samples']} of {files[0]}")
        # The same subset for every seed and every model: seeds vary what is learned from it, not what is in it.
        indices = permutation(facts["samples"], 0, "subset")[: run.train_samples]
    chans = len(channel_statistics(run, facts)[0])
    train = kind(
        files[0], run.batch_size, chans, indices=indices, seed=run.seed, crop_pad=run.crop_pad, hflip=run.hflip,
        shuffle=True, workers=how.workers,
    )  # fmt: skip
    if not len(train):
        raise Refusal(f"batch_size {run.batch_size} is more than the {facts['samples']} training images of {files[0]}")
    return train, kind(files[1], run.batch_size, chans, workers=how.workers), facts


def channel_statistics(run: Run, facts: dict[str, Any]) -> tuple[list[float], list[float]]:
    """Mean and deviation per input channel, from the table of data sets, else as measured when the file was written."""
    from engine.datasets import lookup

    entry = lookup(run.dataset)
    return (list(entry.mean), list(entry.std)) if entry else (facts["mean"], facts["std"])


class _Epochs:
    """What both loaders share: which samples an epoch visits, and in which order."""

    def __init__(
        self,
        path: Path,
        batch_size: int,
        chans: int,
        *,
        indices: np.ndarray | None = None,
        seed: int = 0,
        crop_pad: int = 0,
        hflip: float = 0.0,
        shuffle: bool = False,
        workers: int = 1,
    ) -> None:
        self.batch_size, self.chans, self.seed, self.shuffle = batch_size, chans, seed, shuffle
        self.crop_pad, self.hflip, self.workers = crop_pad, float(hflip), workers
        self.indices = np.arange(self._open(path)) if indices is None else (self._open(path), indices)[1]
        whole = len(self.indices) // batch_size * batch_size
        # Training steps are all of one size, as in timm; evaluation scores every sample once.
        self.num_samples = whole if shuffle else len(self.indices)

    def __len__(self) -> int:
        return -(-self.num_samples // self.batch_size)

    def _order(self, epoch: int, first_batch: int) -> np.ndarray:
        order = self.indices
        if self.shuffle:
            order = order[permutation(len(order), self.seed, "order", epoch)]
        return order[first_batch * self.batch_size : self.num_samples]

    def _key(self, epoch: int) -> np.uint64:
        return np.uint64(derive(self.seed, "augment", epoch))

    def _open(self, path: Path) -> int:
        """Open the file; return its number of samples."""
        raise NotImplementedError


class FfcvLoader(_Epochs):
    """FFCV's reader, memory manager, batch slots and thread, with our order and our kernels."""

    def _open(self, path: Path) -> int:
        from engine import mended_ffcv  # not at the top: FFCV takes 3 s to import

        self._decoder = mended_ffcv.ImageDecoder(self.chans, self.crop_pad, self.hflip, self.workers)
        self._loader = mended_ffcv.open_loader(path, self.batch_size, self._decoder)
        self._batches = mended_ffcv.Batches
        return int(self._loader.reader.num_samples)

    def epoch(self, epoch: int, first_batch: int = 0) -> Iterator[Batch]:
        order = self._order(epoch, first_batch)
        if not len(order):
            return
        self._decoder.key = self._key(epoch)
        batches = self._batches(self._loader, order)
        try:
            for images, labels in batches:
                yield images, labels.view(-1)
        finally:
            batches.close()


class MemoryLoader(_Epochs):
    """The same batches from arrays in memory, with NumPy only: slow, and independent of FFCV and numba."""

    def _open(self, path: Path) -> int:
        data = np.fromfile(path, "u1")
        header = data[: beton._HEADER.itemsize].view(beton._HEADER)[0]
        start = beton._HEADER.itemsize + 2 * beton._FIELD.itemsize
        end = start + int(header["num_samples"]) * beton._SAMPLE.itemsize
        samples = np.frombuffer(data[start:end].tobytes(), beton._SAMPLE)
        height, width = int(samples["f0"]["height"][0]), int(samples["f0"]["width"][0])
        pixels = [data[p : p + 3 * height * width] for p in samples["f0"]["data_ptr"].astype(int)]
        self._images = np.stack(pixels).reshape(-1, height, width, 3)[..., : self.chans]
        self._labels = samples["f1"].copy()
        return len(samples)

    def epoch(self, epoch: int, first_batch: int = 0) -> Iterator[Batch]:
        order = self._order(epoch, first_batch)
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            images = augment.read_numpy(self._images, chosen, self._key(epoch), self.crop_pad, self.hflip)
            yield torch.from_numpy(images), torch.from_numpy(self._labels[chosen])
