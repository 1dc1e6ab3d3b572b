"""Tables of the report: what a page shows of a Sheet, with what each cell sorts by and the texts that can be copied."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
    """`key` is what it sorts by: a number, a text, or "" for what is missing."""

    text: str
    key: str
    tip: str = ""

    @property
    def starred(self) -> bool:
        return self.text.endswith("*")


@dataclass(frozen=True)
class Shown:
    """A table on the page. The first cell of a row is its name and sorts by its place."""

    id: str
    title: str
    header: tuple[str, ...]
    align: str
    rows: list[list[Cell]]
    note: str
    exports: dict[str, str]
    left_out: int


def shown(name: str, sheet: Sheet, align: str = "", tips: Sequence[Sequence[str]] = ()) -> Shown:
    """A sheet as the page shows it; at most ROWS of it.

    Args:
        name: unique on the page.
        align: l, r or c per column, if not as in the sheet.
        tips: tooltips per row and column.
    """
    total = len(sheet.rows)
    if total > ROWS:
        data = sheet.data[:ROWS] if len(sheet.data) == total else sheet.data[: 20 * ROWS]
        sheet = replace(sheet, rows=sheet.rows[:ROWS], data=data)
    rows = []
    for place, texts in enumerate(sheet.rows):
        own = tips[place] if tips else [""] * len(texts)
        keys = [str(place), *(sort_key(text) for text in texts[1:])]
        rows.append([Cell(text, key, tip) for text, key, tip in zip(texts, keys, own, strict=True)])
    exports = {"Markdown": sheet.markdown(), "LaTeX": sheet.latex(), "CSV": sheet.csv()}
    align = align or sheet.align.ljust(len(sheet.header), "r")
    return Shown(name, sheet.title, sheet.header, align, rows, sheet.note, exports, total - len(rows))


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


def health(frame: pd.DataFrame) -> dict[str, str]:
    """How the sweep went, in facts."""
    states = ", ".join(f"{count:,} {state}" for state, count in frame["state"].value_counts(sort=False).items())
    seconds, attempts = frame["seconds"].dropna(), frame["attempt"].dropna()
    facts = {"runs": f"{len(frame):,}: {states}"}
    if len(seconds):
        facts["hours of training"] = f"{seconds.sum() / 3600:.2f}; of a run {_hours(seconds)}"
    if len(attempts):
        again = int((attempts > 1).sum())
        more = f"; most in one: {attempts.max():.0f}" if again else ""
        facts["attempts"] = f"{attempts.sum():.0f}; {again:,} runs needed more than one{more}"
    if failed := frame.loc[frame["error_class"] != "", "error_class"].value_counts(sort=False).to_dict():
        facts["errors"] = ", ".join(f"{count:,} {kind}" for kind, count in failed.items())
    return facts


def _hours(seconds: pd.Series) -> str:
    ends = [f"{value / 3600:.2f}" if value >= 360 else f"{value:.0f} s" for value in (seconds.min(), seconds.max())]
    return " to ".join(dict.fromkeys(ends))


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
    return Sheet("Runs without a result", header, cells, missing[columns], align="lrllrrll") if cells else None


def _error(row: Any) -> tuple[str, str]:
    return row.error_class or MISSING, row.error or MISSING


def runs(frame: pd.DataFrame) -> Sheet:
    """All runs with their signatures."""
    cells = [
        [
            *(row.rung, whole(row.seed), row.signature, row.state),
            *(MISSING if math.isnan(row.acc1) else f"{row.acc1:.2f}",),
            *(MISSING if math.isnan(value) else f"{value:,.0f}" for value in (row.images_per_s, row.seconds)),
            str(row.env.get("commit", MISSING))[:9],
        ]
        for row in frame.itertuples()
    ]
    header = ("rung", "seed", "run", "state", "accuracy, %", "images/s", "seconds", "commit")
    columns = ["rung", "seed", "signature", "state", "acc1", "images_per_s", "seconds"]
    data = frame[columns].assign(commit=[env.get("commit", "") for env in frame["env"]])
    return Sheet("All runs", header, cells, data, align="lrllrrrl")


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
