"""Height and width may differ: sizes as they are written, conversion, loading, training; which stored file is taken."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import archs
from engine.cost.profile import profile
from engine.data import beton, loaders, normalize, write
from engine.data.augment import pipeline, resample
from engine.data.augment.policy import parse, table
from engine.data.ensure import ensure, settled
from engine.errors import Refusal
from engine.fields import sizes
from engine.folder.store import read_status
from engine.run import make_how, make_run
from engine.train import train
from tests import warm

ROOT = Path(__file__).resolve().parents[2]
NAME = "imagefolder/views"


@pytest.fixture
def raw(tmp_path):
    """Twelve images of two classes, of several shapes."""
    for label, name in enumerate(("land", "sea")):
        for split in ("train", "val"):
            (tmp_path / "raw" / split / name).mkdir(parents=True)
            for i, shape in enumerate(((40, 90), (90, 40), (64, 64))):
                pixels = np.random.default_rng([label, i]).integers(0, 256, (*shape, 3), dtype=np.uint8)
                Image.fromarray(cv2.GaussianBlur(pixels, (5, 5), 2)).save(tmp_path / f"raw/{split}/{name}/{i}.png")
    return tmp_path / "raw"


def stored(raw, data_dir, size, **settings):
    for split in ("train", "val"):
        write.write(NAME, split, size, raw, data_dir, write.Settings(**settings), say=lambda line: None)
    return data_dir


def validated(size, data_dir, **fields):
    run = make_run({"dataset": NAME, "img_size": size, "batch_size": 2, **fields})
    _, val, _ = loaders.make_loaders(run, make_how({"data_dir": data_dir}))
    return torch.cat([x.clone() for x, _ in val.epoch(0)]).numpy()


def by_hand(image, height, width):
    """The largest part in the centre of that shape, by its definition, resized by OpenCV."""
    tall, wide = (
        min(image.shape[0], image.shape[1] * height / width),
        min(image.shape[1], image.shape[0] * width / height),
    )
    tall, wide = int(tall + 0.5), int(wide + 0.5)
    top, left = (image.shape[0] - tall) // 2, (image.shape[1] - wide) // 2
    part = image[top : top + tall, left : left + wide]
    return cv2.resize(part, (width, height), interpolation=cv2.INTER_AREA)


@pytest.mark.parametrize("given", [32, "32", 32.0, "32x32", (32, 32), [32, 32.0], " 32 x 32 "])
def test_a_square_has_one_spelling_and_the_signature_it_always_had(given):
    run = make_run({"dataset": "cifar10", "img_size": given})
    assert run.img_size == 32 and run == make_run({"dataset": "cifar10"}) and run.record()["img_size"] == 32
    assert make_run({"img_size": [8, 8], "stored_size": "16x16"}).signature == make_run({"stored_size": 16}).signature


def test_an_oblong_is_a_run_of_its_own_that_its_record_gives_back():
    run = make_run({"img_size": "8x16"})
    assert run.img_size == (8, 16) and run.record()["img_size"] == "8x16" and run.pixels == "8x16"
    assert make_run(run.record()) == run and len({run.signature, make_run({}).signature}) == 2
    assert make_run({"img_size": (16, 8)}).signature != run.signature


@pytest.mark.parametrize("given", ["x", "8x", "8x0", [1, 2, 3], True, 0, 8.5, "8×8×8", []])
def test_what_is_no_size_is_refused_in_one_line(given):
    with pytest.raises(Refusal, match=r"is no size in pixels; write 32, or 32x64 \(height x width\)"):
        make_run({"img_size": given})


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"img_size": "8x16", "stored_size": "16x8"}, "stored_size 16x8 is less than img_size 8x16"),
        ({"img_size": "8x16", "crop_pad": 8}, "crop_pad 8 at 8x16 pixels"),
    ],
)
def test_both_sides_count(fields, words):
    with pytest.raises(Refusal, match=words):
        make_run(fields)


@pytest.mark.parametrize("size", [(16, 32), (32, 16), (16, 24)])
def test_images_are_cut_in_the_centre_and_resized(raw, tmp_path, size):
    data = stored(raw, tmp_path / "data", size)
    images = validated(size, data)
    assert images.shape[1:] == (*size, 3)
    paths = sorted((raw / "val").rglob("*.png"))
    wanted = [by_hand(np.asarray(Image.open(path)), *size) for path in paths]
    assert np.abs(images.astype(int) - np.stack(wanted)).max() <= 1
    facts = beton.check(beton.path_of(NAME, "val", size, data), NAME, size)
    assert facts["img_size"] == sizes.text(size)


def test_larger_files_are_shrunk_to_an_oblong_as_they_are_read(raw, tmp_path):
    data = stored(raw, tmp_path / "data", 96, keep_aspect=True)
    images = validated((16, 32), data, stored_size=96)
    wanted = [by_hand(np.asarray(Image.open(path)), 16, 32) for path in sorted((raw / "val").rglob("*.png"))]
    assert np.abs(images.astype(int) - np.stack(wanted)).max() <= 1


def test_the_compiled_rule_of_the_centre_is_the_plain_one():
    rng = np.random.default_rng(0)
    for _ in range(300):
        height, width, tall, wide = (int(n) for n in rng.integers(1, 300, 4))
        out = np.empty((1, 4), np.int64)
        pipeline.boxes(np.array([0]), np.array([height]), np.array([width]), np.uint64(1), (0.0, 0.0), (0.75, 1.3),
                       (tall, wide), out)  # fmt: skip
        box = resample.centre_box(height, width, tall, wide)
        assert tuple(out[0]) == box and box[0] + box[2] <= height and box[1] + box[3] <= width
        if tall == wide:
            assert box[2] == box[3] == min(height, width)


def test_moves_of_a_policy_are_by_the_side_that_they_go_along():
    for name in ("rand-m9", "cifar10"):
        wide, square = (table(parse(name), size)[0] for size in ((8, 16), 8))
        differing = np.argwhere(wide != square)
        assert len(differing) and {int(place[-1]) for place in differing} == {4}  # the slope alone
        np.testing.assert_allclose(wide[wide != square], 2 * square[wide != square])


def test_a_shuffle_of_an_oblong_keeps_its_patches_together():
    run = make_run({"model": "mixer_nano", "img_size": (8, 12), "permute": "patches"})
    places = normalize.places(run)
    assert sorted(places) == list(range(96))
    patches = places.reshape(4, 2, 6, 2).transpose(0, 2, 1, 3).reshape(24, 4)
    rows, columns = patches // 12 // 2, patches % 12 // 2
    assert (rows == rows[:, :1]).all() and (columns == columns[:, :1]).all()
    assert sorted(normalize.places(run.but(permute="pixels"))) == list(range(96))


@pytest.mark.parametrize("model", ["mixer_nano", "convmixer_nano", "mlp_nano", "deit_nano"])
def test_an_oblong_run_trains(model, tmp_path):
    data = tmp_path / "data"
    ensure("digits", (8, 16), data, say=lambda line: None)
    every = {"hflip": 0.5, "crop_pad": 1, "reprob": 0.3, "aa": "rand-m9-n1"}
    run = make_run({"model": model, "img_size": "8x16", "epochs": 1, "train_samples": 256, "lr": 3e-3, **every})
    train(run, tmp_path / "run", make_how({"data_dir": data, "threads": 1}))
    assert read_status(tmp_path / "run")["state"] == "done"
    cost = profile(model, img_size=(8, 16), in_chans=1, num_classes=10)
    with torch.device("meta"):
        assert archs.create(model, img_size=(8, 16))(torch.empty(2, 1, 8, 16)).shape == (2, 10)
    assert cost["macs"] > profile(model, img_size=8, in_chans=1, num_classes=10)["macs"]


def test_a_model_that_wants_squares_says_so(tmp_path):
    command = [ROOT / "scripts/train.py", "--model", "vip_nano", "--img-size", "8x16"]
    done = warm.run(*command, "--output", tmp_path)
    assert done.returncode == 2 and "the grid must be square" in done.stderr and done.stderr.count("\n") == 1


def test_of_larger_files_the_smallest_is_taken_and_said(raw, tmp_path):
    data = stored(raw, tmp_path / "data", 96)
    stored(raw, data, 64)
    run = make_run({"dataset": NAME, "img_size": 32})
    said = []
    taken = settled(run, data, said.append)
    assert taken == run.but(stored_size=64) and taken.signature != run.signature
    assert len(said) == 1 and "--stored-size 64" in said[0]
    assert settled(run.but(stored_size=96), data, said.append).stored_size == 96
    for unchanged in (run.but(img_size=64), run.but(img_size=100), make_run({"img_size": 4})):
        assert settled(unchanged, data, said.append) is unchanged
    assert settled(run.but(img_size="32x80"), data, said.append).stored_size == 96
    beton.path_of(NAME, "val", 64, data).unlink()
    assert settled(run, data, said.append).stored_size == 96
    assert settled(run.but(holdout=0.5), data, said.append).stored_size == 64


def test_train_takes_the_larger_files_but_not_where_a_run_is_given_whole(raw, tmp_path):
    data = stored(raw, tmp_path / "data", 16)
    shape = ["--dataset", NAME, "--img-size", "8", "-b", "2", "--epochs", "1", "--model", "mlp_nano", "--threads", "1"]
    command = [ROOT / "scripts/train.py", "--output", tmp_path, "--data-dir", data]
    done = warm.run(*command, *shape)
    assert done.returncode == 0 and "its 16 px are shrunk, --stored-size 16" in done.stderr, done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    assert "stored_size: 16" in (folder / "args.yaml").read_text()
    whole = tmp_path / "args.yaml"
    whole.write_text((folder / "args.yaml").read_text().replace("stored_size: 16", "stored_size: null"))
    done = warm.run(*command, "-c", whole)
    assert done.returncode == 3 and "take it by --stored-size 16" in done.stderr, done.stderr
