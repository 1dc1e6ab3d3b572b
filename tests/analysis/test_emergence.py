"""Probes of a run's start and of its kept epochs; when something emerges, and rank correlation with the gap."""

import json
import math
import os

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from analysis import probes
from analysis.bias import emergence, probe_runs, probe_table
from analysis.compare import frames
from engine.errors import CHECKPOINT, USAGE
from engine.folder import epochs, store
from engine.run import make_how, make_run
from engine.train import train
from tests import warm

NAMES = ["first_layer", "ranks", "tiling"]


@pytest.fixture(scope="module")
def kept(tmp_path_factory, digits):
    """A short run of a flat net that kept its weights after 0, 1 and 2 epochs, probed."""
    run = make_run({"model": "bmlp_nano", "epochs": 3, "batch_size": 64, "lr": 4e-3, "train_samples": 640})
    folder = store.folder_of(run, tmp_path_factory.mktemp("results"))
    how = make_how({"data_dir": digits, "threads": 1, "keep_epochs": (0, 1, 2)})
    train(run, folder, how)
    assert probe_runs.probe(folder, NAMES, how) == NAMES
    return folder


def read(folder, name):
    return json.loads(probe_table.path_of(folder, name).read_text())


def test_every_kept_epoch_is_in_the_file_and_epoch_0_is_the_start(kept):
    for name in NAMES:
        found = read(kept, name)
        assert list(found["epochs"]) == ["0", "1", "2"] and found["epochs"]["2"].keys() == found["values"].keys()
    found = read(kept, "first_layer")
    zero = found["epochs"]["0"]
    assert not any(key.endswith("_change") for key in zero), "nothing has changed yet"
    for key in ("half_radius", "moran_signed", "recovered"):
        assert zero[key] == found["values"][f"{key}_start"] != found["values"][key]
    smooth = [found["epochs"]["1"]["moran_signed_change"]["low"], found["values"]["moran_signed_change"]["low"]]
    assert min(smooth) > 0.15, "the digits are smooth, and so is what they change"
    assert probe_table.path_of(kept, "first_layer").with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_the_start_is_rebuilt_bit_for_bit_where_it_was_not_kept(kept, how, tmp_path):
    own = probe_runs.Opened(kept, how).start.state_dict()
    folder = tmp_path / kept.name
    folder.mkdir()
    for name in ("args.yaml", "last.pth.tar"):
        (folder / name).write_bytes((kept / name).read_bytes())
    rebuilt = probe_runs.Opened(folder, how).start.state_dict()
    assert all(torch.equal(value, rebuilt[key]) for key, value in own.items())
    assert probe_runs.kept(folder) == [] and probe_runs.kept(kept) == [0, 1, 2]
    # What is kept counts: here another start than the seed's.
    epochs.path_of(folder, 0).write_bytes(epochs.path_of(kept, 2).read_bytes())
    other = probe_runs.Opened(folder, how).start.state_dict()
    assert not torch.equal(other["stem.proj.weight"], own["stem.proj.weight"])


def test_a_run_that_began_with_a_file_starts_there_or_nowhere(kept, how, tmp_path):
    file = tmp_path / "start.pth.tar"
    file.write_bytes((kept / "last.pth.tar").read_bytes())
    run = store.read_run(kept).but(initial_checkpoint=str(file), seed=5)
    folder = store.folder_of(run, tmp_path)
    store.make_folder(run, folder)
    (folder / "last.pth.tar").write_bytes(file.read_bytes())
    start, last = probe_runs.Opened(folder, how).start, torch.load(file, weights_only=True)["state_dict"]
    assert torch.equal(start.stem.proj.weight, last["stem.proj.weight"])
    file.unlink()
    assert probe_runs.Opened(folder, how).subject().start is None


def test_epochs_that_are_not_in_the_file_are_measured(kept, how, tmp_path):
    folder = tmp_path / kept.name
    folder.mkdir()
    for path in [kept / "args.yaml", *kept.glob("*.pth.tar")]:
        (folder / path.name).write_bytes(path.read_bytes())
    epochs.path_of(folder, 2).unlink()
    assert probe_runs.probe(folder, ["tiling"], how) == ["tiling"] and probe_runs.probe(folder, ["tiling"], how) == []
    epochs.path_of(folder, 2).write_bytes(epochs.path_of(kept, 2).read_bytes())
    assert list(probe_runs.missing(folder, ["tiling"])) == ["tiling"]
    assert probe_runs.probe(folder, ["tiling"], how) == ["tiling"]
    assert read(folder, "tiling")["epochs"] == read(kept, "tiling")["epochs"]


def test_the_checksum_of_the_code_follows_what_a_probe_imports():
    sources = probe_runs._sources("analysis.probes.tiling")
    assert {"analysis.probes.first_layer", "analysis.measures.fields", "analysis.bias.probe"} < set(sources)
    assert "analysis.stats" not in sources and "analysis.probes.shift" not in sources
    assert probe_runs.code_of("tiling") != probe_runs.code_of("shift")


def test_the_time_is_said_before_and_a_pass_counts_by_the_model(kept, how):
    cost = sum(probes.read(name)["COST"][1] for name in NAMES)
    passes = sum(probes.read(name)["COST"][0] for name in NAMES)
    expected = probe_runs.seconds({kept: NAMES}, how)
    assert 4 * cost < expected < 4 * (cost + 5 * passes) + 10, "the end and three epochs"
    assert probe_runs.seconds({kept: []}, how) == 0


def table(values, key="moran", nulls=0.0, epochs_=(0, 1, 2, 4)):
    rows = [
        ("f", "r", 0, "p", key, epoch, v, v - 0.1, v + 0.1, nulls) for epoch, v in zip(epochs_, values, strict=True)
    ]
    return pd.DataFrame(rows, columns=emergence.COLUMNS)


def test_the_onset_is_where_half_of_the_end_is_reached():
    assert emergence.onset(np.array([0, 1, 2, 4]), np.array([0.0, 0.0, 1.0, 1.0])) == 1.5
    assert emergence.onset(np.array([0, 2, 4]), np.array([0.0, -0.2, -0.8])) == pytest.approx(2 + 2 / 3), "below, too"
    assert emergence.onset(np.array([2, 4]), np.array([0.6, 0.6])) == 1.0, "no change before training"
    assert math.isnan(emergence.onset(np.array([0, 4]), np.array([0.9, 1.0]))), "it was there"
    (row,) = emergence.onsets(table([2.0, 2.0, 3.0, 3.0], nulls=2.0)).itertuples()
    assert (row.onset, row.first, row.last, row.null, row.n) == (1.5, 2.0, 3.0, 2.0, 1)
    (row,) = emergence.onsets(table([0.0, 0.0, 0.05, 0.05])).itertuples()
    assert math.isnan(row.onset), "the end is at its null"


def test_over_training_has_the_end_as_an_epoch_too(kept):
    frame = emergence.over_training(frames.load([kept]))
    own = frame[(frame["probe"] == "first_layer") & (frame["key"] == "moran_signed")]
    assert own["epoch"].tolist() == [0, 1, 2, 3]
    assert own["value"].iloc[-1] == read(kept, "first_layer")["values"]["moran_signed"]["value"]
    svg = emergence.figure(frame, ["moran_signed_change", "tiling_change", "nothing"])
    assert svg.startswith("<svg") and "moran_signed_change" in svg and "nothing" not in svg


def test_the_rank_correlation_is_scipys_and_its_interval_over_rungs_is_wider():
    rng = np.random.default_rng(0)
    pairs = rng.normal(size=(40, 2))
    pairs[:, 1] += pairs[:, 0]
    bounds = emergence.correlation([pairs])
    assert bounds.value == pytest.approx(stats.spearmanr(*pairs.T).statistic)
    ties = np.round(pairs)
    assert emergence.correlation([ties]).value == pytest.approx(stats.spearmanr(*ties.T).statistic)
    assert 0.2 < bounds.low < bounds.value < bounds.high < 0.95
    # Eight rungs whose five runs are equal are eight values, not forty.
    same = [np.repeat(pair[None], 5, 0) for pair in pairs[20:28]]
    rungs, runs = emergence.correlation(same), emergence.correlation([np.concatenate(same)])
    assert rungs.value == pytest.approx(runs.value) and rungs.high - rungs.low > 1.5 * (runs.high - runs.low)
    assert emergence.correlation([pairs[:3]]) is None and emergence.correlation([pairs, pairs]) is None
    assert emergence.correlation([np.ones((9, 2))]) is None


def test_numbers_are_set_against_the_gap_of_their_own_run(tmp_path):
    gaps = [1.0, 5.0, 3.0, 9.0, 7.0]
    for depth, gap in enumerate(gaps, 1):
        for permute, acc1 in (("none", 90.0), ("pixels", 90.0 - gap)):
            run = make_run({"model": "bmlp_nano", "model_kwargs": {"depth": depth}, "epochs": 2, "permute": permute})
            folder = store.folder_of(run, tmp_path)
            store.make_folder(run, folder)
            store.write_json(folder / "status.json", {"state": "done"})
            store.write_bytes(folder / "summary.csv", store.csv_text([{"epoch": 1, "eval_top1": acc1}]).encode())
            (folder / "probes").mkdir()
            # Of the permuted runs the other way round: they must not count.
            value = {"value": gap if permute == "none" else -gap, "low": 0.0, "high": 9.0, "null": 0.0}
            store.write_json(probe_table.path_of(folder, "tiling"), {"values": {"tiling_change": value}})
    (row,) = emergence.against_gap(frames.load(sorted((tmp_path / "runs").iterdir()))).itertuples()
    assert (row.gap, row.key, row.runs, row.rungs) == ("pixels", "tiling_change", 5, 5)
    assert row.rho == pytest.approx(1) and row.high == pytest.approx(1)


def script(name, *args):
    return warm.run("-m", f"scripts.{name}", *args)


def test_the_commands_list_say_their_time_and_show(kept, tmp_path, digits):
    done = script("probe", "--list")
    assert done.returncode == 0 and all(name in done.stdout for name in probes.names())
    assert "26 passes" in done.stdout and "at each epoch kept" in done.stdout
    done = script("probe", kept, "--probes", "tiling", "shift", "--data-dir", digits, "--threads", "1")
    assert done.returncode == 0, done.stderr
    assert "to measure: 1 of 2 results, about" in done.stderr and "shift" in done.stderr.splitlines()[-1]
    done = script("emergence", kept, "--figure", tmp_path / "over.svg")
    assert done.returncode == 0, done.stderr
    assert "moran_signed_change" in done.stdout and (tmp_path / "over.svg").read_text().startswith("<svg xmlns")
    run = make_run({"model": "mixer_nano"})
    store.make_folder(run, store.folder_of(run, tmp_path))
    for code, words, args in (
        (CHECKPOINT, "train with --keep-epochs", (store.folder_of(run, tmp_path),)),
        (USAGE, "has no args.yaml", (tmp_path / "nowhere",)),
    ):
        done = script("emergence", *args)
        assert (done.returncode, done.stderr.count("\n")) == (code, 1) and words in done.stderr, done.stderr


def test_of_published_tables_emergence_shows_what_is_there_and_probe_says_that_weights_are_not(tmp_path):
    env = {**os.environ, "SOFTMLP_RESULTS": str(tmp_path)}
    done = warm.run("-m", "scripts.emergence", "bias", "--keys", "local_change", env=env)
    assert done.returncode == 0, done.stderr
    told = pd.read_csv(store.ROOT / "results/bias/emergence.csv")
    assert done.stdout.count("local_change") == told[told["key"] == "local_change"]["signature"].nunique() > 0
    for name, words in (("bias", "launch bias --published trains"), ("ladder", "a table alone")):
        done = warm.run("-m", "scripts.probe", name, env=env)
        assert (done.returncode, done.stderr.count("\n")) == (CHECKPOINT, 1) and words in done.stderr, done.stderr
