"""What one process of a sweep does: take the next run that nobody has, train it, and so on until none is left.

Workers are the same everywhere: of the local queue (slurm/queue/local.py), of one element of a SLURM array, of one
rank of several that train a run together (slurm/queue/task.py). Nothing heavy is imported at the top: a process has
its place, and its signal handlers, before it spends seconds on torch and FFCV, once for all its runs.
"""

import contextlib
import gc
import os
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from engine import distributed
from engine.errors import (
    BUSY,
    CANCELLED,
    CLASSES,
    MACHINE,
    OUTSIDE,
    STOPPED,
    SUPERSEDED,
    TERMINATED,
    Refusal,
    breaks_process,
    of_machine,
)
from engine.folder import lease
from engine.signals import Stop
from slurm.queue import claims, probing

MAX_DEATHS = 3  # silent deaths in a row without a step gained that one launch puts up with
MAX_IDLE = 6  # attempts in a row without a step gained, of which the scheduler ended some
CANCEL = ".cancel"  # the file in a run's folder by which a user asks its process to leave
CANCEL_SECONDS = 1.0
UNSURE_SECONDS = 1.0
FAULTS = tuple(CLASSES[code] for code in OUTSIDE)  # error classes of what is mended outside of a run
NUMBERS = ("heartbeat", "step", "steps", "epoch", "acc1", "best_acc1", "images_per_s", "eta_s", "seconds", "attempt")
RESERVED = "reserved"  # in status.json: the launch whose workers alone may take this run, as it needs what they have


def work(
    folders: list[str], how: dict, *, jobs: str, launch: str, slots: int, gpus: list[str], probes: Sequence[str] = ()
) -> None:
    """Train runs until none is left, if one of the `slots` places of the sweep on this machine is free.

    Args:
        folders: of all runs of the sweep, in order.
        how: fields of engine.run.How.
        jobs: folder of the places; `launch` tells one launch from the next.
        gpus: names for CUDA_VISIBLE_DEVICES, one of which this place gets.
        probes: to be measured on the finished runs.
    """
    # submitit's own handler ignores SIGTERM; this one replaces it.
    with Stop().on({signal.SIGTERM: TERMINATED}) as stop, claims.slot(Path(jobs), slots) as place:
        if place is None:
            return
        if gpus:  # submitit hides all GPUs from a local job that did not ask for any
            os.environ["CUDA_VISIBLE_DEVICES"] = gpus[place % len(gpus)]
        drain([Path(folder) for folder in folders], how, launch, stop, probes)


def drain(folders: list[Path], how: dict, launch: str, stop: Callable[[], int], probes: Sequence[str] = ()) -> int:
    """Train, one after another, the runs that have not ended and are not in other hands; then probe the finished ones.

    Of several processes that train each run together, all call this; the first one chooses.

    Returns: the code that `stop` gave; 0 where nothing is left; after a fault of this machine, of which this process
        may be part, its code (engine.errors.OUTSIDE), or STOPPED where a step was gained before.
    """
    from engine.run import make_how

    how = make_how(how)
    left, gained = list(folders), False
    while not (code := distributed.agree(stop())):
        folder, unsure = distributed.from_first(lambda: _next(left, launch))
        if folder is None and distributed.world() == 1 and probing.measure(folders, probes, how, launch, stop):
            continue
        if folder is None and unsure:
            time.sleep(UNSURE_SECONDS)  # somebody elsewhere has the last runs, or had them before he died
            continue
        if folder is None:
            return 0
        before = look(folder).get("step") or 0
        try:
            if fault := _attempt(folder, how, launch, stop):
                return STOPPED if gained or (look(folder).get("step") or 0) > before else fault
            gained = True
        except Refusal as refusal:
            if refusal.code == BUSY:
                time.sleep(0.2)  # another process was faster; its claim shows in a moment
                continue
            if refusal.code != SUPERSEDED:
                raise
            return 0  # taken for dead, on a node that may be somebody else's by now: leave all
        _free()
        if gained and not gc.get_freeze_count():
            gc.freeze()  # all that torch, timm and FFCV are made of: a quarter of a second of looking, after each run
    return code


def _free() -> None:
    """Away with the model and loader of the last run, before the next one, or another process, needs the memory."""
    from engine.models import return_memory

    gc.collect()
    return_memory()


def look(folder: Path) -> dict[str, Any]:
    """A run's status with `owner`, the record of the live attempt that has it (engine/folder/lease.py), or None.

    An owned run is running, whatever its last word was; one whose process died without a word is stopped, and
    `silent`; one that a user gave up is cancelled. A damaged status is a failure, not an end.
    """
    from engine.folder import store

    try:
        status = store.read_json(folder / "status.json")
        status = {"state": store.PLANNED} if status == {} else status
        state = status["state"]
        if state not in (store.DONE, store.FAILED, store.RUNNING, store.STOPPED, store.PLANNED):
            raise KeyError(state)
        if any(not isinstance(status.get(key), (int, float, type(None))) for key in NUMBERS):
            raise TypeError
    except Refusal as refusal:
        return _damaged(str(refusal), refusal.code)
    except (OSError, KeyError, TypeError) as error:
        what = error.strerror if isinstance(error, OSError) else "no status that we wrote"
        return _damaged(f"{folder / 'status.json'} is damaged ({what}); remove it and repeat the command", 4)
    if state in (store.DONE, store.FAILED):
        return {**status, "owner": None}
    owner = lease.owner(folder)
    if owner:
        status["state"] = store.RUNNING
    elif state == store.RUNNING:
        status |= {"state": store.STOPPED, "silent": True}
    if not owner and (status.get("error_class") == CLASSES[CANCELLED] or (folder / CANCEL).exists()):
        status["state"] = CLASSES[CANCELLED]
    return {**status, "owner": owner}


def ended(status: dict[str, Any]) -> bool:
    """Whether no launch is to train this run (any more)."""
    from engine.folder import store

    return status["state"] in (store.DONE, store.FAILED, CLASSES[CANCELLED])


def waits(status: dict[str, Any]) -> bool:
    """Whether a worker may take this run."""
    return not ended(status) and status["owner"] is None


def last_claim(folders: list[Path]) -> float:
    """When a run was last taken by any process, in seconds since the epoch; 0.0 if never."""
    return max((path.stat().st_mtime for folder in folders for path in folder.glob(".attempt-*.json")), default=0.0)


def fail(folder: Path, error_class: str, error: str, exit_code: int) -> None:
    """Mark a run as failed, where the engine has not done so itself; one in other hands is left alone."""
    from engine.folder import store

    if look(folder)["state"] == store.FAILED:
        return
    with contextlib.suppress(Refusal), lease.own(folder):
        status = store.read_json(folder / "status.json")
        if status.get("state") not in (store.DONE, store.FAILED):
            status |= {"state": store.FAILED, "error_class": error_class, "error": error, "exit_code": exit_code}
            store.write_json(folder / "status.json", status)


def _next(left: list[Path], launch: str) -> tuple[Path | None, bool]:
    """The first run that waits, and not for another launch; those that ended are struck from the list on the way.

    Runs that this machine had to give up come last: if others can be trained here, it is not the machine. The second
    value is True where there is none, and the owner of one on another node is not known to live.
    """
    index, unsure, again = 0, False, None
    while index < len(left):
        status = look(left[index])
        if waits(status) and status.get(RESERVED) in (None, launch):
            if status.get("error_class") not in FAULTS or (lease.last(left[index]) or {}).get("node") != lease.node():
                return left[index], False
            again = again or left[index]
        if ended(status):
            del left[index]
        else:
            unsure |= bool(status["owner"] and status["owner"]["unsure"])
            index += 1
    return again, unsure


def _attempt(folder: Path, how: Any, launch: str, stop: Callable[[], int]) -> int:
    """Train one run, or give it up; the code of a fault that this process cannot go on after, otherwise 0.

    Raises Refusal: another process has it (BUSY) or has taken it over (SUPERSEDED).
    """
    from engine.folder import store

    first = distributed.rank() == 0
    if reason := distributed.from_first(lambda: _hopeless(folder, launch)):
        if first:
            fail(folder, *reason)
        return 0
    code = 0
    try:
        run = store.read_run(folder)
        from engine.train import train

        train(run, folder, how, _or_cancelled(stop, folder), launch=launch)
    except Refusal as refusal:
        code = refusal.code
        if distributed.world() > 1 and (code == STOPPED or code in OUTSIDE):
            raise  # a process is lost, and with it the group: all leave, and are started anew
        if first:
            print(f"softmlp: {refusal}", flush=True)
        if code in (BUSY, SUPERSEDED):
            raise
        if code in OUTSIDE:
            return code
        if code < STOPPED and first:
            fail(folder, CLASSES.get(code, "unknown"), str(refusal), code)
    except Exception as error:
        traceback.print_exc()
        if distributed.world() > 1:
            raise  # the others wait for this one
        if of_machine(error):  # before the run began, as in an import
            return MACHINE
        fail(folder, "unknown", f"{type(error).__name__}: {error}".splitlines()[0], 1)
        if breaks_process(error):
            return STOPPED
    if first and (code < STOPPED or code == CANCELLED):
        (folder / CANCEL).unlink(missing_ok=True)
    return 0


def _hopeless(folder: Path, launch: str) -> tuple[str, str, int] | None:
    """Why a run is not worth another attempt in this launch: class, words and exit code; None if it is."""
    if len(nodes := list(dict.fromkeys(lease.faults(folder, launch)))) > 1:
        said = look(folder).get("error")
        return CLASSES[MACHINE], f"on {' and '.join(sorted(nodes))} alike, so it is the run: {said}", 1
    if (deaths := lease.deaths(folder, launch)) > MAX_DEATHS:
        error = f"its process died {deaths} times without a word and without a step gained (killed? out of memory?)"
        return "signal", error, 128 + signal.SIGKILL
    if not nodes and (idle := lease.idle(folder, launch)) > MAX_IDLE:
        error = f"{idle} attempts in a row ended without a step gained; raise timeout_min, or look at the log"
        return "timeout", error, STOPPED
    return None


def _or_cancelled(stop: Callable[[], int], folder: Path) -> Callable[[], int]:
    """`stop`, and CANCELLED once the user asks for it; looked up about once a second."""
    asked, looked = 0, float("-inf")

    def code() -> int:
        nonlocal asked, looked
        if time.monotonic() - looked > CANCEL_SECONDS:
            looked = time.monotonic()
            asked = CANCELLED if (folder / CANCEL).exists() else 0
        return stop() or asked

    return code


def _damaged(error: str, code: int) -> dict[str, Any]:
    return {"state": "failed", "owner": None, "error_class": CLASSES[code], "error": error, "exit_code": code}
