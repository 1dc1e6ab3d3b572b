"""The learning rate of each rung from a tuning sweep: the peak of the parabola through its best rate and that one's
neighbours, on an axis of log10 lr.

The best of a few rates by one seed would be an unequal handicap: with noise of 0.4 to 0.7 points and rates half a
decade apart it costs a rung 0.2 to 0.3 points at random, the vertex 0.02 to 0.05 (simulated). One curvature for all
rungs, or a parabola through rates far from the peak, costs 0.4 on average and 3 at worst where a few rungs have a
narrower hill than the rest, as attention does, whose accuracy collapses at rates that others take. Judged on held-out
images, accuracies of a tuning sweep say which rate to train with, and nothing else.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis import judges
from analysis.typeset import MISSING, Sheet, number
from engine.cli import tables
from engine.errors import CLASSES, DATA, DIVERGED, Refusal
from engine.folder.store import DONE

HALF_DECADE = 10**0.5
HEADER = ("rung", "rate", "peak", "± (decades)", "c", "regret", "best tried", "tried", "grid")


@dataclass(frozen=True)
class Peak:
    """What the fit says of one rung."""

    rung: str
    rate: float
    """The peak in two digits."""
    peak: float
    """log10; of the best rate itself where it has a neighbour on one side alone, or the next one diverged."""
    curvature: float
    """c of accuracy = top - c (log10 lr - peak)^2, in points; NaN where there is no parabola."""
    error: float
    """Standard error of the peak, in decades, by the spread of seeds at one rate; NaN where there is none."""
    best: float
    """Of the rates that were tried, by mean accuracy."""
    tried: tuple[float, ...]
    diverged: tuple[float, ...]
    wider: float
    """Where the best rate is the lowest or highest that was tried: the rate to add, half a decade further; else NaN."""

    @property
    def regret(self) -> float:
        """Points that are lost by not knowing the peak better: an expectation."""
        return self.curvature * self.error**2


def load(path: Path, name: str, seeds: Collection[int] | None = None) -> pd.DataFrame:
    """The rows of a tuning sweep's runs.csv, or of its runs of these seeds.

    Columns: rung, lr, seed, state, acc1, error_class, holdout. Raises Refusal: there is none, runs have not ended, or
    test images judged some.
    """
    columns = ["rung", "lr", "seed", "state", "acc1", "error_class", "holdout"]
    if not path.exists():
        raise Refusal(f"there is no {path}; python scripts/sweep.py collect {name} writes it", DATA)
    frame = tables.read_frame(path, columns)
    if seeds is not None:
        frame = frame[frame["seed"].isin(seeds)]
        if missing := sorted({*seeds} - {*frame["seed"]}):
            raise Refusal(f"{path} has no run of seed {missing[0]}", DATA)
    ended = (frame["state"] == DONE) | (frame["error_class"] == CLASSES[DIVERGED])
    if left := int((~ended).sum()):
        again = f"python scripts/sweep.py resume {name}, then collect {name}"
        raise Refusal(f"{left} of {len(frame)} runs have not ended: {again}", DATA)
    if judges.kind(frame["holdout"]) != judges.HELD_OUT:
        raise Refusal(f"{path}: accuracies on {judges.kind(frame['holdout'])}; rates are chosen on held-out ones", DATA)
    return frame[columns]


def fit(rows: pd.DataFrame) -> list[Peak]:
    """The peaks by rung, in order of appearance. Raises Refusal where a rung has fewer than two rates with a result."""
    done = rows[rows["state"] == DONE]
    by_rate = done.groupby(["rung", "lr"])["acc1"]
    df = len(done) - by_rate.ngroups
    deviation = math.sqrt(((done["acc1"] - by_rate.transform("mean")) ** 2).sum() / df) if df else math.nan
    return [_peak(own, str(rung), deviation) for rung, own in rows.groupby("rung", sort=False)]


def _peak(own: pd.DataFrame, rung: str, deviation: float) -> Peak:
    """The peak of one rung, whose runs these are.

    Args:
        deviation: of one run from the mean of its rung and rate, in points.
    """
    cells = own[own["state"] == DONE].groupby("lr")["acc1"].agg(["mean", "count"]).sort_index()
    if len(cells) < 2:
        raise Refusal(f"{rung} has fewer than two rates with a result, so that nothing tells its peak", DATA)
    tried, best = tuple(cells.index), int(cells["mean"].argmax())
    diverged = tuple(sorted(set(own.loc[own["state"] != DONE, "lr"])))
    low, high = min(own["lr"]), max(own["lr"])  # a rate that diverged ends the grid, too: nothing lies beyond
    # What is so where the best rate has no result on both sides.
    peak, curvature, error, wider = math.log10(tried[best]), math.nan, math.nan, math.nan
    if tried[best] in (low, high):
        further = high * HALF_DECADE if tried[best] == high else low / HALF_DECADE
        wider = float(f"{10 ** (round(2 * math.log10(further)) / 2):.0e}")  # 1, 3, 10, 30
    elif 0 < best < len(tried) - 1:
        near = cells.iloc[best - 1 : best + 2]
        x = np.log10(near.index.to_numpy(float)) - peak
        L = np.linalg.inv(np.vander(x))  # from accuracies to the coefficients of x^2, x and 1
        square, slope, _ = L @ near["mean"].to_numpy()
        if square < 0:  # not where all three are equal
            # Of a ratio, by the first derivatives.
            gradient = (slope * L[0] / square - L[1]) / (2 * square)
            error = deviation * math.sqrt((gradient**2 / near["count"].to_numpy()).sum())
            peak, curvature = peak - slope / (2 * square), -square
    return Peak(rung, float(f"{10**peak:.1e}"), peak, curvature, error, tried[best], tried, diverged, wider)


def sheet(peaks: Sequence[Peak]) -> Sheet:
    """The peaks, to be shown."""
    rows = []
    for own in peaks:
        where = "inside" if math.isnan(own.wider) else f"at its end: also try {own.wider:g}"
        where += "".join(f", diverged at {lr:g}" for lr in own.diverged)
        cells = [own.rung, f"{own.rate:.1e}", f"{own.peak:.2f}"]
        cells += [MISSING if math.isnan(value) else number(value) for value in (own.error, own.curvature, own.regret)]
        rows.append([*cells, f"{own.best:g}", " ".join(f"{lr:g}" for lr in own.tried), where])
    note = (
        "accuracy = top - c (log10 lr - peak)^2 through the best rate and its neighbours; error by the spread of seeds "
        "at one rate, regret: points, expected by it"
    )
    data = pd.DataFrame([{**vars(own), "regret": own.regret} for own in peaks])
    return Sheet("Learning rates", HEADER, rows, data, note, align="lrrrrrrll")


def literal(peaks: Sequence[Peak]) -> str:
    """The table LR, for the study's file. Raises Refusal while a best rate is the lowest or highest that was tried."""
    if outside := [own for own in peaks if not math.isnan(own.wider)]:
        listed = ", ".join(f"{own.rung}: {own.wider:g}" for own in outside)
        raise Refusal(
            f"no table LR: {len(outside)} rungs are best at an end of their grid; add these rates (WIDER): {listed}",
            DATA,
        )
    return "\n".join(["LR = {", *(f"    {_quoted(own.rung)}: {own.rate:.1e}," for own in peaks), "}"])


def _quoted(text: Any) -> str:
    return '"' + str(text) + '"'
