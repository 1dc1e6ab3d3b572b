"""A damaged, foreign or missing .beton is refused in one line before FFCV, which would crash or read wrong pixels."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from engine import beton
from engine.errors import DATA, OUTPUT, Refusal


@pytest.fixture
def copy(digits, tmp_path):
    for path in digits.glob("digits_val_8.*"):
        shutil.copy(path, tmp_path)
    return tmp_path / "digits_val_8.beton"


def mutate(path, change):
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(bytes(data))


def poke(offset, value, kind="<u8"):
    new = np.array(value, kind).tobytes()
    return lambda data: data.__setitem__(slice(offset, offset + len(new)), new)


FIRST_SAMPLE = beton._HEADER.itemsize + 2 * beton._FIELD.itemsize
DAMAGE = {
    "empty": lambda data: data.clear(),
    "header only": lambda data: data.__delitem__(slice(24, None)),
    "last byte cut": lambda data: data.pop(),
    "last 100 bytes cut": lambda data: data.__delitem__(slice(-100, None)),
    "half the allocation table cut": lambda data: data.__delitem__(slice(-6000, None)),
    "cut in the data": lambda data: data.__delitem__(slice(len(data) // 2, None)),
    "unfinished": poke(16, 0),
    "garbage": lambda data: data.__setitem__(slice(0, 64), b"x" * 64),
    "sample count doubled": poke(8, 1000),
    "sample count huge": poke(8, 10**12),
    "pointer outside": poke(FIRST_SAMPLE + 5, 10**9),
    "image size changed": poke(FIRST_SAMPLE + 1, 400, "<u2"),
    "not a power of two": poke(4, 3_000_000, "<u4"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_structural_damage_is_found_without_the_checksum(copy, damage):
    mutate(copy, DAMAGE[damage])
    assert beton.structure_fault(copy)


@pytest.mark.parametrize("damage", [*DAMAGE, "one bit of one pixel"])
def test_damage_is_refused_with_the_command_that_mends_it(copy, damage):
    flip = lambda data: data.__setitem__(3_000_000, data[3_000_000] ^ 1)  # noqa: E731
    mutate(copy, DAMAGE.get(damage, flip))
    with pytest.raises(Refusal, match="make_beton") as caught:
        beton.check(copy, "digits", 8)
    assert caught.value.code == DATA and "\n" not in str(caught.value)


def test_a_whole_file_passes(copy):
    assert beton.structure_fault(copy) is None
    assert beton.check(copy, "digits", 8)["samples"] == 500


@pytest.mark.parametrize("dataset, img_size, words", [("digits", 16, "img_size 8, not 16"), ("cifar10", 8, "dataset")])
def test_a_file_written_for_other_settings_is_refused(copy, dataset, img_size, words):
    with pytest.raises(Refusal, match=words):
        beton.check(copy, dataset, img_size)


def test_a_missing_file_or_json_is_refused(copy):
    copy.with_suffix(".json").unlink()
    with pytest.raises(Refusal, match="not finished or not ours"):
        beton.check(copy, "digits", 8)
    copy.unlink()
    with pytest.raises(Refusal, match=r"is missing; write it: python scripts/make_beton\.py"):
        beton.check(copy, "digits", 8)


@pytest.fixture
def folder_of_images(tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 4)):
        for label, name in enumerate(("cat", "dog")):
            (tmp_path / "raw" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (20 + 4 * label, 30, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "raw" / split / name / f"{i}.png")
    return tmp_path / "raw"


def test_an_image_folder_becomes_squares_with_measured_statistics(folder_of_images, tmp_path):
    path = beton.write("imagefolder/pets", "train", 10, folder_of_images, tmp_path, say=lambda line: None)
    facts = beton.check(path, "imagefolder/pets", 10)
    assert (facts["samples"], facts["num_classes"]) == (12, 2)
    assert json.loads(path.with_suffix(".json").read_text()) == facts
    assert all(120 < value < 135 for value in facts["mean"])


def test_an_unreadable_image_is_named_and_leaves_no_file(folder_of_images, tmp_path):
    bad = folder_of_images / "train" / "cat" / "3.png"
    bad.write_bytes(b"not a picture")
    with pytest.raises(Refusal, match=str(bad)) as caught:
        beton.write("imagefolder/pets", "train", 10, folder_of_images, tmp_path / "out", say=lambda line: None)
    assert caught.value.code == DATA
    assert not [path for path in (tmp_path / "out").iterdir() if "beton" in path.suffix or "partial" in path.name]


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Refusal) as caught:
        beton.write("digits", "val", 8, tmp_path, tmp_path / "file" / "data", say=lambda line: None)
    assert caught.value.code == OUTPUT
