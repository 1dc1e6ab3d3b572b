"""Tuning: per model, which cell of a space of recipes does best on held-out training images. The test set is not read.

- grid: every combination;
- random: the first N points of one seeded sequence, log-uniform in each range; the same points for every model;
- optuna: points that its TPE proposes in rounds, each with successive halving over epochs (slurm/define/halving.py).
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

from engine.folder import store
from slurm.define import halving
from slurm.define.search import Search, Train, points, value_of
from slurm.define.sweep import Sweep
from slurm.queue import worker
from slurm.queue.progress import Status

POLL_SECONDS = 15.0
MAX_LAUNCHES = 3  # in a row after which nothing had been gained, before a search is left to its user


def search(given: Search, train: Train) -> tuple[Sweep, list[Status]]:
    """Train what the search asks for. The sweep of all its runs, and how they stand, whether ended or not."""
    if given.kind == "optuna":
        return halving.search(given, train)
    sweep = given.sweep(points(given))
    return sweep, train(sweep)


def outcomes(given: Search, sweep: Sweep, statuses: Sequence[Status]) -> list[dict[str, Any]]:
    """Per run: model, signature, seed, epochs, state, acc1 (None unless it is done), and its place in the space."""
    rows = []
    for run, status in zip(sweep.runs, statuses, strict=True):
        done = status["state"] == store.DONE
        row = {"model": run.model, "signature": run.signature, "seed": run.seed, "epochs": run.epochs}
        row |= {"state": status["state"], "acc1": status.get("acc1") if done else None}
        rows.append(row | {key: value_of(run, key) for key in given.space})
    return rows


def waiting(train: Train, live: Callable[[Sweep], bool | None], say: Callable[[str], None] = print) -> Train:
    """The same for a search that goes on by itself: it returns once all runs have ended, on SLURM too.

    Where no job of the sweep is left and runs are, it trains again, unless that gained nothing several times.

    Args:
        live: whether any job of the sweep waits or runs; None where that is not known.
    """

    def train_and_wait(sweep: Sweep) -> list[Status]:
        statuses, launches, told = train(sweep), 1, -1
        before = _gained(statuses)
        while left := [status for status in statuses if not worker.ended(status)]:
            if len(left) != told:
                say(f"{len(statuses) - len(left)} of {len(statuses)} runs have ended; Ctrl-C leaves the jobs going")
                told = len(left)
            time.sleep(POLL_SECONDS)
            none_left = live(sweep) is False  # asked first: what jobs did before they left is then in the folders
            statuses = [worker.look(folder) for folder in sweep.folders]
            if not none_left or all(map(worker.ended, statuses)):
                continue
            launches = 0 if _gained(statuses) > before else launches
            if launches >= MAX_LAUNCHES:
                return statuses
            before = _gained(statuses)
            statuses, launches = train(sweep), launches + 1
        return statuses

    return train_and_wait


def _gained(statuses: Sequence[Status]) -> int:
    return sum((status.get("step") or 0) + worker.ended(status) for status in statuses)
