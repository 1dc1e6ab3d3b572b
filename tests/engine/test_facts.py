"""The JSON beside a .beton: another shape of it is one line that names file, key and the command that mends it."""

import json
import shutil

import pytest

from engine.data import beton, write
from engine.data.verify import verify
from engine.errors import DATA, USAGE, Refusal

OLD = ("classes", "raw")  # keys that files of earlier versions lack


@pytest.fixture
def copy(digits, tmp_path):
    for path in digits.glob("digits_*_8.*"):
        shutil.copy(path, tmp_path)
    return tmp_path / "digits_val_8.beton"


def change(path, **fields):
    """Set keys of the JSON; ... removes one."""
    side = beton.sidecar(path)
    facts = {**json.loads(side.read_text()), **fields}
    side.write_text(json.dumps({key: value for key, value in facts.items() if value is not ...}))


def refused(path, *words):
    """By whatever reads it, in one line."""
    for read in (lambda: beton.check(path, "digits", 8), lambda: list(verify(path)), lambda: beton.read_facts(path)):
        with pytest.raises(Refusal) as caught:
            read()
        said = str(caught.value)
        assert caught.value.code == DATA and "\n" not in said and len(said) < 600
        side = beton.sidecar(path)
        again = f"rm {path} {side}; python scripts/make_beton.py --dataset digits --img-size 8 --data-dir {path.parent}"
        for word in (f"{side}: ", again, "--split val", *words):
            assert word in said


@pytest.mark.parametrize("text", ["[1]", "1", '"x"', "null", "", "{", "\x00", '{"a": 1}\n{"b": 2}'])
def test_what_is_no_object_is_refused(copy, text):
    beton.sidecar(copy).write_text(text)
    refused(copy, "it is no JSON object")


def test_what_is_no_utf_8_is_refused(copy):
    beton.sidecar(copy).write_bytes(b'{"dataset": "\xff"}')
    refused(copy, "it is no JSON object")


def test_half_the_keys_are_refused(copy):
    beton.sidecar(copy).write_text('{"dataset": "digits"}')
    refused(copy, "'split' is missing")
    beton.sidecar(copy).write_text("{}")
    refused(copy, "'dataset' is missing")


@pytest.mark.parametrize("key", [key for key in beton.FACTS if key not in beton.OPTIONAL])
@pytest.mark.parametrize("value", [..., None, [], {}, True, -1, 1.5])
def test_each_key_is_looked_at(copy, key, value):
    change(copy, **{key: value})
    refused(copy, f"'{key}' is " + ("missing" if value is ... else json.dumps(value)))


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"mean": [1.0, 2.0]}, "'mean' is [1.0, 2.0] and not three numbers"),
        ({"std": [1, 2, "3"]}, "and not three numbers"),
        ({"std": [1, 2, float("nan")]}, "and not three numbers"),
        ({"samples": "500"}, "'samples' is \"500\" and not a whole number above 0"),
        ({"split": "test"}, "'split' is \"test\" and not train or val"),
        ({"classes": ["a", "b"]}, "'classes' names 2 of 10 classes"),
        ({"classes": ["a"] * 10}, "and not a list of different names"),
        ({"classes": list(range(10))}, "and not a list of different names"),
        ({"raw": 3}, "'raw' is 3 and not an object"),
        ({"subset": 0}, "'subset' is 0"),
        ({"keep_aspect": "no"}, "'keep_aspect' is \"no\" and not true or false"),
    ],
)
def test_values_of_another_type_are_refused(copy, fields, words):
    change(copy, **fields)
    refused(copy, words)


def test_a_file_under_the_name_of_the_other_split_is_refused(copy):
    for suffix in ("beton", "json"):
        shutil.copy(copy.parent / f"digits_train_8.{suffix}", copy.with_suffix(f".{suffix}"))
    with pytest.raises(Refusal, match="it holds the images of train"):
        beton.check(copy, "digits", 8)


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"samples": 499}, "it has 500 images, and its JSON says 499"),
        ({"num_classes": 9, "classes": list("abcdefghi")}, "its labels are 0 to 9, of 9 classes"),
    ],
)
def test_a_json_that_contradicts_its_file_is_refused(copy, fields, words):
    change(copy, **fields)
    with pytest.raises(Refusal, match=words) as caught:
        beton.check(copy, "digits", 8)
    assert caught.value.code == DATA and f"rm {copy}; python scripts/make_beton.py" in str(caught.value)


def test_an_older_json_is_accepted_where_classes_are_those_of_the_table(copy):
    for split in ("train", "val"):
        change(copy.with_name(f"digits_{split}_8.beton"), **dict.fromkeys(OLD, ...))
    assert beton.check(copy, "digits", 8)["samples"] == 500
    beton.require_same_classes(copy.with_name("digits_train_8.beton"), copy)
    assert write.write("digits", "val", 8, copy.parent, copy.parent, say=lambda line: None) == copy


def images(folder):
    from PIL import Image

    for number, name in enumerate(("train/a/0.png", "train/b/0.png", "val/a/0.png", "val/b/0.png")):
        (folder / name).parent.mkdir(parents=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / name)
    return folder


def test_an_older_json_of_an_image_folder_is_refused_beside_another_file(tmp_path):
    raw, quiet = images(tmp_path / "raw"), {"say": lambda line: None}
    train, val = (write.write("imagefolder/x", split, 8, raw, tmp_path, **quiet) for split in ("train", "val"))
    change(val, **dict.fromkeys(OLD, ...))
    assert beton.check(val, "imagefolder/x", 8), "alone it does not matter"
    with pytest.raises(
        Refusal, match=rf"val_8\.json does not name its classes, .*: rm {val}; python scripts/"
    ) as caught:
        beton.require_same_classes(train, val)
    assert caught.value.code == DATA and "\n" not in str(caught.value) and str(train) not in str(caught.value)
    with pytest.raises(Refusal, match=f"written before class names were kept; to replace it: rm {val}") as caught:
        write.write("imagefolder/x", "val", 8, raw, tmp_path, **quiet)
    assert caught.value.code == USAGE
    val.unlink()  # what was said
    write.write("imagefolder/x", "val", 8, raw, tmp_path, **quiet)
    beton.require_same_classes(train, val)


def test_a_file_that_was_taken_over_before_there_were_names_is_accepted(tmp_path):
    raw, quiet = images(tmp_path / "raw"), {"say": lambda line: None}
    files = [write.write("imagefolder/x", split, 8, raw, tmp_path, **quiet) for split in ("train", "val")]
    for path in files:
        change(path, **dict.fromkeys(OLD, ...), adopted="theirs.beton")
    beton.require_same_classes(*files)


def test_verify_names_the_classes(copy):
    assert any(line == "in the order of their labels: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9" for line in verify(copy))
