"""Dose and response: accuracy over the strictness of a dial, a curve per number of training images, and its peak.

Runs that differ in the dial's `strictness`, in the seed and in the number of images alone (and in the epochs that this
number takes at equal steps) are one study; the rate may go with the strictness, as tuned ones do, but where one
strictness was run at two, each rate is a study of its own. A curve's peak is the value of the highest mean; nothing is
fitted, so it is one of the values that were run. Its interval is by a bootstrap of residuals: those of all values of
one number of images, each from its mean and widened by sqrt(n / (n - 1)), are one pool, of which every run is drawn
anew; the ends hold 95 % of the peaks. Few seeds would leave a bootstrap of whole seeds a handful of draws.
"""

import json
import math
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

import archs
from analysis import stats
from analysis.compare.samples import images
from engine.fields.rungs import RECIPE, text

AXIS, MIXER = "strictness", "dial"
FREE = ("train_samples", "epochs", "warmup_epochs", "cooldown_epochs", "dataset")  # what equal steps change
RATE = "lr"
LEAST = 3  # values, below which there is no peak to speak of
RESAMPLES = 10_000


class Peak(NamedTuple):
    """Where a curve is highest.

    Args:
        samples: training images.
        n: seeds of the value that has fewest.
        at: the value of the peak, `low` and `high` the ends of its interval; NaN without a spread to draw from.
        at_end: share of the draws whose peak is the smallest or the largest value.
        gain: points of the peak's mean over the better of the two ends, 0 at an end. Chosen after a look, so too high.
    """

    samples: int
    n: int
    at: float
    low: float
    high: float
    at_end: float
    gain: float


def table(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per finished run of a dial: study, strictness, samples, seed, acc1, lr; studies of less than three values
    are left out.

    Args:
        frame: of `frames.load`.
    """
    done, rows = frame[frame["acc1"].notna()], []
    sizes = images(done) if len(done) else pd.Series(dtype=float)
    for place, row in done.iterrows():
        kwargs = row["model_kwargs"] if isinstance(row["model_kwargs"], dict) else {}
        if kwargs.get("mixer") != MIXER or kwargs.get("gated") or math.isnan(sizes[place]):
            continue
        own = {key: value for key, value in kwargs.items() if key != AXIS}
        recipe = [f"{field}={text(row[field])}" for field in RECIPE if field not in (*FREE, RATE) and field in row]
        study = " ".join([row["model"], json.dumps(own, sort_keys=True), *recipe])
        value = float(kwargs.get(AXIS, archs.defaults(row["model"])[AXIS]))
        told = {"study": study, "strictness": value, "samples": int(sizes[place])}
        rows.append({**told, "seed": int(row["seed"]), "acc1": float(row["acc1"]), RATE: text(row[RATE])})
    found = pd.DataFrame(rows, columns=["study", "strictness", "samples", "seed", "acc1", RATE])
    rates = found.groupby(["study", "strictness"])[RATE].transform("nunique")
    found.loc[rates.groupby(found["study"]).transform("max") > 1, "study"] += f" {RATE}=" + found[RATE]
    values = found.groupby("study")["strictness"].transform("nunique")
    return found[values >= LEAST].reset_index(drop=True)


def curves(found: pd.DataFrame) -> pd.DataFrame:
    """Mean and half-width of the 95 % interval over seeds by study, samples and strictness, and the rate of each."""
    rows = []
    for (study, samples, value), group in found.groupby(["study", "samples", "strictness"], sort=True):
        one = stats.interval(group["acc1"])
        rows.append({"study": study, "samples": samples, "strictness": value, "n": one.n, "mean": one.mean})
        rows[-1] |= {"half": one.half, RATE: group[RATE].iloc[0]}
    return pd.DataFrame(rows, columns=["study", "samples", "strictness", "n", "mean", "half", RATE])


def draws(group: pd.DataFrame, seed: int = 0, resamples: int = RESAMPLES) -> tuple[np.ndarray, np.ndarray]:
    """Means by value, and the peaks of curves drawn anew, (resamples,); NaN without residuals to draw.

    Args:
        group: rows of `table` of one study and number of images.
    """
    cells = [rows["acc1"].to_numpy() for _, rows in group.groupby("strictness", sort=True)]
    values = np.array(sorted(group["strictness"].unique()))
    means = np.array([cell.mean() for cell in cells])
    wide = [(cell - cell.mean()) * math.sqrt(len(cell) / (len(cell) - 1)) for cell in cells if len(cell) > 1]
    pool = np.concatenate(wide) if wide else np.array([])
    if len(pool) < 2:
        return means, np.full(resamples, np.nan)
    rng = np.random.default_rng(seed)
    again = [mean + rng.choice(pool, (resamples, len(cell))).mean(1) for mean, cell in zip(means, cells, strict=True)]
    return means, values[np.argmax(again, axis=0)]


def peaks(found: pd.DataFrame, study: str) -> list[Peak]:
    """The peak of each curve of a study, from the fewest images on."""
    result = []
    for samples, group in found[found["study"] == study].groupby("samples", sort=True):
        means, drawn = draws(group, seed=int(samples))
        values = np.array(sorted(group["strictness"].unique()))
        low, high = _ends(drawn)
        at_end = float(np.isin(drawn, (values[0], values[-1])).mean()) if not np.isnan(drawn).all() else math.nan
        n = int(group.groupby("strictness").size().min())
        gain = float(means.max() - max(means[0], means[-1]))
        result.append(Peak(int(samples), n, float(values[means.argmax()]), low, high, at_end, gain))
    return result


def moved(found: pd.DataFrame, study: str) -> stats.Bounds | None:
    """How far the peak moves from the fewest to the most images, with its interval; None of one number of images.

    The two curves share no run, so they are drawn apart.
    """
    own = found[found["study"] == study]
    sizes = sorted(own["samples"].unique())
    if len(sizes) < 2:
        return None
    (few, many), at = (draws(own[own["samples"] == size], seed=int(size)) for size in (sizes[0], sizes[-1])), []
    for means, size in ((few[0], sizes[0]), (many[0], sizes[-1])):
        at.append(sorted(own.loc[own["samples"] == size, "strictness"].unique())[int(means.argmax())])
    low, high = _ends(many[1] - few[1])
    return stats.Bounds(float(at[1] - at[0]), low, high)


def _ends(drawn: np.ndarray) -> tuple[float, float]:
    if np.isnan(drawn).all():
        return math.nan, math.nan
    low, high = np.quantile(drawn, [0.025, 0.975], method="inverted_cdf")
    return float(low), float(high)


def as_rows(found: list[Peak]) -> list[dict[str, Any]]:
    """For a table."""
    return [peak._asdict() for peak in found]
