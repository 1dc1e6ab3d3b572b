"""Criteria at the same share: means over seeds, areas under their curves, and what one is worth over another.

A difference is paired by source seed, after the mean over draws of chance; its interval is Student's over seeds. The
area is that under accuracy over the share that is gone, by trapezoids, over the width of the range: the mean accuracy
along the curve, in percent. Criteria of weights and of units are never compared: a share is not the same thing.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis import stats
from analysis.typeset import Sheet, accuracy
from engine.pruning import criteria

CHANCE = {"weights": "random", "units": "random_units"}
PRICE = ("locality", "magnitude")  # what locality costs
VALUES = ("acc_before", "acc_after")


def table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows of prune.csv, of each chain the last round, with numbers as numbers and the `form` of each criterion."""
    frame = pd.DataFrame(list(rows))
    frame = frame[frame["round"].astype(int) == frame["rounds"].astype(int)].copy()
    for key in (*VALUES, "acc_whole", "share", "kept", "macs", "macs_whole", "source_seed"):
        frame[key] = pd.to_numeric(frame[key])
    frame["form"] = [criteria.form(by) for by in frame["by"]]
    return frame


def by_seed(frame: pd.DataFrame, value: str) -> pd.DataFrame:
    """Mean over draws: one row per form, criterion and share, one column per seed of the source."""
    known = frame.dropna(subset=value)
    return known.pivot_table(value, ["form", "by", "share"], "source_seed", aggfunc="mean", sort=True)


def cells(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per criterion, share and time: n seeds, mean, half-width of the 95 % interval; MACs left, in percent."""
    found = []
    left = (100 * frame["macs"] / frame["macs_whole"]).groupby([frame["by"], frame["share"]]).mean()
    for value in VALUES:
        for (form, by, share), each in by_seed(frame, value).iterrows():
            one = stats.interval(each)
            cell = {"form": form, "by": by, "share": share, "when": value.removeprefix("acc_")}
            found.append(cell | {"macs_left": left[by, share], "n": one.n, "mean": one.mean, "half": one.half})
    return pd.DataFrame(found, columns=["form", "by", "share", "when", "macs_left", "n", "mean", "half"])


def area(shares: Sequence[float], accuracies: Sequence[float]) -> float:
    """Mean accuracy along the curve; NaN for less than two shares."""
    order = np.argsort(shares)
    x, y = np.asarray(shares, float)[order], np.asarray(accuracies, float)[order]
    return float(np.trapezoid(y, x) / (x[-1] - x[0])) if len(x) > 1 else math.nan


def differences(frame: pd.DataFrame) -> pd.DataFrame:
    """Each criterion over chance of its form, and locality over magnitude: by share and time, n, mean, half and p; p
    after Holm over the shares of one comparison."""
    found = []
    for value in VALUES:
        wide = by_seed(frame, value)
        for form, by, share in wide.index:
            for over in (CHANCE[form], PRICE[1] if by == PRICE[0] else None):
                if over is None or over == by or (form, over, share) not in wide.index:
                    continue
                one = stats.interval(wide.loc[(form, by, share)] - wide.loc[(form, over, share)])
                cell = {"by": by, "over": over, "share": share, "when": value.removeprefix("acc_")}
                found.append({**cell, "n": one.n, "mean": one.mean, "half": one.half, "p": one.p})
    result = pd.DataFrame(found, columns=["by", "over", "share", "when", "n", "mean", "half", "p"])
    families = [f"{row.by} {row.over} {row.when}" for row in result.itertuples()]
    result["p_holm"] = stats.holm_by(result["p"].astype(float), families)
    return result


def sheet(frame: pd.DataFrame) -> Sheet:
    """A row per criterion and share; the areas behind the last share of each criterion."""
    means, rows = cells(frame), []
    for (form, by), own in means.groupby(["form", "by"], sort=True):
        for share, each in own.groupby("share"):
            told = {one.when: accuracy(one.mean, one.half, one.n) for one in each.itertuples()}
            first = each.iloc[0]
            row = [by.replace("_", " "), form, f"{100 * share:g}", f"{first.macs_left:.1f}", str(first.n)]
            rows.append([*row, told.get("before", ""), told.get("after", "")])
        areas = [area(part["share"], part["mean"]) for _, part in own.groupby("when", sort=False)]
        if not any(math.isnan(each) for each in areas):
            told = [f"{each:.2f}" for each in areas]
            rows.append([f"{by.replace('_', ' ')}, area", form, "", "", "", *told, *[""] * (2 - len(told))])
    header = ("criterion", "takes", "gone, %", "MACs left, %", "seeds", "before", "after")
    title = "Accuracy, %, without weights or units: right after it, and after training again"
    return Sheet(title, header, rows, means, align="llrrrrr")


def difference_sheet(frame: pd.DataFrame) -> Sheet:
    """The differences as a table."""
    found = differences(frame)
    rows = [
        [
            *(row.by.replace("_", " "), row.over.replace("_", " "), f"{100 * row.share:g}", row.when, str(row.n)),
            f"{row.mean:+.2f}" + (f" ± {row.half:.2f}" if math.isfinite(row.half) else ""),
            "" if math.isnan(row.p_holm) else f"{row.p_holm:.2g}",
        ]
        for row in found.itertuples()
    ]
    header = ("criterion", "over", "gone, %", "when", "seeds", "points", "p (Holm)")
    return Sheet("What a criterion is worth over another", header, rows, found, align="llrlrrr")
