"""Who may write into a run's folder: an attempt with a number, taken by creating a file that cannot be there twice.

Attempt n is `RUN/.attempt-00000n.json`, made under another name, locked, filled, and then linked into place, which
fails on every file system, NFS too, if the number is taken. The highest number owns the run. Its owner keeps the
kernel's lock on it, which tells processes of the same node whether it lives. Other nodes go by the heartbeat of
status.json: not by its time, as clocks of two machines differ, but by whether it changes while they look. A process
that was taken for dead and is not finds a higher number before it next writes, and leaves.

Standard library only, so that a worker can claim a run before it imports anything heavy.
"""

import contextlib
import json
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from engine.errors import BUSY, OUTPUT, SUPERSEDED, Refusal
from engine.folder import locks

# A run on another node is dead once nothing it says has changed for so long: longer than any step or save.
STALE_SECONDS = float(os.environ.get("SOFTMLP_STALE_SECONDS", "120"))
KEEP = 20  # files of older attempts are removed
_NAME = re.compile(r"\.attempt-(\d{6})\.json")
_POLL_SECONDS = 0.5
_PATIENT_SECONDS = 3.0  # of watching, before the user is told why nothing happens

Record = dict[str, Any]


@dataclass
class _Heard:
    """What this process has seen of an attempt on another node, by its own clock alone."""

    number: int
    said: tuple[Any, ...]
    looked: float
    silent: float = 0.0
    """Seconds of looking during which nothing changed."""
    spoke: bool = False
    """Whether something did change, ever."""

    @property
    def dead(self) -> bool:
        return self.silent >= STALE_SECONDS

    @property
    def unsure(self) -> bool:
        return not self.dead and not self.spoke


_heard: dict[Path, _Heard] = {}


class Lease:
    """The right to write into a run's folder: for as long as this object lives and no higher attempt is seen.

    `record["fault"]` is to be set where the machine ended the attempt (`faults`).
    """

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
def own(folder: Path, launch: str = "", stop: Callable[[], int] | None = None) -> Iterator[Lease]:
    """Claim a run for a block."""
    lease = claim(folder, launch, stop=stop)
    try:
        yield lease
    finally:
        lease.release()


def claim(folder: Path, launch: str = "", *, gone: str = "", stop: Callable[[], int] | None = None) -> Lease:
    """Become the owner of a run, over whoever is dead.

    Args:
        launch: tells attempts of one launch from those of the next (`deaths`).
        gone: a job that the scheduler no longer has; what it owns is free, however recently it was heard of.
        stop: where it is given, an owner on another node that nothing is known of yet is watched, for STALE_SECONDS at
            most or until this gives an exit code. Otherwise such an owner is alive.

    Raises Refusal: a live process has it (BUSY, naming it); the folder cannot be written (OUTPUT).
    """
    number, record = _latest(folder)
    there = record is not None and not (gone and record.get("job") == gone)
    if there and stop:
        _watch(folder, record, stop)
    if there and _lives(folder, number, record):
        raise Refusal(f"{folder} is being trained by {_describe(record)}", BUSY)
    step = _status(folder).get("step") or 0
    record = {"attempt": number + 1, **_identity(), "launch": launch, "step": step, "time": round(time.time(), 3)}
    path = _path(folder, number + 1)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        file = partial.open("w+")
        try:
            if locks.lock(file) is None:
                record["process"] = locks.name()
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
    """The record of the live attempt that owns a run, or None.

    `unsure` in it is True while an attempt on another node has not been looked at for long enough to tell.
    """
    number, record = _latest(folder)
    if record is None or not _lives(folder, number, record):
        return None
    return record | {"unsure": (heard := _heard.get(folder)) is not None and heard.unsure}


def last(folder: Path) -> Record | None:
    """The record of the last attempt, alive or not; None if there was none."""
    return _latest(folder)[1]


def heartbeat(folder: Path) -> float:
    """When a run last said something, by the clock of its own machine; 0.0 if never."""
    said = _status(folder).get("heartbeat")
    return float(said) if isinstance(said, (int, float)) else 0.0


def deaths(folder: Path, launch: str) -> int:
    """Attempts of this launch, the last ones in a row, that ended without a word and without a step gained.

    Deaths in an earlier launch do not count: there the user, or the machine, may have ended everything at once.
    """
    count, then = 0, _status(folder).get("step") or 0
    number, record = _latest(folder)
    while record and record.get("launch") == launch and not record.get("ended") and then <= record.get("step", 0):
        if not _is_here(folder, number, record):
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


def faults(folder: Path, launch: str) -> list[str]:
    """Nodes of the last attempts of this launch in a row that the machine ended without a step gained (`fault`)."""
    nodes, then = [], _status(folder).get("step") or 0
    number, record = _latest(folder)
    while record and record.get("launch") == launch and record.get("fault") and then <= record.get("step", 0):
        nodes.append(record.get("node", ""))
        number -= 1
        record = _read(_path(folder, number)) if number else None
    return nodes


def node() -> str:
    """This machine, as SLURM names it where it does."""
    return locks.node()


def _identity() -> Record:
    """What tells attempts apart: a requeued job of SLURM keeps its number and counts its restarts."""
    env = os.environ
    array = f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}" if "SLURM_ARRAY_JOB_ID" in env else ""
    job, restart = array or env.get("SLURM_JOB_ID", ""), int(env.get("SLURM_RESTART_COUNT") or 0)
    who = {"node": node(), "host": platform.node(), "pid": os.getpid(), "job": job, "restart": restart}
    return who | {"uid": os.getuid(), "cluster": env.get("SLURM_CLUSTER_NAME", "")}


def _lives(folder: Path, number: int, record: Record) -> bool:
    """Whether an attempt goes on, as far as this process knows."""
    if record.get("ended"):
        return False
    own = _identity()
    if record.get("job") and record["job"] == own["job"] and own["restart"] > record.get("restart", 0):
        return False  # the scheduler has started this job anew; whatever is left of the old one must go
    if record.get("node") == own["node"] and (lives := _is_here(folder, number, record)) is not None:
        _heard.pop(folder, None)
        return lives
    return not _listen(folder, number).dead


def _listen(folder: Path, number: int) -> _Heard:
    """Look whether an attempt on another node has said something new, and keep that in mind."""
    status, now = _status(folder), time.monotonic()
    said = tuple(status.get(key) for key in ("attempt", "heartbeat", "step", "state"))
    heard = _heard.get(folder)
    if heard is None or heard.number != number:
        heard = _heard[folder] = _Heard(number, said, now)
    elif said != heard.said:
        heard.said, heard.silent, heard.spoke = said, 0.0, True
    else:
        # One long look away is no long silence: a machine that slept wakes up before the others' words arrive.
        heard.silent += min(now - heard.looked, STALE_SECONDS / 4)
    heard.looked = now
    return heard


def _watch(folder: Path, record: Record, stop: Callable[[], int]) -> None:
    """Wait until it is known whether the owner of a run, if it is on another node, is alive."""
    began, told = time.monotonic(), False
    while (known := owner(folder)) and known["unsure"]:
        if code := stop():
            raise Refusal(f"{folder} belongs to {_describe(record)}; stopped while it was watched", code)
        if not told and time.monotonic() - began > _PATIENT_SECONDS:
            words = f"watching for {STALE_SECONDS:.0f} s whether that still lives"
            print(f"softmlp: {folder} belongs to {_describe(record)}; {words}", file=sys.stderr, flush=True)
            told = True
        time.sleep(_POLL_SECONDS)


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
    """The numbers of status.json; of a damaged one those that are there."""
    return {key: value for key, value in _read(folder / "status.json").items() if isinstance(value, (int, float))}


def _is_here(folder: Path, number: int, record: Record) -> bool | None:
    """Whether the process of an attempt on this node lives; None where that cannot be seen."""
    if "process" in record:  # its file system knows no locks
        return locks.lives(record["process"])
    try:
        with _path(folder, number).open() as file:
            free = locks.lock(file, shared=True)
    except FileNotFoundError:
        return False
    return None if free is None else not free


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
