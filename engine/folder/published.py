"""What published tables say of runs that have no folder here: rows of results/NAME/runs.csv.

A row says that the run of its signature is done if it is of our scheme, its state is `done` and it has an accuracy. The
table in the results folder counts and, where SOFTMLP_RESULTS is another one, that of the checkout.
"""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from engine.cli import tables
from engine.errors import Refusal
from engine.folder import store
from engine.run import SCHEME

RUNS = "runs.csv"
TABLE = "table"  # of a status: the file that says so, where no folder does
NUMBERS = ("epoch", "acc1", "best_acc1", "train_loss", "images_per_s", "seconds", "attempt", "params", "macs")
EPOCH = ("epoch", "train_loss", "eval_loss", "eval_top1", "eval_top5", "lr")  # of summary.csv


def places(results: Path, name: str) -> list[Path]:
    """Where tables of a study may be: in a results folder, and in the checkout; for NAME@SEEDS also those of NAME."""
    names = dict.fromkeys((name, name.partition("@")[0]))
    return list(dict.fromkeys(place / own for own in names for place in (results.absolute(), store.ROOT / "results")))


def places_of(sweeps: Iterable[Any]) -> list[Path]:
    """The same for several sweeps, which have a name and a folder in the results."""
    return [place for sweep in sweeps for place in places(sweep.folder.parent, sweep.name)]


def done(folders: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """By signature, the runs that a table in these folders has as done, as a status with the NUMBERS that are known.

    Raises Refusal (DATA) for a table that cannot be read.
    """
    found: dict[str, dict[str, Any]] = {}
    for folder in folders:
        for row in read(folder / RUNS):
            if status := _status(row, folder / RUNS):
                found.setdefault(row["signature"], status)
    return found


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of runs.csv; [] where there is none."""
    try:
        return tables.read(path, ("signature", "state"))
    except Refusal:
        if path.exists():
            raise
        return []


def epochs(table: Path) -> dict[str, list[dict[str, float]]]:
    """By signature the rows of summary.csv in the epochs.csv beside a table; {} where there is none."""
    path = table.with_name("epochs.csv")
    found: dict[str, list[dict[str, float]]] = {}
    for row in tables.read(path, ("signature", *EPOCH)) if path.exists() else ():
        numbers = {key: _number(row.get(key)) for key in EPOCH}
        found.setdefault(row["signature"], []).append(
            {key: math.nan if value is None else float(value) for key, value in numbers.items()}
        )
    return found


def is_ours(row: dict[str, Any]) -> bool:
    """Whether a row is of our scheme; the first had no such column."""
    return (row.get("scheme") or "1") == str(SCHEME)


def _status(row: dict[str, Any], path: Path) -> dict[str, Any] | None:
    """What a row says of its run; None where it does not say that it is done."""
    if row["state"] != store.DONE or not is_ours(row):
        return None
    numbers = {key: _number(row.get(key)) for key in NUMBERS}
    known = {key: value for key, value in numbers.items() if value is not None}
    return {"state": store.DONE, "owner": None, TABLE: str(path), **known} if "acc1" in known else None


def _number(text: Any) -> float | int | None:
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return int(value) if value.is_integer() and "." not in text else value
