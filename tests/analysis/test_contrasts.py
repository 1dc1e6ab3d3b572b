"""Differences, ranks, equivalence and fairness between rungs; the script that prints them."""

import io
import math
import os
import re

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.compare import contrasts, fairness, frames
from engine.errors import Refusal
from engine.folder.store import folder_of, write_json
from engine.run import make_run
from tests import warm
from tests.reports import write_run


def nano(make, levels, fields=(), **more):
    """Folders of runs by model: one accuracy per seed."""
    return [
        make(model, acc1, seed=seed, **dict(fields), **more)
        for model, values in levels.items()
        for seed, acc1 in enumerate(values)
    ]


LEVELS = {
    "mlp_nano": [90.0, 92.0, 91.0, 93.0, 90.5],
    "bmlp_nano": [90.1, 92.0, 91.1, 92.9, 90.5],
    "mixer_nano": [94.0, 96.3, 95.2, 97.1, 94.4],
    "deit_nano": [80.0, 99.0, 85.0, 97.0, 93.0],
}


def test_rungs_against_a_baseline(make):
    frame = frames.load(nano(make, LEVELS))
    table = contrasts.against(frame, "mlp_nano").set_index("rung")
    assert table["verdict"].tolist() == ["baseline", "equal", "better", "undecided"]
    assert table.loc["mixer_nano", "diff"] == pytest.approx(
        np.subtract(LEVELS["mixer_nano"], LEVELS["mlp_nano"]).mean()
    )
    p = stats.ttest_rel(LEVELS["mixer_nano"], LEVELS["mlp_nano"]).pvalue
    assert table.loc["mixer_nano", "diff_p"] == pytest.approx(p)
    assert table.loc["mixer_nano", "diff_p_holm"] == pytest.approx(3 * p)
    assert table[["rank_low", "rank_high"]].to_numpy().tolist() == [[2, 4], [2, 4], [1, 2], [1, 4]]
    assert contrasts.against(frame).set_index("rung")["verdict"].tolist() == table["verdict"].tolist()
    other = contrasts.against(frame, "mixer_nano").set_index("rung")
    assert other["verdict"].tolist() == ["worse", "worse", "baseline", "undecided"]
    with pytest.raises(Refusal, match=r"no rung 'mixr_nano' here; did you mean 'mixer_nano'\?"):
        contrasts.against(frame, "mixr_nano")


def test_what_a_sweep_was_made_for_is_corrected_among_itself(make):
    frame = frames.load(nano(make, LEVELS))
    wanted = {
        "gain": {"mixer_nano": 1, "mlp_nano": -1},
        "none": {"bmlp_nano": 1, "mlp_nano": -1},
        "interaction": {"deit_nano": 1, "mixer_nano": -1, "bmlp_nano": -1, "mlp_nano": 1},
    }
    table = contrasts.registered(frame, wanted).set_index("contrast")
    assert table["verdict"].tolist() == ["better", "equal", "undecided"]
    sums = np.array([LEVELS[name] for name in ("deit_nano", "mixer_nano", "bmlp_nano", "mlp_nano")])
    assert table.loc["interaction", "diff"] == pytest.approx((sums[0] - sums[1] - sums[2] + sums[3]).mean())
    p = stats.ttest_rel(LEVELS["mixer_nano"], LEVELS["mlp_nano"]).pvalue
    assert table.loc["gain", "diff_p_holm"] == pytest.approx(3 * p)
    assert table.loc["none", "equal_p_holm"] == pytest.approx(3 * table.loc["none", "equal_p"])
    text = contrasts.registered_sheet(table.reset_index(), "Planned").markdown()
    assert "| `gain` | +4.10 ± 0.20 | 5 |" in text, text


def of_two_rates(make, first):
    """conv over mixer by seed: 20 and 19.6 points at lr 0.001, 4 and 3.2 at 0.004; rates in the order given."""
    levels = {
        1e-3: {"mlp_nano": [50.0, 51.0], "mixer_nano": [60.0, 61.0], "convmixer_nano": [80.0, 80.6]},
        4e-3: {"mlp_nano": [70.0, 71.5], "mixer_nano": [75.0, 76.0], "convmixer_nano": [79.0, 79.2]},
    }
    return [folder for lr in sorted(levels, reverse=not first) for folder in nano(make, levels[lr], {"lr": lr})]


CONV = {"conv over mixer": {"convmixer_nano": 1, "mixer_nano": -1}}


@pytest.mark.parametrize("first", [True, False])
def test_a_contrast_under_several_conditions_has_a_row_for_each_whatever_the_order(make, first):
    table = contrasts.registered(frames.load(of_two_rates(make, first)), CONV).set_index("contrast")
    assert table["diff"].to_dict() == pytest.approx(
        {"conv over mixer (lr=0.001)": 19.8, "conv over mixer (lr=0.004)": 3.6}
    )
    assert table["diff_n"].tolist() == [2, 2]


def test_a_contrast_calls_rungs_as_tables_do(make):
    frame = frames.load(of_two_rates(make, True))
    named = {"at its best": {"convmixer_nano lr=0.001": 1, "mixer_nano lr=0.004": -1}}
    assert set(named["at its best"]) <= set(frames.rungs(frame)["rung"])
    row = contrasts.registered(frame, named).iloc[0]
    assert (row["contrast"], row["diff"]) == ("at its best", pytest.approx(4.8))
    for weights, words in (
        ({"convmixer_nano lr=0.001": 1, "mixer_nano": -1}, "'mixer_nano' was trained in 2 ways; name the one"),
        ({"convmixer_nano lr=0.002": 1, "mixer_nano": -1}, "did you mean 'convmixer_nano lr=0.00[14]'"),
    ):
        with pytest.raises(Refusal, match=f"CONTRASTS 'x': .*{words}"):
            contrasts.registered(frame, {"x": weights})


def test_a_rung_of_fewer_conditions_than_the_other_makes_a_contrast_ambiguous(make):
    frame = frames.load([*of_two_rates(make, True), *nano(make, {"deit_nano": [70.0, 71.0]}, {"lr": 1e-3})])
    weights = {"deit_nano": 1, "mixer_nano": -1}
    with pytest.raises(Refusal, match=r"'mixer_nano lr=0\.001', 'mixer_nano lr=0\.004'"):
        contrasts.registered(frame, {"x": weights})
    assert contrasts.registered(frame, {"x": {"deit_nano": 1, "mixer_nano lr=0.001": -1}})["diff"][0] == 10


def test_a_contrast_takes_the_seeds_that_are_done(make):
    folders = nano(make, {"mlp_nano": [90.0, 92.0, 91.0], "mixer_nano": [94.0, 95.5, None]})
    wanted = {"gain": {"mixer_nano": 1, "mlp_nano": -1}}
    row = contrasts.registered(frames.load(folders), wanted).iloc[0]
    assert (row["diff"], row["diff_n"]) == (pytest.approx(3.75), 2)
    nothing = contrasts.registered(frames.load(folders[:3] + folders[5:]), wanted).iloc[0]
    assert nothing["diff_n"] == 0 and nothing["verdict"] == "no pairs" and math.isnan(nothing["diff"])


def test_whole_and_shuffled_images_are_families_of_their_own(make):
    """Both corrections are Holm's by hand over the rungs, or contrasts, of one kind of images."""
    noise = np.random.default_rng(0).normal(0, 0.4, (2, 3, 4))
    levels = (np.array([90.0, 91.0, 91.5])[None, :, None] + noise).round(2)
    models, folders = ("mlp_nano", "bmlp_nano", "mixer_nano"), []
    for kind, permute in enumerate(("none", "pixels")):
        folders += nano(make, {m: levels[kind, i] for i, m in enumerate(models)}, {"permute": permute})
    frame = frames.load(folders)
    differences = levels[:, 1:] - levels[:, :1]
    p = stats.ttest_1samp(differences, 0, axis=2).pvalue
    holm = [[min(1, 2 * min(a, b)), max(2 * min(a, b), a, b)] for a, b in p]  # of two: the smaller twice, then both
    wanted = [pair if a < b else pair[::-1] for pair, (a, b) in zip(holm, p, strict=True)]
    table = contrasts.against(frame, "mlp_nano")
    assert table["diff_p_holm"].dropna().tolist() == pytest.approx(np.ravel(wanted))
    pair = {m: {m: 1, "mlp_nano": -1} for m in models[1:]}
    planned = contrasts.registered(frame, pair).sort_values("condition", kind="stable")
    assert planned["condition"].tolist() == ["permute=none"] * 2 + ["permute=pixels"] * 2
    assert planned["diff_p_holm"].tolist() == pytest.approx(np.ravel(wanted))


def test_a_small_sure_difference_is_both(make):
    levels = {
        "mlp_nano": LEVELS["mlp_nano"],
        "bmlp_nano": [v + 0.2 + i / 100 for i, v in enumerate(LEVELS["mlp_nano"])],
    }
    assert contrasts.against(frames.load(nano(make, levels)))["verdict"].tolist()[1] == "better, but equal"


def test_runs_of_other_images_or_order_make_no_pairs(make):
    levels = {"mlp_nano": [90.0, 91.0, 92.0]}
    folders = nano(make, levels) + nano(make, {"mixer_nano": [95.0, 96.0, 97.5]}, holdout=0.1)
    frame = frames.load(folders)
    assert frame["rung"].nunique() == 2 and frame["data"].nunique() == 2
    table = contrasts.against(frame, "mlp_nano holdout=0")
    assert table["verdict"].tolist() == ["baseline", "no pairs"]
    assert table["rank_high"].tolist() == [1, 1]


def test_baseline_is_the_one_of_the_same_condition(make):
    folders = nano(make, {"mlp_nano": [90.0, 91.0], "mixer_nano": [92.0, 94.0]}, train_samples=100)
    folders += nano(make, {"mlp_nano": [95.0, 96.0], "mixer_nano": [96.0, 98.0]})
    table = contrasts.against(frames.load(folders), "mlp_nano")
    assert table["baseline"].tolist() == ["mlp_nano train_samples=100"] * 2 + ["mlp_nano train_samples=default"] * 2
    assert table["diff"].tolist()[1::2] == [2.5, 1.5]


def test_interaction_is_a_contrast_of_four(make):
    levels = {
        "mlp_nano": [90.0, 91, 92],
        "bmlp_nano": [91.0, 93, 92],
        "mixer_nano": [90.5, 92, 93],
        "deit_nano": [96.0, 97, 99, 50],
    }
    weights = {"deit_nano": 1, "bmlp_nano": -1, "mixer_nano": -1, "mlp_nano": 1}
    found = frames.contrast(frames.load(nano(make, levels)), weights)
    values = [4.5, 3.0, 6.0]
    assert (found.mean, found.n) == (4.5, 3)
    assert found.p == pytest.approx(stats.ttest_1samp(values, 0).pvalue)


def predict(folder, right):
    np.savez(folder / "predictions.npz", label=np.zeros(len(right), int), prediction=1 - np.array(right, int))


def test_predictions_add_the_test_images(make):
    rng = np.random.default_rng(0)
    folders, mlp, mixer = [], [], []
    for seed in range(4):
        for model, level, side in (("mlp_nano", 0.8, mlp), ("mixer_nano", 0.9, mixer)):
            right = rng.random(200) < level
            folders.append(make(model, 100 * right.mean(), seed=seed))
            predict(folders[-1], right)
            side.append(right)
    row = contrasts.against(frames.load(folders)).iloc[1]
    assert row.examples == 200 and row.low < row["diff"] < row.high
    assert row["diff"] == pytest.approx(100 * (np.mean(mixer) - np.mean(mlp)))
    pair = contrasts.against(frames.load(folders[:2])).iloc[1]
    counts = int((mixer[0] & ~mlp[0]).sum()), int((~mixer[0] & mlp[0]).sum())
    assert pair.mcnemar_p == pytest.approx(stats.binomtest(counts[0], sum(counts)).pvalue)
    assert "McNemar p" in contrasts.sheet(contrasts.against(frames.load(folders[:2]))).markdown()
    (folders[0] / "predictions.npz").unlink()
    assert contrasts.against(frames.load(folders)).iloc[1].examples == 0


def test_predictions_of_other_weights_are_refused(make):
    folders = nano(make, {"mlp_nano": [90.0, 91.0], "mixer_nano": [92.0, 93.0]})
    for folder in folders:
        predict(folder, [True] * 50 + [False] * 50)
    with pytest.raises(
        Refusal, match=r"has an accuracy of 50.00 and its run 9[0-9].00; write it again: python scripts"
    ):
        contrasts.against(frames.load(folders))
    folders = nano(make, {"mlp_nano": [90.0, 91.0], "mixer_nano": [92.0, 93.0]}, holdout=0.1)
    for folder in folders:
        predict(folder, [True] * 100)
        path = folder / "predictions.npz"
        path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(Refusal, match=r"predictions.npz cannot be read .* --split holdout"):
        contrasts.against(frames.load(folders))


def test_unfinished_runs_are_listed(make, tmp_path):
    folders = [make(acc1=90.0), make(seed=1, state="failed", status={"error_class": "diverged", "error": "loss NaN"})]
    folders.append(folder_of(make_run({"seed": 2}), tmp_path))
    sheet = contrasts.unfinished(frames.load(folders))
    assert [row[1:5] for row in sheet.rows] == [["1", "failed", "diverged", "loss NaN"], ["2", "planned", "–", "–"]]
    assert contrasts.unfinished(frames.load(folders[:1])) is None


def test_power_note_names_what_these_pairs_can_show(make):
    frame = frames.load(nano(make, {"mlp_nano": [90.0, 91.0, 92.0], "mixer_nano": [91.0, 93.0, 95.0]}))
    note = contrasts.power_note(frame, contrasts.against(frame))
    assert "3 pairs" in note and "deviation of 1.00 points" in note and "difference of 3.3 points" in note
    assert "take 10 seeds" in note
    single = frames.load(nano(make, {"mlp_nano": [90.0], "mixer_nano": [91.0]}))
    assert "nothing can be told" in contrasts.power_note(single, contrasts.against(single))
    alone = single[single["rung"] == single["rung"].iloc[0]]
    assert "its own baseline" in contrasts.power_note(alone, contrasts.against(alone))


def test_budgets_hold_what_lies_within_the_tolerance():
    costs = pd.Series({"a": 100.0, "b": 108.0, "c": 92.0, "d": 130.0, "e": 1000.0, "f": 950.0, "g": math.nan, "h": 9.0})
    names = pd.Series({rung: rung for rung in costs.index})
    found, missed = fairness.budgets(costs, names, 0.1)
    assert [(budget.amount, budget.rungs) for budget in found] == [(100.0, ["a", "b", "c"]), (950.0, ["e", "f"])]
    assert missed["rung"].tolist() == ["d", "g", "h"]
    assert missed["ratio"].tolist()[::2] == [1.3, 0.09]
    assert missed["budget"].tolist()[0] == 100 and math.isnan(missed["ratio"][1])


def test_one_rung_in_two_conditions_is_no_budget():
    costs = pd.Series({"a lr=1": 10.0, "a lr=2": 10.0, "b": 20.0})
    found, missed = fairness.budgets(costs, pd.Series({"a lr=1": "a", "a lr=2": "a", "b": "b"}), 0.1)
    assert found == [] and len(missed) == 3 and missed["ratio"].isna().all()


def test_each_budget_is_a_ladder_of_its_own(make):
    folders = nano(make, {"mlp_nano": [90.0, 91.0], "mixer_nano": [95.0, 94.0], "deit_nano": [80.0, 82.0]})
    for folder, macs in zip(folders, [100, 100, 2000, 2000, 105, 105], strict=True):
        write_json(folder / "profile.json", {"params": 1000, "macs": macs})
    parts, missed = fairness.fair(frames.load(folders), "macs", 0.1)
    assert [(title, list(dict.fromkeys(part["rung"]))) for title, part in parts] == [
        ("At 100 MACs per image ± 10%", ["mlp_nano", "deit_nano"])
    ]
    assert missed.rows == [["mixer_nano", "2.00 k", "100", "20×"]]
    tables = contrasts.tables([part for _, part in parts], "mlp_nano")
    assert tables[0]["diff"].tolist()[1] == -9.5
    alone = contrasts.tables([part for _, part in parts], None)[0]
    assert alone["diff"].isna().all() and set(alone["verdict"]) == {"–"}, "the first of a file is no baseline"
    assert alone["rank_low"].tolist() == [1, 2], "80, 82 is surely below 90, 91: ranks need no baseline"
    every, _ = fairness.fair(frames.load(folders), "params", 0.1)
    assert len(every) == 1 and every[0][1]["rung"].nunique() == 3


def test_equal_time_is_the_latency_of_one_device_and_never_the_speed_of_training(make, tmp_path):
    frame = frames.load(nano(make, {"mlp_nano": [90.0, 91.0], "mixer_nano": [95.0, 94.0]}))
    assert frame["images_per_s"].notna().all(), "which would be a time, of another meaning"
    with pytest.raises(Refusal, match=r"profile_model.py --sweep demo measures them"):
        fairness.costs(frame, "time", sweep="demo")
    speeds = tmp_path / "speeds.csv"
    speeds.write_text("model,img_size,device,latency_ms\nmlp_nano,8,cpu,2.0\n")
    costs = fairness.costs(frame, "time", speeds)
    assert costs["mlp_nano"] == 0.002 and math.isnan(costs["mixer_nano"])
    speeds.write_text("model,img_size,device,latency_ms\nmlp_nano,224,cpu,2.0\n")
    size = int(frame["img_size"].iloc[0])
    with pytest.raises(Refusal, match=f"has mlp_nano at 224 px, its runs are of {size} px"):
        fairness.costs(frame, "time", speeds)
    speeds.write_text("model,device,latency_ms\nmlp_nano,cpu,2.0\nmixer_nano,gpu,1.0\n")
    with pytest.raises(Refusal, match="times of 2 devices"):
        fairness.costs(frame, "time", speeds)


def test_one_rule_says_where_latencies_are(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    given = tmp_path / "mine.csv"
    assert fairness.speeds_file([one, two]) is None
    with pytest.raises(Refusal, match=r"there is no .*mine\.csv"):
        fairness.speeds_file([one], given)
    (one / "speeds.csv").touch()
    given.touch()
    assert fairness.speeds_file([one, two]) == one / "speeds.csv"
    assert fairness.speeds_file([one, two], given) == given
    (two / "speeds.csv").touch()
    with pytest.raises(Refusal, match="were not measured together; name one by --speeds"):
        fairness.speeds_file([one, two])


def test_speeds_of_training_are_compared_on_one_machine_only(make):
    folders = nano(make, {"mlp_nano": [90.0, 91.0], "mixer_nano": [95.0, 94.0]})
    with pytest.raises(Refusal, match="no record of its machine"):
        fairness.one_machine(frames.load(folders))
    machine = {"processor": "P", "cores": 2, "threads": 1, "device": "cpu"}
    for folder in folders:
        write_json(folder / "env.json", machine | {"host": folder.name})
    fairness.one_machine(frames.load(folders))
    write_json(folders[0] / "env.json", machine | {"processor": "Q"})
    with pytest.raises(Refusal, match=r"timed on 2 machines \(P, 2, 1, cpu \| Q, 2, 1, cpu\)"):
        fairness.one_machine(frames.load(folders))


def script(*args):
    return warm.run("-m", "scripts.compare", *args)


def test_command_line(make, tmp_path):
    folders = nano(make, LEVELS)
    done = script(tmp_path / "runs", "--baseline", "mlp_nano", "--csv")
    assert done.returncode == 0, done.stderr
    rows = pd.read_csv(io.StringIO(done.stdout)).set_index("rung")
    assert rows.loc["mixer_nano", "diff_n"] == 5 and rows.loc["bmlp_nano", "verdict"] == "equal"
    done = script(*folders[:2], folders[5], make("mixer_nano", state="failed", seed=9), "--markdown", "--published")
    assert "| `mlp_nano` |" in done.stdout and "**Runs without a result**" in done.stdout
    latex = script(tmp_path / "runs", "--fair", "params", "--latex")
    assert r"\begin{tabular}" in latex.stdout and "1.00 k parameters" in latex.stdout
    timed = script(tmp_path / "runs", "--fair", "time")
    assert timed.returncode == 2 and "no latencies of these rungs are known" in timed.stderr
    plain = script(tmp_path / "runs")
    assert "With 5 pairs" in plain.stdout and plain.stdout.count("runs") <= 1


def test_command_line_takes_baseline_and_contrasts_of_each_sweep(tmp_path):
    """Two sweeps whose contrasts have one name: each is answered from its own runs, whatever stands beside it."""
    results = tmp_path / "results"
    for place, name in enumerate(("first", "second")):
        runs = [make_run({"model": m, "seed": s, "lr": 1e-3 * (1 + place)}) for m in LEVELS for s in range(5)]
        for run in runs:
            write_run(results, run, LEVELS[run.model][run.seed] - place * (run.model == "mlp_nano"))
        (tmp_path / f"{name}.py").write_text(
            "from engine.run import make_run\nBASELINE = 'mixer_nano'\n"
            "CONTRASTS = {'gain': {'mixer_nano': 1, 'mlp_nano': -1}}\n"
            f"def runs():\n    return [make_run(run) for run in {[run.record() for run in runs]!r}]\n"
        )
    command = ["-m", "scripts.compare", *(tmp_path / f"{name}.py" for name in ("first", "second"))]
    done = warm.run(*command, "--markdown", env={**os.environ, "SOFTMLP_RESULTS": str(results)})
    assert done.returncode == 0, done.stderr
    assert re.findall(r"`gain` \| (\S+) ±", done.stdout) == ["+4.10", "+5.10"]
    assert re.findall(r"`(mixer_nano [^`]*)`.*\| baseline \|", done.stdout) == [
        "mixer_nano lr=0.001", "mixer_nano lr=0.002"
    ]  # fmt: skip


@pytest.mark.parametrize(
    "args, words",
    [
        (["nosuch"], "unknown sweep 'nosuch'"),
        (["results"], "is no run's folder and holds none"),
        (["demo", "--speeds", "x.csv"], "--speeds is for --fair time"),
        (["demo", "--margin", "x"], "not a number above 0"),
    ],
)
def test_command_line_refuses_in_one_line(args, words):
    done = script(*args)
    assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1
