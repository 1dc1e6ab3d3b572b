"""Who holds a file: the kernel's flock, and where a file system refuses it, the process that is named beside the file.

Lustre without `-o flock` and NFS without its lock daemon refuse every lock. A process is then named by its node, its
namespace of process numbers, its number and the time it was started, which /proc of that node can confirm or deny.
Standard library only.
"""

import contextlib
import errno
import fcntl
import os
import platform
from pathlib import Path
from typing import IO

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


def lock(file: IO, *, shared: bool = False) -> bool | None:
    """Take the kernel's lock, at once: False where another process has it, None where the file system has none."""
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return None
    return True


def node() -> str:
    """This machine, as SLURM names it where it does: several of its nodes can share one host name."""
    return os.environ.get("SLURMD_NODENAME") or platform.node()


def name() -> str:
    """This process, told apart from any other that ever had its number."""
    return f"{node()} {_namespace()} {os.getpid()} {_started(os.getpid())}"


def lives(named: str) -> bool | None:
    """Whether a process that gave this name still runs; None where that cannot be seen from here."""
    words = named.split(" ")
    if len(words) != 4 or words[:2] != [node(), _namespace()] or not words[2].isdecimal():
        return None
    return _started(int(words[2])) == words[3]


def link(path: Path) -> bool:
    """Take a file that exists only while it is held, in place of a lock; False where another process has it.

    What a dead process left is taken over; what another node left must be removed by hand.
    """
    mine = path.with_name(f".{path.name}.{node()}.{os.getpid()}.partial")
    try:
        mine.write_text(name())
        for _ in range(2):
            with contextlib.suppress(FileExistsError):
                os.link(mine, path)
                return True
            if lives(_read(path)) is not False:
                return False
            old = path.with_name(f".{path.name}.{node()}.{os.getpid()}.old")
            with contextlib.suppress(FileNotFoundError):
                path.rename(old)  # only one of several can
                if lives(_read(old)):  # it had just been taken anew
                    os.link(old, path)
                old.unlink()
        return False
    finally:
        mine.unlink(missing_ok=True)


def linked(path: Path) -> bool:
    """Whether such a file is held, as far as can be seen from here."""
    return path.exists() and lives(_read(path)) is not False


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return "?"


def _started(pid: int) -> str:
    """When a process was started, in ticks since its machine was, and which start of the machine; "" if it is gone."""
    try:
        words = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
    return "" if words[0] in "ZX" else f"{words[19]}@{boot}"
