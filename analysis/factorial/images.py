"""Seeds apart from test images, and which errors are shared: from the predictions of all runs on the same images.

Two seeds differ in accuracy because one is the better model, and because a finite set of images catches them at other
mistakes. With x the correctness of run s on image i, x = mean + seed + image + rest, the variance over seeds of the
accuracy on N given images is that of the seed's part plus that of the rest / N, and the mean square of the rest is
known from a two-way table; nothing is assumed of distributions but that seeds, and images, are independent draws
(Searle, Casella and McCulloch 1992, Variance Components, ch. 4; for networks Jordan 2024, arXiv 2304.01910).

Agreement of two runs on which images are right, beyond what their accuracies give, is the error consistency of Geirhos,
Meding and Wichmann 2020 (arXiv 2006.16736, eq. 1 to 3), Cohen's kappa of correctness. Seeds of one cell agree more than
by chance, too: they are what two cells are held against.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from analysis import stats
from analysis.stats import Bounds

RESAMPLES = 2000


class Split(NamedTuple):
    """Variances of accuracy over seeds, squared points: of the runs as they were tested, and its two parts.

    `seeds` is what would be left with endless images; unbiased, so it may come out below 0.
    """

    total: float
    images: float
    seeds: float
    df: int


class Overlap(NamedTuple):
    """Error consistency of seeds of one cell (mean of both), of runs of two cells, and what is lacking between them."""

    within: float
    between: float
    lack: Bounds
    """within - between: 0 where another cell is no more than another seed."""


def split(correct_SN: np.ndarray) -> Split:
    """The two parts of the variance over the seeds of one cell. Raises ValueError for fewer than two of either."""
    S, N = correct_SN.shape
    if S < 2 or N < 2:
        raise ValueError(f"{S} seeds on {N} images: variances need two of both")
    x = 100.0 * correct_SN
    seeds, images = x.mean(1), x.mean(0)
    # Sum of squares of x - seed - image + mean, from sums alone: x is large.
    square = (x**2).sum() - N * (seeds**2).sum() - S * (images**2).sum() + S * N * x.mean() ** 2
    rest = float(square / ((S - 1) * (N - 1))) / N
    total = float(seeds.var(ddof=1))
    return Split(total, rest, total - rest, S - 1)


def pooled(splits: Sequence[Split]) -> Split:
    """Of several cells, weighted by degrees of freedom."""
    df = sum(part.df for part in splits)
    return Split(*(sum(part[i] * part.df for part in splits) / df for i in range(3)), df)


def kappa(first_N: np.ndarray, second_N: np.ndarray) -> float:
    """Error consistency of two runs; NaN where both are right everywhere, or wrong."""
    return float(_kappas(np.stack([first_N, second_N]).astype(float), np.ones((1, len(first_N))))[0, 0, 1])


def overlap(first_SN: np.ndarray, second_SN: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> Overlap:
    """How much less runs of two cells agree on their errors than seeds of one cell do.

    The interval is by bootstrap over images and over the seeds of each cell, crossed; a seed that is drawn twice is not
    paired with itself. With few seeds it is too narrow, as each `paired_bootstrap`.

    Raises ValueError for a cell with fewer than two seeds.
    """
    if min(len(first_SN), len(second_SN)) < 2:
        raise ValueError("a cell with one seed has no agreement between seeds")
    # Images that all runs answer alike are one cell of a multinomial: the same draw, far fewer numbers.
    both_RN = np.concatenate([first_SN, second_SN]).astype(np.int8)
    patterns_RK, counts = np.unique(both_RN, axis=1, return_counts=True)
    patterns_RK = patterns_RK.astype(float)
    sizes = (len(first_SN), len(second_SN))
    ones = [np.ones((1, size)) for size in sizes]
    within, between = _levels(_kappas(patterns_RK, counts[None].astype(float)), *ones)
    rng = np.random.default_rng(seed)
    values = np.empty(resamples)
    for part in np.array_split(np.arange(resamples), max(1, resamples // 100)):
        images = rng.multinomial(counts.sum(), counts / counts.sum(), len(part)).astype(float)
        drawn = [rng.multinomial(size, np.full(size, 1 / size), len(part)).astype(float) for size in sizes]
        levels = _levels(_kappas(patterns_RK, images), *drawn)
        values[part] = levels[0] - levels[1]
    lack = float(within[0] - between[0])
    return Overlap(float(within[0]), float(between[0]), stats.bca(lack, values, []))


def _kappas(correct_RK: np.ndarray, weights_DK: np.ndarray) -> np.ndarray:
    """(D, R, R): error consistency of all pairs, for each draw of weights of images."""
    total = weights_DK.sum(1)[:, None, None]
    both = np.einsum("dk,rk,qk->drq", weights_DK, correct_RK, correct_RK, optimize=True) / total
    right = np.einsum("dk,rk->dr", weights_DK, correct_RK) / total[:, 0]
    one, other = right[:, :, None], right[:, None, :]
    observed = 1 - one - other + 2 * both
    expected = one * other + (1 - one) * (1 - other)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(expected < 1, (observed - expected) / (1 - expected), np.nan)


def _levels(kappas_DRR: np.ndarray, first_DS: np.ndarray, second_DT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(D,) mean agreement within and between cells, seeds weighted by how often they were drawn; NaN without pairs."""
    S = first_DS.shape[1]
    parts = []
    for counts, block in ((first_DS, kappas_DRR[:, :S, :S]), (second_DT, kappas_DRR[:, S:, S:])):
        upper = np.triu_indices(counts.shape[1], 1)
        weights = counts[:, upper[0]] * counts[:, upper[1]]
        with np.errstate(invalid="ignore", divide="ignore"):
            parts.append((weights * block[:, *upper]).sum(1) / weights.sum(1))
    weights = first_DS[:, :, None] * second_DT[:, None, :]
    between = (weights * kappas_DRR[:, :S, S:]).sum((1, 2)) / weights.sum((1, 2))
    return (parts[0] + parts[1]) / 2, between
