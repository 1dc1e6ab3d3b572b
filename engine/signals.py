"""Signals only set a flag; the training loop looks at it between two steps, saves and leaves. Standard library only."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

from engine.errors import TERMINATED

INTERRUPTED = 128 + signal.SIGINT
CODES = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: TERMINATED}


class Stop:
    """A wish to stop: the exit code that a signal asked for, 0 while there is none."""

    code = 0

    def __call__(self) -> int:
        return self.code

    @contextlib.contextmanager
    def on(self, codes: dict[int, int]) -> Iterator["Stop"]:
        """Listen to signals: {signal: exit code}. A second Ctrl-C is a KeyboardInterrupt, for who will not wait."""
        self._codes = codes
        before = {number: signal.signal(number, self._handle) for number in codes}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.code and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.code = self.code or self._codes[number]
