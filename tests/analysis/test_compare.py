"""Rungs from run folders: intervals, paired gains, what is kept when runs are missing; the Pareto front; the ladder."""

import importlib
import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import archs
from analysis import typeset
from analysis.compare import frames, ladder
from analysis.compare.pareto import front
from analysis.stats import holm
from engine.folder import store
from engine.folder.store import folder_of
from engine.run import make_run


def test_interval_is_students():
    mean, half, n, _ = frames.interval([1.0, 2.0, 3.0, math.nan])
    assert (mean, n) == (2.0, 3)
    assert half == pytest.approx(4.302652729911275 / math.sqrt(3))  # the table's t for 2 degrees of freedom
    values = np.random.default_rng(0).normal(0.5, 1, 8)
    low, high = stats.t.interval(0.95, 7, values.mean(), stats.sem(values))
    result = frames.interval(values)
    assert (result.mean - result.half, result.mean + result.half) == pytest.approx((low, high))
    assert result.p == pytest.approx(stats.ttest_1samp(values, 0).pvalue)


def test_accuracy_is_the_last_epochs_and_not_the_best(make):
    frame = frames.load([make(acc1=90.0)])
    assert frame["acc1"].tolist() == [90.0]
    assert frame.loc[0, ["rung", "family", "params", "macs"]].tolist() == ["mixer_nano", "mixer", 1000, 2000]


def test_curves_leave_out_epochs_that_some_seed_was_not_evaluated_after(make):
    """A mean over fewer seeds than the next point's would be a jump that nothing made."""
    folders = [make(acc1=80.0 + seed, seed=seed) for seed in range(3)]
    other = make("mlp_nano", acc1=70.0)
    rows = [{"epoch": 0, "eval_top1": None}, {"epoch": 1, "eval_top1": 80.0}]
    store.write_bytes(folders[0] / "summary.csv", store.csv_text(rows).encode())
    frame = frames.load([*folders, other])
    assert frame["acc1"].tolist() == [80.0, 81.0, 82.0, 70.0]
    curves = frames.curves(frame)
    found = {rung: part["epoch"].tolist() for rung, part in curves.groupby("rung")}
    assert found == {"mixer_nano": [1.0, 1.0, 1.0], "mlp_nano": [0.0, 1.0]}
    assert curves["eval_top1"].notna().all()


def test_gain_is_paired_over_common_seeds(make):
    before = [make("mlp_nano", value, seed=seed) for seed, value in enumerate([90.0, 92.0, 97.0])]
    after = [make("mixer_nano", value, seed=seed) for seed, value in enumerate([91.0, 94.0, 100.0, 20.0])]
    table = frames.rungs(frames.load(before + after))
    row = table.iloc[1]
    assert (row.before, row.gain_n, row.n) == ("mlp_nano", 3, 4)
    assert row.gain == pytest.approx(2.0)  # differences 1, 2, 3; seed 3 has no partner
    assert row.gain_half == pytest.approx(4.302652729911275 / math.sqrt(3))
    assert row.gain_p == pytest.approx(stats.ttest_rel([91, 94, 100], [90, 92, 97]).pvalue)
    assert not row.gain_clear
    assert table.iloc[0].acc1 == pytest.approx(93.0)
    assert frames.cells(table)[1][-1] == "+2.00 ± 2.48"


def test_gain_is_clear_where_its_interval_excludes_zero(make):
    before = [make("mlp_nano", 90.0 + seed, seed=seed) for seed in range(3)]
    after = [make("mixer_nano", 90.0 + seed + gain, seed=seed) for seed, gain in enumerate([5.0, 5.1, 5.2])]
    table = frames.rungs(frames.load(before + after))
    assert table["gain_clear"].tolist() == [False, True]
    assert frames.cells(table)[1][-1] == "+5.10 ± 0.25*"


def test_equal_differences_are_no_evidence(make):
    folders = [
        make(model, level, seed=seed) for model, level in (("mlp_nano", 96.0), ("mixer_nano", 97.2)) for seed in (0, 1)
    ]
    row = frames.rungs(frames.load(folders)).iloc[1]
    assert (row.gain_half, row.gain_clear) == (0.0, False)
    assert math.isnan(row.gain_p)


def test_one_seed_has_no_interval(make):
    table = frames.rungs(frames.load([make("mlp_nano", 90.0), make("mixer_nano", 91.5)]))
    assert table["acc1_half"].isna().all()
    assert [row[-2:] for row in frames.cells(table)] == [["90.00 (n=1)", "–"], ["91.50 (n=1)", "+1.50 (n=1)"]]


def test_runs_without_a_result_stay_with_their_state(make, tmp_path):
    planned = make_run({"model": "mixer_nano", "model_kwargs": {"depth": 2}, "seed": 9})
    damaged = make(seed=5)
    (damaged / "status.json").write_text("{")
    folders = [
        make(acc1=90.0),
        make(seed=1, acc1=50.0, state="failed", status={"error_class": "diverged", "error": "why\nthe loss is NaN"}),
        make(seed=2, acc1=80.0, state="stopped"),
        make(seed=3, acc1=80.0, state="running"),  # no process owns it
        make(seed=4),  # done, but its summary.csv is gone
        damaged,
        folder_of(planned, tmp_path),
    ]
    frame = frames.load(folders)
    assert frame["state"].tolist() == ["done", "failed", "stopped", "stopped", "done", "unreadable", "planned"]
    assert frame["acc1"].notna().tolist() == [True] + [False] * 6
    assert frame.loc[1, ["error_class", "error"]].tolist() == ["diverged", "the loss is NaN"]
    assert frame.loc[6, ["signature", "model", "seed"]].tolist() == [planned.signature, "mixer_nano", 9]
    table = frames.rungs(frame)
    assert table[["n", "n_missing"]].to_numpy().tolist() == [[1, 6]]
    assert frames.cells(table)[0][5] == "1 of 7"


def test_planned_run_belongs_to_its_rung_where_the_run_is_known(make, tmp_path):
    runs = [make_run({"model_kwargs": {"depth": 2}, "seed": seed}) for seed in (0, 1)]
    frame = frames.load([folder_of(run, tmp_path) for run in runs], runs)
    assert frame["rung"].tolist() == ["mixer_nano depth=2"] * 2
    row = frames.rungs(frame).iloc[0]
    assert (row.n, row.n_missing) == (0, 2)
    assert all(math.isnan(row[key]) for key in ("acc1", "params", "macs", "images_per_s", "gain"))
    assert frames.cells(frames.rungs(frame))[0][2:] == ["–", "–", "–", "0 of 2", "–", "–", "–"]


def test_rungs_keep_the_order_of_first_appearance(make):
    folders = [make(model, 90.0, seed=seed) for seed in (0, 1) for model in ("mlp_nano", "mixer_nano", "bmlp_nano")]
    assert frames.rungs(frames.load(folders))["rung"].tolist() == ["mlp_nano", "mixer_nano", "bmlp_nano"]


def test_two_recipes_are_not_pooled_and_gains_do_not_mix_them(make):
    folders = [
        make(model, level + 10 * (samples is None), train_samples=samples, seed=seed)
        for samples in (100, None)
        for model, level in (("mlp_nano", 80.0), ("mixer_nano", 81.0))
        for seed in (0, 1)
    ]
    table = frames.rungs(frames.load(folders))
    assert table["rung"].tolist() == [
        "mlp_nano train_samples=100",
        "mixer_nano train_samples=100",
        "mlp_nano train_samples=default",
        "mixer_nano train_samples=default",
    ]
    assert table["before"].tolist() == ["", "mlp_nano train_samples=100", "", "mlp_nano train_samples=default"]
    assert table["gain"].dropna().tolist() == [1.0, 1.0]


def test_a_tuned_recipe_per_model_is_one_rung_each(make):
    folders = [make("mlp_nano", 90.0, lr=1e-2), make("mixer_nano", 91.0, lr=1e-3)]
    table = frames.rungs(frames.load(folders))
    assert table["rung"].tolist() == ["mlp_nano", "mixer_nano"]
    assert table["gain"].tolist()[1] == 1.0


def test_references_are_no_steps_of_the_ladder(make):
    folders = [make(model, 90.0) for model in ("mlp_nano", "timm/resnet18", "mixer_nano", "timm/resnet34")]
    table = frames.rungs(frames.load(folders))
    assert table["family"].tolist() == ["mlp", "timm", "mixer", "timm"]
    assert table["before"].tolist() == ["", "", "mlp_nano", "timm/resnet18"]


def test_holm():
    adjusted = holm(pd.Series([0.01, 0.04, math.nan, 0.03, 0.005]))
    assert adjusted.dropna().tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert math.isnan(adjusted[2])


def test_quantities():
    values = [832, 999.6, 12_345, 999_700, 18_528_264, 3_776_958_464, 1.5e12, math.nan]
    assert [frames.quantity(value) for value in values] == [
        *("832", "1.00 k", "12.3 k", "1.00 M", "18.5 M", "3.78 G", "1.50 T", "–")
    ]


def test_tables_to_paste(make):
    folders = [
        make(model, 90.0 + gain + seed, seed=seed)
        for model, gain in (("mlp_nano", 0), ("mixer_nano", -1))
        for seed in (0, 1)
    ]
    folders.append(make("mixer_nano", model_kwargs={"depth": 2}))
    table = frames.rungs(frames.load(folders))
    lines = frames.markdown(table).splitlines()
    assert lines[2] == "| `mlp_nano` | mlp | 1.00 k | 2.00 k | 100 | 2 | – | 90.50 (90.00, 91.00) | – |"
    assert {line.count("|") for line in lines[:5]} == {10}
    latex = frames.latex(table).splitlines()
    assert latex[5] == (
        r"\texttt{mixer\_nano} & mixer & 1.00 k & 2.00 k & 100 & 2 & -- & "
        r"89.50 (89.00, 90.00) & $-$1.00 (no spread in 2) \\"
    )
    assert {line.count(" & ") for line in latex if line.endswith(r"\\")} == {8}
    assert frames.table_csv(table).splitlines()[0].startswith("rung,family,")
    assert frames.render(table).row_count == 3


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([97.0, 97.4, 97.2], "97.20 ± 0.50"),
        ([97.0, 97.4], "97.20 (97.00, 97.40)"),
        ([97.2, 97.2, 97.2], "97.20 (no spread in 3)"),
        ([99.2, 99.6, 100.0], "99.60 [98.61, 100.00]"),
        ([0.0, 0.4, 0.2], "0.20 [0.00, 0.70]"),
        ([97.2], "97.20 (n=1)"),
        ([], "–"),
    ],
)
def test_an_accuracy_tells_its_seeds_and_stays_on_its_scale(values, words):
    """Half-widths by SciPy: 4.3027 x 0.2 / sqrt(3) = 0.50, and 0.99 for a spread of 0.4."""
    if len(values) > 2:
        low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
        assert len(set(values)) == 1 or f"{(high - low) / 2:.2f}" in words or f"{max(low, 0):.2f}" in words
    assert typeset.accuracy(*frames.interval(values)[:3]) == words


def test_numbers_that_are_no_accuracy_have_no_ends():
    assert typeset.plus_minus(99.6, 0.99, 3, "+") == "+99.60 ± 0.99"
    assert typeset.plus_minus(-7.2, 0.0, 2, "+") == "−7.20 (no spread in 2)"
    assert typeset.plus_minus(1.0, 0.004, 5) == "1.00 ± < 0.01", "narrow, and not without width"
    assert typeset.estimate(46.31, 45.3, 47.25, 1, 1) == "46.3 [45.3, 47.2]", "of one seed, over images: lopsided"
    assert typeset.plus_minus(*frames.interval([0.67, 0.81])[:3]) == "0.74 (0.67, 0.81)"


def test_front_on_ties_and_missing_numbers():
    frame = pd.DataFrame(
        [
            *((1, 90, True), (1, 90, True), (1, 89, False), (2, 90, False), (2, 92, True), (3, 91, False)),
            *((9, 95, True), (math.nan, 99, False), (0.5, math.nan, False), (math.inf, 99, False)),
        ],
        columns=["macs", "acc1", "front"],
        index=list("abcdefghij"),
    )
    result = front(frame, "macs", "acc1")
    assert result.tolist() == frame["front"].tolist()
    assert result.index.equals(frame.index)
    assert front(frame.iloc[:0], "macs", "acc1").tolist() == []


def test_front_is_what_sorting_by_cost_finds():
    frame = pd.DataFrame(np.random.default_rng(0).integers(0, 12, (200, 2)), columns=["macs", "acc1"])
    rising = frame.groupby("macs")["acc1"].max()
    best = rising[rising > rising.cummax().shift(fill_value=-1)]
    expected = [best.get(row.macs) == row.acc1 for row in frame.itertuples()]
    assert front(frame, "macs", "acc1").tolist() == expected


@pytest.mark.parametrize("family", archs.families())
def test_bias_read_from_source_is_the_bias_declared(family):
    module = importlib.import_module(f"archs.{family}")
    own = getattr(module, "VARIANT_BIAS", {})
    for variant in archs.variants(family):
        assert ladder.bias_of(f"{family}_{variant}") == replace(module.BIAS, **own.get(variant, {}))


def test_a_reference_has_no_bias_and_what_is_not_in_the_zoo_is_refused():
    with pytest.raises(ValueError, match="no architecture family 'nosuch'"):
        ladder.bias_of("nosuch_1m")
    assert ladder.bias_of("timm/resnet18") is None


def test_ladder_tells_what_changed_since_the_rung_before(make):
    folders = [make(model, 90.0) for model in ("mlp_nano", "patchmlp_nano", "patchmlp_nano_unshared", "timm/resnet18")]
    table = ladder.table(frames.rungs(frames.load(folders)))
    assert table["stem"].tolist() == ["dense", "shared", "local", "reference"]
    assert table["changed"].tolist() == [[], ["stem"], ["stem"], []]
    assert table["grid_bound"].tolist() == ["yes", "yes", "yes", "reference"]


def test_analysis_does_not_import_torch():
    code = "import sys, analysis.report.assemble; assert not {'torch', 'timm', 'ffcv'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
