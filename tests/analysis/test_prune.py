"""Curves of pruning against closed forms; the script from trained runs to a table and a figure, and the same again."""

import csv
import math
import sys

import pandas as pd
import pytest
import torch

import archs
from analysis.pruning import curves, measured
from engine.errors import CHECKPOINT, Refusal
from engine.folder import store
from engine.run import make_how, make_run
from engine.train import train
from scripts import prune


def made(**cells):
    """Rows for `by: {share: accuracies of source seeds 0, 1, 2}`, before and, 10 points higher, after."""
    return [
        {
            **{"source": f"s{seed}", "by": by, "seed": seed + 5 * draw, "source_seed": seed, "share": gone},
            **{"round": 1, "rounds": 1, "kept": 1 - gone, "macs": 100 * (1 - gone), "macs_whole": 100},
            **{"acc_whole": 90, "acc_before": acc + draw, "acc_after": acc + 10},
        }
        for by, shares in cells.items()
        for gone, accs in shares.items()
        for seed, acc in enumerate(accs)
        for draw in range(1 + 2 * (by == "random"))
    ]


def test_areas_and_differences_have_their_closed_forms():
    rows = made(
        magnitude={0.5: (60, 62, 64), 0.75: (50, 52, 54), 0.9: (20, 20, 20)},
        locality={0.5: (58, 61, 61), 0.75: (50, 50, 50), 0.9: (10, 20, 30)},
        random={0.5: (40, 42, 44)},
    )
    frame = curves.table(rows)
    assert curves.area([0.5, 0.75, 0.9], [62, 52, 20]) == pytest.approx((57 * 0.25 + 36 * 0.15) / 0.4)
    assert curves.area([0.9, 0.5], [1, 3]) == pytest.approx(2) and math.isnan(curves.area([0.5], [3]))
    found = curves.differences(frame).set_index(["by", "over", "share", "when"])
    price = found.loc[("locality", "magnitude", 0.5, "before")]
    assert price["mean"] == pytest.approx(-2) and price["n"] == 3
    assert price["half"] == pytest.approx(4.302653 * 1 / math.sqrt(3), rel=1e-6)  # t of 2 degrees, deviation 1
    by_chance = found.loc[("magnitude", "random", 0.5, "before")]
    assert by_chance["mean"] == pytest.approx(62 - (42 + 1)), "the mean of three draws is one higher"
    assert ("random", "magnitude", 0.5, "before") not in found.index
    holm = found.loc[[("locality", "magnitude", share, "before") for share in (0.5, 0.75, 0.9)]]
    assert holm["p_holm"].max() <= 1 and (holm["p_holm"] >= holm["p"]).all()
    sheet = curves.sheet(frame)
    assert [row[0] for row in sheet.rows].count("magnitude, area") == 1 and "random, area" not in str(sheet.rows)


def test_only_the_last_round_of_a_chain_is_a_point():
    rows = made(magnitude={0.5: (60,), 0.9: (20,)})
    rows[0] |= {"rounds": 2}
    assert list(curves.table(rows)["share"]) == [0.9]


@pytest.fixture(scope="module")
def sources(digits, tmp_path_factory):
    results = tmp_path_factory.mktemp("results")
    fields = {
        "model": "mlp_nano",
        "model_kwargs": {"layer": "linear_relu"},
        "epochs": 3,
        "lr": 3e-3,
        "train_samples": 640,
    }
    runs = [make_run({**fields, "seed": seed}) for seed in (0, 1)]
    for run in runs:
        train(run, store.folder_of(run, results), make_how({"data_dir": digits, "threads": 1}))
    return results, runs


@pytest.fixture
def call(sources, digits, monkeypatch, capsys):
    results, runs = sources
    monkeypatch.setenv("SOFTMLP_RESULTS", str(results))

    def run(*words):
        command = ["prune", *(store.folder_of(run) for run in runs), "--data-dir", digits, "--threads", 1, *words]
        monkeypatch.setattr(sys, "argv", [str(word) for word in command])
        prune.main()
        return capsys.readouterr().out

    return run


def test_the_script_draws_all_criteria_and_can_be_repeated(call, sources, tmp_path):
    words = ("--by", "magnitude", "locality", "random", "rank", "--share", 0.5, "--draws", 2)
    out = call(*words, "--results-file", tmp_path / "a.csv", "--figure", tmp_path / "a.svg")
    rows = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert len(rows) == 2 * (1 + 1 + 2 + 1) and "locality" in out and "points" in out
    assert (tmp_path / "a.svg").read_text().startswith("<?xml") or "<svg" in (tmp_path / "a.svg").read_text()
    call(*words, "--results-file", tmp_path / "b.csv", "--figure", tmp_path / "a.svg")
    assert (tmp_path / "b.csv").read_text() == (tmp_path / "a.csv").read_text()
    frame = pd.DataFrame(rows)
    for run in sources[1]:
        own = frame[frame["source"] == run.signature]
        last = float(store.read_summary(store.folder_of(run))[-1]["eval_top1"])
        assert own["acc_whole"].astype(float).to_numpy() == pytest.approx(last)
    half = frame[(frame["by"] == "magnitude") & (frame["share"] == "0.5")].iloc[0]
    assert float(half["kept"]) == 0.5 and int(half["macs_whole"]) - int(half["macs"]) == 112 * 32
    local = frame[frame["by"] == "locality"]
    assert (local["half_radius"].astype(float) < local["half_radius_whole"].astype(float)).all()


def test_healing_in_rounds_is_ordinary_runs(call, sources, tmp_path):
    words = ("--by", "magnitude", "--share", 0.9, "--heal-epochs", 1, "--rounds", 2, "--rewind")
    call(*words, "--results-file", tmp_path / "a.csv", "--figure", tmp_path / "a.svg")
    rows = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert [row["round"] for row in rows] == ["1", "2"] * 2
    for row in rows:
        (folder,) = (sources[0] / "runs").glob(f"{row['signature']}-*")
        assert store.is_done(folder) and store.read_run(folder).prune_rewind
        assert float(row["acc_after"]) == store.read_summary(folder)[-1]["eval_top1"]
    assert float(rows[1]["kept"]) == pytest.approx(0.1, abs=0.01)


def test_macs_of_units_are_those_of_the_smaller_net(sources, digits):
    results, (run, _) = sources
    folder = store.folder_of(run, results)
    pruned = run.but(initial_checkpoint=str(folder), prune_by="norm", prune_share=0.5)
    found = measured.measure(pruned, make_how({"data_dir": digits, "threads": 1}))
    small = archs.create("mlp_nano", dim=56, layer="linear_relu")
    weights = sum(module.weight.numel() for module in small.modules() if isinstance(module, torch.nn.Linear))
    assert found.macs == weights


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--by", "magnitud"], "unknown criterion 'magnitud'; did you mean 'magnitude'?"),
        (["--rounds", 2], "--rounds and --rewind train between two rounds; give --heal-epochs, too"),
        (["--share", 1], "'1' is not a number above 0 and below 1"),
        (["--by", "nothing"], "unknown criterion"),
    ],
)
def test_a_mistake_is_one_line(call, words, message):
    with pytest.raises(Refusal) as caught:
        call(*words)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_no_finished_run_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["prune", str(tmp_path)])
    with pytest.raises(Refusal, match="not the folder of a finished run") as caught:
        prune.main()
    assert caught.value.code == CHECKPOINT
