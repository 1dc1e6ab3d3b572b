"""Files that are replaced whole, and tables that several processes add to. Standard library only.

One rule for every file that is written, in a run's folder or where a user says: a link is followed; a regular file is
replaced at once or not at all; a device or a pipe is written to; a folder, a socket, a pipe that nobody reads and a
file that may not be written are refused in one line.
"""

import contextlib
import errno
import fcntl
import io
import os
import re
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from engine.errors import OUTPUT, Refusal
from engine.folder import lease

LOCK_SECONDS = 60.0  # an addition takes milliseconds; whoever waits so long for one is told whom to look after
_FULL = (errno.ENOSPC, errno.EDQUOT)
_DESCRIPTOR = re.compile(r"/(?:dev|proc/self)/fd/(\d+)")


@contextlib.contextmanager
def replacing(path: Path, durable: bool = True, named: bool = True) -> Iterator[IO[bytes]]:
    """A file to write to that takes the place of another at the end of the block, or not at all.

    A reader sees the old bytes or the new ones; if `durable`, also after a power cut: the new ones if `named`, which
    waits for the folder, too, otherwise once a later durable write into the same folder has. What is no regular file
    gets the bytes at the end of the block. Raises Refusal (OUTPUT) where that cannot be; the old file is then intact.
    """
    check_target(path)
    if is_stream(path):
        buffer = io.BytesIO()
        yield buffer
        _send(path, buffer.getvalue())
        return
    target = _real(path)
    partial = target.with_name(f".{target.name[:200]}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            with contextlib.suppress(FileNotFoundError):
                os.fchmod(file.fileno(), stat.S_IMODE(target.stat().st_mode))
            if durable:
                file.flush()
                os.fsync(file.fileno())
        partial.replace(target)
        if durable and named:
            _settle(target.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise _refusal(path, error) from None
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, data: bytes, durable: bool = True, named: bool = True) -> None:
    """Replace a file as `replacing` does."""
    with replacing(path, durable, named) as file:
        file.write(data)


def settle(path: Path) -> None:
    """Make durable what was written into a file without that; one that is not there is left out."""
    try:
        _settle(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise _refusal(path, error) from None


def is_stream(path: Path) -> bool:
    """Whether bytes go through it instead of staying in it: a pipe, a device, or this process's own output."""
    if _descriptor(path) is not None:
        return True
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def check_target(path: Path | None) -> None:
    """Refuse a file that cannot be written, before anything expensive; nothing is opened or made."""
    if path is None or _descriptor(path) is not None:
        return
    try:
        target = _real(path)
        mode = target.stat().st_mode if target.exists() else stat.S_IFREG
        folder = target.parent.stat().st_mode
    except OSError as error:
        raise _refusal(path, error) from None
    if stat.S_ISDIR(mode):
        raise Refusal(f"cannot write {path}: it is a folder; name a file in it", OUTPUT)
    if stat.S_ISSOCK(mode) or stat.S_ISBLK(mode):
        raise Refusal(f"cannot write {path}: it is neither a file nor a pipe", OUTPUT)
    if not stat.S_ISDIR(folder):
        raise Refusal(f"cannot write {path}: {target.parent} is no folder", OUTPUT)
    if target.exists() and not os.access(target, os.W_OK):
        raise Refusal(f"cannot write {path}: it is read-only; choose another file", OUTPUT)
    if stat.S_ISREG(mode) and not os.access(target.parent, os.W_OK | os.X_OK):
        raise Refusal(f"cannot write {path}: the folder {target.parent} cannot be written in; choose another", OUTPUT)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep a file to this process for a block, against all that ask here, on this machine and on others.

    The lock is `.NAME.lock` beside the file (of a link, beside what it points to). Only one process can create it, on
    network disks too; its owner holds the kernel's lock on it, so that on one machine the next takes over from a dead
    one. Raises Refusal (OUTPUT) where the folder cannot be written, or the lock stays taken for LOCK_SECONDS.
    """
    check_target(path)
    target = _real(path)
    lock = target.with_name(f".{target.name[:200]}.lock")
    until = time.monotonic() + LOCK_SECONDS
    while (taken := _take(lock)) is None:
        if time.monotonic() > until:
            raise Refusal(f"{path} is being written by {_holder(lock)}; if that is gone: rm {lock}", OUTPUT)
        time.sleep(0.01)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(taken)


def _take(lock: Path) -> int | None:
    """A descriptor that holds the lock, or None."""
    try:
        descriptor, created = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), True
    except FileExistsError:
        if not _holder(lock).endswith(f" on {lease.node()}"):
            return None  # of another machine, or not signed yet
        try:
            descriptor, created = os.open(lock, os.O_RDWR), False
        except OSError:
            return None
    except OSError as error:
        raise _refusal(lock, error) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        mine = os.path.samestat(os.fstat(descriptor), lock.stat())  # not let go of since it was opened
    except (BlockingIOError, FileNotFoundError):  # held, even one just created: others take what they find unheld
        mine = False
    except OSError:  # a disk that knows no flock, where only who created it has it
        mine = created
    if not mine:
        os.close(descriptor)
        return None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {lease.node()}".encode(), 0)
    return descriptor


def _holder(lock: Path) -> str:
    try:
        return lock.read_text(errors="replace") or "a process that does not say its name"
    except OSError:
        return "a process that has just left"


def _settle(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _real(path: Path) -> Path:
    """The file that links lead to, there or not."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def _descriptor(path: Path) -> int | None:
    """Which of this process's descriptors a path such as /dev/stdout, or a link to it, names; None for other files."""
    path = path.absolute()
    for _ in range(8):
        if found := _DESCRIPTOR.fullmatch(os.path.normpath(path)):
            return int(found[1])
        if not path.is_symlink():
            break
        path = path.parent / path.readlink()
    return None


def _send(path: Path, data: bytes) -> None:
    """Write through a pipe or a device. One without a reader is refused at once instead of waited for."""
    number = _descriptor(path)
    sys.stdout.flush()  # what was printed before comes before
    try:
        descriptor = os.dup(number) if number is not None else os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
        with os.fdopen(descriptor, "wb") as file:
            if number is None:
                os.set_blocking(descriptor, True)
            file.write(data)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise Refusal(f"cannot write {path}: nobody reads from it", OUTPUT) from None
        raise _refusal(path, error) from None


def _refusal(path: Path, error: OSError) -> Refusal:
    advice = "free space, then repeat" if error.errno in _FULL else "choose another file or folder"
    return Refusal(f"cannot write {path}: {error.strerror}; {advice}", OUTPUT)
