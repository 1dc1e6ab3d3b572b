"""A sweep as tables for pandas or a spreadsheet: one row per run, one per epoch of a run, one per number of a probe.

What probes measured after the epochs that a run kept is a table of its own, emergence.csv.

And one file of what every run predicted of every validation image (engine/folder/predictions.py), which answers
questions that nobody asked when the runs were trained.
"""

import csv
import json
from collections.abc import Set
from pathlib import Path
from typing import Any

from engine.errors import Refusal
from engine.folder import predictions, published, store
from engine.folder.predictions import Predictions
from engine.run import Run
from slurm.define.sweep import Sweep
from slurm.queue import tables
from slurm.queue.progress import Watch

# From status.json: where the run stands, what came of it (percent), how fast it was, and why it failed.
STATUS = (
    "state",
    "epoch",
    "acc1",
    "best_acc1",
    "best_epoch",
    "images_per_s",
    "data_wait",
    "seconds",
    "attempt",
)
STATUS += ("host", "error_class", "error")
LOSS = "train_loss"  # of the last epoch, from summary.csv: what was learned, beside what was learned to be general
ESTIMATE = ("value", "low", "high", "null")
KEYS = {  # what tells apart the rows of a table
    "epochs.csv": ("signature", "epoch"),
    "probes.csv": ("signature", "probe", "key"),
    "emergence.csv": ("signature", "probe", "key", "epoch"),
}
PROFILE = ("params", "macs", "flops")


def collect(sweep: Sweep) -> list[Path]:
    """Write runs.csv, epochs.csv and, where there are any, probes.csv, emergence.csv and predictions.npz into the
    sweep's folder.

    Also for a sweep half done: missing cells are empty. Rows of tables that are there already are kept, published ones
    on a machine without the runs say, unless their run is here and has come as far. What the tables of other sweeps say
    of runs of this one is taken over, and where SOFTMLP_RESULTS is another folder than that of the checkout, what the
    checkout's tables say, too.

    Raises Refusal where tables are there and no run is, or where they are of another scheme of signatures: what
    belongs together cannot be told then.
    """
    before, predicted = _before(sweep)
    if (sweep.folder / "runs.csv").exists() and not any(folder.exists() for folder in sweep.folders):
        raise Refusal(f"no run of {sweep.name} is here, so the tables in {sweep.folder} stay as they are")
    rows = _runs(sweep)
    _check_scheme(sweep, before["runs.csv"], rows)
    old = {row["signature"]: row for row in before["runs.csv"]}
    kept = {key for key, row in old.items() if row.get("state") == store.DONE} - {
        row["signature"] for row in rows if row["state"] == store.DONE
    }
    kept |= old.keys() - {row["signature"] for row in rows}
    rows = [old[row["signature"]] if row["signature"] in kept else row for row in rows]
    rows += [old[key] for key in old if key not in {row["signature"] for row in rows}]
    if kept:
        print(f"{len(kept)} rows are kept from the tables that were there: their runs are not finished here")
    made = {"runs.csv": rows, "epochs.csv": _epochs(sweep, kept), "probes.csv": _probes(sweep, kept)}
    made["emergence.csv"] = _probes(sweep, kept, over_training=True)
    sweep.make_folder()
    written = []
    for name, new in made.items():
        order = [row["signature"] for row in rows]
        merged = new if name == "runs.csv" else _merge(before[name], new, KEYS[name], order)
        if merged:
            store.write_bytes(sweep.folder / name, _text(merged).encode())
            written.append(sweep.folder / name)
    path = sweep.folder / predictions.FILE
    if found := _predictions(sweep, rows, kept, predicted):
        predictions.write_table(path, found)
        written.append(path)
    else:
        path.unlink(missing_ok=True)
    return written


def _before(sweep: Sweep) -> tuple[dict[str, list[dict[str, Any]]], dict[str, Predictions]]:
    """The tables that are there, and the predictions: of the sweep's own folder, and of runs that only others have."""
    names = ("runs.csv", *KEYS)
    ours = {run.signature for run in sweep.runs}
    own, *rest = tables.places(sweep)
    known = {place: {row["signature"] for row in published.read(place / published.RUNS)} for place in rest}
    places = [own, *(place for place in rest if known[place] & ours)]
    found, *others = (
        ({name: _read(place / name) for name in names}, predictions.read_table(place / predictions.FILE))
        for place in places
    )
    for place, (theirs, predicted) in zip(places[1:], others, strict=True):
        known = {row["signature"] for row in found[0]["runs.csv"] if row.get("state") == store.DONE}
        added = {row["signature"] for row in theirs["runs.csv"] if published.is_ours(row)} - known
        if place.name != sweep.name:  # of another sweep, or of this one with its own seeds
            added &= ours
        for name in names:
            mine = [row for row in found[0][name] if row["signature"] not in added]
            found[0][name] = mine + [row for row in theirs[name] if row["signature"] in added]
        found[1].update((key, predicted[key]) for key in added & predicted.keys())
    return found


def _runs(sweep: Sweep) -> list[dict[str, Any]]:
    rows = []
    for run, folder, status in zip(sweep.runs, sweep.folders, Watch(sweep).look(), strict=True):
        profile = store.read_or_warn(folder / "profile.json")
        measured = {key: status.get(key) for key in STATUS} | {key: profile.get(key) for key in PROFILE}
        env = store.read_or_warn(folder / "env.json")
        measured |= {key: env.get(key) for key in published.ENV}
        measured[LOSS] = _train_loss(folder) if status["state"] == store.DONE else None
        rows.append(
            {
                "signature": run.signature,
                "folder": run.name,
                "rung": run.rung,
                **_fields(run),
                **measured,
            }
        )
    return rows


def _train_loss(folder: Path) -> str | None:
    """Mean training loss of the last epoch, as summary.csv has it."""
    epochs = _read(folder / "summary.csv")
    return epochs[-1].get(LOSS) if epochs else None


def _predictions(
    sweep: Sweep, rows: list[dict[str, Any]], kept: Set[str], before: dict[str, Predictions]
) -> dict[str, Predictions]:
    """By signature, in the order of the rows: those of finished runs here, else those that were there already.

    A row has predictions only if their accuracy is its own: others, of a view that was augmented say, are named and
    left out.
    """
    folders = {run.signature: folder for run, folder in zip(sweep.runs, sweep.folders, strict=True)}
    found = {}
    for row in rows:
        key = row["signature"]
        if row["state"] != store.DONE or row["acc1"] in (None, ""):
            continue
        here = folders.get(key) if key not in kept else None
        for one in (_predictions_of(here) if here else None, before.get(key)):
            if one is not None and one.are_of(float(row["acc1"])):
                found[key] = one
                break
            if one is not None:
                words = f"accuracy {one.acc1:.4f}, and its accuracy of record is {row['acc1']}"
                print(f"{row['folder']}: predictions are left out: they have an {words}")
    return found


def _predictions_of(folder: Path) -> Predictions | None:
    try:
        return predictions.read(folder)
    except Refusal as refusal:
        print(f"predictions are left out: {refusal}")
        return None


def _check_scheme(sweep: Sweep, before: list[dict[str, Any]], rows: list[dict[str, Any]]) -> None:
    """Raises Refusal where the table that is there was made under another scheme of signatures than these rows."""
    schemes = {row.get("scheme") or "1" for row in before} - {str(rows[0]["scheme"])}  # the first had no such column
    strangers = {row["signature"] for row in before}.isdisjoint(row["signature"] for row in rows)
    if schemes or (before and strangers):
        path = sweep.folder / "runs.csv"
        words = f"its {len(before)} rows have other signatures than the runs of this sweep have now"
        raise Refusal(f"{path} is kept: {words}; move it away, or collect into another folder: SOFTMLP_RESULTS")


def _merge(
    before: list[dict[str, Any]], new: list[dict[str, Any]], keys: tuple[str, ...], order: list[str]
) -> list[dict[str, Any]]:
    """New rows, and those of before that have no new counterpart, run after run in this order of signatures."""
    there = {tuple(str(row[key]) for key in keys) for row in new}
    rows: dict[str, list[dict[str, Any]]] = {signature: [] for signature in order}
    for row in [*new, *(row for row in before if tuple(row[key] for key in keys) not in there)]:
        rows.setdefault(row["signature"], []).append(row)
    return [row for group in rows.values() for row in group]


def _epochs(sweep: Sweep, kept: Set[str]) -> list[dict[str, Any]]:
    """The rows of every summary.csv, digit for digit, behind the run that each belongs to."""
    rows = []
    for run, folder in zip(sweep.runs, sweep.folders, strict=True):
        if run.signature not in kept:
            identity = {"signature": run.signature, "folder": run.name, "rung": run.rung, "seed": run.seed}
            rows += [identity | row for row in _read(folder / "summary.csv")]
    return rows


def _probes(sweep: Sweep, kept: Set[str], over_training: bool = False) -> list[dict[str, Any]]:
    """Every number in every probes/NAME.json, with the interval over test images and the null; those of the end, or
    over training those after the epochs kept."""
    rows = []
    for run, folder in zip(sweep.runs, sweep.folders, strict=True):
        own = {"signature": run.signature, "folder": run.name, "rung": run.rung, "seed": run.seed}
        for path in sorted((folder / "probes").glob("*.json")) if run.signature not in kept else ():
            found = store.read_or_warn(path)
            at = found.get("epochs", {}) if over_training else {"": found.get("values", {})}
            for epoch, values in at.items():
                for key, estimate in values.items():
                    told = {"probe": path.stem, "key": key} | ({"epoch": epoch} if over_training else {})
                    numbers = {name: estimate.get(name) for name in ESTIMATE}
                    rows.append(own | {"permute": run.permute} | told | numbers)
    return rows


def _read(path: Path) -> list[dict[str, Any]]:
    """Rows of a CSV as text; [] where there is none, or only half of one."""
    try:
        with path.open(newline="") as file:
            return [{key: value or "" for key, value in row.items() if key} for row in csv.DictReader(file)]
    except FileNotFoundError:
        return []


def _text(rows: list[dict[str, Any]]) -> str:
    """Rows as CSV; a column that only some have, of another version of the program, is empty in the others."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return store.csv_text([{key: row.get(key, "") for key in columns} for row in rows])


def _fields(run: Run) -> dict[str, Any]:
    """Its fields as cells; weights among the results by their place there, as a table goes to other machines."""
    record, results = run.record(), store.results_dir().absolute()
    if run.initial_checkpoint and (place := Path(run.initial_checkpoint)).is_relative_to(results):
        record["initial_checkpoint"] = str(place.relative_to(results))
    return {key: json.dumps(value) if isinstance(value, (dict, list)) else value for key, value in record.items()}
