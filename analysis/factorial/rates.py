"""The learning rate of each rung from a tuning sweep: the peak of a parabola with one curvature for all rungs.

accuracy = top - c (log10 lr - peak)^2, with c common, is linear in other numbers: least squares. The best of a few
rates by one seed would be an unequal handicap: with noise of 0.7 points and three rates half a decade apart it costs a
rung 0.2 to 0.3 points at random, the common parabola 0.02 to 0.1. Judged on held-out images, accuracies of a tuning
sweep say which rate to train with, and nothing else.
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
HEADER = ("rung", "rate", "peak", "± (decades)", "regret", "best tried", "tried", "grid")


@dataclass(frozen=True)
class Peak:
    """What the fit says of one rung."""

    rung: str
    rate: float
    """The peak in two digits."""
    peak: float
    error: float
    """Standard error of the peak, in decades; NaN where the runs leave no degree of freedom."""
    regret: float
    """Points that are lost by not knowing the peak better, c times its squared error: an expectation."""
    best: float
    """Of the rates that were tried, by mean accuracy."""
    tried: tuple[float, ...]
    diverged: tuple[float, ...]
    wider: float
    """Where the peak lies outside what was tried: the rate to add, half a decade further; NaN inside."""


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


def fit(rows: pd.DataFrame) -> tuple[list[Peak], float]:
    """The peaks by rung, in order of appearance, and c in points per squared decade.

    Raises Refusal where accuracies are no hill (c is not above 0), or a rung has fewer than two rates with a result.
    """
    done = rows[rows["state"] == DONE]
    rungs = list(dict.fromkeys(rows["rung"]))
    x, y = np.log10(done["lr"].to_numpy(float)), done["acc1"].to_numpy(float)
    if thin := [rung for rung in rungs if done.loc[done["rung"] == rung, "lr"].nunique() < 2]:
        raise Refusal(f"{thin[0]} has fewer than two rates with a result, so that nothing tells its peak", DATA)
    middle = float(x.mean())  # for the arithmetic alone
    x = x - middle
    place = {rung: index for index, rung in enumerate(rungs)}
    index = done["rung"].map(place).to_numpy()
    X = np.zeros((len(y), 2 * len(rungs) + 1))
    X[np.arange(len(y)), 2 * index], X[np.arange(len(y)), 2 * index + 1], X[:, -1] = 1, x, -(x**2)
    if np.linalg.matrix_rank(X) < X.shape[1]:
        raise Refusal("no rung has three rates with a result, so that nothing tells the curvature", DATA)
    inverse = np.linalg.inv(X.T @ X)
    solution = inverse @ X.T @ y
    df = len(y) - X.shape[1]
    variance = float(((y - X @ solution) ** 2).sum()) / df if df > 0 else math.nan
    c = float(solution[-1])
    if c <= 0:
        raise Refusal("accuracies do not fall off on both sides of a rate, so there is no peak; try a wider grid", DATA)
    peaks = []
    for rung in rungs:
        slope = 2 * place[rung] + 1
        at = float(solution[slope]) / (2 * c)
        # Of a ratio, by the first derivatives.
        gradient = np.zeros(len(solution))
        gradient[slope], gradient[-1] = 1 / (2 * c), -at / c
        error = math.sqrt(variance * (gradient @ inverse @ gradient)) if df > 0 else math.nan
        peaks.append(_peak(rows[rows["rung"] == rung], rung, at + middle, error, c))
    return peaks, c


def _peak(own: pd.DataFrame, rung: str, at: float, error: float, c: float) -> Peak:
    done = own[own["state"] == DONE]
    tried = tuple(sorted(set(done["lr"])))
    rate = float(f"{10**at:.1e}")
    low, high = min(own["lr"]), max(own["lr"])  # a rate that diverged ends the grid, too: nothing lies beyond
    further = high * HALF_DECADE if 10**at > high else low / HALF_DECADE
    is_inside = low <= 10**at <= high
    wider = math.nan if is_inside else float(f"{10 ** (round(2 * math.log10(further)) / 2):.0e}")  # 1, 3, 10, 30
    best = float(done.groupby("lr")["acc1"].mean().idxmax())
    diverged = tuple(sorted(set(own.loc[own["state"] != DONE, "lr"])))
    return Peak(rung, rate, at, error, c * error**2, best, tried, diverged, wider)


def sheet(peaks: Sequence[Peak], c: float) -> Sheet:
    """The peaks, to be shown."""
    rows = []
    for own in peaks:
        where = "inside" if math.isnan(own.wider) else f"outside: also try {own.wider:g}"
        where += "".join(f", diverged at {lr:g}" for lr in own.diverged)
        cells = [own.rung, f"{own.rate:.1e}", f"{own.peak:.2f}"]
        cells += [MISSING if math.isnan(own.error) else f"{own.error:.2f}", number(own.regret), f"{own.best:g}"]
        rows.append([*cells, " ".join(f"{lr:g}" for lr in own.tried), where])
    note = f"accuracy = top - {c:.2f} (log10 lr - peak)^2, one curvature for all; regret: points, expected by the error"
    data = pd.DataFrame([vars(own) for own in peaks])
    return Sheet("Learning rates", HEADER, rows, data, note, align="lrrrrrll")


def literal(peaks: Sequence[Peak]) -> str:
    """The table LR, for the study's file. Raises Refusal while a peak lies outside what was tried."""
    if outside := [own for own in peaks if not math.isnan(own.wider)]:
        listed = ", ".join(f"{own.rung}: {own.wider:g}" for own in outside)
        raise Refusal(
            f"no table LR: {len(outside)} peaks lie outside the grid; add these rates (WIDER): {listed}", DATA
        )
    return "\n".join(["LR = {", *(f"    {_quoted(own.rung)}: {own.rate:.1e}," for own in peaks), "}"])


def _quoted(text: Any) -> str:
    return '"' + str(text) + '"'
