"""What is published: the numbers that others report, and what our own published runs predicted.

What others report is in results/published/*.csv, one row per number with its source, place and known faults.

These numbers have other recipes, seeds and data behind them. They are shown beside ours and never enter a statistic.
The README.md of the folder explains every source, grade and flag; what is not explained there is refused.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from analysis.typeset import MISSING, Sheet
from engine.cli import tables
from engine.errors import DATA, Refusal
from engine.folder.predictions import FILE, Predictions, read_table
from engine.folder.store import DONE, ROOT

FOLDER = ROOT / "results" / "published"
COLUMNS = (
    *("table_id", "source_id", "model", "variant", "dataset", "protocol", "metric", "value", "unit"),
    *("params_m", "gmacs", "resolution", "epochs", "recipe", "evidence", "locator", "flag"),
)
NUMBERS = ("value", "params_m", "gmacs", "resolution", "epochs")
REQUIRED = ("table_id", "source_id", "model", "metric", "value", "unit", "evidence", "locator")
GRADES = {
    "V": "read in the source itself",
    "S": "read in a second-hand source",
    "C": "computed from the published definition",
}
UNITS = {
    **dict.fromkeys(("acc1", "acc5", "train_acc1", "train_acc5", "acc1_real", "acc1_knn"), "%"),
    **dict.fromkeys(("avg5", "vtab1k", "mean_iou", "box_ap"), "%"),
    **dict.fromkeys(("alpha", "alpha_params", "alpha_samples"), "exponent"),
    **{"acc1_std": "points", "params": "M", "macs": "MMAC", "images_per_s": "images/s", "core_kdays": "1000 core-days"},
    **{"seconds": "s", "train_flops": "PFLOP", "batch_size": "images"},
}


def load(folder: Path = FOLDER) -> pd.DataFrame:
    """All rows, with `file`; numbers as floats, NaN where none is given. Raises Refusal for the first that is unfit."""
    parts = []
    explained = _explained(folder)
    for path in sorted(folder.glob("*.csv")):
        table = pd.DataFrame(tables.read(path))
        if tuple(table.columns) != COLUMNS:
            raise Refusal(f"{path}: the columns must be {','.join(COLUMNS)}", DATA)
        for i, row in enumerate(table.to_dict("records")):
            if fault := _fault(row, explained):
                raise Refusal(f"{path}, row {i + 1} ({row['model']}, {row['metric']}): {fault}", DATA)
        parts.append(table.assign(file=path.name))
    if not parts:
        raise Refusal(f"{folder} holds no .csv", DATA)
    rows = pd.concat(parts, ignore_index=True)
    twins = rows[rows.duplicated([column for column in COLUMNS if column not in ("value", "flag")], keep=False)]
    if len(twins):
        raise Refusal(f"{twins['file'].iloc[0]}: {twins['model'].iloc[0]} has two values for one thing", DATA)
    return rows.assign(**{column: pd.to_numeric(rows[column]) for column in NUMBERS})


def _explained(folder: Path) -> set[str]:
    """Flags and sources that the folder's README has an entry for: | `A1` | ..., or | `owner/name` | ..."""
    path = folder / "README.md"
    if not path.exists():
        raise Refusal(f"{path} is missing: it explains sources and flags", DATA)
    return set(re.findall(r"^\| `([^`]+)` \|", path.read_text(), re.MULTILINE))


def _fault(row: dict[str, str], explained: set[str]) -> str:
    if missing := [column for column in REQUIRED if not row[column].strip()]:
        return f"{missing[0]} is empty"
    if row["evidence"] not in GRADES:
        why = "M, from memory, is no evidence; look it up" if row["evidence"] == "M" else "unknown grade"
        return f"evidence '{row['evidence']}': {why}; known: {', '.join(GRADES)}"
    for column in NUMBERS:
        if row[column] and not re.fullmatch(r"\d+(\.\d+)?", row[column]):
            return f"{column} '{row[column]}' is no plain number"
    if row["metric"] not in UNITS:
        return f"unknown metric '{row['metric']}'; known: {', '.join(UNITS)}"
    if row["unit"] != UNITS[row["metric"]]:
        return f"the unit of {row['metric']} is {UNITS[row['metric']]}, not '{row['unit']}'"
    if row["unit"] == "%" and float(row["value"]) > 100:
        return f"{row['value']} is more than 100 %"
    for name in (row["source_id"], *row["flag"].split(";")):
        if name and name not in explained:
            return f"'{name}' is not explained in README.md"
    return ""


def about(datasets: Sequence[str], folder: Path = FOLDER) -> pd.DataFrame:
    """Top-1 accuracies on these data sets, best first."""
    rows = load(folder)
    rows = rows[rows["dataset"].isin(list(datasets)) & (rows["metric"] == "acc1")]
    return rows.sort_values(["dataset", "value"], ascending=[True, False], kind="stable", ignore_index=True)


def sheet(datasets: Sequence[str], folder: Path = FOLDER) -> Sheet | None:
    """These accuracies to be shown; None if there are none."""
    rows = about(datasets, folder)
    if rows.empty:
        return None
    cells = [
        [
            f"{row.model} {row.variant}".strip(),
            *(_plain(value) for value in (row.value, row.params_m, row.gmacs, row.epochs)),
            *(row.dataset, row.protocol, row.source_id, row.evidence, row.flag or MISSING),
        ]
        for row in rows.itertuples()
    ]
    header = ("model", "accuracy, %", "params, M", "GMACs", "epochs", "data", "protocol", "source", "evidence", "flag")
    note = "other recipes, seeds and data than ours; evidence and flags: results/published/README.md"
    return Sheet("Reported by others, not measured here", header, cells, rows, note, align="lrrrrlllll")


def predictions(study: Path) -> dict[str, Predictions]:
    """What the runs of a study predicted of each validation image, by signature, from its folder in results/.

    {} where it has none. Raises Refusal (DATA) for a damaged file, and for one that does not belong to the runs.csv
    beside it: each run must have a finished row, and its accuracy.
    """
    found = read_table(study / FILE)
    if not found:
        return {}
    rows = {row["signature"]: row for row in tables.read(study / "runs.csv", ("signature", "state", "acc1"))}
    for signature, one in found.items():
        row = rows.get(signature)
        if row is None or row["state"] != DONE or not one.are_of(float(row["acc1"])):
            words = f"accuracy {one.acc1:.4f}" + (f", in runs.csv {row['acc1']}" if row else ", not in runs.csv")
            again = f"python scripts/sweep.py collect {study.name}"
            raise Refusal(f"{study / FILE} does not belong to runs.csv ({signature}: {words}); {again}", DATA)
    return found


def _plain(value: float) -> str:
    return MISSING if pd.isna(value) else f"{value:g}"
