"""Any folder of images is a data set: splits by their names, or by a hash of names, and what a file is said to hold."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.data import beton, folders, loaders, splits, write
from engine.data.sets import read_raw
from engine.data.verify import about, verify
from engine.errors import DATA, Refusal
from engine.run import make_how, make_run
from tests import warm

ROOT = Path(__file__).resolve().parents[2]


def put(folder, count, *names):
    """So many images of each class below a folder, all different."""
    for number, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.random.default_rng([number, i]).integers(0, 256, (9, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i:03}.png")


def names(samples):
    return {path.split("raw/")[1] for path, _ in samples.samples}


def make_beton(*words):
    return warm.run(ROOT / "scripts/make_beton.py", *words)


@pytest.mark.parametrize(
    "there, train, val, alone",
    [
        (("train", "val"), "train", "val", []),
        (("Training", "validation"), "Training", "validation", []),
        (("train", "val", "test"), "train", "val", ["test"]),
        (("train", "test"), "train", "test", []),
        (("train",), "train", "train", []),
        (("cat", "dog"), "", "", []),
        (("val",), None, "val", []),
    ],
)
def test_splits_are_found_by_their_usual_names(there, train, val, alone, tmp_path):
    for name in there:
        (tmp_path / name).mkdir()
    assert splits.folder_of(tmp_path, "val") == tmp_path / val
    assert splits.folder_of(tmp_path, "train") == (tmp_path / "train" if train is None else tmp_path / train)
    assert splits.left_alone(tmp_path) == alone
    assert splits.share_of(tmp_path, None) == (None if val != train else splits.SHARE)


def test_a_hash_splits_into_disjoint_parts_that_other_images_do_not_move(tmp_path):
    put(tmp_path / "raw", 200, "cat", "dog")
    parts = {split: names(read_raw("imagefolder/x", split, tmp_path / "raw", None, 0.2)) for split in ("train", "val")}
    assert not parts["train"] & parts["val"] and len(parts["train"] | parts["val"]) == 400
    assert 50 < len(parts["val"]) < 110  # 80, by four deviations of a binomial
    more = names(read_raw("imagefolder/x", "val", tmp_path / "raw", None, 0.3))
    assert parts["val"] < more
    put(tmp_path / "raw", 30, "bird")
    (tmp_path / "raw/cat/000.png").unlink()
    again = names(read_raw("imagefolder/x", "val", tmp_path / "raw", None, 0.2))
    assert {name for name in again if not name.startswith("bird")} == parts["val"] - {"cat/000.png"}


def test_a_class_keeps_what_it_needs_to_be_trained_on(tmp_path):
    put(tmp_path / "raw", 1, *(f"class{i}" for i in range(40)))
    whole = folders.read(tmp_path / "raw")
    with pytest.raises(ValueError, match="is none; raise it"):
        splits.part(whole, tmp_path / "raw", "val", 0.5)
    put(tmp_path / "raw", 40, "full")
    whole = folders.read(tmp_path / "raw")
    train = splits.part(whole, tmp_path / "raw", "train", 0.5)
    assert {label for _, label in train.samples} == {*range(41)}


def test_one_command_makes_a_folder_of_classes_a_data_set_that_trains(tmp_path):
    """The loaders then take what was written, and refuse two files that were split otherwise."""
    put(tmp_path / "raw", 30, "cat", "dog")
    given = ("--dataset", "imagefolder/pets", "--img-size", "8", "--data-dir", tmp_path / "data")
    done = make_beton(*given, "--raw-dir", tmp_path / "raw")
    assert done.returncode == 0 and "validate, by a hash of their names (--val-split 0.1)" in done.stdout, done.stderr
    run = make_run({"dataset": "imagefolder/pets", "img_size": 8, "batch_size": 4})
    train, val, facts = loaders.make_loaders(run, make_how({"data_dir": tmp_path / "data"}))
    assert train.total + val.total == 60 and val.total > 0
    assert facts["classes"] == ["cat", "dog"] and facts["val_split"] == 0.1
    again = make_beton(*given, "--raw-dir", tmp_path / "raw")
    assert again.returncode == 0 and "is there already, of these raw files" in again.stdout
    other = make_beton(*given, "--raw-dir", tmp_path / "raw", "--val-split", "0.3")
    assert other.returncode == 2 and "is there with val_split 0.1, not 0.3" in other.stderr
    beton.path_of("imagefolder/pets", "val", 8, tmp_path / "data").unlink()
    make_beton(*given, "--raw-dir", tmp_path / "raw", "--val-split", "0.3", "--split", "val")
    with pytest.raises(Refusal, match="differ in val_split"):
        loaders.make_loaders(run, make_how({"data_dir": tmp_path / "data"}))


@pytest.mark.parametrize(
    "words, told",
    [
        (("--dataset", "digits", "--val-split", "0.2"), "--val-split is for an image folder of yours"),
        (("--dataset", "imagefolder/x", "--img-size", "8", "--val-split", "0.2"), "leave out --val-split 0.2, or that"),
        (("--dataset", "imagefolder/x", "--img-size", "8", "--val-split", "1"), "'1' is not a number above 0"),
    ],
)
def test_a_split_that_makes_no_sense_is_refused_in_one_line(words, told, tmp_path):
    put(tmp_path / "raw", 1, "train/a", "val/a")
    done = make_beton(*words, "--raw-dir", tmp_path / "raw", "--data-dir", tmp_path / "data")
    assert done.returncode == 2 and told in done.stderr and done.stderr.count("\n") == 1


def test_info_says_what_the_files_of_a_data_set_hold_without_torch(tmp_path):
    put(tmp_path / "raw", 20, "cat", "dog")
    settings = write.Settings(val_split=0.25)
    paths = [write.write("imagefolder/pets", split, 8, tmp_path / "raw", tmp_path, settings, say=lambda line: None)
             for split in ("train", "val")]  # fmt: skip
    told = "\n".join(about("imagefolder/pets", tmp_path))
    for path in paths:
        labels = beton.read_layout(path).labels
        assert (beton.read_labels(path) == labels).all()
        counts = np.bincount(labels)
        assert f"2 classes: cat {counts[0]}, dog {counts[1]}" in told and f"{path}: imagefolder/pets" in told
    assert "a share of 0.25" in told and told == "\n".join(
        line for path in paths for line in about(str(path), tmp_path)
    )
    with pytest.raises(Refusal, match="did you mean 'imagefolder/pets'") as refusal:
        list(about("imagefolder/pet", tmp_path))
    assert refusal.value.code == DATA
    code = f"import sys; sys.argv[1:] = ['--info', {str(paths[0])!r}]; import runpy\n"
    code += "try:\n    runpy.run_module('scripts.make_beton', run_name='__main__')\nexcept SystemExit as end:\n"
    code += "    assert not end.code and not {'torch', 'numba', 'ffcv'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


def test_the_contact_sheet_names_its_rows(tmp_path):
    """Beside the images of a class there is ink, and another name leaves other ink, also where only a letter that no
    English word has is another; the images stay as they are."""
    for name, classes in (("one", ("cat", "d\ue000g")), ("two", ("cat", "däg"))):
        put(tmp_path / name, 3, *(f"train/{each}" for each in classes))
        path = write.write(f"imagefolder/{name}", "train", 8, tmp_path / name, tmp_path, say=lambda line: None)
        *_, sheet = verify(path)
        globals()[name] = np.asarray(Image.open(sheet))
    assert one.shape[0] == two.shape[0] == 26  # noqa: F821 - two rows as high as the letters
    margin = one.shape[1] - 90  # noqa: F821
    first, second = one[:, :margin], two[:, : two.shape[1] - 90]  # noqa: F821
    assert (first[:13] < 128).any() and (first[13:] < 128).any()
    assert first.shape != second.shape or (first[13:] != second[13:]).any()
    stored = beton.read_layout(path)
    shown = two[13:21, two.shape[1] - 90 :][:, :8]  # noqa: F821
    assert (shown == stored.pixels(np.memmap(path, "u1", "r"), 3)).all()
