"""FFCV 1.0.2 behind one module. Nothing else in the project imports FFCV.

What is mended: its random transforms cannot be seeded (ours are counter-based, engine/augment.py); it sets torch's
number of threads at import, at construction and at every epoch; its first epoch in a process compiles for some 10 s
(our stages are kernels that numba compiles once per machine); leaving an epoch early leaks its thread; an error in
that thread makes the consumer wait for ever; its writer waits for ever when one of its processes dies. Kept are the
file format, the memory-mapped reader, the rotating batch slots and the thread that works ahead.
"""

import contextlib
import queue
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from engine import augment
from engine.errors import DATA, Refusal

_threads = torch.get_num_threads()
from ffcv.fields import IntField, RGBImageField  # noqa: E402 - the number of threads is read before FFCV changes it
from ffcv.fields.basics import IntDecoder  # noqa: E402
from ffcv.fields.rgb_image import SimpleRGBImageDecoder  # noqa: E402
from ffcv.loader import Loader  # noqa: E402
from ffcv.loader.epoch_iterator import EpochIterator  # noqa: E402
from ffcv.memory_allocator import MemoryAllocator  # noqa: E402
from ffcv.pipeline.compiler import Compiler  # noqa: E402
from ffcv.transforms import ToTensor  # noqa: E402
from ffcv.writer import DatasetWriter  # noqa: E402

torch.set_num_threads(_threads)
Compiler.num_threads = 1
Compiler.set_num_threads = classmethod(lambda cls, count: None)


class ImageDecoder(SimpleRGBImageDecoder):
    """The first stage of the image pipeline: read, crop and flip in one kernel, a slice of the batch per worker.

    Args:
        chans: channels of the batch; 1 takes the first channel of grey images stored as RGB.
        crop_pad: see `augment.read`, as `hflip`.
        workers: threads that share a batch; the pixels do not depend on it.
    """

    def __init__(self, chans: int, crop_pad: int, hflip: float, workers: int) -> None:
        super().__init__()
        self.key = np.uint64(0)
        self._chans, self._crop_pad, self._hflip, self._workers = chans, crop_pad, hflip, workers
        self._pool = ThreadPoolExecutor(workers) if workers > 1 else None

    def declare_state_and_memory(self, previous_state: Any) -> tuple:
        state, query = super().declare_state_and_memory(previous_state)
        state.shape = (*state.shape[:2], self._chans)
        self._pointers = np.ascontiguousarray(self.metadata["data_ptr"])
        return state, type(query)(state.shape, query.dtype)

    def generate_code(self) -> Callable:
        def decode(samples: np.ndarray, out: np.ndarray, metadata: np.ndarray, storage_state: tuple) -> np.ndarray:
            count = len(samples)
            cuts = np.linspace(0, count, self._workers + 1).astype(int)

            def part(start: int, stop: int) -> None:
                rows = slice(start, stop)
                augment.read(
                    storage_state[0], self._pointers, samples[rows], out[rows], self.key, self._crop_pad, self._hflip
                )

            if self._pool is None:
                part(0, count)
            else:
                list(self._pool.map(part, cuts[:-1], cuts[1:]))
            return out[:count]

        return decode


class LabelDecoder(IntDecoder):
    """The labels of a batch, (B, 1) int64."""

    def generate_code(self) -> Callable:
        def decode(samples: np.ndarray, out: np.ndarray, metadata: np.ndarray, storage_state: tuple) -> np.ndarray:
            out[: len(samples), 0] = metadata[samples]
            return out[: len(samples)]

        return decode


class Batches(EpochIterator):
    """FFCV's epoch thread over an order of our own. An error in it is raised in the consumer; close() ends it."""

    error: BaseException | None = None

    def run(self) -> None:
        try:
            super().run()
        except BaseException as error:
            self.error = error

    def __next__(self) -> tuple:
        while True:
            try:
                item = self.output_queue.get(timeout=1.0)
                break
            except queue.Empty:
                if not self.is_alive():
                    raise Refusal(f"the loader's thread failed: {self.error!r}", DATA) from self.error
        if item is None:
            raise StopIteration
        return item[1]

    def close(self) -> None:
        self.terminate_event.set()
        while self.is_alive():
            with contextlib.suppress(queue.Empty):  # make room for the end marker, which is put without a time limit
                self.output_queue.get(timeout=0.05)
        super().close()


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


class Writer(DatasetWriter):
    """FFCV's writer, run in this process: an unreadable image or a full disk raises instead of hanging."""

    def __init__(self, path: Path) -> None:
        # The smallest page that FFCV allows: a small data set takes a whole page per file.
        super().__init__(
            str(path), {"image": RGBImageField(write_mode="raw"), "label": IntField()}, page_size=1 << 21, num_workers=1
        )

    def write(self, samples: Sequence[tuple[np.ndarray, int]]) -> None:
        """Write (image (H, W, 3) uint8, label) in order; `samples` is indexed from 0 upwards, once each."""
        self.from_indexed_dataset(samples, indices=range(len(samples)))

    def _write_common(self, num_samples: int, todo: Any, work: Callable, extra: tuple) -> None:
        self.num_samples = num_samples
        self.prepare()
        # One process needs no shared memory, and an error would leave it behind.
        shared, self.metadata_sm = self.metadata_sm, SimpleNamespace(buf=bytearray(self.metadata_sm.size))
        shared.close()
        shared.unlink()
        tasks, allocations = queue.Queue(), queue.Queue()
        for chunk in [*todo, None]:
            tasks.put(chunk)
        allocator = MemoryAllocator(self.fname, self.data_region_start, self.page_size)
        done = SimpleNamespace(value=0, get_lock=contextlib.nullcontext)
        work(tasks, self.metadata_sm, self.metadata_type, self.fields, allocator, done, allocations, *extra)
        self.finalize(allocations.get())
