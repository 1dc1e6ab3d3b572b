"""Scaling laws and data-equivalents recover the truth they were made from, and refuse what cannot carry them."""

import math

import numpy as np
import pandas as pd
import pytest

from analysis.compare import exponents, samples, scaling
from engine.errors import Refusal

ALPHA, FLOOR = 0.25, 0.1
COMPUTE = np.geomspace(1e10, 1e14, 12)


def runs_of(compute, error_SN):
    """One configuration per column, one seed per row."""
    return pd.DataFrame(
        [
            (f"c{i}", seed, c, c**0.35, c**0.65, error_SN[seed, i])
            for i, c in enumerate(compute)
            for seed in range(len(error_SN))
        ],
        columns=["configuration", "seed", "compute", "params", "seen", "error"],
    )


def noisy(rng, seeds=1):
    law = 0.6 * (COMPUTE / 1e10) ** -ALPHA + FLOOR
    return runs_of(COMPUTE, law * np.exp(0.03 * rng.standard_normal((seeds, len(COMPUTE)))))


def by_kind(fits):
    return {fit.kind: fit for fit in fits}


def test_noiseless_laws_are_recovered_exactly():
    law = 0.6 * ((2e10 + COMPUTE) / 1e10) ** -ALPHA + FLOOR
    fit = by_kind(scaling.fits(runs_of(COMPUTE, law[None]), resamples=0)[0])["shifted"]
    assert (fit.alpha, fit.e_inf, fit.b) == pytest.approx((ALPHA, FLOOR, 2e10), rel=1e-3)
    assert fit.error(COMPUTE) == pytest.approx(law, rel=1e-6)
    power = scaling.fits(runs_of(COMPUTE, 0.6 * (COMPUTE / 1e10)[None] ** -ALPHA), resamples=0)[0]
    assert by_kind(power)["power"].alpha == pytest.approx(ALPHA, rel=1e-6)


def test_a_power_law_is_wrong_where_there_is_an_irreducible_error():
    """0.251 ± 0.020 with it, 0.161 ± 0.003 without: independent code with SciPy's curve_fit found these two."""
    found = [by_kind(scaling.fits(noisy(np.random.default_rng(i)), resamples=0)[0]) for i in range(30)]
    offset = np.array([fits["offset"].alpha for fits in found])
    power = np.array([fits["power"].alpha for fits in found])
    assert offset.mean() == pytest.approx(0.251, abs=0.012) and offset.std() == pytest.approx(0.020, abs=0.008)
    assert power.mean() == pytest.approx(0.161, abs=0.004) and power.std() == pytest.approx(0.003, abs=0.002)
    assert sum(fits["offset"].aicc < fits["power"].aicc for fits in found) >= 27


def test_intervals_cover_the_truth():
    hits = [
        bounds[0] <= truth <= bounds[1]
        for i in range(12)
        for fit in [by_kind(scaling.fits(noisy(np.random.default_rng(i), seeds=3), resamples=200)[0])["offset"]]
        for bounds, truth in ((fit.alpha_bounds, ALPHA), (fit.e_inf_bounds, FLOOR))
    ]
    assert sum(hits) >= 21  # of 24


def test_one_outlier_does_not_bend_the_fit():
    table = noisy(np.random.default_rng(1))
    table.loc[5, "error"] *= 0.93  # stays on the frontier
    plain = by_kind(scaling.fits(noisy(np.random.default_rng(1)), resamples=0)[0])["offset"]
    assert by_kind(scaling.fits(table, resamples=0)[0])["offset"].alpha == pytest.approx(plain.alpha, abs=0.04)


def test_only_the_frontier_is_fitted():
    table = noisy(np.random.default_rng(2))
    worse = table.assign(configuration="w" + table["configuration"], error=table["error"] * 1.5)
    (best, *_), front = scaling.fits(pd.concat([table, worse]), resamples=0)
    assert not front.index.str.startswith("w").any()
    assert best[1:7] == pytest.approx(scaling.fits(table, resamples=0)[0][0][1:7], rel=1e-4)


def test_frontier_is_that_of_the_pareto_module():
    from analysis.compare.pareto import front

    rng = np.random.default_rng(3)
    compute, error = rng.integers(1, 9, 60).astype(float), rng.integers(1, 9, 60).astype(float)
    expected = front(pd.DataFrame({"cost": compute, "value": -error}), "cost", "value")
    assert scaling.on_frontier(compute, error[None])[0].tolist() == expected.tolist()
    assert not scaling.on_frontier(compute, np.full((1, 60), np.inf)).any()


@pytest.mark.parametrize("keep, words", [(slice(0, 7), "7 over 2.2;"), (slice(None), "12 over 1.0;")])
def test_a_short_range_is_refused(keep, words):
    compute = COMPUTE[keep] if keep != slice(None) else np.geomspace(1e10, 1e11, 12)
    error = 0.6 * (compute / 1e10) ** -ALPHA + FLOOR
    with pytest.raises(Refusal, match=words):
        scaling.fits(runs_of(compute, error[None]))


def test_allocation_recovers_the_optimum_of_two_power_laws():
    """E = P^-a + D^-b on a grid, C = P D: the optimum has P* ~ C^(b/(a+b)), D* ~ C^(a/(a+b))."""
    a, b = 0.5, 0.3
    grid = [(c, p) for c in np.geomspace(1e8, 1e12, 12) for p in np.geomspace(1e3, 1e6, 25) if p < c]
    table = pd.DataFrame(
        [(f"{i}", 0, c, p, c / p, 0.05 + p**-a + (c / p) ** -b) for i, (c, p) in enumerate(grid)],
        columns=["configuration", "seed", "compute", "params", "seen", "error"],
    )
    found = scaling.allocation(table, resamples=200)
    assert found["params"][0] == pytest.approx(b / (a + b), abs=0.03)
    assert found["seen"][0] == pytest.approx(a / (a + b), abs=0.03)
    assert found["sum"] == pytest.approx((1, 1, 1), abs=1e-9)
    assert found["params"][1] < found["params"][0] < found["params"][2]


def test_compute_counts_three_passes_over_all_images_seen():
    frame = pd.DataFrame(
        [
            {
                "rung": "r",
                "family": "f",
                "seed": 0,
                "acc1": 90.0,
                "macs": 10.0,
                "params": 5.0,
                "epochs": 4,
                "dataset": "digits",
            }
        ]
        * 2
    ).assign(train_samples=[100, None], holdout=0.0)
    table = scaling.points(frame)
    assert table["compute"].tolist() == [3 * 10 * 100 * 4, 3 * 10 * 1297 * 4]
    assert table["error"].tolist() == pytest.approx([0.1, 0.1])


def test_images_needed_are_interpolated_in_the_log_of_their_number():
    sizes = np.array([100.0, 1000.0, 10000.0])
    curves = np.array([[50.0, 70.0, 80.0], [50.0, 40.0, 80.0], [95.0, 96.0, 97.0], [10.0, 11.0, 12.0]])
    needed = samples.needed(sizes, curves, 60.0)
    assert needed.tolist() == pytest.approx([10**2.5, 10 ** (3 + 10 / 30), 0.0, math.inf])
    assert samples.needed(sizes, curves[:1], 50.0)[0] == 100.0


def curve(name, factor, seeds, rng, noise=0.5):
    """Accuracy rises with the log of images / factor."""
    return [
        (name, seed, 20 * math.log10(n / factor) + rng.normal(0, noise), n, "d")
        for seed in range(seeds)
        for n in (100, 300, 1000, 3000, 10000)
    ]


def test_data_equivalents_recover_a_known_factor():
    rng = np.random.default_rng(6)
    rows = [*curve("base", 1.0, 5, rng), *curve("thrifty", 0.25, 5, rng), *curve("greedy", 2.0, 5, rng)]
    table = pd.DataFrame(rows, columns=["name", "seed", "acc1", "samples", "data"])
    for name, factor in (("thrifty", 4.0), ("greedy", 0.5), ("base", 1.0)):
        found = samples.equivalents(table, name, "base", level=65.0)
        assert found["equivalent"] == pytest.approx(factor, rel=0.15)
        assert found["low"] <= factor <= found["high"] and found["n"] == 5 and found["sizes"] == 5
    beyond = samples.equivalents(table, "thrifty", "base", level=85.0)  # the baseline ends at 80, the other at 92
    assert (beyond["equivalent"], beyond["over_needs"], beyond["high"]) == (math.inf,) * 3
    nowhere = samples.equivalents(table, "thrifty", "base", level=99.0)
    assert math.isnan(nowhere["equivalent"]) and nowhere["undefined"] == 1


def test_data_equivalents_use_the_seeds_and_sizes_in_common():
    rng = np.random.default_rng(7)
    rows = curve("base", 1.0, 4, rng) + [row for row in curve("other", 0.5, 3, rng) if row[3] > 100]
    table = pd.DataFrame(rows, columns=["name", "seed", "acc1", "samples", "data"])
    found = samples.equivalents(table, "other", "base", level=65.0)
    assert (found["n"], found["sizes"]) == (3, 4)
    alone = samples.equivalents(table[table["name"] == "base"].assign(seed=0), "base", "base", level=65.0)
    assert alone["n"] == 1 and math.isnan(alone["low"])


def family(rng, name, alpha, seeds=3):
    law = 0.6 * (COMPUTE / 1e10) ** -alpha
    table = runs_of(COMPUTE, law * np.exp(0.03 * rng.standard_normal((seeds, len(COMPUTE)))))
    return table.assign(configuration=name + table["configuration"], family=name)


def test_each_family_has_its_exponent_and_their_difference_an_interval():
    """The slopes of least squares on the log of the means, by NumPy, are those that are found; the truth is inside."""
    rng = np.random.default_rng(11)
    truth = {"mlp": 0.2, "mixer": 0.2, "convmixer": 0.3}
    table = pd.concat([family(rng, name, alpha) for name, alpha in truth.items()])
    found, refused = exponents.by_family(table, resamples=200)
    assert list(found) == list(truth) and refused == {}
    for name, alpha in truth.items():
        means = table[table["family"] == name].groupby("compute")["error"].mean()
        slope = -np.polyfit(np.log(means.index), np.log(means), 1)[0]
        fit = found[name][0]
        assert fit.kind == "power" and fit.alpha == pytest.approx(slope, abs=0.003)
        assert fit.alpha_bounds[0] <= alpha <= fit.alpha_bounds[1] and len(fit.draws) == 200
    pairs = {(pair.family, pair.over): pair for pair in exponents.differences(found)}
    same, steeper, other = (pairs[pair] for pair in (("mixer", "mlp"), ("convmixer", "mlp"), ("convmixer", "mixer")))
    assert same.low <= 0 <= same.high and same.p_holm > 0.05
    for pair in (steeper, other):
        assert pair.low <= 0.1 <= pair.high and pair.low > 0.08 and pair.p_holm == pytest.approx(3 * 2 / 201)
    assert steeper.value == found["convmixer"][0].alpha - found["mlp"][0].alpha
    # Were both normal, a difference would have the root of the summed squares of both half-widths.
    halves = [np.diff(found[name][0].alpha_bounds)[0] / 2 for name in ("mlp", "convmixer")]
    assert (steeper.high - steeper.low) / 2 == pytest.approx(math.hypot(*halves), rel=0.2)


def test_a_family_of_few_points_is_said_to_be_left_out():
    rng = np.random.default_rng(12)
    few = family(rng, "mixer", 0.2)
    table = pd.concat([family(rng, "mlp", 0.2), few[few["compute"] < 1e11], family(rng, "timm", 0.2)])
    first, *others = exponents.of_families("cifar10", table)
    assert [row[0] for row in first.rows] == ["mlp", "mixer", "timm"] and others == []
    assert "mixer is not fitted: a scaling fit needs 8 points" in first.note
    with pytest.raises(Refusal, match="mixer: a scaling fit needs"):
        exponents.of_families("cifar10", few[few["compute"] < 1e11])


def test_the_tables_go_from_families_to_the_frontier_of_all(monkeypatch):
    monkeypatch.setattr(scaling.fits, "__defaults__", (60, 0))
    monkeypatch.setattr(exponents.by_family, "__defaults__", (60, 0))
    rng, macs = np.random.default_rng(13), np.geomspace(1e4, 1e8, 12)
    rows = [
        {"rung": f"{name} {m:g}", "family": name, "seed": seed, "macs": m, "params": m, "epochs": 10, "holdout": 0.0}
        | {"acc1": 100 * (1 - level * (m / 1e4) ** -alpha * math.exp(0.02 * rng.standard_normal()))}
        for name, level, alpha in (("mlp", 0.6, 0.15), ("mixer", 0.5, 0.25))
        for m in macs
        for seed in range(2)
    ]
    frame = pd.DataFrame(rows).assign(dataset="cifar10", permute="none", train_samples=10_000)
    families, difference, laws, _ = exponents.sheets(frame)
    assert [(row[0], round(float(row[1]), 2)) for row in families.rows] == [("mlp", 0.15), ("mixer", 0.25)]
    assert difference.rows[0][0] == "mixer − mlp" and float(difference.rows[0][1]) == pytest.approx(0.1, abs=0.015)
    assert laws.title.endswith("all families on one frontier") and "draws" not in laws.data
    few = frame[(frame["family"] == "mlp") & (frame["macs"] < 1e5)]
    with pytest.raises(Refusal, match="a scaling fit needs 8 points"):
        exponents.sheets(few)


def recipes(rates):
    """Runs as `frames.load` gives them; 2.01 times fewer images at the first rate, many more at the second."""
    rows = []
    for lr, base, own in rates:
        for seed in range(4):
            for n in (100, 300, 1000, 3000, 10000):
                for name, factor in (("base", base), ("own", own)):
                    acc1 = 20 * math.log10(n / factor) + 0.01 * seed
                    fields = {"dataset": "cifar10", "holdout": 0.0, "permute": "none", "train_samples": n, "lr": lr}
                    rows.append({"name": name, "rung": name, "seed": seed, "acc1": acc1, "epochs": 1e5 / n, **fields})
    return pd.DataFrame(rows)


def test_runs_of_different_recipes_make_curves_of_their_own():
    frame = recipes([(1e-3, 1.0, 1 / 2.01), (0.1, 1.0, 50.0)])
    sheets = samples.sheets(frame, "base", [50.0])
    assert [sheet.rows[0][0] for sheet in sheets] == ["own lr=0.001", "own lr=0.1"]
    assert [sheet.header[3] for sheet in sheets] == ["by base lr=0.001", "by base lr=0.1"], "like with like"
    assert sheets[0].rows[0][4] == "2.01" and sheets[1].rows[0][4] == "< 0.03"
    assert sheets[0].data["low"][0] == pytest.approx(2.01) and sheets[0].data["n"][0] == 4
    named = samples.sheets(frame, "base lr=0.001", [50.0])
    assert [row[0] for row in named[0].rows] == ["own lr=0.001", "base lr=0.1", "own lr=0.1"]
    lone = frame[(frame["name"] == "base") | (frame["lr"] == 1e-3)]
    with pytest.raises(Refusal, match=r"'base' was trained in 2 ways, none of them that of 'own'; name one: 'base lr="):
        samples.sheets(lone, "base", [50.0])
    with pytest.raises(Refusal, match="no rung 'bse' was trained on two sizes"):
        samples.sheets(frame, "bse", [50.0])


def test_what_differs_between_sizes_only_is_one_recipe():
    """Fewer epochs on more images, and a rate tuned per size."""
    frame = recipes([(1e-3, 1.0, 1 / 2.01)])
    frame["lr"] = frame["lr"] * (1 + (frame["train_samples"] > 500))
    (sheet,) = samples.sheets(frame, None, [50.0])
    assert sheet.rows[0][:1] == ["own"] and sheet.rows[0][4] == "2.01"


def test_samples_without_sizes_are_refused():
    rows = [{"name": name, "seed": 0, "acc1": 90.0, "train_samples": 100} for name in ("a", "b")]
    frame = pd.DataFrame(rows).assign(dataset="digits", holdout=0.0, permute="none")
    with pytest.raises(Refusal, match="at least two sizes"):
        samples.sheets(frame, None)
