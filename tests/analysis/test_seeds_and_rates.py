"""The look at the deviation that may decide on seeds, and the peaks that decide on rates; both scripts."""

import math
import os
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.compare import frames
from analysis.factorial import deviation, rates
from engine.errors import DATA, Refusal
from engine.run import make_run
from slurm.sweeps import lattice
from tests import warm
from tests.reports import write_run


@pytest.mark.parametrize("sizes", [(5, 5, 5), (3, 7, 5, 4), (2, 2)])
def test_bartlett_is_scipys(sizes):
    groups = [np.random.default_rng(i).normal(i, 1 + i, size) for i, size in enumerate(sizes)]
    assert deviation.bartlett(groups) == pytest.approx(stats.bartlett(*groups).pvalue)
    assert math.isnan(deviation.bartlett(groups[:1])) and math.isnan(deviation.bartlett([np.zeros(3), np.ones(3)]))


MODELS = ("mlp_nano", "bmlp_nano", "mixer_nano")


def test_a_look_tells_the_deviation_and_no_accuracy(make):
    rng = np.random.default_rng(0)
    level = {"mlp_nano": 71.25, "bmlp_nano": 78.5, "mixer_nano": 84.75}
    folders = [make(m, level[m] + rng.normal(0, 0.5), seed=s) for s in range(5) for m in MODELS]
    found = deviation.look(frames.load(folders), "study")
    wide = frames.accuracies(frames.load(folders)).to_numpy()
    rest = wide - wide.mean(0) - wide.mean(1, keepdims=True) + wide.mean()
    assert found.value == pytest.approx(math.sqrt((rest**2).sum() / 8)) and found.df == 8
    ends = [found.value * math.sqrt(8 / stats.chi2.ppf(p, 8)) for p in (0.975, 0.025)]
    assert (found.low, found.high) == pytest.approx(ends)
    text = "\n".join(deviation.told(found, lattice.STOPPING))
    assert not re.search(r"\b[78]\d\.\d|_nano", text), text
    made = frames.load([*folders, make("mlp_nano", 0.0, seed=5, state="failed", status={"error_class": "diverged"})])
    assert deviation.look(made, "study").diverged == 1
    with pytest.raises(Refusal, match=r"1 of 16 runs have no result; first: .*resume study"):
        deviation.look(frames.load([*folders, make("mlp_nano", state="running", seed=6)]), "study")
    with pytest.raises(Refusal, match="no rung has two seeds"):
        deviation.look(frames.load(folders[:3]), "study")


@pytest.mark.parametrize("value, stage", [(0.3, "stays 1"), (0.41, "stays 1"), (0.42, "STAGE = 2"), (0.6, "STAGE = 3")])
def test_the_rule_is_the_one_of_the_study(value, stage):
    assert stage in deviation.consequence(value, lattice.STOPPING)


@pytest.mark.parametrize("seeds, limit", [(5, 0.41), (8, 0.54)])
def test_limits_of_the_rule_are_where_half_a_point_is_still_found(seeds, limit):
    """A main effect of 0.5 points, at the first step of Holm over seven, four times in five: noncentral t."""

    def power(sigma):
        df, shift = 7 * (seeds - 1), 0.5 / (sigma / math.sqrt(2 * seeds))
        return stats.nct.sf(stats.t.ppf(1 - 0.05 / 14, df), df, shift)

    assert power(limit) > 0.8 > power(limit + 0.02)


# --- rates ---

PEAKS = {"a": -2.0, "b": -2.2, "c": -1.8, "d": -1.75}
LRS = (3e-3, 1e-2, 3e-2)
WIDE = (*LRS, 1e-1)  # d is best at 0.03


def tuned(noise=0.0, seeds=(100,), lrs=WIDE, peaks=PEAKS, c=4.0):
    rng = np.random.default_rng(1)
    rows = [
        {"rung": rung, "lr": lr, "seed": seed, "state": "done", "error_class": "", "holdout": 0.1}
        | {"acc1": 70 + place - c * (math.log10(lr) - peak) ** 2 + rng.normal(0, noise)}
        for place, (rung, peak) in enumerate(peaks.items())
        for lr in lrs
        for seed in seeds
    ]
    return pd.DataFrame(rows)


def test_peaks_without_noise_are_exact():
    peaks = rates.fit(tuned())
    assert [own.peak for own in peaks] == pytest.approx(list(PEAKS.values()))
    assert [own.curvature for own in peaks] == pytest.approx([4] * 4)
    assert [own.rate for own in peaks] == [0.01, 0.0063, 0.016, 0.018]
    assert all(math.isnan(own.wider) and math.isnan(own.error) for own in peaks)
    names: dict = {}
    exec(rates.literal(peaks), names)
    assert names["LR"] == {own.rung: own.rate for own in peaks}


def test_a_narrower_hill_keeps_its_peak_and_moves_no_other():
    """Attention of lattice_lr: 62.9, 68.0, 62.4 and, at the highest rate, 32.6. Rows in any order."""
    narrow = tuned(peaks={"narrow": 0.0}).assign(lr=(1e-3, 1e-2, 3e-3, 3e-2), acc1=(62.9, 62.4, 68.0, 32.6))
    peaks = rates.fit(pd.concat([narrow, tuned()]))
    coefficients = np.polyfit(np.log10([1e-3, 3e-3, 1e-2]), [62.9, 68.0, 62.4], 2)
    assert peaks[0].peak == pytest.approx(-coefficients[1] / (2 * coefficients[0])) and peaks[0].rate == 3.1e-3
    assert [own.peak for own in peaks[1:]] == pytest.approx(list(PEAKS.values()))


@pytest.mark.parametrize("noise", [0.4, 0.7])
def test_the_vertex_costs_little_beside_the_best_rate_whatever_the_hills(noise):
    """By one seed; 17 hills of 5 to 13 points a squared decade, steeper above their peaks, and three of 30."""
    rng = np.random.default_rng(0)
    curvature = np.r_[np.full(3, 30.0), rng.uniform(5, 13, 17)]
    tried = np.arange(-4, 0.1, 0.5)
    lost = {"vertex": [], "best": []}
    for _ in range(30):
        at = rng.uniform(-2.75, -1.9, 20)

        def points(rung, x, at=at):
            away = x - at[rung]
            return -curvature[rung] * away**2 * (1 + 0.6 * np.maximum(away, 0))

        rows = [
            {"rung": rung, "lr": 10**x, "seed": 0, "state": "done", "acc1": points(rung, x) + rng.normal(0, noise)}
            for rung in range(20)
            for x in tried
        ]
        for own in rates.fit(pd.DataFrame(rows)):
            lost["vertex"].append(-points(int(own.rung), own.peak))
            lost["best"].append(-points(int(own.rung), math.log10(own.best)))
    assert np.mean(lost["vertex"]) < 0.06 and 0.2 < np.mean(lost["best"]) < 0.4


def test_errors_of_peaks_are_those_of_repeated_tuning():
    """500 tunings of known peaks, far enough from the middle between two rates that the best one is not by chance."""
    known = {"a": -2.0, "b": -2.05, "c": -1.95, "d": -1.55}
    found, told = [], []
    for seed in range(500):
        rows = tuned(seeds=(100, 101), peaks=known)
        rows["acc1"] += np.random.default_rng(seed).normal(0, 0.1, len(rows))
        peaks = rates.fit(rows)
        found.append([own.peak for own in peaks])
        told.append([own.error for own in peaks])
    assert np.mean(found, 0) == pytest.approx(list(known.values()), abs=0.02)
    assert np.sqrt(np.mean(np.square(told), 0)) == pytest.approx(np.std(found, 0), rel=0.15)


def test_the_peak_is_least_squares_of_the_parabola_itself():
    from scipy.optimize import least_squares

    rows = tuned(noise=0.5, seeds=(100, 101), lrs=LRS, peaks={"a": -2.0, "b": -2.05})
    peaks = rates.fit(rows)
    deviation = math.sqrt(rows.groupby(["rung", "lr"])["acc1"].var().mean())
    for own in peaks:
        part = rows[rows["rung"] == own.rung]
        x, y = np.log10(part["lr"].to_numpy()), part["acc1"].to_numpy()
        theirs = least_squares(
            lambda p, x=x, y=y: p[0] - p[2] * (x - p[1]) ** 2 - y, [70, -2, 3], xtol=1e-14, ftol=1e-14, jac="3-point"
        )
        assert [own.peak, own.curvature] == pytest.approx(list(theirs.x[1:]), rel=1e-5)
        covariance = np.linalg.inv(theirs.jac.T @ theirs.jac) * deviation**2
        assert own.error == pytest.approx(math.sqrt(covariance[1, 1]), rel=1e-4)
        assert own.regret == pytest.approx(own.curvature * own.error**2)


def test_a_best_rate_at_an_end_of_the_grid_is_no_rate_yet():
    peaks = rates.fit(tuned(lrs=LRS, peaks={"a": -2.0, "low": -2.3, "high": -1.3}))
    assert [own.wider for own in peaks[1:]] == [1e-3, 1e-1]
    with pytest.raises(Refusal, match=r"2 rungs are best at an end .*; add these rates .*: low: 0.001, high: 0.1"):
        rates.literal(peaks)
    assert "at its end: also try 0.001" in rates.sheet(peaks).markdown()


def test_a_rate_that_diverged_is_left_out_and_named():
    rows = tuned()
    fell = (rows["rung"] == "c") & (rows["lr"] == 3e-2)
    rows.loc[fell, ["state", "error_class"]], rows.loc[fell, "acc1"] = ["failed", "diverged"], math.nan
    peaks = rates.fit(rows[(rows["rung"] != "c") | (rows["lr"] < 0.1)])
    assert peaks[2].rate == 1e-2 and math.isnan(peaks[2].curvature) and peaks[2].diverged == (3e-2,)
    assert math.isnan(peaks[2].wider)  # nothing lies beyond the one that diverged
    assert "diverged at 0.03" in rates.sheet(peaks).markdown() and '"c": 1.0e-02' in rates.literal(peaks)


def test_what_tells_no_peak():
    with pytest.raises(Refusal, match="a has fewer than two rates"):
        rates.fit(tuned(lrs=(1e-2,)))
    (flat,) = rates.fit(tuned(lrs=LRS, peaks={"a": -2.0}).assign(acc1=50.0))
    assert flat.wider == 1e-3  # of equals the lowest
    (level,) = rates.fit(tuned(peaks={"a": -2.0}).assign(acc1=[49, 50, 50, 50]))
    assert 3e-3 < level.rate < 3e-2


def script(name, *words, results):
    return warm.run("-m", f"scripts.{name}", *words, env={**os.environ, "SOFTMLP_RESULTS": str(results)})


def test_rates_are_read_from_the_tables_of_collect(tmp_path):
    done = script("rates", "tuning", results=tmp_path)
    assert done.returncode == DATA and "sweep.py collect tuning writes it" in done.stderr
    (tmp_path / "tuning").mkdir()
    path = tmp_path / "tuning" / "runs.csv"
    tuned().to_csv(path, index=False)
    done = script("rates", "tuning", results=tmp_path)
    assert done.returncode == 0 and '    "b": 6.3e-03,' in done.stdout, done.stderr
    for change, words in (({"state": "running"}, "16 of 16 runs have not ended"), ({"holdout": 0.0}, "on test images")):
        tuned().assign(**change).to_csv(path, index=False)
        done = script("rates", "tuning", results=tmp_path)
        assert done.returncode == DATA and words in done.stderr and done.stderr.count("\n") == 1


def test_rates_of_the_first_seed_wait_for_no_other(tmp_path):
    (tmp_path / "tuning").mkdir()
    rows = pd.concat([tuned(), tuned(seeds=(101,), peaks={"a": -1.9}).assign(state="running")])
    rows.to_csv(tmp_path / "tuning" / "runs.csv", index=False)
    assert "4 of 20 runs have not ended" in script("rates", "tuning", results=tmp_path).stderr
    done = script("rates", "tuning", "--seeds", "100", results=tmp_path)
    assert done.returncode == 0 and '    "a": 1.0e-02,' in done.stdout, done.stderr
    missing = script("rates", "tuning", "--seeds", "100-102", results=tmp_path)
    assert missing.returncode == DATA and "has no run of seed 102" in missing.stderr


def test_seeds_says_what_the_rule_of_a_sweep_makes_of_its_runs(tmp_path):
    runs = [make_run({"model": model, "seed": seed}) for model in MODELS for seed in range(3)]
    rng = np.random.default_rng(2)
    for run in runs:
        write_run(tmp_path, run, round(80 + rng.normal(0, 0.5), 2))
    (tmp_path / "study.py").write_text(
        "from math import inf\nfrom engine.run import make_run\n"
        f"STOPPING = ((1e-6, 'enough'), (inf, 'all get seed 3'))\n"
        f"def runs():\n    return [make_run(run) for run in {[run.record() for run in runs]!r}]\n"
    )
    done = script("seeds", tmp_path / "study.py", results=tmp_path)
    assert done.returncode == 0 and done.stdout.endswith("so: all get seed 3\n"), done.stderr
    assert "4 degrees of freedom" in done.stdout and "3 cells" in done.stdout
    collected = script("sweep", "collect", tmp_path / "study.py", results=tmp_path)
    assert collected.returncode == 0, collected.stderr
    shutil.rmtree(tmp_path / "runs")
    alone = script("seeds", tmp_path / "study.py", results=tmp_path)
    assert alone.stdout == done.stdout, alone.stderr
