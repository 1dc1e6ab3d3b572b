"""Published tables: which runs of a sweep are done although they have no folder here. A study outlives its machine.

A row of `results/NAME/runs.csv` says that the run of its signature is done if it is of our scheme, its state is `done`
and it has an accuracy. The table in the results folder counts and, where SOFTMLP_RESULTS is another one, that of the
checkout. A folder wins where the run is done in it, or is being trained. A table holds no weights: a run that others
are still to start from is not done by it.
"""

from pathlib import Path
from typing import Any

from engine.cli import tables
from engine.errors import Refusal
from engine.folder import store
from engine.run import SCHEME
from slurm.define.sweep import Sweep
from slurm.queue.worker import look

RUNS = "runs.csv"
TABLE = "table"  # of a status: the file that says so, where no folder does
NUMBERS = ("epoch", "acc1", "best_acc1", "images_per_s", "seconds", "attempt", "params", "macs")

Status = dict[str, Any]


def standing(sweep: Sweep) -> list[Status]:
    """One status per run, in order: of slurm.queue.worker.look, or of a table."""
    return overlaid(sweep, [look(folder) for folder in sweep.folders])


def overlaid(sweep: Sweep, statuses: list[Status]) -> list[Status]:
    """These statuses, told by folders alone, and instead of those that are not done what the tables say."""
    if all(status["state"] in (store.DONE, store.RUNNING) for status in statuses) or not (there := done(sweep)):
        return statuses
    pairs = list(zip(sweep.runs, statuses, strict=True))
    for run in (run for run, status in reversed(pairs) if status["state"] != store.DONE):
        if run.signature not in there and run.initial_identity:
            there.pop(run.initial_identity.removeprefix("run:"), None)
    return [
        {**there[run.signature], "here": status["state"]}
        if status["state"] not in (store.DONE, store.RUNNING) and run.signature in there
        else status
        for run, status in pairs
    ]


def done(sweep: Sweep) -> dict[str, Status]:
    """By signature, the runs that a table has as done. Raises Refusal (DATA) for a table that cannot be read."""
    found: dict[str, Status] = {}
    for folder in places(sweep):
        for row in read(folder / RUNS):
            if status := _status(row, folder / RUNS):
                found.setdefault(row["signature"], status)
    return found


def told(statuses: list[Status]) -> str:
    """How many of them are done by table alone, to stand behind the number of those done: ` (4 by table)`."""
    count = sum(TABLE in status for status in statuses)
    return f" ({count} by table)" if count else ""


def places(sweep: Sweep) -> list[Path]:
    """Where tables of this sweep may be: in the results folder, and in the checkout."""
    return list(dict.fromkeys((sweep.folder, store.ROOT / "results" / sweep.name)))


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of runs.csv; [] where there is none."""
    try:
        return tables.read(path, ("signature", "state"))
    except Refusal:
        if path.exists():
            raise
        return []


def is_ours(row: dict[str, Any]) -> bool:
    """Whether a row is of our scheme; the first had no such column."""
    return (row.get("scheme") or "1") == str(SCHEME)


def _status(row: dict[str, Any], path: Path) -> Status | None:
    """What a row says of its run; None where it does not say that it is done."""
    if row["state"] != store.DONE or not is_ours(row):
        return None
    numbers = {key: _number(row.get(key)) for key in NUMBERS}
    known = {key: value for key, value in numbers.items() if value is not None}
    if "acc1" not in known:
        return None
    return {"state": store.DONE, "owner": None, TABLE: str(path), **known}


def _number(text: Any) -> float | int | None:
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return int(value) if value.is_integer() and "." not in text else value
