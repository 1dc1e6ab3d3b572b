"""FFCV's loader over an order, an augmentation and a decoder of our own.

What is mended: its random transforms cannot be seeded (ours are counter-based, engine/data/augment/pipeline.py); it
sets torch's number of threads at import, at construction and at every epoch, and starts numba's; its first epoch in a
process compiles for some 10 s (our stages are kernels that numba compiles once per machine); it ignores that a JPEG
could not be decoded; leaving an epoch early leaks its thread; an error in that thread makes the consumer wait for
ever; a batch may be overwritten while a GPU still reads it. Kept are the file format, the memory-mapped reader, the
JPEG decoder, the rotating batch slots and the thread that works ahead.
"""

import atexit
import contextlib
import dataclasses
import queue
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from engine.data import beton
from engine.data.augment import pipeline, resample
from engine.data.augment.pipeline import Augmentation
from engine.data.ffcv import slots
from engine.data.ffcv.package import (
    AllocationQuery,
    Compiler,
    EpochIterator,
    IntDecoder,
    Loader,
    SimpleRGBImageDecoder,
    ToTensor,
    imdecode,
)
from engine.errors import DATA, Refusal
from engine.fields.sizes import pair

# Resized images that wait for the next kernel, per worker: half a second-level cache.
SQUARES_BYTES = 1 << 19


class ImageDecoder(SimpleRGBImageDecoder):
    """The first stage of the image pipeline: read or decode, crop, resize, augment; a slice of the batch per worker.

    Args:
        path: the file; raw pixels and JPEGs, of any sizes, mixed.
        augmentation: with the size of the images of the batch, and a mean per channel; where there is one channel, it
            is the first of grey images stored as RGB.
        workers: threads that share a batch; the pixels do not depend on it.
    """

    def __init__(self, path: Path, augmentation: Augmentation, workers: int) -> None:
        super().__init__()
        self.key = np.uint64(0)
        self._path, self._augmentation, self._workers = path, augmentation, workers
        self._layout = layout = beton.read_layout(path)
        size = pair(augmentation.img_size)
        self._as_stored = layout.is_raw and layout.is_all_of(size) and not augmentation.scale
        self._places = None if augmentation.places is None else np.array(augmentation.places)
        # libjpeg-turbo's handles live as long as their thread: FFCV's thread is a new one in each epoch, these stay.
        self._pool = ThreadPoolExecutor(workers) if workers > 1 or not layout.is_raw else None
        self._at_once = max(1, SQUARES_BYTES // (3 * size[0] * size[1]))
        self._squares = [np.empty((self._at_once, *size, 3), np.uint8) for _ in range(workers)]
        jpgs = layout.modes == beton.JPG
        largest = int((layout.heights * layout.widths)[jpgs].max()) if jpgs.any() else 0
        self._decoded = [np.empty(3 * largest, np.uint8) for _ in range(workers)]
        # Read-only as the mapped file is: for another type numba would compile the kernels a second time.
        self._squares_bytes = [_read_only(array) for array in self._squares]
        self._decoded_bytes = [_read_only(array) for array in self._decoded]

    def declare_state_and_memory(self, previous_state: Any) -> tuple:
        shape = (*pair(self._augmentation.img_size), len(self._augmentation.mean))
        dtype = np.dtype("u1")
        return dataclasses.replace(previous_state, jit_mode=True, shape=shape, dtype=dtype), AllocationQuery(
            shape, dtype
        )

    def generate_code(self) -> Callable:
        def decode(samples: np.ndarray, out: np.ndarray, metadata: np.ndarray, storage_state: tuple) -> np.ndarray:
            cuts = np.linspace(0, len(samples), self._workers + 1).astype(int)

            def part(worker: int) -> None:
                rows = slice(cuts[worker], cuts[worker + 1])
                self._decode(np.asarray(storage_state[0]), samples[rows], out[rows], worker)

            if self._pool is None:
                part(0)
            else:
                list(self._pool.map(part, range(self._workers)))
            return out[: len(samples)]

        return decode

    def _decode(self, file: np.ndarray, samples: np.ndarray, out: np.ndarray, worker: int) -> None:
        """Fill `out`, some images at a time, so that they are still in the cache when the next kernel wants them."""
        augmentation, key = self._augmentation, self.key
        for start in range(0, len(samples), self._at_once):
            chosen, images = samples[start : start + self._at_once], out[start : start + self._at_once]
            source, addresses = file, self._layout.pointers[chosen % len(self._layout.pointers)]
            if not self._as_stored or self._places is not None:
                squares = self._squares[worker][: len(chosen)]
                if self._as_stored:
                    pipeline.read(file, addresses, chosen, squares, key, 0, 1, False, 0.0)
                else:
                    self._cut(file, chosen, squares, worker)
                if self._places is not None:
                    flat = squares.reshape(len(chosen), -1, 3)
                    flat[:] = flat[:, self._places]
                source, addresses = self._squares_bytes[worker], np.arange(len(chosen)) * squares[0].size
            crop = augmentation.crop_pad, augmentation.crop_step, augmentation.crop_fill == "wrap"
            pipeline.read(source, addresses, chosen, images, key, *crop, augmentation.hflip)
            augmentation.finish(images, chosen, key)

    def _cut(self, file: np.ndarray, samples: np.ndarray, squares: np.ndarray, worker: int) -> None:
        """Cut a box out of each image, the largest in the centre or a random one, and resize it."""
        layout, augmentation = self._layout, self._augmentation
        stored = samples % len(
            layout.pointers
        )  # an image that comes again in an epoch has another number, for its draws
        heights, widths, addresses = layout.heights[stored], layout.widths[stored], layout.pointers[stored]
        boxes = np.empty((len(samples), 4), np.int64)
        scale = tuple(map(float, augmentation.scale or (0, 0)))
        ratio, shape = tuple(map(float, augmentation.ratio)), pair(augmentation.img_size)
        pipeline.boxes(samples, heights, widths, self.key, scale, ratio, shape, boxes)
        if layout.is_raw:
            resample.resize(file, addresses, widths, boxes, squares)
            return
        decoded = self._decoded[worker]
        for i, sample in enumerate(stored):
            source, address = file, addresses[i : i + 1]
            if layout.modes[sample] == beton.JPG:
                jpeg = file[addresses[i] : addresses[i] + layout.sizes[sample]]
                height, width = int(heights[i]), int(widths[i])
                if imdecode(jpeg, decoded, height, width, height, width):
                    raise Refusal(f"image {sample} of {self._path} is a damaged JPEG; write the file again", DATA)
                source, address = self._decoded_bytes[worker], np.zeros(1, np.int64)
            resample.resize(source, address, widths[i : i + 1], boxes[i : i + 1], squares[i : i + 1])


def _read_only(array: np.ndarray) -> np.ndarray:
    flat = array.reshape(-1)
    flat.setflags(write=False)
    return flat


class LabelDecoder(IntDecoder):
    """The labels of a batch, (B, 1) int64."""

    def generate_code(self) -> Callable:
        def decode(samples: np.ndarray, out: np.ndarray, metadata: np.ndarray, storage_state: tuple) -> np.ndarray:
            out[: len(samples), 0] = metadata[samples % len(metadata)]
            return out[: len(samples)]

        return decode


_OPEN: weakref.WeakSet = weakref.WeakSet()


class Batches(EpochIterator):
    """FFCV's epoch thread over an order of our own. An error in it is raised in the consumer; close() ends it.

    A batch is the consumer's, to read or to ask a GPU to read, until it asks for the next one.
    """

    error: BaseException | None = None

    def __init__(self, loader: Loader, order: np.ndarray) -> None:
        self.reads = slots.Reads(slots.make_event)
        super().__init__(loader, order)  # starts the thread

    def run(self) -> None:
        _OPEN.add(self)
        try:
            super().run()
        except BaseException as error:
            self.error = error

    def run_pipeline(self, b_ix: int, batch_indices: np.ndarray, batch_slot: int, cuda_event: None) -> tuple:
        if self.terminate_event.is_set():
            raise StopIteration  # as at the end of the order; FFCV looks at it only while the queue is full
        self.reads.wait(batch_slot)
        return super().run_pipeline(b_ix, batch_indices, batch_slot, cuda_event)

    def __next__(self) -> tuple:
        self.reads.give_back()  # before the queue has room for one more batch, for which the thread then wants the slot
        while True:
            try:
                item = self.output_queue.get(timeout=1.0)
                break
            except queue.Empty:
                if not self.is_alive():
                    if isinstance(self.error, Refusal):
                        raise self.error from None
                    raise Refusal(f"the loader's thread failed: {self.error!r}", DATA) from self.error
        if item is None:
            raise StopIteration
        slot, batch = item
        self.reads.take(slot)
        return batch

    def close(self) -> None:
        self.terminate_event.set()
        self.reads.give_back()
        while self.is_alive():
            with contextlib.suppress(queue.Empty):  # make room for the end marker, which is put without a time limit
                self.output_queue.get(timeout=0.05)
        super().close()
        self.reads.wait_all()  # before the memory is freed, or is that of another epoch


@atexit.register
def _close_all() -> None:
    """No thread may be inside torch when the interpreter ends: that is a SIGABRT instead of the exit code."""
    for batches in list(_OPEN):
        batches.close()


def open_loader(path: Path, batch_size: int, decoder: ImageDecoder) -> Loader:
    """FFCV's loader for a checked .beton; batches are taken from it with `Batches(loader, order)`."""
    # FFCV would compile the stages again in every process; they are compiled functions already.
    Compiler.set_enabled(False)
    try:
        return Loader(
            str(path),
            batch_size=batch_size,
            num_workers=1,
            os_cache=True,  # the other cache allocates more than the file
            drop_last=False,
            seed=0,
            pipelines={"image": [decoder, ToTensor()], "label": [LabelDecoder(), ToTensor()]},
        )
    finally:
        Compiler.set_enabled(True)
