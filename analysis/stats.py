"""The statistics of a comparison: intervals, tests, corrections. Arrays in, numbers out; no run is read here.

What varies is the seed (initialisation, data order, augmentation), so a sample is one value per seed, and two rungs are
compared by the differences between runs that share a seed. Differences that are all equal say nothing of their spread
(a test set of 500 images counts in steps of 0.2 points): they have an interval of width 0 and no p value.

A family, within which p values are corrected, is what one table asks of one kind of images: rungs on whole images are
one, the same rungs on shuffled images another (`holm_by`).
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.special import bdtr, nctdtr, ndtr, ndtri, stdtr, stdtrit

UNDECIDED = "undecided"  # neither different nor equal, which is not the same as equal
MARGIN = 0.5  # points of accuracy: what counts as no difference
_SPREADLESS = 1e-9


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


class Bounds(NamedTuple):
    """An estimate and the ends of its 95 % interval; an end may be infinite, or NaN where there is no interval."""

    value: float
    low: float
    high: float


def interval(values: Sequence[float] | np.ndarray) -> Interval:
    """Student's t-interval of the mean; values that are NaN are left out."""
    values = np.asarray(values, float)
    values = values[~np.isnan(values)]
    n = len(values)
    if n < 2:
        return Interval(float(values[0]) if n else math.nan, math.nan, n, math.nan)
    mean, error = round(float(values.mean()), 9), float(values.std(ddof=1)) / math.sqrt(n)  # equal means stay equal
    if error < _SPREADLESS:  # equal but for rounding
        return Interval(mean, 0.0, n, math.nan)
    return Interval(mean, float(stdtrit(n - 1, 0.975)) * error, n, float(2 * stdtr(n - 1, -abs(mean) / error)))


def within(mean: float, half: float, low: float = 0.0, high: float = 100.0) -> tuple[float, float]:
    """The ends of an interval, at most those of the scale: no accuracy is above 100 %. Cutting costs no coverage."""
    return max(mean - half, low), min(mean + half, high)


def equivalence(values: Sequence[float] | np.ndarray, margin: float = MARGIN) -> float:
    """p of two one-sided t-tests (TOST) that the mean lies within ± margin; NaN without a spread.

    Below 0.05 just where the 90 % interval of the mean lies inside the margin (Schuirmann 1987).
    """
    values = np.asarray(values, float)
    values = values[~np.isnan(values)]
    n = len(values)
    error = float(values.std(ddof=1)) / math.sqrt(n) if n > 1 else 0.0
    if error < _SPREADLESS:
        return math.nan
    return float(stdtr(n - 1, (abs(float(values.mean())) - margin) / error))


def holm(p: pd.Series) -> pd.Series:
    """Holm's step-down adjusted p values; NaN is not a test."""
    ordered = p.dropna().sort_values()
    factors = np.arange(len(ordered), 0, -1)
    return (ordered * factors).cummax().clip(upper=1).reindex(p.index)


def holm_by(p: pd.Series, family: Sequence[Any] | pd.Series) -> pd.Series:
    """`holm` within each family, by the label of each p."""
    families = pd.Series(list(family), index=p.index, dtype=object)
    parts = [holm(p[families == label]) for label in dict.fromkeys(families)]
    return pd.concat(parts).reindex(p.index) if parts else p.astype(float)


def verdict(value: float, p: float, equal_p: float, words: tuple[str, str, str]) -> str:
    """What two corrected tests, of a difference and of none within the margin, say of an effect; both may pass.

    Args:
        words: for an effect above 0, for one below, for one within the margin.
    """
    above, below, equal = words
    said = [above if value > 0 else below] if p < 0.05 else []
    return ", but ".join([*said, *([equal] if equal_p < 0.05 else [])]) or UNDECIDED


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """Exact two-sided p that two trained models, right (True) or wrong on the same examples, are equally accurate.

    It speaks of these two sets of weights only: another seed is another model.
    """
    gains, losses = int((first & ~second).sum()), int((~first & second).sum())
    return min(1.0, 2 * float(bdtr(min(gains, losses), gains + losses, 0.5)))


def bca(value: float, resampled: np.ndarray, influences: Sequence[np.ndarray]) -> Bounds:
    """95 % interval from bootstrap values, bias-corrected and accelerated (Efron 1987; several samples as in SciPy).

    Args:
        value: the estimate.
        resampled: its bootstrap values; NaN (undefined there) is left out, infinite ones count.
        influences: per sample that was drawn from, (n - 1) x (mean of the leave-one-out values - each of them).
    """
    resampled = resampled[~np.isnan(resampled)]
    if not len(resampled) or math.isnan(value):
        return Bounds(value, math.nan, math.nan)
    below = ((resampled < value).mean() + (resampled <= value).mean()) / 2
    bias = ndtri(np.clip(below, 0.5 / len(resampled), 1 - 0.5 / len(resampled)))
    finite = [u / len(u) for u in influences if np.isfinite(u).all()]
    square = sum(float((u**2).sum()) for u in finite)
    acceleration = sum(float((u**3).sum()) for u in finite) / (6 * square**1.5) if square > 0 else 0.0
    z = bias + ndtri(np.array([0.025, 0.975]))
    low, high = np.quantile(resampled, ndtr(bias + z / (1 - acceleration * z)), method="inverted_cdf")
    return Bounds(value, float(low), float(high))


def paired_bootstrap(differences_SN: np.ndarray, resamples: int = 10_000, seed: int = 0) -> Bounds:
    """Mean difference with its BCa interval over seeds and over test examples.

    Both are drawn with replacement and crossed: all seeds are tested on the same examples, so one draw of examples
    serves all seeds. Few seeds make it too narrow (a draw of n has (n-1)/n of the variance): below ten the t-interval
    is the one of record, and this one tells what the finite test set adds.

    Args:
        differences_SN: per seed and test example; for accuracies -100, 0 or 100 points.
    """
    S, N = differences_SN.shape
    # Examples with equal differences in all seeds are one cell of a multinomial: the same draw, far fewer numbers.
    cells_SK, counts = np.unique(differences_SN, axis=1, return_counts=True)
    rng = np.random.default_rng(seed)
    values = np.empty(resamples)
    for part in np.array_split(np.arange(resamples), max(1, resamples // 500)):
        seeds = rng.multinomial(S, np.full(S, 1 / S), len(part))
        examples = rng.multinomial(N, counts / N, len(part))
        values[part] = ((seeds @ cells_SK) * examples).sum(1) / (S * N)
    mean = float(differences_SN.mean())
    return bca(mean, values, [differences_SN.mean(1) - mean, differences_SN.mean(0) - mean])


def resample_seeds(n: int, resamples: int, seed: int = 0) -> np.ndarray:
    """Draws of n seeds with replacement, (resamples, n) indices."""
    return np.random.default_rng(seed).integers(0, n, (resamples, n))


def jackknife(leave_one_out: np.ndarray) -> np.ndarray:
    """Influence of each value, for `bca`, from the estimates without it."""
    return (len(leave_one_out) - 1) * (leave_one_out.mean() - leave_one_out)


def detectable(n: int, power: float = 0.8) -> float:
    """Smallest true mean difference, in standard deviations of a pair's, that n pairs show at p < 0.05 so often.

    By the noncentral t distribution; NaN for n < 2.
    """
    if n < 2:
        return math.nan
    critical = float(stdtrit(n - 1, 0.975))
    low, high = 0.0, 1e3
    for _ in range(60):
        middle = (low + high) / 2
        shift = middle * math.sqrt(n)
        found = 1 - float(nctdtr(n - 1, shift, critical)) + float(nctdtr(n - 1, shift, -critical))
        # For a huge shift nctdtr gives NaN; the power is then 1.
        low, high = (middle, high) if found < power else (low, middle)
    return high
