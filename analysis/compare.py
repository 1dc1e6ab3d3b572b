"""Runs to rungs: one row per run, then one row per rung with its interval and its gain over the rung before.

The accuracy of record is eval_top1 of the last epoch; choosing the best epoch would select on the test set. A run that
is not done has no accuracy, but it stays a row with its state. What is missing is NaN, never 0.

Intervals are 95 % Student t-intervals over seeds. A gain is the mean of the differences between runs of equal seed. If
those differences are all equal, their spread says nothing (a test set of 500 images counts in steps of 0.2 points): the
interval is then of width 0 and is not taken for evidence.
"""

import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from rich import box
from rich.table import Table
from scipy.special import stdtr, stdtrit

from engine import cli
from engine.errors import Refusal
from engine.run import Run
from engine.store import DONE, PLANNED, read_json, read_run, read_status, read_summary

REFERENCE = "timm"  # the family of every `timm/NAME`
UNREADABLE = "unreadable"
RECIPE = [field for field in Run.model_fields if field not in ("model", "model_kwargs", "seed")]
DATA = ("dataset", "train_samples")  # accuracies on different data are never compared
MEASURED = ["acc1", "params", "macs", "images_per_s", "epoch", "seconds"]
COLUMNS = [
    *("folder", "signature", "rung", "condition", "family", "state", *MEASURED, "error_class", "error", "env"),
    *Run.model_fields,
]
RUNG_COLUMNS = ["rung", "family", "model", "condition", "before", "n", "n_missing", "params", "macs", "images_per_s"]
RUNG_COLUMNS += ["acc1", "acc1_half", "gain", "gain_half", "gain_n", "gain_p", "gain_clear", "gain_p_holm"]
HEADER = ("rung", "family", "parameters", "MACs", "images/s", "n", "accuracy, %", "gain over the rung before")
NOTE = "* the 95 % interval of the paired gain excludes 0"
MISSING = "–"


class Interval(NamedTuple):
    """Mean, half-width of its 95 % interval (NaN for n < 2), number of seeds, two-sided p of mean 0 (NaN if none)."""

    mean: float
    half: float
    n: int
    p: float

    @property
    def clear(self) -> bool:
        """Whether the interval excludes 0, on the evidence of a spread."""
        return self.p < 0.05


def interval(values: Sequence[float] | np.ndarray) -> Interval:
    """Student's t-interval of the mean; values that are NaN are left out."""
    values = np.asarray(values, float)
    values = values[~np.isnan(values)]
    n = len(values)
    if n < 2:
        return Interval(float(values[0]) if n else math.nan, math.nan, n, math.nan)
    mean, error = round(float(values.mean()), 9), float(values.std(ddof=1)) / math.sqrt(n)  # equal means stay equal
    if error < 1e-9:  # equal but for rounding
        return Interval(mean, 0.0, n, math.nan)
    return Interval(mean, float(stdtrit(n - 1, 0.975)) * error, n, float(2 * stdtr(n - 1, -abs(mean) / error)))


def load(folders: Sequence[Path], runs: Sequence[Run] | None = None) -> pd.DataFrame:
    """One row per run, in the order given; `acc1` is NaN unless the run is done.

    Args:
        folders: run folders; one that does not exist yet is a row with state "planned".
        runs: the runs of these folders, where known; they also tell the rung of a run that has no folder yet.

    `rung` is Run.rung and, where one rung was trained in several ways, the fields that differ (`condition`).
    """
    pairs = dict(zip(folders, runs or [None] * len(folders), strict=True))
    rows = [_row(folder, run) for folder, run in pairs.items()]
    frame = pd.DataFrame(rows, columns=COLUMNS)
    frame["condition"] = _conditions(rows)
    frame["rung"] = (frame["rung"] + " " + frame["condition"]).str.strip()
    return frame


def _row(folder: Path, run: Run | None) -> dict[str, Any]:
    signature, model, seed = _name(folder)
    row: dict[str, Any] = {**dict.fromkeys(COLUMNS, math.nan), "error_class": "", "error": "", "env": {}}
    row |= {"folder": folder, "signature": signature, "rung": model, "model": model, "seed": seed, "state": PLANNED}
    try:
        if run is None and (folder / "args.yaml").exists():
            run = read_run(folder)
        if run is not None:
            row |= {**run.record(), "signature": run.signature, "rung": run.rung}
        row |= _measured(folder)
    except (Refusal, ValueError, KeyError) as error:
        row |= {"state": UNREADABLE, "error_class": UNREADABLE, "error": str(error)}
    row["family"] = REFERENCE if row["model"].startswith("timm/") else row["model"].partition("_")[0]
    return row


def _name(folder: Path) -> tuple[str, str, float]:
    """Signature, model and seed as the folder's name tells them."""
    match = re.fullmatch(r"([0-9a-f]{8})-(.+)-s(\d+)", folder.name)
    if not match:
        return folder.name, folder.name, math.nan
    return match[1], re.sub(r"^timm-", "timm/", match[2]), int(match[3])


def _measured(folder: Path) -> dict[str, Any]:
    status, profile = read_status(folder), read_json(folder / "profile.json")
    lines = str(status.get("error") or "").strip().splitlines()
    numbers = {**profile, **{key: status.get(key) for key in ("images_per_s", "epoch", "seconds")}}
    row: dict[str, Any] = {key: _number(numbers.get(key)) for key in MEASURED}
    row |= {"state": status["state"], "error_class": status.get("error_class") or "", "error": (lines or [""])[-1]}
    row["env"] = read_json(folder / "env.json")
    if status["state"] == DONE:
        epochs = read_summary(folder)
        row |= {"acc1": epochs[-1]["eval_top1"]} if epochs else {"error": "done, but without a summary.csv"}
    return row


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan


def _conditions(rows: list[dict[str, Any]]) -> list[str]:
    """Per run, the fields besides model, arguments and seed that tell apart what must not be pooled."""
    text = pd.DataFrame([{field: _text(row[field]) for field in ("rung", *RECIPE)} for row in rows])
    known = text[[isinstance(row["epochs"], int) for row in rows]]
    fields: list[str] = []
    for field in sorted(RECIPE, key=lambda field: field not in DATA):
        varies = known.groupby("rung")[field].nunique().max() > 1 or (field in DATA and known[field].nunique() > 1)
        # A field that follows from those already there (batch size and learning rate in step) adds nothing.
        if varies and not (fields and known.groupby(fields)[field].nunique().max() == 1):
            fields.append(field)
    labels = known[fields].apply(lambda row: " ".join(f"{key}={row[key]}" for key in fields), axis=1)
    return labels.reindex(text.index, fill_value="").tolist() if fields else [""] * len(rows)


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else "default" if value is None else str(value)


def paired(frame: pd.DataFrame, rung: str, over: str) -> Interval:
    """The gain of one rung over another, from the seeds that both have finished."""
    by_seed = [frame[frame["rung"] == name].set_index("seed")["acc1"].dropna() for name in (rung, over)]
    return interval((by_seed[0] - by_seed[1]).to_numpy())


def rungs(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per rung, in order of first appearance.

    The rung before (`before`) is the last earlier one under the same condition, so that a gain never mixes two recipes.
    References of timm are no rungs of our ladder: they are compared with one another only.
    `gain_p_holm` is Holm's correction of the gain's p over all steps of this frame; `gain_clear` is without it.
    """
    rows, last = [], {}
    for rung, group in frame.groupby("rung", sort=False):
        accuracy = interval(group["acc1"])
        family, condition = group[["family", "condition"]].iloc[0]
        before = last.get((condition, family == REFERENCE), "")
        gain = paired(frame, rung, before) if before else interval([])
        last[condition, family == REFERENCE] = rung
        row = {
            "rung": rung,
            "family": family,
            "model": group["model"].iloc[0],
            "condition": condition,
            "before": before,
        }
        row |= {"n": accuracy.n, "n_missing": len(group) - accuracy.n}
        row |= {
            key: group[key].dropna().iloc[0] if group[key].notna().any() else math.nan for key in ("params", "macs")
        }
        row |= {"images_per_s": group.loc[group["acc1"].notna(), "images_per_s"].median()}
        row |= {"acc1": accuracy.mean, "acc1_half": accuracy.half}
        row |= {"gain": gain.mean, "gain_half": gain.half, "gain_n": gain.n, "gain_p": gain.p, "gain_clear": gain.clear}
        rows.append(row)
    table = pd.DataFrame(rows, columns=RUNG_COLUMNS)
    table["gain_p_holm"] = holm(table["gain_p"])
    return table


def holm(p: pd.Series) -> pd.Series:
    """Holm's step-down adjusted p values; NaN is not a test."""
    ordered = p.dropna().sort_values()
    factors = np.arange(len(ordered), 0, -1)
    return (ordered * factors).cummax().clip(upper=1).reindex(p.index)


def curves(frame: pd.DataFrame) -> pd.DataFrame:
    """summary.csv of all done runs as one long frame: rung, family, seed and the file's columns."""
    parts = [
        pd.DataFrame(read_summary(row.folder)).assign(rung=row.rung, family=row.family, seed=row.seed)
        for row in frame[frame["acc1"].notna()].itertuples()
    ]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def quantity(value: float) -> str:
    """Three digits and a prefix: 18.5 M; a dash for NaN."""
    if math.isnan(value):
        return MISSING
    for scale, prefix in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= 0.9995 * scale:
            return f"{value / scale:#.3g}".rstrip(".") + prefix
    return f"{value:.0f}"


def plus_minus(mean: float, half: float, n: int, sign: str = "") -> str:
    """97.20 ± 0.31; with one seed, 97.20 (n=1); with none, a dash."""
    if n == 0 or math.isnan(mean):
        return MISSING
    return f"{mean:{sign}.2f}".replace("-", "−") + (f" ± {half:.2f}" if n > 1 else " (n=1)")


def gain_text(row: Any) -> str:
    """A gain with its interval and, where that excludes 0, a star."""
    return plus_minus(row.gain, row.gain_half, row.gain_n, "+") + ("*" if row.gain_clear else "")


def count_text(row: Any) -> str:
    """Finished runs: 5, or 3 of 5."""
    return f"{row.n} of {row.n + row.n_missing}" if row.n_missing else str(row.n)


def cells(table: pd.DataFrame) -> list[list[str]]:
    """The text of the table of rungs, under HEADER."""
    return [
        [
            *(row.rung, row.family, quantity(row.params), quantity(row.macs)),
            MISSING if math.isnan(row.images_per_s) else f"{row.images_per_s:,.0f}",
            *(count_text(row), plus_minus(row.acc1, row.acc1_half, row.n), gain_text(row)),
        ]
        for row in table.itertuples()
    ]


def render(table: pd.DataFrame) -> Table:
    """For rich; without lines where the output is not a terminal."""
    result = Table(box=box.SIMPLE_HEAD if sys.stdout.isatty() else None, caption=NOTE, caption_justify="left")
    rows = cells(table)
    for i, name in enumerate(HEADER):
        # Numbers are never broken; the name of the rung is what gives way on a narrow terminal.
        width = max((len(row[i]) for row in rows), default=0) if i else None
        result.add_column(name, justify="right" if i > 1 else "left", overflow="fold", min_width=width)
    for row in rows:
        result.add_row(*(text.replace("[", r"\[") for text in row))
    return result


def show(table: pd.DataFrame) -> None:
    """Print the table."""
    cli.show(render(table))


def markdown(table: pd.DataFrame) -> str:
    """A table for GitHub."""
    lines = ["| " + " | ".join(HEADER) + " |", "|:--|:--|" + "--:|" * (len(HEADER) - 2)]
    for row in cells(table):
        rung, *others = (text.replace("|", r"\|").replace("*", r"\*") for text in row)
        lines.append("| " + " | ".join([f"`{rung}`", *others]) + " |")
    return "\n".join([*lines, "", NOTE.replace("*", r"\*"), ""])


def latex(table: pd.DataFrame) -> str:
    """A tabular for the booktabs package."""
    lines = [rf"\begin{{tabular}}{{ll{'r' * (len(HEADER) - 2)}}}", r"\toprule"]
    lines += [" & ".join(_tex(name) for name in HEADER) + r" \\", r"\midrule"]
    for row in cells(table):
        rung, *others = map(_tex, row)
        lines.append(" & ".join([rf"\texttt{{{rung}}}", *others]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", f"% {NOTE}", ""])


def _tex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"}
    special |= {"–": "--", "*": "$^{*}$", "<": r"\textless{}", ">": r"\textgreater{}"}
    special |= {char: "\\" + char for char in "&%$#_{}"}
    text = "".join(special.get(char, char) for char in text)
    return re.sub(r"^([+−])(?=\d)", lambda sign: f"${'+' if sign[1] == '+' else '-'}$", text)


def table_csv(table: pd.DataFrame) -> str:
    """All columns of the rungs, unrounded."""
    return table.to_csv(index=False)
