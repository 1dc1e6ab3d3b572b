"""Runs to rungs: one row per run, then one row per rung with its interval and its gain over the rung before.

The accuracy of record is eval_top1 of the last epoch; choosing the best epoch would select on the test set. A run that
is not done has no accuracy, but it stays a row with its state. What is missing is NaN, never 0.

Intervals are 95 % Student t-intervals over seeds. A gain is the mean of the differences between runs that share a seed
and a data order (`analysis/stats.py`); `analysis/compare/contrasts.py` compares with one baseline instead.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Table

from analysis.compare.sweeps import Sweep
from analysis.stats import Interval, holm_by, interval
from analysis.typeset import MISSING, Sheet, accuracy, count_text, plus_minus, quantity
from engine.cli import flags
from engine.errors import Refusal
from engine.fields.rungs import DATA, conditions
from engine.fields.rungs import text as _text
from engine.folder import published
from engine.folder.published import Study
from engine.folder.store import DONE, PLANNED, RUNNING, read_json, read_run, read_status, read_summary
from engine.run import Run

REFERENCE = "timm"  # the family of every `timm/NAME`
UNREADABLE = "unreadable"
ORDER = ("dataset", "train_samples", "holdout")  # with the seed, what the order of the training images depends on
MEASURED = ["acc1", "train_loss", "params", "macs", "images_per_s", "epoch", "seconds", "attempt"]
COLUMNS = [
    *("folder", "signature", "rung", "name", "condition", "data", "pair", "family", "state"),
    *(*MEASURED, "error_class", "error", "env", "table", "equivalent"),
    *Run.model_fields,
]
RUNG_COLUMNS = ["rung", "family", "model", "condition", "before", "n", "n_missing", "params", "macs", "images_per_s"]
RUNG_COLUMNS += [
    "train_loss",
    "acc1",
    "acc1_half",
    "gain",
    "gain_half",
    "gain_n",
    "gain_p",
    "gain_clear",
    "gain_p_holm",
]
HEADER = ("rung", "family", "parameters", "MACs", "images/s", "n", "training loss", "accuracy, %")
HEADER += ("gain over the rung before",)
NOTE = "± 95 % interval over seeds, of two seeds both in brackets; * the interval of the paired gain excludes 0"
NOTE += "; training loss: mean over the last epoch and seeds, of augmented, mixed and smoothed images where they are so"


def load(
    folders: Sequence[Path],
    runs: Sequence[Run | None] | None = None,
    studies: Sequence[Path] = (),
    alone: Sequence[Study] = (),
) -> pd.DataFrame:
    """One row per run, in the order given; `acc1` is NaN unless the run is done.

    Args:
        folders: run folders; one that does not exist yet is a row with state "planned".
        runs: the runs of these folders, where known; they also tell the rung of a run that has no folder yet.
        studies: folders of published tables (engine/folder/published.py), which tell of runs that are not done here.
        alone: studies of which there are tables alone; all of their rows, of whatever scheme.

    `rung` is Run.rung (`name`) and, where one rung was trained in several ways, the fields that differ (`condition`).
    Runs of equal `data` may be compared; those of equal `pair` saw the same images in the same order. `table` is the
    published table that a row is from, "" for a folder; `equivalent` is what a model that is gone is now (`Study`).
    """
    pairs = dict(zip(folders, runs or [None] * len(folders), strict=True))
    there = published.done(studies)
    rows = [_row(folder, run, there) for folder, run in pairs.items()]
    rows += [row for study in alone for row in _of_tables(study)]
    frame = pd.DataFrame(rows, columns=COLUMNS)
    frame["condition"], frame["name"] = _conditions(rows), frame["rung"]
    frame["rung"] = (frame["rung"] + " " + frame["condition"]).str.strip()
    frame["data"] = [_join(row, DATA) for row in rows]
    frame["pair"] = [_join(row, (*ORDER, "seed")) for row in rows]
    return frame


def load_found(folders: Sequence[Path], runs: Sequence[Run | None], sweeps: Sequence[Sweep | Study]) -> pd.DataFrame:
    """`load` of what `slurm.define.find.find` finds, with all tables that tell of these runs."""
    alone = [one for one in sweeps if isinstance(one, Study)]
    return load(folders, runs, published.all_places_of(sweeps), alone)


def of_sweep(sweep: Sweep | Study) -> pd.DataFrame:
    """The same of one sweep's runs."""
    return load_found(sweep.folders, sweep.runs, [sweep])


def _row(folder: Path, run: Run | None, there: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    signature, model, seed = _name(folder)
    row: dict[str, Any] = {**dict.fromkeys(COLUMNS, math.nan), "error_class": "", "error": "", "env": {}, "table": ""}
    row["equivalent"] = {}
    row |= {"folder": folder, "signature": signature, "rung": model, "model": model, "seed": seed, "state": PLANNED}
    try:
        if run is None and (folder / "args.yaml").exists():
            run = read_run(folder)
        if run is not None:
            row |= {**run.record(), "signature": run.signature, "rung": run.rung}
        row |= _measured(folder)
        if row["state"] not in (DONE, RUNNING) and (told := there.get(row["signature"])):
            row |= {**{key: _number(told.get(key)) for key in MEASURED}, "state": DONE, "error_class": "", "error": ""}
            row |= {"table": told[published.TABLE], "env": told["env"] or row["env"]}
    except (Refusal, ValueError, KeyError) as error:
        row |= {"state": UNREADABLE, "error_class": UNREADABLE, "error": str(error)}
    row["family"] = _family(row["model"])
    return row


def _of_tables(study: Study) -> Iterator[dict[str, Any]]:
    """The rows of a study of which there are tables alone."""
    last = {signature: epochs[-1] for signature, epochs in published.epochs(study.table).items()}
    for told in published.records(study.table):
        row: dict[str, Any] = {**dict.fromkeys(COLUMNS, math.nan), "equivalent": {}}
        row |= {key: value for key, value in told.items() if key in COLUMNS}
        row |= {key: _number(told.get(key)) for key in MEASURED}
        row |= {"folder": study.folder / told["folder"], "table": str(study.table), "family": _family(told["model"])}
        row["env"] = ({"processor": study.processor} if study.processor else {}) | told["env"]
        row["env"] |= {"commit": study.commit} if study.commit else {}
        if math.isnan(row["train_loss"]):
            row["train_loss"] = last.get(told["signature"], {}).get("train_loss", math.nan)
        if told["state"] != DONE:
            row["acc1"] = math.nan
        if now := dict(study.equivalents.get(row["family"], {})):
            row["equivalent"] = {"model": now.pop("model"), "model_kwargs": {**told["model_kwargs"], **now}}
        yield row


def _family(model: str) -> str:
    return REFERENCE if model.startswith("timm/") else model.partition("_")[0]


def _name(folder: Path) -> tuple[str, str, float]:
    """Signature, model and seed as the folder's name tells them."""
    match = re.fullmatch(r"([0-9a-f]{8})-(.+)-s(\d+)", folder.name)
    if not match:
        return folder.name, folder.name, math.nan
    return match[1], re.sub(r"^timm-", "timm/", match[2]), int(match[3])


def _measured(folder: Path) -> dict[str, Any]:
    status, profile = read_status(folder), read_json(folder / "profile.json")
    lines = str(status.get("error") or "").strip().splitlines()
    numbers = {**profile, **{key: status.get(key) for key in ("images_per_s", "epoch", "seconds", "attempt")}}
    row: dict[str, Any] = {key: _number(numbers.get(key)) for key in MEASURED}
    row |= {"state": status["state"], "error_class": status.get("error_class") or "", "error": (lines or [""])[-1]}
    row["env"] = read_json(folder / "env.json")
    if status["state"] == DONE:
        epochs = read_summary(folder)
        numbers = (
            {"acc1": epochs[-1]["eval_top1"], "train_loss": _number(epochs[-1].get("train_loss"))} if epochs else {}
        )
        row |= numbers or {"error": "done, but without a summary.csv"}
        if epochs and math.isnan(row["acc1"]):
            row["error"] = "done, but the last row of its summary.csv has no eval_top1"
    return row


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan


def _conditions(rows: list[dict[str, Any]]) -> list[str]:
    """`conditions` of the runs whose fields are known; "" of the others."""
    known = [isinstance(row["epochs"], int) for row in rows]
    labels = iter(conditions([row for row, is_known in zip(rows, known, strict=True) if is_known]))
    return [next(labels) if is_known else "" for is_known in known]


def _join(row: dict[str, Any], fields: Sequence[str]) -> str:
    return " ".join(_text(row[field]) for field in fields)


def accuracies(frame: pd.DataFrame) -> pd.DataFrame:
    """Accuracy by pair (rows: data order and seed) and rung (columns); NaN for a run that is not done."""
    wide = frame.pivot_table(index="pair", columns="rung", values="acc1", sort=False)
    return wide.reindex(columns=list(dict.fromkeys(frame["rung"])))


def contrast(frame: pd.DataFrame, weights: Mapping[str, float]) -> Interval:
    """A weighted sum of rungs' accuracies, from the seeds (and data orders) that all of them have finished.

    {a: 1, b: -1} is the gain of a over b; an interaction of two ingredients is {both: 1, one: -1, other: -1, none: 1}.
    """
    wide = accuracies(frame[frame["rung"].isin(list(weights))])
    return interval(sum(weight * wide[rung] for rung, weight in weights.items()).to_numpy())


def paired(frame: pd.DataFrame, rung: str, over: str) -> Interval:
    """The gain of one rung over another."""
    return contrast(frame, {rung: 1, over: -1})


def rungs(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per rung, in order of first appearance.

    The rung before (`before`) is the last earlier one under the same condition, so that a gain never mixes two recipes.
    References of timm are no rungs of our ladder: they are compared with one another only.
    `gain_p_holm` is Holm's correction of the gain's p over the steps on the same data; `gain_clear` is without it.
    """
    rows, last, wide = [], {}, accuracies(frame)
    used = frame[["rung", "family", "condition", "model", "acc1", "train_loss", "params", "macs", "images_per_s"]]
    for rung, group in used.groupby("rung", sort=False):
        level = interval(group["acc1"])
        family, condition = group[["family", "condition"]].iloc[0]
        before = last.get((condition, family == REFERENCE), "")
        gain = interval((wide[rung] - wide[before]).to_numpy() if before else [])
        last[condition, family == REFERENCE] = rung
        row = {
            "rung": rung,
            "family": family,
            "model": group["model"].iloc[0],
            "condition": condition,
            "before": before,
        }
        row |= {"n": level.n, "n_missing": len(group) - level.n}
        row |= {
            key: group[key].dropna().iloc[0] if group[key].notna().any() else math.nan for key in ("params", "macs")
        }
        row |= {"images_per_s": group.loc[group["acc1"].notna(), "images_per_s"].median()}
        row |= {"train_loss": group.loc[group["acc1"].notna(), "train_loss"].mean()}
        row |= {"acc1": level.mean, "acc1_half": level.half}
        row |= {"gain": gain.mean, "gain_half": gain.half, "gain_n": gain.n, "gain_p": gain.p, "gain_clear": gain.clear}
        rows.append(row)
    table = pd.DataFrame(rows, columns=RUNG_COLUMNS)
    table["gain_p_holm"] = holm_by(table["gain_p"], frame.drop_duplicates("rung")["data"])
    return table


def curves(frame: pd.DataFrame) -> pd.DataFrame:
    """summary.csv of all done runs as one long frame: rung, family, seed and the file's columns.

    Only epochs after which all finished runs of a rung were evaluated on all images (--val-interval).
    Of a run from a published table what is in the epochs.csv beside it.
    """
    tables = {table: published.epochs(Path(table)) for table in frame["table"].unique() if table}
    parts = [
        pd.DataFrame(_epochs_of(row, tables)).assign(rung=row.rung, family=row.family, seed=row.seed)
        for row in frame[frame["acc1"].notna()].itertuples()
    ]
    parts = [part for part in parts if len(part)]  # a published table may have no epochs beside it
    if not parts:
        return pd.DataFrame()
    table = pd.concat(parts, ignore_index=True)
    missing = table["eval_top1"].isna().groupby([table["rung"], table["epoch"]]).transform("any")
    return table[~missing].reset_index(drop=True)


def _epochs_of(row: Any, tables: Mapping[str, Mapping[str, Any]]) -> list[dict[str, float]]:
    return tables[row.table].get(row.signature, []) if row.table else read_summary(row.folder)


def gain_text(row: Any) -> str:
    """A gain with its interval and, where that excludes 0, a star."""
    return plus_minus(row.gain, row.gain_half, row.gain_n, "+") + ("*" if row.gain_clear else "")


def cells(table: pd.DataFrame) -> list[list[str]]:
    """The text of the table of rungs, under HEADER."""
    return [
        [
            *(row.rung, row.family, quantity(row.params), quantity(row.macs)),
            MISSING if math.isnan(row.images_per_s) else f"{row.images_per_s:,.0f}",
            *(count_text(row), MISSING if math.isnan(row.train_loss) else f"{row.train_loss:.3g}"),
            *(accuracy(row.acc1, row.acc1_half, row.n), gain_text(row)),
        ]
        for row in table.itertuples()
    ]


def sheet(table: pd.DataFrame) -> Sheet:
    """The table of rungs, to be shown."""
    return Sheet("", HEADER, cells(table), table, NOTE, align="ll")


def render(table: pd.DataFrame) -> Table:
    """For rich."""
    return sheet(table).rich()


def show(table: pd.DataFrame) -> None:
    """Print the table."""
    flags.show(render(table))


def markdown(table: pd.DataFrame) -> str:
    """A table for GitHub."""
    return sheet(table).markdown()


def latex(table: pd.DataFrame) -> str:
    """A tabular for the booktabs package."""
    return sheet(table).latex()


def table_csv(table: pd.DataFrame) -> str:
    """All columns of the rungs, unrounded."""
    return sheet(table).csv()
