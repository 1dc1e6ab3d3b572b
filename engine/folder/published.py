"""What published tables say of runs that have no folder here: rows of results/NAME/runs.csv.

A row says that the run of its signature is done if it is of our scheme, its state is `done` and it has an accuracy. The
tables in the results folder count and, where SOFTMLP_RESULTS is another one, those of the checkout: a study's own
first, then those of all others, as a run that two studies ask for is one run.

A study whose sweep is gone from slurm/sweeps/ is its tables alone (`study`): all of its rows are read as they are, of
whatever scheme, and what it asked stands in study.yaml beside them.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from engine.cli import tables
from engine.errors import DATA, Refusal
from engine.folder import store
from engine.run import SCHEME, Run, unknown

RUNS = "runs.csv"
STUDY = "study.yaml"
TABLE = "table"  # of a status: the file that says so, where no folder does
NUMBERS = ("epoch", "acc1", "best_acc1", "train_loss", "images_per_s", "seconds", "attempt", "params", "macs")
EPOCH = ("epoch", "train_loss", "eval_loss", "eval_top1", "eval_top5", "lr")  # of summary.csv
PROBE = ("value", "low", "high", "null")
ENV = ("commit", "processor", "device", "threads")  # of env.json, in runs.csv


@dataclass(frozen=True)
class Study:
    """What is known of a study from its tables alone; `contrasts`, `baseline` and `labels` as of a sweep's file."""

    name: str
    folder: Path
    question: str = ""
    commit: str = ""
    """That of the program which trained it."""
    processor: str = ""
    baseline: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    contrasts: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    equivalents: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Per family that is gone: `model` and arguments of what it is now, which say what its rungs differ in."""
    families: Mapping[str, Any] = field(default_factory=dict, init=False)
    probes: tuple[str, ...] = field(default=(), init=False)
    runs: tuple[Run, ...] = field(default=(), init=False)
    folders: tuple[Path, ...] = field(default=(), init=False)

    @property
    def table(self) -> Path:
        return self.folder / RUNS


def study(name: str, results: Path) -> Study | None:
    """The study of that name, by its tables; None where there are none.

    Raises Refusal (DATA) for a study.yaml with a mistake.
    """
    folder = next((place for place in places(results, name) if (place / RUNS).is_file()), None)
    if folder is None or not name.isidentifier():
        return None
    path = folder / STUDY
    try:
        told = yaml.safe_load(path.read_text()) if path.exists() else {}
    except yaml.YAMLError as error:
        raise Refusal(f"{path} is no YAML: {str(error).splitlines()[0]}", DATA) from None
    known = [key for key in Study.__dataclass_fields__ if Study.__dataclass_fields__[key].init][2:]
    for key in told:
        if key not in known:
            raise Refusal(f"{path}: {unknown('key', str(key), known)}", DATA)
    return Study(name, folder, **told | {"baseline": tuple(told.get("baseline", ()))})


def records(path: Path) -> list[dict[str, Any]]:
    """The rows of runs.csv as they are, of whatever scheme, with the fields of a Run as values.

    A field that the table has no column for was not there yet: it is what a new one is by default, as before.
    """
    defaults = {key: info.get_default(call_default_factory=True) for key, info in Run.model_fields.items()}
    rows = []
    for row in read(path):
        fields = {key: _value(row[key]) if row.get(key, "") != "" else default for key, default in defaults.items()}
        numbers = {key: _number(row.get(key)) for key in NUMBERS}
        env = {key: row[key] for key in ENV if row.get(key)}
        rows.append({**row, **fields, **numbers, "env": env})
    return rows


def _value(text: str) -> Any:
    """A cell of runs.csv, as `collect` wrote it."""
    try:
        return {"True": True, "False": False}[text] if text in ("True", "False") else json.loads(text)
    except ValueError:
        return text


def places(results: Path, name: str) -> list[Path]:
    """Where tables of a study may be: in a results folder, and in the checkout; for NAME@SEEDS also those of NAME."""
    names = dict.fromkeys((name, name.partition("@")[0]))
    return list(dict.fromkeys(place / own for own in names for place in _roots(results)))


def places_of(sweeps: Iterable[Any]) -> list[Path]:
    """The same for several sweeps, which have a name and a folder in the results."""
    return list(dict.fromkeys(place for sweep in sweeps for place in places(sweep.folder.parent, sweep.name)))


def all_places(results: Path, *names: str) -> list[Path]:
    """Where a table may be that tells of runs of these studies: their own places, then every other that has a table."""
    own = [place for name in names for place in places(results, name)]
    others = (path.parent for root in _roots(results) for path in sorted(root.glob(f"*/{RUNS}")) if _is_table(path))
    return list(dict.fromkeys((*own, *others)))


def all_places_of(sweeps: Iterable[Any]) -> list[Path]:
    """The same for sweeps, which have a name and a folder in the results; [] for none."""
    return list(dict.fromkeys(place for sweep in sweeps for place in all_places(sweep.folder.parent, sweep.name)))


def _roots(results: Path) -> tuple[Path, Path]:
    return results.absolute(), store.ROOT / "results"


def _is_table(path: Path) -> bool:
    """Whether it has a table's columns: what else lies in another study's place is no mistake of this one's."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            columns = re.split("[,;\t]", file.readline().rstrip())
    except (OSError, UnicodeDecodeError):
        return False
    return {"signature", "state"} <= set(columns)


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


def probes(table: Path) -> dict[str, list[dict[str, Any]]]:
    """By signature the rows of probes.csv beside a table, numbers as floats; {} where there is none."""
    return _estimates(table.with_name("probes.csv"), PROBE)


def emergence(table: Path) -> dict[str, list[dict[str, Any]]]:
    """The same of emergence.csv: what probes measured after the epochs that a run kept, its last not among them."""
    return _estimates(table.with_name("emergence.csv"), ("epoch", *PROBE))


def _estimates(path: Path, numbers: tuple[str, ...]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in tables.read(path, ("signature", "probe", "key", *numbers)) if path.exists() else ():
        known = {key: _number(row.get(key)) for key in numbers}
        known = {key: math.nan if value is None else float(value) for key, value in known.items()}
        found.setdefault(row["signature"], []).append({"probe": row["probe"], "key": row["key"], **known})
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
    env = {key: row[key] for key in ENV if row.get(key)}
    return {"state": store.DONE, "owner": None, TABLE: str(path), "env": env, **known} if "acc1" in known else None


def _number(text: Any) -> float | int | None:
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return int(value) if value.is_integer() and "." not in text else value
