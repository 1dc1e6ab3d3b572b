"""FFCV's writer, run in this process: with its own processes it waits for ever when one of them dies."""

import contextlib
import queue
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from engine.data.ffcv.package import ALLOC_TABLE_TYPE, DatasetWriter, IntField, MemoryAllocator, RGBImageField


class Writer(DatasetWriter):
    """FFCV's writer, run in this process: an unreadable image or a full disk raises instead of hanging."""

    def __init__(self, path: Path, page_size: int) -> None:
        image = RGBImageField()
        image.encode = _store  # an attribute, as FFCV knows the field in the file by its exact class
        super().__init__(str(path), {"image": image, "label": IntField()}, page_size=page_size, num_workers=1)

    def write(self, samples: Sequence[tuple[Any, int]]) -> None:
        """Write (engine.data.write.Encoded, label) in order; `samples` is indexed from 0 upwards, once each."""
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
        try:
            work(tasks, self.metadata_sm, self.metadata_type, self.fields, allocator, done, allocations, *extra)
        finally:
            if hasattr(allocator, "fp"):
                allocator.fp.close()  # which FFCV does not do when its last page does not fit on the disk
        # In one piece: FFCV makes an array per image, which takes gigabytes for ten million.
        self.finalize([])
        with Path(self.fname).open("ab") as file:
            file.write(np.array(allocations.get(), ALLOC_TABLE_TYPE).tobytes())


def _store(destination: np.ndarray, image: Any, malloc: Callable) -> None:
    """Put an image that is encoded already into FFCV's page."""
    destination["mode"], destination["height"], destination["width"] = image.mode, image.height, image.width
    destination["data_ptr"], page = malloc(image.data.nbytes)
    page[:] = image.data
