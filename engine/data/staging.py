"""The .beton files of a run on the node's own disk, copied once per node: a shared one is slow for many jobs.

They go to $SLURM_TMPDIR, or $TMPDIR, into a folder per data folder. One process copies while the others wait, and the
checksum is that of the JSON beside a file, which is copied last: a file without it is no copy. The last process on the
node that uses them removes them when it ends; what a killed one leaves is found whole and used again.
"""

import atexit
import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from engine.data import beton
from engine.errors import DATA, Refusal
from engine.run import How, Run

VARIABLES = ("SLURM_TMPDIR", "TMPDIR")
CHUNK = 1 << 24
_used: dict[Path, IO[bytes]] = {}
log = logging.getLogger("softmlp")


def staged(run: Run, how: How) -> How:
    """The same with `data_dir` on the node's disk, if `stage` asks for it; without room a warning, and as it was.

    Raises Refusal (DATA): no variable says where, or a file is not what the JSON beside it says.
    """
    if not how.stage:
        return how
    place = next((os.environ[key] for key in VARIABLES if os.environ.get(key)), None)
    if place is None:
        raise Refusal(f"--stage copies the data to ${' or $'.join(VARIABLES)}, and neither is set; leave it out", DATA)
    key = hashlib.sha256(str(how.data_dir.absolute()).encode()).hexdigest()[:8]
    folder = Path(place) / f"softmlp-data-{os.getuid()}-{key}"
    try:
        with _alone(folder):
            _use(folder)
            for split in run.splits:
                _copy(beton.path_of(run.dataset, split, run.stored, how.data_dir), folder)
    except OSError as error:
        log.warning("the data stay in %s: cannot be copied to %s (%s)", how.data_dir, folder, error.strerror)
        return how
    return how.model_copy(update={"data_dir": folder})


def _copy(path: Path, folder: Path) -> None:
    """Copy a file and then its JSON, unless both are there."""
    target, facts = folder / path.name, beton.read_facts(path) if path.exists() else {}
    if not facts:
        return  # the loaders say what is missing, and the command that writes it
    text = beton.sidecar(path).read_bytes()
    here = beton.sidecar(target)
    if here.exists() and here.read_bytes() == text and target.exists() and target.stat().st_size == facts["size"]:
        return
    here.unlink(missing_ok=True)
    digest = hashlib.sha256()
    try:
        with path.open("rb") as source, target.open("wb") as copy:
            while chunk := source.read(CHUNK):
                digest.update(chunk)
                copy.write(chunk)
    except OSError:
        target.unlink(missing_ok=True)
        raise
    if digest.hexdigest() != facts["sha256"]:
        target.unlink()
        raise Refusal(f"{path} is not what {beton.sidecar(path).name} says (its checksum); write it again", DATA)
    here.write_bytes(text)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Nobody else on this node copies or removes; its file stays, as one that is removed could be locked by two."""
    with folder.with_suffix(".lock").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _use(folder: Path) -> None:
    """Note, until this process ends, that it reads these files."""
    if folder not in _used:
        file = folder.with_suffix(".users").open("ab")
        fcntl.flock(file, fcntl.LOCK_SH)
        _used[folder] = file
        atexit.register(_leave, folder)
    folder.mkdir(exist_ok=True)


def _leave(folder: Path) -> None:
    """Remove the files if nobody else on this node reads them."""
    if (file := _used.pop(folder, None)) is None:
        return
    with contextlib.suppress(OSError), file, _alone(folder):
        fcntl.flock(file, fcntl.LOCK_UN)  # two that upgrade at once would wait for each other
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
