"""The memory that batches stand in, and when it may be written again.

FFCV's thread fills `batches_ahead + 2` slots in turn, and begins with one when the batch after the one that stood in it
has been taken. On a CPU its reader is done by then. A GPU may not be: a copy out of pinned memory goes on after the
call that asked for it. FFCV makes an event for that, too, but it is the GPU's own stream that waits for it, and not the
thread that writes.
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch

from engine.data.ffcv.package import AllocationQuery, graph


class Event(Protocol):
    """What we use of torch.cuda.Event."""

    def record(self) -> None:
        """Happen when the GPU has done all that the calling thread's stream was given so far."""

    def synchronize(self) -> None:
        """Return once it has happened; Python's lock is free meanwhile."""


def make_event() -> Event | None:
    """None in a process that uses no GPU: nothing is read there after the call that asks for it."""
    return torch.cuda.Event(blocking=True) if torch.cuda.is_initialized() else None


class Reads:
    """The last read of each slot by the GPU. One thread takes batches and marks them, another one waits."""

    def __init__(self, make: Callable[[], Event | None]) -> None:
        self._make = make
        self._events: dict[int, Event] = {}
        self._taken: int | None = None

    def take(self, slot: int) -> None:
        """The consumer has this slot's batch from now on, until `give_back`."""
        self._taken = slot

    def give_back(self) -> None:
        """The consumer asks nothing more of the batch that it has; what it asked for may still go on."""
        if self._taken is not None and (event := self._make()):
            event.record()
            self._events[self._taken] = event
        self._taken = None

    def wait(self, slot: int) -> None:
        """Return when the slot may be written."""
        if event := self._events.pop(slot, None):
            event.synchronize()

    def wait_all(self) -> None:
        """Return when all slots may be written, or freed."""
        for slot in [*self._events]:
            self.wait(slot)


def allocate(query: AllocationQuery, batch_size: int, slots: int) -> np.ndarray:
    """One array (slots, batch_size, ...), pinned in a process that uses a GPU, so that copies need not wait.

    FFCV's own pins wherever there is a GPU, which starts CUDA in a run that is to leave it alone.
    """
    dtype = torch.from_numpy(np.empty(0, query.dtype)).dtype
    return torch.empty(slots, batch_size, *query.shape, dtype=dtype, pin_memory=torch.cuda.is_initialized()).numpy()


graph.allocate_query = allocate
