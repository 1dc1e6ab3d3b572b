"""Tables of the report: what a page shows of a Sheet, with what each cell sorts by."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.report.sentences import recorded
from analysis.typeset import MISSING, Sheet
from engine.cli.repro import command
from engine.folder.store import DONE
from engine.run import Run, make_run

ROWS = 500  # of a table; what lies beyond is in the files of scripts/sweep.py collect
DRAWN = 40  # rungs in a figure, and in a comparison of all with all
PACKAGES = ("python", "torch", "torchvision", "timm", "ffcv", "numpy", "numba")
MACHINE = ("processor", "device", "threads")
SCALE = {"T": 1e12, "G": 1e9, "M": 1e6, "k": 1e3, "": 1.0, "ms": 1e-3, "µs": 1e-6}


@dataclass(frozen=True)
class Cell:
    """`key` is what it sorts by: a number, a text, or "" for what is missing; the first of a row sorts by its place."""

    text: str
    key: str
    tip: str = ""


@dataclass(frozen=True)
class Shown:
    """A table on the page. The first cell of a row is its name and sorts by its place."""

    id: str
    title: str
    header: tuple[str, ...]
    align: str
    rows: list[list[Cell]]
    note: str
    left_out: int


def shown(name: str, sheet: Sheet, align: str = "", tips: Sequence[Sequence[str]] = ()) -> Shown:
    """A sheet as the page shows it; at most ROWS of it.

    Args:
        name: unique on the page.
        align: l, r or c per column, if not as in the sheet.
        tips: tooltips per row and column.
    """
    total, rows = len(sheet.rows), []
    for place, texts in enumerate(sheet.rows[:ROWS]):
        own = tips[place] if tips else [""] * len(texts)
        keys = ["", *(sort_key(text) for text in texts[1:])]
        rows.append([Cell(text, key, tip) for text, key, tip in zip(texts, keys, own, strict=True)])
    align = align or sheet.align.ljust(len(sheet.header), "r")
    return Shown(name, sheet.title, sheet.header, align, rows, sheet.note, total - len(rows))


def sort_key(text: str) -> str:
    """The first number of a cell with its prefix, as 18500000 of 18.5 M; its text if it has none; "" for a dash."""
    if text in (MISSING, ""):
        return ""
    number = r"(?:[<>] )?\[?([+−-]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?)(?: (T|G|M|k|ms|µs)\b)?(?![\w.])"
    if not (match := re.match(number, text.removeprefix("10^"))):
        return {"∞": "1e999", "−∞": "-1e999"}.get(text, text)
    value = float(match[1].replace("−", "-").replace(",", "")) * SCALE[match[2] or ""]
    return f"{value:.10g}"


def limited(rows: pd.DataFrame, column: str, count: int = DRAWN) -> pd.DataFrame:
    """The rows of the first `count` different values of a column."""
    return rows[rows[column].isin(list(dict.fromkeys(rows[column]))[:count])]


def unfinished(frame: pd.DataFrame) -> Sheet | None:
    """Runs without an accuracy: how they stand and the last line of their error; None if all have one."""
    missing = frame[frame["acc1"].isna()]
    cells = []
    for row in missing.itertuples():
        epoch = f"{row.epoch:.0f} of {row.epochs:.0f}" if row.epoch >= 0 and row.epochs >= 0 else MISSING
        state = "no accuracy" if row.state == DONE else row.state
        cells.append(
            [row.rung, whole(row.seed), row.signature, state, epoch, whole(row.attempt), *_error(row)],
        )
    header = ("rung", "seed", "run", "state", "epochs done", "attempt", "class", "last line")
    columns = ["rung", "seed", "signature", "state", "epoch", "attempt", "error_class", "error"]
    return Sheet("runs without a result", header, cells, missing[columns], align="lrllrrll") if cells else None


def _error(row: Any) -> tuple[str, str]:
    return row.error_class or MISSING, row.error or MISSING


def runs(frame: pd.DataFrame) -> Sheet:
    """All runs with their signatures."""
    cells = [
        [
            *(row.rung, whole(row.seed), row.signature, row.state),
            *(MISSING if math.isnan(row.acc1) else f"{row.acc1:.2f}",),
            *(MISSING if math.isnan(row.train_loss) else f"{row.train_loss:.3g}",),
            *(MISSING if math.isnan(value) else f"{value:,.0f}" for value in (row.images_per_s, row.seconds)),
            str(row.env.get("commit", MISSING))[:9],
        ]
        for row in frame.itertuples()
    ]
    header = ("rung", "seed", "run", "state", "accuracy, %", "training loss", "images/s", "seconds", "commit")
    columns = ["rung", "seed", "signature", "state", "acc1", "train_loss", "images_per_s", "seconds"]
    data = frame[columns].assign(commit=[env.get("commit", "") for env in frame["env"]])
    return Sheet("all runs and their signatures", header, cells, data, align="lrllrrrrl")


def whole(value: float) -> str:
    return MISSING if math.isnan(value) else f"{value:.0f}"


def commands(frame: pd.DataFrame, limit: int = ROWS) -> list[str]:
    """Per rung, of the first `limit`, the command that trains it, for all its seeds."""
    result = []
    known = limited(frame[frame["batch_size"].notna()], "rung", limit)
    for _, group in known.groupby("rung", sort=False):
        run = make_run(_fields(group.iloc[0]))
        threads = {env["threads"] for env in group["env"] if "threads" in env}
        words = command(run, {"threads": threads.pop()} if len(threads) == 1 else {}, seed=False)
        seeds = [f"{seed:.0f}" for seed in group["seed"]]
        if len(seeds) == 1:
            result.append(f"{words} --seed {seeds[0]}")
        else:
            result.append(f"for seed in {' '.join(seeds)}; do {words} --seed $seed; done")
    return result


def _fields(row: pd.Series) -> dict[str, Any]:
    """The Run of a row: pandas makes a missing value NaN and a count beside it a float."""
    given = {key: row[key] for key in Run.model_fields}
    return {key: value for key, value in given.items() if not (isinstance(value, float) and math.isnan(value))}


def environment(frame: pd.DataFrame) -> dict[str, str]:
    """Commit, versions and machine, with all values that occur; what no run recorded is left out."""
    return {key: ", ".join(values) for key in ("commit", *PACKAGES, *MACHINE) if (values := recorded(frame, key))}
