"""Signals only set a flag; the training loop looks at it between two steps, saves and leaves."""

import signal
from collections.abc import Callable
from types import FrameType

from engine.errors import TERMINATED

INTERRUPTED = 130


def stop_on_signals() -> Callable[[], int]:
    """Install handlers for SIGTERM and Ctrl-C; returns `stop` for `train`: 0, or the exit code to leave with.

    The second Ctrl-C is Python's own KeyboardInterrupt, for a user who does not want to wait for the step.
    """
    code = 0

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal code
        code = TERMINATED if number == signal.SIGTERM else INTERRUPTED
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)
    return lambda: code
