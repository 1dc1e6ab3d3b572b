"""Loaders: which samples an epoch has, in which order and for which process, and FFCV's batches of them.

A loader gives `epoch(epoch, first_batch)` -> iterator of (images (B, H, W, C) uint8, labels (B,) int64), both owned by
the caller until it asks for the next batch; a copy to a GPU that it asked for before may then still go on. Order and
augmentation are functions of (seed, epoch, sample index).
"""

import contextlib
import copy
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from engine import distributed
from engine.data import beton
from engine.data.augment import pipeline
from engine.data.augment.pipeline import Augmentation
from engine.data.normalize import channel_statistics, is_first, places
from engine.errors import DATA, Refusal
from engine.fields import sizes
from engine.fields.effects import AUGMENTED
from engine.rng import derive, permutation
from engine.run import How, Run

Batch = tuple[Tensor, Tensor]
log = logging.getLogger("softmlp")


class Loader:
    """Which samples an epoch visits, and in which order; a subclass reads them.

    Args:
        indices: samples of the file to use; all by default.
        repeats: how often in a row a sample comes, so that an epoch visits fewer (repeated augmentation, Hoffer et al.,
            arXiv 1901.09335; timm's --aug-repeats). Sample s for the r-th time is number s + r * (samples of the file).
        part: (rank, world): a process takes its rows of each training batch, or its stretch of the evaluation set.
    """

    def __init__(
        self,
        path: Path,
        batch_size: int,
        augmentation: Augmentation,
        *,
        indices: np.ndarray | None = None,
        seed: int = 0,
        shuffle: bool = False,
        workers: int = 1,
        repeats: int = 0,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        self.augmentation, self.seed, self.shuffle = augmentation, seed, shuffle
        self.workers, self.repeats, (self.rank, self.world) = workers, max(repeats, 1), part
        self.batch_size = batch_size // self.world
        self.count = self._open(path)
        self.indices = np.arange(self.count) if indices is None else indices
        self.total = self.whole = len(self.indices)
        """Images of all processes, those left over by whole batches included; `whole`: before `part`."""
        if not shuffle:
            self.indices = np.array_split(self.indices, self.world)[self.rank]
        # Training steps are all of one size, as in timm; evaluation scores every sample once.
        share = len(self.indices)
        self.num_samples = share // batch_size * self.batch_size if shuffle else share
        """Images that one epoch of this process gives."""

    def __len__(self) -> int:
        """Batches per epoch."""
        return -(-self.num_samples // self.batch_size)

    def part(self, count: int) -> "Loader":
        """The same loader over the first `count` images of a fixed shuffle, however many processes share them."""
        chosen = np.zeros(self.total, bool)
        chosen[permutation(self.total, 0, "part")[:count]] = True
        part = copy.copy(self)
        part.indices = self.indices[np.array_split(chosen, self.world)[self.rank]]
        part.total, part.num_samples = int(chosen.sum()), len(part.indices)
        return part

    def _order(self, epoch: int, first_batch: int) -> np.ndarray:
        order = self.indices
        if self.shuffle:
            order = order[permutation(len(order), self.seed, "order", epoch)]
            if self.repeats > 1:
                order = (order[:, None] + self.count * np.arange(self.repeats)).reshape(-1)
            if self.world > 1:
                rows = order[: self.num_samples * self.world].reshape(-1, self.world, self.batch_size)
                order = rows[:, self.rank].reshape(-1)
        return order[first_batch * self.batch_size : self.num_samples]

    def _key(self, epoch: int) -> np.uint64:
        return np.uint64(derive(self.seed, "augment", epoch))

    def _open(self, path: Path) -> int:
        """Open the file; return its number of samples."""
        raise NotImplementedError

    def epoch(self, epoch: int, first_batch: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from `first_batch` on. Close the iterator to leave early."""
        raise NotImplementedError


class FfcvLoader(Loader):
    """FFCV's reader, memory manager, batch slots and thread, with our order and our kernels."""

    def _open(self, path: Path) -> int:
        from engine.data.ffcv import reader  # not at the top: numba and FFCV take a second to import

        self._decoder = reader.ImageDecoder(path, self.augmentation, self.workers)
        self._loader = reader.open_loader(path, self.batch_size, self._decoder)
        self._batches = reader.Batches
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


def make_loaders(run: Run, how: How) -> tuple[Loader, Loader, dict[str, Any]]:
    """Training and validation loader of a run, and the facts of the training file (mean, std, num_classes, sha256).

    The files are those of the run's stored size; the facts name the training file as `file`. With a holdout, validation
    is on a part of it and needs no other. Raises Refusal (DATA) for a missing,
    damaged or foreign file; (USAGE) for a batch larger than the training set and for settings that exclude each other.
    """
    part = distributed.rank(), distributed.world()
    if run.batch_size % part[1]:
        raise Refusal(f"batch_size {run.batch_size} is of all processes and cannot be shared evenly by {part[1]}")
    files = [beton.path_of(run.dataset, split, run.stored, how.data_dir) for split in run.splits]
    facts, *others = (beton.check(path, run.dataset, run.stored) for path in files)
    for key in ("write_mode", "val_split"):  # of two shares, some images would be on both sides
        if any(facts.get(key) != other.get(key) for other in others):
            raise Refusal(f"{files[0].name} and {files[1].name} differ in {key}; write both alike", DATA)
    if others:
        beton.require_same_classes(*files)
    facts = {**facts, "file": files[0].name}
    if run.stored_size is not None:
        log.info("%s px of %s are shrunk to %s", sizes.text(run.stored), " and ".join(map(str, files)), run.pixels)
    indices = np.arange(facts["samples"])
    held_out = None
    if run.holdout:
        chosen = held_out_of(facts["samples"], run.holdout)
        indices, held_out = np.flatnonzero(~chosen), np.flatnonzero(chosen)
        if not len(held_out):
            raise Refusal(f"holdout {run.holdout:g} of {facts['samples']} images is none; raise it", DATA)
    if run.train_samples is not None:
        if run.train_samples > len(indices):
            raise Refusal(f"train_samples {run.train_samples} is more than the {len(indices)} of {files[0]}")
        # The same subset for every seed and every model: seeds vary what is learned from it, not what is in it.
        indices = indices[permutation(len(indices), 0, "subset")[: run.train_samples]]
    mean, std = (tuple(values) for values in channel_statistics(run, facts))
    try:
        first = tuple(places(run).tolist()) if is_first(run) else None
        given = {name: getattr(run, name) for name in AUGMENTED}
        augmentation = Augmentation(run.img_size, mean, std, **given, places=first)
        train = FfcvLoader(
            files[0], run.batch_size, augmentation,
            indices=indices, seed=run.seed, shuffle=True, workers=how.workers, repeats=run.aug_repeats, part=part,
        )  # fmt: skip
        plain = Augmentation(run.img_size, mean, std)
        val = FfcvLoader(files[-1], run.batch_size, plain, indices=held_out, workers=how.workers, part=part)
    except ValueError as error:
        raise Refusal(str(error)) from None
    if not len(train):
        raise Refusal(f"batch_size {run.batch_size} is more than the {len(indices)} training images of {files[0]}")
    _warn_of(files, facts)
    return train, val, facts


def held_out_of(samples: int, share: float) -> np.ndarray:
    """Which training images are held out, (samples,) bool: by a hash of the index, so the same for every seed.

    A larger share holds out the same images and more.
    """
    return pipeline.uniform_numpy(derive(0, "holdout"), np.arange(samples), 0) < share


def free_memory() -> int:
    """Bytes that this process could still take, by the kernel and by the limits of its control groups."""
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    free = [int(fields["MemAvailable"].split()[0]) * 1024]
    groups = [line.split(":", 2)[2].strip("/") for line in Path("/proc/self/cgroup").read_text().splitlines()]
    for folder, limit in (("/sys/fs/cgroup", "memory.max"), ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")):
        for group in {"", *groups}:
            path = Path(folder, group, limit)
            with contextlib.suppress(OSError, ValueError):  # not there, or "max"
                free.append(int(path.read_text()))
    return min(free)


def _warn_of(files: list[Path], facts: dict[str, Any]) -> None:
    """Say what the user may not expect: a file that holds a part of the data set, or more than fits in memory."""
    if facts.get("subset"):
        log.warning("%s holds a subset of %d images only", files[0], facts["subset"])
    size, free = sum(path.stat().st_size for path in files), free_memory()
    if size > free:
        log.warning(
            "%s take %.1f GB, more than the %.1f GB of free memory: parts will be read from disk in every epoch",
            " and ".join(path.name for path in files), size / 1e9, free / 1e9,
        )  # fmt: skip
