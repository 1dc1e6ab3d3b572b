"""What a user can mend: one line that says what, where and what now, and an exit code that says of which kind.

Also whose fault any other error is: the machine's, where another one would train the same run, or the run's own. Only
what is certain is the machine's. Out of memory is the run's: it asks for too much. So is an assertion inside a kernel,
although it looks like any other CUDA error: mostly a label or an index is out of range.
"""

import errno
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

_OF_DISK = {errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ESTALE, errno.ENXIO, errno.ENODEV}
_OF_DISK |= {errno.EREMOTEIO, errno.ENOTCONN, errno.ESHUTDOWN, errno.EHOSTDOWN, errno.ETIMEDOUT}
_WORDS = ("CUDA error", "CUDA driver", "CUDA unknown error", "CUDA initialization", "NVIDIA driver", "CUDNN_STATUS")
_WORDS += ("cuDNN error", "CUBLAS_STATUS", "NVML", "HIP error", "No space left on device", "Input/output error")
_OF_THE_RUN = ("device-side assert", "out of memory", "allocate memory", "ALLOC_FAILED")


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


def of_machine(error: BaseException) -> bool:
    """Whether an exception tells of a GPU, driver, disk or installation that does not work."""
    text = str(error)
    if any(word in text for word in _OF_THE_RUN):
        return False
    if isinstance(error, OSError):
        return error.errno in _OF_DISK or any(word in text for word in _WORDS)
    return isinstance(error, ImportError) or (isinstance(error, RuntimeError) and any(word in text for word in _WORDS))


def breaks_process(error: BaseException) -> bool:
    """Whether a process can train nothing more after this: CUDA answers every later call with the same error."""
    return of_machine(error) or "device-side assert" in str(error)
