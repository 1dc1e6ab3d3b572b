"""What a user can mend: one line that says what, where and what now, and an exit code that says of which kind."""

import re
import traceback
from pathlib import Path

USAGE = 2  # a command, name, flag or YAML file is wrong
DATA = 3  # a data file is missing or unusable
CHECKPOINT = 4  # no checkpoint can be used
DIVERGED = 5  # the loss is not finite
OUTPUT = 6  # the output folder cannot be written; what was saved is kept and the run can go on
BUSY = 7  # another live process owns the run
SUPERSEDED = 8  # a later attempt has taken the run over
CLUSTER = 9  # the scheduler is not there, or refuses
STOPPED = 75  # stopped cleanly between two steps; run again
# Why the scheduler or the user stopped a run, as its record tells it; the process that trained it exits with STOPPED.
PREEMPTED, TIMED_OUT, CANCELLED = 76, 77, 78
MACHINE = 79  # the machine's fault: a GPU, driver or disk; what was saved is kept, and another machine can go on
TERMINATED = 143  # stopped by SIGTERM, saved; run again

CLASSES = {
    USAGE: "usage",
    DATA: "data",
    CHECKPOINT: "checkpoint",
    DIVERGED: "diverged",
    OUTPUT: "output",
    BUSY: "busy",
    SUPERSEDED: "superseded",
    CLUSTER: "cluster",
    STOPPED: "stopped",
    PREEMPTED: "preempted",
    TIMED_OUT: "timeout",
    CANCELLED: "cancelled",
    MACHINE: "machine",
    TERMINATED: "terminated",
}
# What is mended outside of a run, which can then go on; in its record it is stopped, not failed.
OUTSIDE = (DATA, OUTPUT, MACHINE)


class Refusal(Exception):  # noqa: N818 - it is an answer to the user, not a fault of the program
    """An error that the user can mend. The message is one line; `code` is the exit code."""

    def __init__(self, message: str, code: int = USAGE) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple:
        return Refusal, (str(self), self.code)


def line_of(error: BaseException) -> str:
    """An error in one line, without colours; of one that says nothing, its kind and the code that raised it."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
    if text:
        return " ".join(text.splitlines()[0].split())[:300]
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "torch" not in Path(frame.filename).parts]
    return f"{type(error).__name__} in {Path(frames[-1].filename).name}: {frames[-1].line}" if frames else repr(error)
