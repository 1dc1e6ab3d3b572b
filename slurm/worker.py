"""What one process of a sweep does: take the next run that nobody has, train it, and so on until none is left.

submitit pickles `work` by its name together with paths and plain values. Nothing heavy is imported at the top: the
process has its place, and its signal handlers, before it spends seconds on torch and FFCV, once for all its runs.
"""

import gc
import os
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.errors import BUSY, CLASSES, STOPPED, TERMINATED, Refusal
from engine.signals import Stop
from slurm import claims

MAX_DEATHS = 3  # silent deaths in a row without a step gained that one launch puts up with


def work(folders: list[str], how: dict, *, jobs: str, launch: str, slots: int, gpus: list[str]) -> None:
    """Train runs until none is left, if one of the `slots` places of the sweep is free.

    Args:
        folders: of all runs of the sweep, in order.
        how: fields of engine.run.How.
        jobs: folder of the places; `launch` tells one launch from the next.
        gpus: names for CUDA_VISIBLE_DEVICES, one of which this place gets.
    """
    # submitit's own handler ignores SIGTERM; this one replaces it.
    with Stop().on({signal.SIGTERM: TERMINATED}) as stop, claims.slot(Path(jobs), slots) as place:
        if place is None:
            return
        if gpus:  # submitit hides all GPUs from a local job that did not ask for any
            os.environ["CUDA_VISIBLE_DEVICES"] = gpus[place % len(gpus)]
        drain([Path(folder) for folder in folders], how, launch, stop)


def drain(folders: list[Path], how: dict, launch: str, stop: Callable[[], int]) -> None:
    """Train, one after another, the runs that are neither done nor failed nor in other hands."""
    from engine.run import make_how

    how = make_how(how)
    while not stop() and (folder := _next(folders)):
        if not _attempt(folder, how, launch, stop):
            time.sleep(0.2)  # another process was faster; its lock shows in a moment
        gc.collect()  # the model and loader of the last run, before the next one needs the memory


def look(folder: Path) -> dict[str, Any]:
    """A run's status with `owner`, the live process that has it, or None. A damaged status is a failure, not an end."""
    from engine import store

    try:
        status = store.read_status(folder)
    except Refusal as refusal:
        return {
            "state": store.FAILED,
            "owner": None,
            "error_class": CLASSES[refusal.code],
            "error": str(refusal),
            "exit_code": refusal.code,
        }
    ended = status["state"] in (store.DONE, store.FAILED)
    return {**status, "owner": None if ended else claims.holder(folder / ".lock")}


def _next(folders: list[Path]) -> Path | None:
    from engine import store

    for folder in folders:
        status = look(folder)
        if status["state"] not in (store.DONE, store.FAILED) and status["owner"] is None:
            return folder
    return None


def _attempt(folder: Path, how: Any, launch: str, stop: Callable[[], int]) -> bool:
    """Train one run, or give it up. False if another process has it."""
    from engine import store
    from engine.train import train

    with claims.hold(folder / ".attempt") as file:
        if file is None:
            return False
        if (deaths := _count(folder, file, launch)) > MAX_DEATHS:
            error = f"its process died {deaths} times without a word and without a step gained (killed? out of memory?)"
            fail(folder, "signal", error, 128 + signal.SIGKILL)
            claims.write(file, None)
            return True
        try:
            train(store.read_run(folder), folder, how, stop)
        except Refusal as refusal:
            print(f"softmlp: {refusal}", flush=True)
            if refusal.code == BUSY:
                return False
            if refusal.code < STOPPED:
                fail(folder, CLASSES.get(refusal.code, "unknown"), str(refusal), refusal.code)
        except Exception as error:
            traceback.print_exc()
            fail(folder, "unknown", f"{type(error).__name__}: {error}".splitlines()[0], 1)
        finally:
            claims.write(file, None)  # it came back; what dies without a word leaves its line for `_count`
    return True


def _count(folder: Path, file: Any, launch: str) -> int:
    """Note an attempt; the number of silent deaths before it, in this launch, since a step was last gained.

    Deaths in an earlier launch do not count: there the user, or the machine, may have ended everything at once.
    """
    from engine import store

    last = claims.read(file)
    step = store.read_json(folder / "status.json").get("step") or 0
    deaths = 0
    if last and last["launch"] == launch:
        deaths = 0 if step > last["step"] else last["deaths"] + 1
        step = max(step, last["step"])
    claims.write(file, {"launch": launch, "deaths": deaths, "step": step})
    return deaths


def fail(folder: Path, error_class: str, error: str, exit_code: int) -> None:
    """Mark a run as failed, where the engine has not done so itself."""
    from engine import store

    with claims.hold(folder / ".lock") as owned:
        status = store.read_json(folder / "status.json")
        if owned and status.get("state") not in (store.DONE, store.FAILED):
            status |= {"state": store.FAILED, "error_class": error_class, "error": error, "exit_code": exit_code}
            store.write_json(folder / "status.json", status)
