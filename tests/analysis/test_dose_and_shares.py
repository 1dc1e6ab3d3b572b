"""Peaks of dose and response, and shares of a gap: closed forms, coverage by simulation, from runs and from tables."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import optimize, stats

from analysis.compare import frames
from analysis.factorial import dose, shares
from analysis.report.page import Page
from analysis.report.sections import softness
from engine.fields.claims import Contrast, Family
from engine.run import Run

VALUES = (0.0, 0.25, 0.5, 0.75, 1.0)


def frame_of(runs, acc):
    """As of `frames.load`, of runs that have no folder, with accuracies put in."""
    rows = frames.load([Path("/nowhere") / run.name for run in runs], runs)
    rows["acc1"], rows["state"] = [acc(run) for run in runs], "done"
    return rows


def dials(samples=(1000, 5000, None), seeds=range(3), rate=lambda value: 0.1):
    return [
        Run(model="lattice_s", model_kwargs={"mixer": "dial", "groups": 64, "strictness": value}, dataset="cifar10",
            train_samples=size, epochs=4 if size is None else 4 * 50000 // size, seed=seed, lr=rate(value))
        for value in VALUES for size in samples for seed in seeds
    ]  # fmt: skip


def strictness(run):
    return run.model_kwargs.get("strictness", 0.5)


def response(run):
    """Highest at 0.75 with 1,000 images, 0.5 with 5,000, 0.25 with all; seeds spread by 0.1."""
    top = {1000: 0.75, 5000: 0.5, None: 0.25}[run.train_samples]
    return 70 - 20 * (strictness(run) - top) ** 2 + 0.1 * (run.seed - 1)


def test_the_table_has_a_study_per_dial_and_ends_by_their_defaults():
    runs = dials()
    runs += [Run(model="lattice_s", model_kwargs={"mixer": "dial", "gated": True}, dataset="cifar10"),
             Run(model="lattice_s", model_kwargs={"mixer": "kernel"}, dataset="cifar10"),
             Run(model="lattice_s", model_kwargs={"mixer": "dial"}, dataset="cifar10", lr=0.5)]  # fmt: skip
    found = dose.table(frame_of(runs, lambda run: 50.0))
    assert len(found) == 45 and found["study"].nunique() == 1
    assert sorted(found["strictness"].unique()) == list(VALUES)
    assert sorted(found["samples"].unique()) == [1000, 5000, 50000]


def test_a_rate_that_goes_with_the_strictness_makes_one_study_and_two_rates_of_one_strictness_two():
    tuned = dose.table(frame_of(dials(rate=lambda value: 0.1 + value), response))
    assert tuned["study"].nunique() == 1 and len(tuned) == 45
    assert [peak.at for peak in dose.peaks(tuned, tuned["study"].iloc[0])] == [0.75, 0.5, 0.25]
    apart = dose.table(frame_of(dials() + dials(rate=lambda value: 0.2), response))
    assert apart.groupby("study").size().tolist() == [45, 45]


def test_peaks_are_the_highest_means_and_move_as_they_were_made_to():
    found = dose.table(frame_of(dials(), response))
    study = found["study"].iloc[0]
    peaks = dose.peaks(found, study)
    assert [(peak.samples, peak.n, peak.at) for peak in peaks] == [(1000, 3, 0.75), (5000, 3, 0.5), (50000, 3, 0.25)]
    assert all(peak.low == peak.at == peak.high and peak.at_end == 0 for peak in peaks), "1.25 points are 20 deviations"
    assert peaks[1].gain == pytest.approx(5.0)
    assert dose.moved(found, study) == (-0.5, -0.5, -0.5)
    means = dose.curves(found).set_index(["samples", "strictness"])
    assert means.loc[(5000, 0.5), "half"] == pytest.approx(stats.t.ppf(0.975, 2) * 0.1 / math.sqrt(3))


def test_draws_of_peaks_are_as_likely_as_normal_noise_makes_them():
    """Two values that matter: the share of draws is the normal probability that one mean exceeds the other."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((3, 400))
    noise = (noise - noise.mean(1, keepdims=True)) / noise.std(1, keepdims=True)
    means = (50.0, 50.05, 40.0)
    cells = zip((0.2, 0.6, 0.9), means, noise, strict=True)
    rows = [{"strictness": value, "acc1": mean + each} for value, mean, own in cells for each in own]
    _, drawn = dose.draws(pd.DataFrame(rows))
    wanted = stats.norm.cdf(0.05 / math.sqrt(2 / 400))
    assert (drawn == 0.6).mean() == pytest.approx(wanted, abs=0.015) and not (drawn == 0.9).any()


def test_without_a_spread_there_is_no_interval():
    found = dose.table(frame_of(dials(seeds=(0,)), response))
    peak = dose.peaks(found, found["study"].iloc[0])[0]
    assert peak.at == 0.75 and math.isnan(peak.low) and math.isnan(peak.at_end)
    assert dose.moved(found[found["samples"] == 1000], found["study"].iloc[0]) is None


# --- shares


def test_fieller_is_the_set_of_ratios_that_a_t_test_keeps():
    """The ends, found again as the roots of p = 0.05 of the t-test of x - r y."""
    rng = np.random.default_rng(1)
    for n in (3, 5, 8):
        y = 5 + rng.standard_normal(n)
        x = 0.4 * y + rng.standard_normal(n)
        found = shares.fieller(x, y)

        def left(r, x=x, y=y):
            return stats.ttest_1samp(x - r * y, 0).pvalue - 0.05

        if math.isnan(found.low):
            assert stats.ttest_1samp(y, 0).pvalue > 0.05
            continue
        assert found.value == pytest.approx(x.mean() / y.mean())
        assert found.low == pytest.approx(optimize.brentq(left, found.low - 2, found.value), abs=1e-9)
        assert found.high == pytest.approx(optimize.brentq(left, found.value, found.high + 2), abs=1e-9)


def test_fieller_of_a_gap_without_spread_is_students_interval_over_it():
    x = np.array([1.0, 2.0, 4.0])
    half = stats.t.ppf(0.975, 2) * x.std(ddof=1) / math.sqrt(3)
    found = shares.fieller(x, np.full(3, 4.0))
    assert found == pytest.approx((x.mean() / 4, (x.mean() - half) / 4, (x.mean() + half) / 4))


def test_fieller_covers_as_often_as_it_says():
    rng, hits, number = np.random.default_rng(2), 0, 2000
    for _ in range(number):
        common = rng.standard_normal(5)
        found = shares.fieller(1.2 + common + rng.standard_normal(5), 4 + common + rng.standard_normal(5))
        hits += math.isnan(found.low) or found.low <= 0.3 <= found.high
    assert hits / number == pytest.approx(0.95, abs=0.015)


def test_where_the_gap_is_not_shown_there_is_no_interval():
    found = shares.fieller(np.array([1.0, 2.0, 3.0]), np.array([-1.0, 3.0, 0.5]))
    assert math.isnan(found.low) and math.isnan(found.high) and found.value == pytest.approx(2 / (2.5 / 3))
    assert math.isnan(shares.fieller(np.array([1.0]), np.array([2.0])).low)


FLAT, WHOLE = "lattice_s mixer=dense_c", "lattice_s mixer=depthwise"
ARM = "lattice_s mixer=toeplitz_c"
MADE = {FLAT: 70, WHOLE: 74, ARM: 71}
ASKED = {"architecture": {WHOLE: 1, FLAT: -1}, "places": {ARM: 1, FLAT: -1}, "other": {WHOLE: 1, ARM: -1}}


def cells(seeds=range(5)):
    mixers = ("dense_c", "depthwise", "toeplitz_c")
    return [Run(model="lattice_s", model_kwargs={"mixer": m}, dataset="cifar10", seed=s) for s in seeds for m in mixers]


def noisy(run):
    """Deviations whose part that all rungs of a seed share leaves the differences alone."""
    own = {FLAT: 0.0, WHOLE: 0.1, ARM: -0.2}[run.rung]
    return MADE[run.rung] + 3 * run.seed + own * (run.seed - 2)


def test_arms_are_contrasts_with_the_flat_net_of_the_architecture():
    assert shares.arms(ASKED.items()) == {"architecture": (WHOLE, FLAT), "places": (ARM, FLAT)}
    assert shares.arms([("places", ASKED["places"])]) == {}
    (one,) = shares.table(frame_of(cells(), noisy), ASKED.items())
    assert (one.name, one.n) == ("places", 5) and one.points == pytest.approx(1) and one.gap == pytest.approx(4)
    x, y = (np.array([whole + own * (seed - 2) for seed in range(5)]) for whole, own in ((1, -0.2), (4, 0.1)))
    assert one.share == pytest.approx(shares.fieller(x, y)) and one.share.low < 0.25 < one.share.high
    missing = frame_of(cells(), lambda run: math.nan if run.seed == 1 and run.rung == ARM else noisy(run))
    assert shares.table(missing, ASKED.items())[0].n == 4


def test_the_section_draws_both_from_contrasts_and_from_families(tmp_path):
    runs = [*dials(), *cells()]
    frame = frame_of(runs, lambda run: response(run) if run.model_kwargs["mixer"] == "dial" else noisy(run))
    frame["macs"] = 1e7
    families = {"arms": Family({name: Contrast(weights) for name, weights in ASKED.items()}, margin=0.5)}
    by_families = softness.draw(Page("x", frame, tmp_path, families=families))
    drawn = softness.draw(Page("x", frame, tmp_path, wanted=ASKED))
    assert drawn.said == by_families.said and "places 25 % [" in drawn.said
    assert "1,000 images: 0.75 [0.75, 0.75]" in drawn.said and "it moves: -0.5 [-0.5, -0.5]" in drawn.said
    assert [table.id for table in drawn.tables] == ["dose-0", "peak-0", "shares"] and "dose-0-1000" in drawn.figure
    assert "n = 3 to 5 seeds" in drawn.caption and "not trained at one learning rate" not in drawn.said
    tuned = softness.draw(Page("x", frame_of(dials(rate=lambda value: 0.1 + value), response), tmp_path))
    assert "not trained at one learning rate" in tuned.said
    rates = {row[0].text: row[5].text for row in tuned.tables[0].rows}
    assert rates == {"0": "0.1", "0.25": "0.35", "0.5": "0.6", "0.75": "0.85", "1": "1.1"}
    turned = {"architecture": {FLAT: 1, WHOLE: -1}, "places": {ARM: 1, WHOLE: -1}}
    nothing = softness.draw(Page("x", frame, tmp_path, wanted=turned))
    assert "gains nothing over the flat net (-4.00 points)" in nothing.said and "share-0" not in nothing.figure
    plain = frame_of([run for run in cells() if run.rung == FLAT], noisy)
    assert softness.draw(Page("x", plain, tmp_path, wanted={})) is None
