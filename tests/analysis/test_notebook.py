"""Results as values: what folders and tables say, by the names that people know; probes on models from elsewhere."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from analysis import notebook
from engine.cli import tables
from engine.errors import CHECKPOINT, DATA, Refusal
from engine.folder import predictions, store
from tests.reports import write_run

LADDER = store.ROOT / "results" / "ladder"


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setenv("SOFTMLP_RESULTS", str(tmp_path))
    return tmp_path


def test_a_published_study_is_its_table(results):
    frame = notebook.table("ladder")
    rows = tables.read(LADDER / "runs.csv")
    assert frame["signature"].tolist() == [row["signature"] for row in rows]
    np.testing.assert_allclose(frame["acc1"], pd.to_numeric(pd.Series([row["acc1"] or None for row in rows])))
    assert len(notebook.table("ladder", "probes")) == len(tables.read(LADDER / "probes.csv"))
    one = notebook.run("f39056f4")
    assert one["rung"] == "mlp_1m depth=4 dim=876" and one["acc1"] == 46.32


def test_runs_with_folders_are_read_from_them(results, runs):
    """By a folder, by a study's manifest, and each by the first digits of its signature."""
    folders = [write_run(results, run, 50 + run.seed) for run in runs[:6]]
    by_folder = notebook.table(results / "runs")
    assert {*by_folder["signature"]} == {run.signature for run in runs[:6]} and by_folder["acc1"].notna().all()
    (results / "mine").mkdir()
    manifest = [{"signature": run.signature, "folder": folder.name} for run, folder in zip(runs, folders, strict=False)]
    tables.write(results / "mine/manifest.csv", manifest[:4])
    assert notebook.table("mine")["signature"].tolist() == [run.signature for run in runs[:4]]
    row = notebook.run(runs[2].signature[:7])
    assert row["acc1"] == 52 and row["seed"] == 2 and row["model"] == runs[2].model


def test_predictions_come_from_the_folder_or_from_the_study(results, runs):
    label = np.arange(200) % 10
    found = predictions.Predictions(np.where(np.arange(200) % 4, label, (label + 1) % 10), label)
    folder = write_run(results, runs[0], 75.0)
    predictions.write(folder, found, 10)
    read = notebook.predictions(runs[0].signature)
    assert read.acc1 == 75 and (read.prediction == found.prediction).all()
    (results / "mine").mkdir()
    predictions.write_table(results / "mine/predictions.npz", {runs[0].signature: found})
    tables.write(results / "mine/runs.csv", [{"signature": runs[0].signature, "folder": folder.name, "scheme": 2,
                                              "state": "done", "acc1": 75.0}])  # fmt: skip
    shutil.rmtree(folder)
    assert (notebook.predictions(runs[0].signature[:6]).prediction == found.prediction).all()


@pytest.mark.parametrize(
    "ask, words, code",
    [
        (lambda: notebook.table("lader"), "unknown study 'lader'; did you mean 'ladder'", DATA),
        (lambda: notebook.table("ladder", "run"), "unknown kind of table 'run'; did you mean 'runs'", 2),
        (lambda: notebook.table("ladder_lr", "probes"), "unknown study with probes.csv 'ladder_lr'", DATA),
        (lambda: notebook.run("mlp"), "'mlp' is no signature", DATA),
        (lambda: notebook.run("00000000"), "no run '00000000' in ", DATA),
        (lambda: notebook.run("f"), "'f' begins .* runs, .* give more digits", DATA),
        (lambda: notebook.predictions("00000000"), "no run '00000000' in ", DATA),
        (lambda: notebook.predictions("f39056f4"), "the predictions of f39056f4 are not kept", CHECKPOINT),
    ],
)
def test_mistakes_are_one_line(ask, words, code, results):
    with pytest.raises(Refusal, match=words) as refusal:
        ask()
    assert refusal.value.code == code and "\n" not in str(refusal.value)


class Corner(nn.Module):
    """Tells two classes by whether the left or the right half is brighter: a shift by half of the image swaps them."""

    def forward(self, x_BCHW):
        return torch.stack([x_BCHW[..., :4].sum((1, 2, 3)), x_BCHW[..., 4:].sum((1, 2, 3))], 1)


def images(count=60):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, count)
    pixels = 0.1 * rng.random((count, 1, 8, 8))
    for image, label in zip(pixels, labels, strict=True):
        image[:, :, (slice(0, 2), slice(6, 8))[label]] += 1
    return pixels, labels


def test_a_probe_looks_at_any_module():
    """Halves that are told by brightness are right of every image as it is, and mirrored never."""
    x, y = images()
    model = Corner().train()
    found = notebook.probe("shift", model, x, y)
    assert found["acc"].value == 100 and found["acc_1"].value == 100 and model.training
    assert found["acc_1"].low <= 100 and found["acc"].null == pytest.approx(50, abs=5)
    shuffled = notebook.probe("patch_shuffle", model, torch.from_numpy(x), torch.from_numpy(y), batch_size=7)
    same = notebook.probe("patch_shuffle", model, x, y)
    wide = np.concatenate([x, np.zeros((60, 1, 8, 4))], 3)  # 8 x 12 is tiled by 4 x 4
    found = notebook.probe("patch_shuffle", model, wide, y)
    assert "acc_2" in found and "acc_4" not in found
    assert shuffled == same and 30 < shuffled["acc_2"].value < 80


def test_what_excites_a_unit_of_any_module_most():
    """The left half bright and nothing on the right, as far from the mean image as the images are."""
    x, _ = images()
    model = nn.Sequential(Corner().train())
    found, value, seen = notebook.exciting(model, x, "0", [0])
    away = found[0, 0] - torch.from_numpy(x).float().mean(0)[0]
    assert away[:, :4].std() < 1e-3 and away[:, 4:].abs().max() < 1e-3 and away[0, 0] > 0
    assert seen.shape == (60, 1) and value[0] > seen.max() and model.training
    with pytest.raises(Refusal, match="unknown module '00'; did you mean '0'"):
        notebook.exciting(model, x, "00")


@pytest.mark.parametrize(
    "change, words",
    [
        ({"name": "shfit"}, "unknown probe 'shfit'; did you mean 'shift'"),
        ({"images": np.zeros((60, 8, 8))}, "images are \\(N, C, H, W\\)"),
        ({"labels": np.zeros(59)}, "labels \\(N,\\), not"),
        ({"labels": np.full(60, 2)}, "labels are 2 to 2, of 2 classes"),
        ({"model": nn.Identity()}, "the model puts out .* for one image"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(change, words):
    x, y = images()
    given = {"name": "shift", "model": Corner(), "images": x, "labels": y, **change}
    with pytest.raises(Refusal, match=words):
        notebook.probe(**given)
