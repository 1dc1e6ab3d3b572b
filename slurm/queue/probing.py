"""PROBES as work of the queue: whoever takes runs also probes the finished ones, by the command scripts/probe.py.

A worker does so once no run is left for it to train. What a probe found is a file in the run's folder, so it is
measured once, wherever the worker is; what failed is left to `python scripts/probe.py`, by hand, which says why.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from engine.errors import Refusal
from engine.folder import lease

BATCH = 8  # runs that one command probes: it takes seconds to start, and about one per small run
GIVEN_UP = ".failed"  # in RUN/probes: younger than the end of the run, the queue does not try again
TICK_SECONDS = 0.2
FLAGS = ("data_dir", "device", "workers", "threads")  # of engine.run.How, which scripts/probe.py takes


def lacks(folder: Path, probes: Sequence[str]) -> bool:
    """Whether a finished run has not been probed since it ended; a look at names and times of files."""
    from engine.folder import store

    if not probes or store.read_json(folder / "status.json").get("state") != store.DONE:
        return False
    ended = (folder / "status.json").stat().st_mtime
    return not all(_is_younger(folder / "probes" / f"{name}.json", ended) for name in probes)


def left(folders: Sequence[Path], probes: Sequence[str]) -> list[Path]:
    """Finished runs that the queue is still to probe."""
    return [folder for folder in folders if lacks(folder, probes) and not _is_given_up(folder)]


def measure(
    folders: Sequence[Path], probes: Sequence[str], how: Any, launch: str, stop: Callable[[], int] = lambda: 0
) -> bool:
    """Probe some runs that nobody has; False where there is none.

    Args:
        how: engine.run.How.
        stop: asked while the command runs; a code ends it, and what it has not measured is left to another.
    """
    with contextlib.ExitStack() as stack:
        mine: list[Path] = []
        for folder in left(folders, probes):
            if len(mine) == BATCH:
                break
            if lease.owner(folder) is None:
                with contextlib.suppress(Refusal):  # another worker was faster
                    stack.enter_context(lease.own(folder, launch))
                    mine.append(folder)
        mine = left(mine, probes)  # it may have finished just before
        if not mine:
            return False
        print(f"softmlp: probes {', '.join(probes)} of {len(mine)} runs", flush=True)
        _command(mine, probes, how, stop)
        for folder in left(mine, probes):  # one that cannot be probed ends the command for those after it
            if stop():
                return True
            _command([folder], probes, how, stop)
            if lacks(folder, probes) and not stop():
                _give_up(folder)
    return True


def _command(folders: Sequence[Path], probes: Sequence[str], how: Any, stop: Callable[[], int]) -> None:
    from engine.folder.store import ROOT

    given = how.model_dump(mode="json", exclude_unset=True, include=set(FLAGS))
    flags = [word for key, value in given.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    command = [sys.executable, ROOT / "scripts/probe.py", *folders, "--probe", *probes, *flags]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        if stop():
            process.send_signal(signal.SIGTERM)
            process.wait()
        time.sleep(TICK_SECONDS)


def _give_up(folder: Path) -> None:
    print(f"softmlp: not probed: {folder.name}; try python scripts/probe.py {folder}", flush=True)
    with contextlib.suppress(OSError):
        (folder / "probes").mkdir(exist_ok=True)
        (folder / "probes" / GIVEN_UP).touch()


def _is_given_up(folder: Path) -> bool:
    return _is_younger(folder / "probes" / GIVEN_UP, (folder / "status.json").stat().st_mtime)


def _is_younger(path: Path, than: float) -> bool:
    try:
        return path.stat().st_mtime >= than
    except OSError:
        return False
