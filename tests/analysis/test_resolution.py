"""Accuracy at other sizes of image: of the same weights, on images of that size, where weights have no places."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

import archs
from analysis.bias import resolution
from engine.data import beton, sets
from engine.data.ensure import ensure
from engine.errors import Refusal
from engine.folder.store import folder_of
from engine.run import make_how, make_run
from engine.train import train
from tests import warm

ROOT = Path(__file__).resolve().parents[2]
SIZES = (8, 12, (8, 16))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for size in SIZES:
        ensure("digits", size, folder, say=lambda line: None)
    return folder


@pytest.fixture(scope="module")
def folders(data, tmp_path_factory):
    """Two seeds of a small convolution network, and an oblong one."""
    output, found = tmp_path_factory.mktemp("results"), []
    for size, seed in ((8, 0), (8, 1), ((8, 16), 0)):
        fields = {"model": "convmixer_nano", "model_kwargs": {"dim": 24, "depth": 1}, "img_size": size, "seed": seed}
        run = make_run({**fields, "epochs": 3, "lr": 1e-2})
        found.append(folder_of(run, output))
        train(run, found[-1], make_how({"data_dir": data, "threads": 1}))
    return found


def by_hand(folder, size, data):
    """Accuracy of the weights on the pixels that the file of this size holds, in plain torch."""
    state = torch.load(folder / "last.pth.tar", weights_only=True)["state_dict"]
    model = archs.create("convmixer_nano", dim=24, depth=1, img_size=size).eval()
    model.load_state_dict(state)
    path = beton.path_of("digits", "val", size, data)
    layout, file, entry = beton.read_layout(path), np.fromfile(path, np.uint8), sets.DATASETS["digits"]
    images = np.stack([layout.pixels(file, i) for i in range(500)])[..., :1]
    x = torch.from_numpy((images - entry.mean[0]) / entry.std[0]).float().permute(0, 3, 1, 2)
    with torch.inference_mode():
        return 100 * float((model(x).argmax(1).numpy() == layout.labels).mean())


def test_a_size_that_is_not_stored_is_refused_before_any_is_judged(folders, data):
    how = make_how({"data_dir": data, "threads": 1})
    run = make_run({"model": "convmixer_nano", "dataset": "imagefolder/nowhere", "img_size": 8})
    with pytest.raises(Refusal, match=r"nowhere_train_8\.beton is missing"):
        resolution.sized(run, SIZES, how, lambda line: None)
    assert [one.pixels for one in resolution.sized(run.but(dataset="digits"), SIZES, how, print)] == ["8", "12", "8x16"]


def test_the_curve_is_of_the_same_weights_on_images_of_each_size(folders, data):
    how = make_how({"data_dir": data, "threads": 1})
    rows = [row for folder in folders for row in resolution.measure(folder, SIZES, how, lambda line: None)]
    assert len(rows) == 9 and len({row["acc1"] for row in rows}) > 3
    for row, (folder, size) in zip(rows, [(folder, size) for folder in folders for size in SIZES], strict=True):
        assert row["acc1"] == pytest.approx(by_hand(folder, size, data), abs=0.21), row  # one image of rounding
    last = list(csv.DictReader((folders[0] / "summary.csv").open()))[-1]
    assert rows[0]["acc1"] == pytest.approx(float(last["eval_top1"]), abs=1e-3)
    table = resolution.summary(rows)
    assert len(table) == 6 and table["n"].tolist() == [2, 2, 2, 1, 1, 1]
    both = [row["acc1"] for row in rows if row["trained_px"] == "8" and row["img_size"] == "12"]
    assert table["acc1"][1] == pytest.approx(np.mean(both))
    shown = resolution.sheet(table)
    assert shown.header[3:] == ("at 8", "at 8x16", "at 12") and len(shown.rows) == 2


def test_the_script_draws_what_it_tells_and_validate_agrees(folders, data, tmp_path):
    given = ["--data-dir", data, "--threads", "1"]

    def script(name, *words):
        return warm.run(ROOT / f"scripts/{name}.py", *words, *given)

    files = ("--results-file", tmp_path / "curve.csv", "--figure", tmp_path / "curve.svg")
    done = script("resolution", folders[0].parent, "--img-size", 8, 12, *files)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((tmp_path / "curve.csv").open()))
    assert [row["img_size"] for row in rows] == ["8", "12"] * 3
    svg = (tmp_path / "curve.svg").read_text()
    assert svg.count("trained at 8 px, judged at 12") == 1 and "trained at 8x16 px" in svg
    judged = script("validate", folders[0], "--img-size", 12)
    assert judged.returncode == 0, judged.stderr
    assert "img_size 12  trained_px 8" in judged.stdout
    row = next(row for row in rows if row["img_size"] == "12" and folders[0].name.startswith(row["signature"]))
    assert f"top1 {float(row['acc1']):.4f}" in judged.stdout
    plain = script("validate", folders[2])
    assert plain.returncode == 0 and "trained_px" not in plain.stdout
    missing = script("validate", folders[0], "--img-size", 20)
    assert missing.returncode == 3 and "digits_train_20.beton is missing" in missing.stderr


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"model": "mixer_nano"}, "its weights belong to the grid of 8 px; without one: .*convmixer"),
        ({"model": "convmixer_nano", "permute": "pixels"}, "was trained on permuted pixels"),
    ],
)
def test_weights_with_places_are_refused_before_anything_is_measured(fields, words):
    with pytest.raises(Refusal, match=words):
        resolution.check(make_run(fields))
