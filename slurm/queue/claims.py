"""Who has what: files held by flock, which the kernel lets go of however a process ends. No daemon, nothing to expire.

Where the file system knows no locks, a second file beside it, `FILE.held`, names the process that has it. Standard
library only, so that a worker can claim its place before it imports anything heavy.
"""

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from engine.errors import OUTPUT, Refusal
from engine.folder import locks

# A reader that looks who holds a file holds it for a moment itself, so one refusal does not mean that it is taken.
_TRIES, _PAUSE = 5, 0.01


@contextlib.contextmanager
def hold(path: Path) -> Iterator[IO[str] | None]:
    """Hold a file for as long as the block runs and this process lives; None where another has it.

    Raises Refusal (OUTPUT): the file cannot be written.
    """
    try:
        file = path.open("a+")
    except OSError as error:
        raise Refusal(f"cannot write {path}: {error.strerror}; free space, or set SOFTMLP_RESULTS", OUTPUT) from None
    with file, contextlib.ExitStack() as stack:
        yield file if _take(file, path, stack) else None


@contextlib.contextmanager
def inherited(file: IO[str]) -> Iterator[None]:
    """What is started in the block holds the file, too, and goes on holding it if this process dies before it.

    As its standard input, the one place of a file that subprocess hands on; a flock is let go of with the last copy.
    """
    try:
        before = os.dup(0)
    except OSError:  # closed
        before = None
    os.dup2(file.fileno(), 0)
    try:
        yield
    finally:
        if before is None:
            os.close(0)
        else:
            os.dup2(before, 0)
            os.close(before)


def holder(path: Path) -> int | None:
    """The process on this machine that holds a file; 0 if it has not yet said its number; None if nobody has it."""
    with contextlib.suppress(FileNotFoundError), path.open("r") as file:
        free = locks.lock(file, shared=True)
        if not free and (free is False or locks.linked(_beside(path))):
            value = read(file)
            pid = value.get("pid") if isinstance(value, dict) else value
            return pid if isinstance(pid, int) else 0
    return None


def read(file: IO[str]) -> Any:
    """The JSON in a held file; None if there is none, or only half of it."""
    file.seek(0)
    try:
        return json.loads(file.read())
    except ValueError:
        return None


def write(file: IO[str], value: Any) -> None:
    """Replace what a held file says; None empties it."""
    file.seek(0)
    file.truncate()
    if value is not None:
        file.write(json.dumps(value))
    file.flush()


@contextlib.contextmanager
def slot(jobs: Path, slots: int) -> Iterator[int | None]:
    """Hold one of the `slots` places of a sweep, whoever started the worker; None where all are taken."""
    with contextlib.ExitStack() as stack:
        for index in range(slots):
            if file := stack.enter_context(hold(jobs / f"slot-{index}.lock")):
                write(file, {"pid": os.getpid(), "job": os.environ.get("SUBMITIT_LOCAL_JOB_ID", "")})
                yield index
                return
        yield None


def workers(jobs: Path) -> dict[int, str]:
    """Live workers of a sweep, of whichever launch: process -> submitit's name for its job."""
    found = {}
    for path in jobs.glob("slot-*.lock"):
        if pid := holder(path):
            with path.open() as file:
                found[pid] = (read(file) or {}).get("job", "")
    return found


def _take(file: IO[str], path: Path, stack: contextlib.ExitStack) -> bool:
    for attempt in range(_TRIES):
        taken = locks.lock(file)
        if taken is None:
            if taken := locks.link(_beside(path)):
                stack.callback(_beside(path).unlink, missing_ok=True)
            return taken
        if taken:
            return True
        if attempt < _TRIES - 1:
            time.sleep(_PAUSE)
    return False


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.held")
