"""Who may write into a run's folder: an attempt with a number, taken by creating a file that cannot be there twice.

Attempt n is `RUN/.attempt-00000n.json`, made under another name, locked, filled, and then linked into place, which
fails on every file system, NFS too, if the number is taken. The highest number owns the run. Its owner keeps the
kernel's lock on it, which tells processes of the same node whether it lives; other nodes go by the heartbeat of
status.json. A process that was taken for dead and is not finds a higher number before it next writes, and leaves.

Standard library only, so that a worker can claim a run before it imports anything heavy.
"""

import contextlib
import fcntl
import json
import os
import platform
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from engine.errors import BUSY, OUTPUT, SUPERSEDED, Refusal

# A run on another node is taken for dead if it has said nothing for so long: longer than any step or save.
STALE_SECONDS = float(os.environ.get("SOFTMLP_STALE_SECONDS", "120"))
KEEP = 20  # files of older attempts are removed
_NAME = re.compile(r"\.attempt-(\d{6})\.json")
_WATCH_SECONDS = 3.0

Record = dict[str, Any]


class Lease:
    """The right to write into a run's folder: for as long as this object lives and no higher attempt is seen."""

    def __init__(self, folder: Path, number: int, file: IO[str], record: Record) -> None:
        self.folder, self.number, self.record = folder, number, record
        self._file, self._next = file, _path(folder, number + 1)

    def check(self) -> None:
        """Raises Refusal (SUPERSEDED) if another attempt has taken the run over: then nothing may be written."""
        if self._next.exists():
            by = _describe(_read(self._next))
            raise Refusal(f"{self.folder} was taken over by {by}; this attempt leaves it alone", SUPERSEDED)

    def release(self) -> None:
        """Say that the attempt ended by itself, and let go."""
        with contextlib.suppress(OSError):  # on a full disk it only looks like a death
            self._file.seek(0)
            self._file.write(json.dumps({**self.record, "ended": True}))
            self._file.truncate()
        self._file.close()


@contextlib.contextmanager
def own(folder: Path, launch: str = "") -> Iterator[Lease]:
    """Claim a run for a block."""
    lease = claim(folder, launch)
    try:
        yield lease
    finally:
        lease.release()


def claim(folder: Path, launch: str = "", *, gone: str = "") -> Lease:
    """Become the owner of a run, over whoever is dead.

    Args:
        launch: tells attempts of one launch from those of the next (`deaths`).
        gone: a job that the scheduler no longer has; what it owns is free, however recently it was heard of.

    Raises Refusal: a live process has it (BUSY, naming it); the folder cannot be written (OUTPUT).
    """
    number, record = _latest(folder)
    there = record is not None and not (gone and record.get("job") == gone)
    if there and _lives(folder, number, record, watch=True):
        raise Refusal(f"{folder} is being trained by {_describe(record)}", BUSY)
    step = _status(folder).get("step") or 0
    record = {"attempt": number + 1, **_identity(), "launch": launch, "step": step, "time": round(time.time(), 3)}
    path = _path(folder, number + 1)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        file = partial.open("w+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write(json.dumps({**record, "ended": False}))
            file.flush()
            os.link(partial, path)
        except BaseException:
            file.close()
            raise
        finally:
            partial.unlink(missing_ok=True)
    except FileExistsError:
        raise Refusal(f"{folder} is being trained by {_describe(_read(path))}", BUSY) from None
    except OSError as error:
        raise Refusal(f"cannot write {path}: {error.strerror}; free space and repeat", OUTPUT) from None
    for old in range(number + 1 - KEEP, 0, -1):
        if not _remove(_path(folder, old)):
            break
    return Lease(folder, number + 1, file, record)


def owner(folder: Path) -> Record | None:
    """The record of the live attempt that owns a run, or None."""
    number, record = _latest(folder)
    return record if record is not None and _lives(folder, number, record) else None


def last(folder: Path) -> Record | None:
    """The record of the last attempt, alive or not; None if there was none."""
    return _latest(folder)[1]


def deaths(folder: Path, launch: str) -> int:
    """Attempts of this launch, the last ones in a row, that ended without a word and without a step gained.

    Deaths in an earlier launch do not count: there the user, or the machine, may have ended everything at once.
    """
    count, then = 0, _status(folder).get("step") or 0
    number, record = _latest(folder)
    while record and record.get("launch") == launch and not record.get("ended") and then <= record.get("step", 0):
        if not _is_locked(_path(folder, number)):
            count += 1
        then, number = record.get("step", 0), number - 1
        record = _read(_path(folder, number)) if number else None
    return count


def idle(folder: Path, launch: str) -> int:
    """Attempts of this launch, the last ones in a row and however they ended, since which no step was gained."""
    count, then = 0, _status(folder).get("step") or 0
    number, record = _latest(folder)
    while record and record.get("launch") == launch and then <= record.get("step", 0):
        count, number = count + 1, number - 1
        record = _read(_path(folder, number)) if number else None
    return count


def node() -> str:
    """This machine, as SLURM names it where it does: several of its nodes can share one host name."""
    return os.environ.get("SLURMD_NODENAME") or platform.node()


def _identity() -> Record:
    """What tells attempts apart: a requeued job of SLURM keeps its number and counts its restarts."""
    env = os.environ
    array = f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}" if "SLURM_ARRAY_JOB_ID" in env else ""
    job, restart = array or env.get("SLURM_JOB_ID", ""), int(env.get("SLURM_RESTART_COUNT") or 0)
    return {"node": node(), "host": platform.node(), "pid": os.getpid(), "job": job, "restart": restart}


def _lives(folder: Path, number: int, record: Record, watch: bool = False) -> bool:
    """Whether an attempt goes on. With `watch`, a silent one on another node is looked at twice before it is dead."""
    if record.get("ended"):
        return False
    own = _identity()
    if record.get("job") and record["job"] == own["job"] and own["restart"] > record.get("restart", 0):
        return False  # the scheduler has started this job anew; whatever is left of the old one must go
    if record.get("node") == own["node"]:
        return _is_locked(_path(folder, number))
    heard = max(record.get("time", 0.0), _status(folder).get("heartbeat") or 0.0)
    if abs(time.time() - heard) < STALE_SECONDS:
        return True
    if not watch:
        return False
    time.sleep(_WATCH_SECONDS)  # clocks differ and jump; one that still speaks is alive whatever they say
    return (_status(folder).get("heartbeat") or 0.0) > heard


def _latest(folder: Path) -> tuple[int, Record | None]:
    try:
        with os.scandir(folder) as entries:
            number = max((int(match[1]) for entry in entries if (match := _NAME.fullmatch(entry.name))), default=0)
    except OSError:
        return 0, None
    return number, _read(_path(folder, number)) if number else None


def _path(folder: Path, number: int) -> Path:
    return folder / f".attempt-{number:06d}.json"


def _read(path: Path) -> Record:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _status(folder: Path) -> Record:
    return _read(folder / "status.json")


def _is_locked(path: Path) -> bool:
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _remove(path: Path) -> bool:
    try:
        path.unlink()
    except OSError:
        return False
    return True


def _describe(record: Record) -> str:
    where = f" on {record['node']}" if record.get("node") not in (None, node()) else ""
    job = f" of job {record['job']}" if record.get("job") else ""
    return f"process {record.get('pid', '?')}{job}{where}"
