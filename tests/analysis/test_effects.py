"""The blocked model against statsmodels and closed forms; the families of a sweep from runs on disk."""

import math

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from scipy import stats as scipy_stats
from statsmodels.stats.multitest import multipletests

from analysis import stats
from analysis.compare import frames
from analysis.factorial import effects, families
from engine.fields.claims import Contrast, Family
from engine.folder.store import csv_text, write_bytes

CELLS = "abcdefgh"


def runs(seed, seeds=5, missing=()):
    """Eight cells with known means, seeds with offsets, noise of 0.5 points; some runs left out."""
    rng = np.random.default_rng(seed)
    offsets = rng.normal(0, 0.3, seeds)
    rows = [
        {"cell": cell, "block": f"s{s}", "acc": 70 + i + offsets[s] + rng.normal(0, 0.5)}
        for s in range(seeds)
        for i, cell in enumerate(CELLS)
    ]
    return pd.DataFrame(row for row in rows if (row["cell"], row["block"]) not in missing)


def fitted(table):
    return effects.fit(table["acc"], table["cell"], table["block"])


WEIGHTS = (
    {"b": 1, "a": -1},
    dict(zip(CELLS, [0.25, -0.25] * 4, strict=True)),
    dict(zip("abcd", [1, -1, -1, 1], strict=True)),
)


@pytest.mark.parametrize("missing", [(), (("a", "s0"), ("a", "s1"), ("c", "s3"))], ids=["balanced", "unbalanced"])
@pytest.mark.parametrize("weights", WEIGHTS, ids=["pair", "main", "interaction"])
def test_effects_are_those_of_statsmodels(weights, missing):
    table = runs(1, missing=missing)
    theirs = smf.ols("acc ~ 0 + C(cell) + C(block)", table).fit()
    row = np.array([weights.get(name[8:-1], 0) if name.startswith("C(cell)") else 0 for name in theirs.params.index])
    test = theirs.t_test(row)
    low, high = test.conf_int()[0]
    ours = effects.effect(fitted(table), weights, margin=0.5)
    assert ours[:6] == pytest.approx(
        (test.effect[0], test.sd[0, 0], test.df_denom, low, high, float(test.pvalue)), rel=1e-6
    )
    sides = [theirs.t_test((row, margin)) for margin in (-0.5, 0.5)]
    above, below = (side.tvalue[0, 0] for side in sides)
    p = max(scipy_stats.t.sf(above, test.df_denom), scipy_stats.t.cdf(below, test.df_denom))
    assert ours.equal_p == pytest.approx(p, rel=1e-6)


def test_a_balanced_contrast_is_that_of_means_with_the_pooled_error():
    table = runs(2)
    means = table.groupby("cell")["acc"].mean()
    ours = effects.effect(fitted(table), {"c": 1, "a": -1}, margin=1.0)
    assert ours.value == pytest.approx(means["c"] - means["a"])
    assert ours.df == 7 * 4 and ours.error == pytest.approx(fitted(table).deviation * math.sqrt(2 / 5))


def test_simultaneous_intervals_hold_all_at_once():
    """Of 400 studies without effects, at most about 5 % have an interval of the twelve edges that misses 0."""
    edges = [{CELLS[i | 1 << k]: 1, CELLS[i]: -1} for k in range(3) for i in range(8) if not i & 1 << k]
    missed = {"alone": 0, "all": 0}
    for seed in range(400):
        table = runs(1000 + seed)
        table["acc"] -= table["cell"].map(CELLS.index)
        model = fitted(table)
        alone = [effects.effect(model, edge, 1.0) for edge in edges]
        missed["alone"] += any(found.low > 0 or found.high < 0 for found in alone)
        missed["all"] += any(low > 0 or high < 0 for low, high in (effects.simultaneous(model, e, 12) for e in edges))
    assert missed["all"] / 400 < 0.075 and missed["alone"] / 400 > 0.2


def test_what_the_runs_do_not_tell_has_no_estimate():
    apart = pd.DataFrame({"cell": ["a", "a", "b", "b"], "block": ["s0", "s1", "s2", "s3"], "acc": [1.0, 2, 5, 6]})
    assert math.isnan(effects.effect(fitted(apart), {"b": 1, "a": -1}, 1.0).value)
    assert math.isnan(effects.effect(fitted(runs(3)), {"z": 1, "a": -1}, 1.0).value)
    equal = pd.DataFrame({"cell": ["a", "b"] * 2, "block": ["s0", "s0", "s1", "s1"], "acc": [1.0, 3, 1, 3]})
    found = effects.effect(fitted(equal), {"b": 1, "a": -1}, 1.0)
    assert found.value == 2 and math.isnan(found.p) and math.isnan(found.equal_p)


# --- families of a sweep, from runs on disk ---

MODELS = ("mlp_nano", "bmlp_nano", "mixer_nano", "deit_nano")
FAMILY = Family({f"{m} over mlp": Contrast({m: 1, "mlp_nano": -1}) for m in MODELS[1:]}, margin=1.0)
LEVELS = {"mlp_nano": 90.0, "bmlp_nano": 90.0, "mixer_nano": 92.0, "deit_nano": 89.3}


def study(make, failed=()):
    """Folders of four rungs with five seeds; the training loss falls with accuracy."""
    rng, folders = np.random.default_rng(5), []
    for seed in range(5):
        for model in MODELS:
            acc1 = round(LEVELS[model] + rng.normal(0, 0.3), 3)
            if (model, seed) in failed:
                folders.append(make(model, 0.0, seed=seed, state="failed", status={"error_class": "diverged"}))
                continue
            folders.append(make(model, acc1, seed=seed))
            row = {"epoch": 0, "train_loss": (100 - acc1) / 100, "eval_top1": acc1}
            write_bytes(folders[-1] / "summary.csv", csv_text([row]).encode())
    return folders


def test_a_family_is_corrected_within_itself(make):
    frame = frames.load(study(make))
    table = families.table(frame, FAMILY).set_index("contrast")
    for test in ("p", "equal_p"):
        theirs = multipletests(table[test], method="holm")[1]
        assert table[f"{test}_holm"].tolist() == pytest.approx(theirs)
    assert table["verdict"].tolist() == ["equal within the margin", "gain", "loss"] or table["p_holm"].iloc[2] > 0.05
    assert table["loss"].tolist() == pytest.approx((-table["diff"] / 100).tolist())
    assert set(table["df"]) == {3 * 4} and table.loc["mixer_nano over mlp", "differs"].startswith("frame mlp to mixer")
    text = families.sheet(families.table(frame, FAMILY), "pairs", 1.0).markdown()
    assert "**pairs: 3 claims**" in text and "after Holm over the 3 of the family" in text


def test_a_run_that_diverged_leaves_its_cell_undecided_and_is_named(make):
    frame = frames.load(study(make, failed={("mixer_nano", 3)}))
    table = families.table(frame, FAMILY).set_index("contrast")
    signature = frame.loc[frame["error_class"] == "diverged", "signature"].iloc[0]
    assert table.loc["mixer_nano over mlp", "verdict"] == f"not decided: {signature} diverged"
    assert table.loc["bmlp_nano over mlp", "verdict"] == "equal within the margin"


def test_the_gap_is_told_within_blocks_of_seed_and_shuffle(make):
    """A seed's order of the pixels moves all cells alike, by points; blocks of both take it out."""
    rng, folders = np.random.default_rng(6), []
    for seed in range(4):
        order = rng.normal(0, 5)
        for kind, level in (("none", 90.0), ("pixels", 60 + order)):
            for model in MODELS[:2]:
                acc1 = level + rng.normal(0, 0.1) + (model == "bmlp_nano") * (2 if kind == "none" else 0.5)
                folders.append(make(model, acc1, seed=seed, permute=kind))
    names = {(m, kind): f"{m} permute={kind}" for m in MODELS[:2] for kind in ("none", "pixels")}
    weights = {name: (1 if m == "bmlp_nano" else -1) * (1 if k == "none" else -1) for (m, k), name in names.items()}
    gap = Family({"gap": Contrast(weights)}, margin=1.0)
    row = families.table(frames.load(folders), gap).iloc[0]
    assert row["block"] == "seed and kind of images" and row["deviation"] < 0.3 and abs(row["diff"] - 1.5) < 0.3
    lost = Family({"lost": Contrast({names["mlp_nano", "none"]: 1, names["mlp_nano", "pixels"]: -1})}, margin=1.0)
    row = families.table(frames.load(folders), lost).iloc[0]
    assert row["block"] == "seed" and row["deviation"] > 1


def test_one_rule_makes_all_verdicts():
    words = ("up", "down", "same")
    assert stats.verdict(1.0, 0.01, 0.2, words) == "up" and stats.verdict(-1.0, 0.01, 0.2, words) == "down"
    assert stats.verdict(0.1, 0.01, 0.01, words) == "up, but same" and stats.verdict(0.1, 0.3, 0.01, words) == "same"
    assert stats.verdict(1.0, math.nan, math.nan, words) == "undecided"
