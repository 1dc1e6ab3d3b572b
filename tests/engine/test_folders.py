"""Which folders are classes and which files are images: labels of val are those of train, whatever else lies about."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from engine.data import beton, folders
from engine.data import write as convert
from engine.data.sets import check_folders, read_raw
from engine.errors import DATA, USAGE, Refusal

NAME = "imagefolder/x"


def put(folder, *names, seed=0):
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng([seed, number]).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)


def write(tmp_path, split, raw=None, **settings):
    """Convert a split, and return its path and what was said."""
    lines = []
    raw = raw or tmp_path / "raw"
    path = convert.write(NAME, split, 8, raw, tmp_path / "data", convert.Settings(**settings), say=lines.append)
    return path, "\n".join(lines)


def labels(path):
    return beton.read_layout(path).labels.tolist()


def facts_of(path):
    return beton.check(path, NAME, 8)


# --- classes ---------------------------------------------------------------------------------------------------------
def test_a_class_that_val_lacks_leaves_the_labels_alone(tmp_path):
    put(
        tmp_path / "raw", "train/a/0.png", "train/b/0.png", "train/c/0.png", "val/a/0.png", "val/c/0.png", "val/c/1.png"
    )
    train, _ = write(tmp_path, "train")
    val, said = write(tmp_path, "val")
    assert labels(train) == [0, 1, 2] and labels(val) == [0, 2, 2]
    assert facts_of(train)["classes"] == facts_of(val)["classes"] == ["a", "b", "c"]
    assert "val has no image of 1 of the 3 classes: b" in said
    beton.require_same_classes(train, val)


@pytest.mark.parametrize(
    "train, val, words",
    [
        ("ab", "abc", "val has the class 'c' that train has not;"),
        ("abc", "xyz", r"val has the class 'x' \(and 2 more\) that train has not;"),
        (["Cat", "dog"], ["cat", "dog"], "val has the class 'cat' that train has not, which has 'Cat';"),
        (["cat", "dog"], ["cats", "dog"], "'cats' that train has not, which has 'cat';"),
        (["é"], ["e\u0301"], "that train has not"),
    ],
)
def test_a_class_that_train_lacks_is_refused_by_name(tmp_path, train, val, words):
    put(tmp_path / "raw", *(f"train/{name}/0.png" for name in train), *(f"val/{name}/0.png" for name in val))
    with pytest.raises(ValueError, match=words):
        check_folders(NAME, ("train", "val"), tmp_path / "raw")  # before train is converted
    with pytest.raises(Refusal, match=words) as caught:
        write(tmp_path, "val")
    assert caught.value.code == DATA and "\n" not in str(caught.value)
    assert not list((tmp_path / "data").glob("*.json"))


def test_val_is_numbered_by_the_file_of_train_where_its_folder_is_gone(tmp_path):
    put(tmp_path / "raw", "train/a/0.png", "train/b/0.png", "val/b/0.png")
    train, _ = write(tmp_path, "train")
    shutil.rmtree(tmp_path / "raw" / "train")
    val, _ = write(tmp_path, "val")
    assert labels(val) == [1]
    beton.require_same_classes(train, val)


def test_files_of_other_classes_are_refused_when_they_are_loaded(tmp_path):
    from engine.data import loaders
    from engine.run import make_how, make_run

    put(tmp_path / "one", "train/a/0.png", "train/b/0.png", "train/c/0.png")
    put(tmp_path / "two", "val/a/0.png", "val/c/0.png")
    val, _ = write(tmp_path, "val", tmp_path / "two")  # alone, so by its own folders
    write(tmp_path, "train", tmp_path / "one")
    run = make_run({"dataset": NAME, "img_size": 8, "batch_size": 1})
    how = make_how({"data_dir": tmp_path / "data"})
    with pytest.raises(Refusal, match=r"has class 1 'c', not 'b' as .*rm .*_val_8\.beton") as caught:
        loaders.make_loaders(run, how)
    assert caught.value.code == DATA
    val.unlink()
    write(tmp_path, "val", tmp_path / "two")  # now beside train
    assert labels(val) == [0, 2]
    loaders.make_loaders(run, how)


def test_classes_are_in_the_order_of_code_points_under_any_locale(tmp_path):
    names = ["Zebra", "apple", "Ähre", "_x", "10", "9", "b c"]
    put(tmp_path / "raw", *(f"train/{name}/0.png" for name in names))
    wanted = ["10", "9", "Zebra", "_x", "apple", "b c", "Ähre"]
    assert folders.class_names(tmp_path / "raw" / "train") == wanted
    code = "import sys, pathlib; from engine.data import folders\n"
    code += "print(len(folders.class_names(pathlib.Path(sys.argv[1]))))"
    code += "; print([ascii(c) for c in folders.class_names(pathlib.Path(sys.argv[1]))])"
    for locale in ("C", "C.UTF-8"):
        env = {**os.environ, "LC_ALL": locale, "PYTHONUTF8": "1"}
        command = [sys.executable, "-c", code, str(tmp_path / "raw" / "train")]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
        assert done.stdout == f"7\n{[ascii(name) for name in wanted]}\n", done.stderr


def test_images_come_in_the_order_of_torchvisions(tmp_path):
    from torchvision.datasets import ImageFolder

    put(
        tmp_path / "raw", "train/b/9.png", "train/b/10.png", "train/b/z/1.png", "train/b/z-1/1.png", "train/b/z/y/0.PNG"
    )
    put(tmp_path / "raw", "train/a/Z.jpg", "train/a/a.JPEG", "train/a.b/1.bmp", "train/a/sub/deeper/1.webp")
    ours, theirs = read_raw(NAME, "train", tmp_path / "raw"), ImageFolder(str(tmp_path / "raw" / "train"))
    assert ours.samples == theirs.samples and ours.classes == theirs.classes
    assert all((ours[i][0] == np.asarray(theirs[i][0])).all() for i in range(len(ours)))


def test_a_class_without_images_is_refused_in_train_and_said_in_val(tmp_path):
    put(tmp_path / "raw", "train/a/0.png", "val/a/0.png", "val/b/0.png")
    (tmp_path / "raw" / "train" / "b").mkdir()
    (tmp_path / "raw" / "train" / "b" / "0.gif").write_text("")
    with pytest.raises(Refusal, match=r"train has no image of b; put some there or remove the folder"):
        write(tmp_path, "train")
    put(tmp_path / "raw", "train/b/0.png")
    (tmp_path / "raw" / "val" / "b" / "0.png").unlink()
    _, said = write(tmp_path, "val")
    assert "no image of 1 of the 2 classes: b" in said
    (tmp_path / "raw" / "val" / "a" / "0.png").unlink()
    with pytest.raises(ValueError, match="there is no image in its class folders"):
        read_raw(NAME, "val", tmp_path / "raw")


def test_test_validates_where_there_is_no_val_and_is_no_class(tmp_path):
    put(tmp_path / "raw", "train/a/0.png", "test/a/0.png", "test/a/1.png")
    assert len(read_raw(NAME, "val", tmp_path / "raw")) == 2
    put(tmp_path / "raw", "val/a/0.png")
    assert len(read_raw(NAME, "val", tmp_path / "raw")) == 1
    assert read_raw(NAME, "val", tmp_path / "raw").classes == ["a"]


def test_adopted_files_have_no_names_and_are_compared_by_number(tmp_path):
    put(tmp_path / "raw", "train/a/0.png", "train/b/0.png", "val/a/0.png", "val/b/0.png", "val/b/1.png")
    (train, _), (val, _) = write(tmp_path, "train"), write(tmp_path, "val")
    theirs = convert.adopt(train, NAME, "train", 8, tmp_path / "adopted")
    assert facts_of(theirs)["classes"] is None
    beton.require_same_classes(theirs, convert.adopt(val, NAME, "val", 8, tmp_path / "adopted"))
    put(tmp_path / "raw2", "val/a/0.png", "val/b/0.png", "val/c/1.png")
    more, _ = write(tmp_path / "2", "val", tmp_path / "raw2")
    with pytest.raises(Refusal, match=r"has 3 classes and .* 2; take over two files of one data set"):
        beton.require_same_classes(theirs, convert.adopt(more, NAME, "val", 8, tmp_path / "more"))


# --- what is no class and no image -----------------------------------------------------------------------------------
def test_hidden_entries_are_no_classes_and_no_images(tmp_path):
    raw = tmp_path / "raw" / "train"
    put(raw, "a/0.png", "b/0.png", ".ipynb_checkpoints/0-checkpoint.png", "__MACOSX/a/._0.png", "a/._0.png")
    put(raw, "a/.ipynb_checkpoints/0-checkpoint.png", "@eaDir/0.png", "b/deeper/.hidden.jpg")
    for name in (".DS_Store", "a/.DS_Store", "b/Thumbs.db", "desktop.ini", "b/notes.txt", "readme.md"):
        (raw / name).write_text("x")
    path, said = write(tmp_path, "train")
    assert labels(path) == [0, 1] and facts_of(path)["classes"] == ["a", "b"]
    assert "left out 10 x hidden or system entry, such as .DS_Store" in said
    assert "left out 1 x file that is no image by its suffix, such as b/notes.txt" in said
    assert "left out 1 x file outside the class folders, such as readme.md" in said


def test_a_hidden_folder_above_does_not_hide_the_images(tmp_path):
    put(tmp_path / ".cache" / "raw", "train/a/0.png")
    assert len(read_raw(NAME, "train", tmp_path / ".cache" / "raw")) == 1


# --- links -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "link, target", [("b/again", "b"), ("b/up", "."), ("b/top", ".."), ("all", "."), ("b/c/up", "b")]
)
def test_a_link_to_a_folder_above_multiplies_nothing(tmp_path, link, target):
    raw = tmp_path / "raw" / "train"
    put(raw, "a/0.png", "b/0.png", "b/c/0.png")
    put(tmp_path / "raw", "val/a/5.png")
    (raw / link).symlink_to(raw / target)
    path, said = write(tmp_path, "train")
    assert labels(path) == [0, 1, 1] and facts_of(path)["classes"] == ["a", "b"]
    assert f"left out 1 x link to a folder above it, such as {link}" in said


def test_links_elsewhere_work(tmp_path):
    """To images, to folders of a class, to a whole class and to a whole split."""
    put(tmp_path / "store", "cats/0.png", "cats/1.png", "more/2.png", "dogs/7.png")
    raw = tmp_path / "raw" / "train"
    put(raw, "cat/9.png")
    (raw / "cat" / "0.png").symlink_to(tmp_path / "store" / "cats" / "0.png")
    (raw / "cat" / "more").symlink_to(tmp_path / "store" / "more")
    (raw / "dog").symlink_to(tmp_path / "store" / "dogs")
    (tmp_path / "raw" / "val").symlink_to(raw)
    path, said = write(tmp_path, "train")
    assert labels(path) == [0, 0, 0, 1] and "left out" not in said
    assert labels(write(tmp_path, "val")[0]) == [0, 0, 0, 1]


def test_one_folder_or_image_by_two_ways(tmp_path):
    raw = tmp_path / "raw" / "train"
    put(raw, "a/0.png", "a/sub/1.png", "b/0.png")
    (raw / "a" / "tub").symlink_to(raw / "a" / "sub")
    (raw / "a" / "2.png").symlink_to(raw / "b" / "0.png")
    os.link(raw / "a" / "0.png", raw / "a" / "3.png")
    path, said = write(tmp_path, "train")
    assert labels(path) == [0, 0, 0, 0, 1], "images are counted as often as somebody put them there, folders once"
    assert "left out 1 x link to a folder that is read already, such as a/tub" in said
    assert "1 x another link to an image that counts already, such as a/3.png" in said
    (raw / "c").symlink_to(raw / "a")
    with pytest.raises(ValueError, match=r"c leads to a folder of the class 'a' again; remove that link"):
        read_raw(NAME, "train", tmp_path / "raw")


@pytest.mark.parametrize("link", ["c", "a/1.png"])
def test_a_link_that_leads_nowhere_is_refused(tmp_path, link):
    put(tmp_path / "raw", "train/a/0.png")
    path = tmp_path / "raw" / "train" / link
    path.symlink_to(tmp_path / "gone")
    with pytest.raises(ValueError, match=f"{path} is a link that leads nowhere"):
        read_raw(NAME, "train", tmp_path / "raw")
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(ValueError, match="is a link that leads nowhere"):
        read_raw(NAME, "train", tmp_path / "raw")


# --- the same raw files, or others -----------------------------------------------------------------------------------
CHANGES = {
    "an image more": lambda raw: put(raw, "a/2.png"),
    "an image less": lambda raw: (raw / "b" / "1.png").unlink(),
    "an image renamed": lambda raw: (raw / "b" / "1.png").rename(raw / "b" / "7.png"),
    "an image moved to another class": lambda raw: (raw / "b" / "1.png").rename(raw / "a" / "1b.png"),
    "an image of another size": lambda raw: (raw / "a" / "0.png").write_bytes(
        (raw / "a" / "0.png").read_bytes() + b"0"
    ),
    "an image written anew": lambda raw: os.utime(raw / "a" / "0.png", (1, 1)),
    "a class more": lambda raw: put(raw, "c/0.png"),
    "a class renamed": lambda raw: (raw / "b").rename(raw / "bb"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_is_not_passed_off_for_other_raw_files(tmp_path, change):
    put(tmp_path / "raw" / "train", "a/0.png", "a/1.png", "b/0.png", "b/1.png")
    path, _ = write(tmp_path, "train")
    assert write(tmp_path, "train")[1] == f"{path} is there already, of these raw files"
    CHANGES[change](tmp_path / "raw" / "train")
    with pytest.raises(Refusal, match=f"to replace it: rm {path}") as caught:
        write(tmp_path, "train")
    assert caught.value.code == USAGE and "\n" not in str(caught.value)
    path.unlink()
    write(tmp_path, "train")
    assert "already" in write(tmp_path, "train")[1]


def test_other_folders_options_and_a_folder_that_is_gone(tmp_path):
    put(tmp_path / "raw", "train/a/0.png", "train/b/0.png", "val/a/0.png")
    put(tmp_path / "other", "train/a/0.png", "train/b/1.png")
    shutil.copytree(tmp_path / "raw", tmp_path / "moved", copy_function=shutil.copy2)
    path, _ = write(tmp_path, "train")
    with pytest.raises(Refusal, match=r"is not of what .*other/train holds now"):
        write(tmp_path, "train", tmp_path / "other")
    assert "already" in write(tmp_path, "train", tmp_path / "moved")[1], "a copy with its times is the same"
    with pytest.raises(Refusal, match="is there with subset None, not 1"):
        write(tmp_path, "train", subset=1)
    shutil.rmtree(tmp_path / "raw" / "train")
    assert write(tmp_path, "train") == (
        path, f"{path} is there already; there is no {tmp_path / 'raw' / 'train'} to compare it with",
    )  # fmt: skip


def test_a_class_more_in_train_makes_val_stale(tmp_path):
    put(tmp_path / "raw", "train/b/0.png", "train/c/0.png", "val/b/0.png")
    write(tmp_path, "val")
    put(tmp_path / "raw", "train/a/0.png")
    with pytest.raises(Refusal, match=r"_val_8\.beton was written for other classes"):
        write(tmp_path, "val")


def test_digits_are_never_read_from_a_folder_that_lies_about(tmp_path):
    put(tmp_path, "train/a/0.png")
    path = convert.write("digits", "train", 8, tmp_path, tmp_path, say=lambda line: None)
    assert beton.check(path, "digits", 8)["samples"] == 1297
    assert beton.check(path, "digits", 8)["classes"] == [str(i) for i in range(10)]
