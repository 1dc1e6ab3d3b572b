"""What an element of a SLURM array runs: workers that take runs until none is left, and the way out when told to stop.

submitit pickles a `Task` as the path of one JSON file, so that no stale state can be in it, and starts it; submitit's
own handlers, results and states are not used, as each can be wrong. Handlers only set a flag. SIGUSR2 comes some time
before preemption or the time limit: save, requeue the element, leave. SIGTERM: likewise if it means preemption, and
otherwise save and leave; whoever sent it decides what becomes of the job.

An element of one task starts its workers as processes of their own: one that crashes takes neither its neighbours nor
the element with it, and is replaced. Where the machine is at fault again and again, the element ends, and the rest of
the array leaves its node alone (slurm/cluster/nodes.py). Where several tasks train a run together, each is a worker
itself. Nothing heavy is imported at the top: a signal that arrives during slow imports would kill the process.
"""

import contextlib
import ctypes
import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine import distributed
from engine.errors import OUTSIDE, PREEMPTED, STOPPED, TERMINATED, TIMED_OUT, Refusal
from engine.folder import lease
from engine.signals import INTERRUPTED, Stop
from slurm.cluster import nodes, scheduler
from slurm.queue import worker

CODES = {signal.SIGUSR2: PREEMPTED, signal.SIGTERM: TERMINATED, signal.SIGINT: INTERRUPTED}
EARLY_SECONDS = 75  # SLURM may announce the time limit a minute earlier than it was asked to
BARREN = 3  # workers in a row that died before any run was taken: then it is not the runs
MAX_FAULTS = 2  # of the machine, in a row and without a step gained, that a place of an element puts up with
TICK_SECONDS = 0.2
_END = "SOFTMLP_END"  # when the job's time is over, by the monotonic clock of this machine
_PR_SET_PDEATHSIG = 1


class Task:
    """The callable given to submitit. `spec` is a JSON file, written by slurm/cluster/submit.py."""

    def __init__(self, spec: str) -> None:
        self.spec = spec

    def __call__(self) -> None:
        sys.exit(element(Path(self.spec)))  # SystemExit, so that submitit writes no result

    def checkpoint(self) -> Any:
        """For a signal that comes before `__call__` has replaced submitit's handlers: begin anew with the same."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def element(path: Path) -> int:
    """Run one element, or one task of several; its exit code."""
    with Stop().on(CODES) as stop:
        spec = json.loads(path.read_text())
        os.environ[_END] = str(_end(spec["timeout_min"]))
        for leftover in path.parent.glob(f"{scheduler.own_job()}_*.save_tmp"):  # submitit would trip over it
            leftover.unlink(missing_ok=True)
        together = distributed.launched()
        code = _train_together(spec, stop) if together else _supervise(path, spec, stop)
        if together and code in OUTSIDE:
            nodes.leave(path, code)
        # Another task died; whoever is left asks for a new start, unless it was the machine.
        lost = together and code == STOPPED and not nodes.left(path.parent, scheduler.own_job())
        if lost or (code in (PREEMPTED, TIMED_OUT) and os.environ.get("SLURM_PROCID", "0") == "0"):
            scheduler.requeue_self()
    return STOPPED if code in (PREEMPTED, TIMED_OUT) else code


def _supervise(path: Path, spec: dict[str, Any], stop: Stop) -> int:
    """Keep `pack` workers going until they find nothing left; hand on the wish to stop, and wait for them."""
    gpus = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    folders = [Path(folder) for folder in spec["folders"]]
    workers = {slot: _start(path, slot, gpus) for slot in range(spec["pack"])}
    began, barren, told, broken = time.time(), 0, 0, 0
    faults: Counter[int] = Counter()
    while workers:
        if stop() and not told:
            told = stop()
            for process in workers.values():
                process.send_signal(next(number for number, code in CODES.items() if code == told))
        for slot, process in list(workers.items()):
            if (code := process.poll()) is None:
                continue
            del workers[slot]
            if code == 0 or told:
                continue
            print(f"softmlp: worker {process.pid} ended with {code}", flush=True)
            if code in OUTSIDE:
                faults[slot] += 1
                broken = code if faults[slot] == MAX_FAULTS else broken
                goes_on = faults[slot] < MAX_FAULTS
            else:
                barren = 0 if worker.last_claim(folders) >= began else barren + 1
                goes_on = barren < BARREN
            if goes_on:
                began = time.time()
                workers[slot] = _start(path, slot, gpus)
        time.sleep(TICK_SECONDS)
    if broken and not told:
        if not _gained(folders):
            nodes.leave(path, broken)
        return broken
    return _reason(stop, spec)() if told else int(barren >= BARREN)


def _gained(folders: list[Path]) -> bool:
    """Whether this job got any of these runs further: then it is not the machine as a whole."""
    last = [(folder, lease.last(folder) or {}) for folder in folders]
    mine = [(folder, record) for folder, record in last if record.get("job") == scheduler.own_job()]
    return any((worker.look(folder).get("step") or 0) > record.get("step", 0) for folder, record in mine)


def _start(path: Path, slot: int, gpus: list[str]) -> subprocess.Popen:
    env = {**os.environ, **({"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} if gpus else {})}
    return subprocess.Popen([sys.executable, "-u", "-m", "slurm.queue.task", str(path), str(os.getpid())], env=env)


def _work(path: Path, parent: int) -> int:
    """One worker of an element; the code of a fault of this machine, 0 for any other end."""
    with Stop().on(CODES) as stop:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            return 0
        spec = json.loads(path.read_text())
        folders, probes = [Path(folder) for folder in spec["folders"]], spec.get("probes", ())
        code = worker.drain(folders, spec["how"], spec["launch"], _reason(stop, spec), probes)
        return 0 if stop() else code


def _train_together(spec: dict[str, Any], stop: Stop) -> int:
    """One of several tasks that train each run together; all return the same, unless one is lost (STOPPED)."""
    try:
        distributed.start(spec["how"].get("device", "auto"), spec["launch"])
        folders = [Path(folder) for folder in spec["folders"]]
        code = worker.drain(folders, spec["how"], spec["launch"], _reason(stop, spec))
    except Refusal as refusal:
        print(f"softmlp: {refusal}", flush=True)
        distributed.finish(refusal)
        return refusal.code
    distributed.finish()
    return code


def _reason(stop: Callable[[], int], spec: dict[str, Any]) -> Callable[[], int]:
    """`stop`; a SIGUSR2 near the end of the job's time is its limit, and a SIGTERM can be preemption."""
    is_preempted = functools.cache(scheduler.is_preempted)

    def code() -> int:
        told, left = stop(), float(os.environ[_END]) - time.monotonic()
        if told == PREEMPTED and left < spec["signal_delay_s"] + EARLY_SECONDS:
            return TIMED_OUT
        return PREEMPTED if told == TERMINATED and is_preempted() else told

    return code


def _end(timeout_min: float) -> float:
    with contextlib.suppress(KeyError, ValueError):
        return float(os.environ["SLURM_JOB_END_TIME"]) - time.time() + time.monotonic()
    return time.monotonic() + timeout_min * 60


if __name__ == "__main__":
    sys.exit(_work(Path(sys.argv[1]), int(sys.argv[2])))
