"""Each statistic against SciPy's own, a closed form or its own definition by simulation."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from analysis import stats


@pytest.mark.parametrize("n, spread", [(3, 0.1), (5, 0.5), (12, 0.2)])
def test_equivalence_is_two_one_sided_t_tests(n, spread):
    values = np.random.default_rng(n).normal(0.1, spread, n)
    above = scipy_stats.ttest_1samp(values, -0.5, alternative="greater").pvalue
    below = scipy_stats.ttest_1samp(values, 0.5, alternative="less").pvalue
    assert stats.equivalence(values) == pytest.approx(max(above, below))
    low, high = scipy_stats.t.interval(0.90, n - 1, values.mean(), scipy_stats.sem(values))
    assert (stats.equivalence(values) < 0.05) == (low > -0.5 and high < 0.5)


def test_equivalence_needs_a_spread():
    assert math.isnan(stats.equivalence([0.2, 0.2, 0.2]))
    assert math.isnan(stats.equivalence([0.2]))
    assert math.isnan(stats.equivalence([]))


def test_holm_is_the_step_down_of_its_definition():
    p = np.random.default_rng(0).uniform(0, 0.2, 9)
    adjusted = stats.holm(pd.Series(p))
    order = np.argsort(p)
    for place, i in enumerate(order):
        assert adjusted[i] == pytest.approx(min(1, max((9 - k) * p[order[k]] for k in range(place + 1))))


def test_mcnemar_is_the_binomial_test_of_the_discordant():
    rng = np.random.default_rng(1)
    first, second = rng.random(300) < 0.9, rng.random(300) < 0.85
    gains, losses = int((first & ~second).sum()), int((~first & second).sum())
    assert stats.mcnemar(first, second) == pytest.approx(scipy_stats.binomtest(gains, gains + losses).pvalue)
    assert stats.mcnemar(first, first) == 1.0


def test_bca_is_scipys_for_one_and_for_two_samples():
    rng = np.random.default_rng(2)
    a, b = rng.exponential(1, 15), rng.exponential(2, 25)
    draws = [sample[rng.integers(0, len(sample), (20_000, len(sample)))].mean(1) for sample in (a, b)]
    ours = stats.bca(a.mean(), draws[0], [a - a.mean()])
    theirs = scipy_stats.bootstrap((a,), np.mean, n_resamples=20_000, method="BCa", rng=3).confidence_interval
    assert ours[1:] == pytest.approx(theirs, abs=0.03)
    ours = stats.bca(a.mean() - b.mean(), draws[0] - draws[1], [a - a.mean(), b.mean() - b])

    def difference(a, b, axis=-1):
        return a.mean(axis) - b.mean(axis)

    theirs = scipy_stats.bootstrap((a, b), difference, n_resamples=20_000, method="BCa", rng=3).confidence_interval
    assert ours[1:] == pytest.approx(theirs, abs=0.05)


def test_bca_keeps_what_is_infinite_and_drops_what_is_undefined():
    values = np.array([1.0, 2.0, 3.0, np.inf, np.nan] * 100)
    value, low, high = stats.bca(2.0, values, [])
    assert (value, low, high) == (2.0, 1.0, math.inf)
    assert all(math.isnan(end) for end in stats.bca(2.0, np.array([np.nan]), [])[1:])


def test_jackknife_of_a_mean_is_the_deviation():
    values = np.random.default_rng(0).normal(size=7)
    without = np.array([np.delete(values, i).mean() for i in range(7)])
    assert stats.jackknife(without) == pytest.approx(values - values.mean())


def test_paired_bootstrap_has_the_variance_of_crossed_draws():
    """Var of the mean under crossed resampling: seeds, examples and their interaction, in closed form."""
    rng = np.random.default_rng(4)
    S, N = 12, 400
    d_SN = 100.0 * (rng.choice([-1, 0, 1], (S, N), p=[0.08, 0.8, 0.12]))
    mean = d_SN.mean()
    seeds, examples = d_SN.mean(1) - mean, d_SN.mean(0) - mean
    rest = d_SN - mean - seeds[:, None] - examples[None]
    error = math.sqrt((seeds**2).sum() / S**2 + (examples**2).sum() / N**2 + (rest**2).sum() / (S * N) ** 2)
    value, low, high = stats.paired_bootstrap(d_SN)
    assert value == pytest.approx(mean)
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.05)
    assert stats.paired_bootstrap(d_SN) == stats.paired_bootstrap(d_SN)


def test_paired_bootstrap_covers_the_truth():
    """A true gain of 2 points, seeds that vary by 1, examples of unequal difficulty."""
    rng = np.random.default_rng(5)
    hits = 0
    for _ in range(100):
        hard = rng.beta(0.3, 0.3, 300)[None]
        shift = rng.normal(0, 0.01, (10, 1))
        first = rng.random((10, 300)) < np.clip(0.05 + 0.85 * hard + 0.02 + shift, 0, 1)
        second = rng.random((10, 300)) < 0.05 + 0.85 * hard
        _, low, high = stats.paired_bootstrap(100.0 * first - 100.0 * second, resamples=500)
        hits += low <= 2 <= high
    assert 86 <= hits <= 100


@pytest.mark.parametrize("n, expected", [(3, 3.26), (5, 1.68), (10, 1.00)])
def test_detectable_effect_has_the_power_asked_for(n, expected):
    effect = stats.detectable(n)
    assert effect == pytest.approx(expected, abs=0.005)
    critical = scipy_stats.t.ppf(0.975, n - 1)
    shifted = scipy_stats.nct(n - 1, effect * math.sqrt(n))
    assert shifted.sf(critical) + shifted.cdf(-critical) == pytest.approx(0.8, abs=1e-6)
    values = np.random.default_rng(0).normal(effect, 1, (20_000, n))
    assert (scipy_stats.ttest_1samp(values, 0, axis=1).pvalue < 0.05).mean() == pytest.approx(0.8, abs=0.01)


def test_detectable_effect_of_one_pair_is_none():
    assert math.isnan(stats.detectable(1))
