"""What probes measured, on the screen."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.markup import escape
from rich.table import Table

from analysis import probes
from analysis.bias import probe_table
from analysis.compare import frames
from analysis.probes import permutation_gap
from analysis.typeset import estimate, number, plus_minus, probability
from engine.cli.flags import show

NOTE = "value ± 95 % interval over seeds, or [its ends]; of two seeds (both), of one [over test images]; the null"
PAIR_NOTE = (
    "CKA of the last blocks and its mean over depths; % of the 10 nearest images shared; [95 % interval over test "
)
PAIR_NOTE += "images]; what two seeds of one rung have is the measure of these"
GAP_NOTE = "± 95 % interval over seeds, of two both in brackets; p same: of a gap of half a point or more (TOST); "
GAP_NOTE += "both after Holm over the rungs with the same shuffle"


def show_all(folders: Sequence[Path], wanted: Sequence[str]) -> None:
    """Print a table per probe with a row per rung, and the permutation gap where there are pairs of runs for it."""
    summary = probe_table.summary(probe_table.load(folders))
    for name in wanted:
        rows = summary[summary["probe"] == name]
        if rows.empty:
            print(f"{name}: nothing to measure in these models", file=sys.stderr)
            continue
        headline = [key for key in probes.read(name)["HEADLINE"] if key in set(rows["key"])]
        table = Table("rung", "n", *headline, title=name, caption=escape(NOTE), box=None)
        for rung, group in rows.groupby("rung", sort=False):
            cells = {row.key: _text(row, probes.unit(name, row.key)) for row in group.itertuples()}
            table.add_row(escape(rung), f"{group['n'].max()}", *(cells.get(key, "–") for key in headline))
        show(table)
    if len(gaps := permutation_gap.table(frames.load(folders))):
        _show_gaps(gaps)


def show_pairs(pairs: pd.DataFrame, other: str) -> None:
    """Print `pairs.against`, a row per run."""
    keys = list(dict.fromkeys(pairs["key"]))
    table = Table("run", "rung", "seed", *keys, title=f"against {other}", caption=PAIR_NOTE, box=None)
    for (folder, rung, seed), group in pairs.groupby(["folder", "rung", "seed"], sort=False):
        cells = [
            f"{number(row.value, digits)} [{number(row.low, digits)}, {number(row.high, digits)}], null "
            f"{number(row.null, digits)}"
            for row in group.itertuples()
            for digits in [1 if row.key == "neighbours" else 2]
        ]
        table.add_row(folder.name, escape(rung), f"{seed}", *cells)
    show(table)


def _show_gaps(gaps: pd.DataFrame) -> None:
    words = ("rung", "shuffled", "n", "accuracy", "of shuffled", "gap, points", "relative gap", "p no gap", "p same")
    table = Table(*words, title="permutation_gap", caption=GAP_NOTE, box=None)
    for row in gaps.itertuples():
        numbers = (number(row.acc1), number(row.acc1_permuted), plus_minus(row.gap, row.gap_half, row.n, "+"))
        numbers += (plus_minus(row.relative, row.relative_half, row.n, "+"),)
        numbers += (probability(row.p_holm), probability(row.p_same_holm))
        count = f"{row.n} of {row.n + row.n_missing}" if row.n_missing else f"{row.n}"
        table.add_row(escape(row.rung), row.permute, count, *numbers)
    show(table)


def _text(row: Any, unit: str) -> str:
    """64.8 ± 1.2, null 10.1; what is no percentage has a digit more."""
    digits = 1 if unit in ("%", "points") else 2
    return f"{estimate(row.value, row.low, row.high, row.n, digits)}, null {number(row.null, digits)}"
