"""A damaged, foreign or missing .beton is refused in one line before FFCV, which would crash or read wrong pixels."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
from PIL import Image

from engine.data import beton, write
from engine.data.verify import verify
from engine.errors import DATA, OUTPUT, USAGE, Refusal
from tests import warm


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
    path = write.write("imagefolder/pets", "train", 10, folder_of_images, tmp_path, say=lambda line: None)
    facts = beton.check(path, "imagefolder/pets", 10)
    assert (facts["samples"], facts["num_classes"]) == (12, 2)
    assert json.loads(path.with_suffix(".json").read_text()) == facts
    assert all(120 < value < 135 for value in facts["mean"])


def test_an_unreadable_image_is_named_and_leaves_no_file(folder_of_images, tmp_path):
    bad = folder_of_images / "train" / "cat" / "3.png"
    bad.write_bytes(b"not a picture")
    with pytest.raises(Refusal, match=str(bad)) as caught:
        write.write("imagefolder/pets", "train", 10, folder_of_images, tmp_path / "out", say=lambda line: None)
    assert caught.value.code == DATA
    assert not [path for path in (tmp_path / "out").iterdir() if "beton" in path.suffix or "partial" in path.name]


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Refusal) as caught:
        write.write("digits", "val", 8, tmp_path, tmp_path / "file" / "data", say=lambda line: None)
    assert caught.value.code == OUTPUT


QUIET = {"say": lambda line: None}


def damaged(path, tmp_path, offset, value, kind):
    copy = tmp_path / "damaged.beton"
    shutil.copy(path, copy)
    mutate(copy, poke(offset, value, kind))
    return beton.structure_fault(copy)


def test_jpegs_of_any_size_pass_and_their_damage_is_found(folder_of_images, tmp_path):
    settings = write.Settings(write_mode="jpg", keep_aspect=True)
    path = write.write("imagefolder/pets", "train", 25, folder_of_images, tmp_path, settings, **QUIET)
    layout = beton.read_layout(path)
    assert beton.structure_fault(path) is None and set(layout.modes) == {beton.JPG}
    assert sorted(set(zip(layout.heights.tolist(), layout.widths.tolist(), strict=True))) == [(16, 25), (20, 25)]
    table = path.stat().st_size - len(layout.modes) * beton._TABLE.itemsize
    assert "neither raw pixels nor JPEG" in damaged(path, tmp_path, FIRST_SAMPLE, 7, "u1")
    assert "no pixels" in damaged(path, tmp_path, FIRST_SAMPLE + 1, 0, "<u2")
    assert "outside the file" in damaged(path, tmp_path, table + 16, 10**12, "<u8")
    assert "another size" in damaged(path, tmp_path, table + 16, 3, "<u8")
    assert "another size" in damaged(path, tmp_path, FIRST_SAMPLE, beton.RAW, "u1")


@pytest.mark.parametrize(
    "settings, modes",
    [
        ({"write_mode": "smart", "smart_threshold": 20 * 30 * 3}, {20: beton.RAW, 24: beton.JPG}),
        ({"write_mode": "raw"}, {20: beton.RAW, 24: beton.RAW}),
        ({"write_mode": "jpg", "quality": 50}, {20: beton.JPG, 24: beton.JPG}),
    ],
)
def test_write_modes_are_ffcvs(folder_of_images, tmp_path, settings, modes):
    """What FFCV's own field would store for the same image, byte for byte."""
    from engine.data.ffcv.package import RGBImageField

    settings = write.Settings(keep_aspect=True, **settings)
    path = write.write("imagefolder/pets", "train", 40, folder_of_images, tmp_path, settings, **QUIET)
    layout, data = beton.read_layout(path), path.read_bytes()
    assert {height: mode for height, mode in zip(layout.heights, layout.modes, strict=True)} == modes
    field = RGBImageField(settings.write_mode, smart_threshold=settings.smart_threshold, jpeg_quality=settings.quality)
    names = sorted((folder_of_images / "train").rglob("*.png"))
    for index, name in enumerate(names):
        stored, entry = bytearray(), np.zeros(1, field.metadata_type)

        def malloc(size, stored=stored):
            stored.extend(bytes(size))
            return 0, np.frombuffer(stored, "u1")

        field.encode(entry, np.asarray(Image.open(name)), malloc)
        start = layout.pointers[index]
        assert (entry["mode"][0], entry["height"][0]) == (layout.modes[index], layout.heights[index])
        assert data[start : start + layout.sizes[index]] == stored


def test_a_proportion_is_the_same_every_time(folder_of_images, tmp_path):
    settings = write.Settings(write_mode="proportion", compress_probability=0.4)
    files = [
        write.write("imagefolder/pets", "train", 16, folder_of_images, tmp_path / name, settings, **QUIET)
        for name in ("a", "b")
    ]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert 0 < beton.read_layout(files[0]).modes.mean() < 1


@pytest.mark.parametrize(
    "settings",
    [
        {"write_mode": "png"},
        {"write_mode": "smart"},
        {"smart_threshold": 100},
        {"quality": 0},
        {"compress_probability": 2.0},
        {"subset": 0},
    ],
)
def test_settings_without_sense_are_refused(settings):
    with pytest.raises(ValueError, match=r"write mode|quality|compress|subset"):
        write.Settings(**settings)


def test_a_file_is_not_replaced_by_one_of_other_settings(folder_of_images, tmp_path):
    path = write.write("imagefolder/pets", "val", 10, folder_of_images, tmp_path, **QUIET)
    before = path.read_bytes()
    assert write.write("imagefolder/pets", "val", 10, folder_of_images, tmp_path, **QUIET) == path
    for settings in (write.Settings(write_mode="jpg"), write.Settings(subset=2)):
        with pytest.raises(Refusal, match="to replace it: rm") as caught:
            write.write("imagefolder/pets", "val", 10, folder_of_images, tmp_path, settings, **QUIET)
        assert caught.value.code == USAGE and path.read_bytes() == before


def test_a_subset_is_a_fixed_choice(folder_of_images, tmp_path):
    settings = write.Settings(subset=5)
    path = write.write("imagefolder/pets", "train", 10, folder_of_images, tmp_path, settings, **QUIET)
    facts = beton.check(path, "imagefolder/pets", 10)
    assert (facts["samples"], facts["subset"], facts["num_classes"]) == (5, 5, 2)
    with pytest.raises(Refusal, match="more than the 12 images"):
        write.write("imagefolder/pets", "train", 11, folder_of_images, tmp_path, write.Settings(subset=13), **QUIET)


def test_progress_is_said_in_plain_lines(folder_of_images, tmp_path, monkeypatch):
    monkeypatch.setattr(write, "SAY_SECONDS", 0.0)
    lines = []
    write.write("imagefolder/pets", "train", 10, folder_of_images, tmp_path, say=lines.append)
    assert lines[0].startswith("writing ") and "  12 of 12 images, " in lines[-1] and len(lines) == 13


def test_images_larger_than_a_page_of_ffcv(tmp_path):
    (tmp_path / "raw" / "val" / "one").mkdir(parents=True)
    Image.new("RGB", (1000, 900), (10, 20, 30)).save(tmp_path / "raw" / "val" / "one" / "0.png")
    path = write.write("imagefolder/big", "val", 900, tmp_path / "raw", tmp_path, **QUIET)
    assert beton.read_layout(path).is_all_of(900) and beton.check(path, "imagefolder/big", 900)["mean"] == [10, 20, 30]


def test_a_full_disk_leaves_no_file(folder_of_images, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        with pytest.raises(Refusal, match="free space and repeat") as caught:
            write.write("imagefolder/pets", "train", 32, folder_of_images, disk, **QUIET)
        assert caught.value.code == OUTPUT
        assert [path.name for path in disk.iterdir()] == [".imagefolder-pets_train_32.beton.lock"]
        subprocess.run(["mount", "-o", "remount,size=9m", str(disk)], check=True)
        write.write("imagefolder/pets", "train", 32, folder_of_images, disk, **QUIET)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_writer_that_is_killed_leaves_nothing_under_the_final_name(folder_of_images, tmp_path):
    code = (
        "import pathlib, sys, time\nfrom engine.data import write as convert\n"
        "folder = pathlib.Path(sys.argv[1])\nreal = convert._Images._progress\n"
        "def slow(self, done):\n    print(done, flush=True)\n    time.sleep(1000 if done == 5 else 0)\n"
        "convert._Images._progress = slow\n"
        "convert.write('imagefolder/pets', 'train', 10, folder / 'raw', folder, say=lambda line: None)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    while process.stdout.readline().strip() != "5":
        assert process.poll() is None
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)
    assert not list(tmp_path.glob("*.beton")) and not list(tmp_path.glob("*.json"))
    path = write.write("imagefolder/pets", "train", 10, folder_of_images, tmp_path, **QUIET)
    assert beton.check(path, "imagefolder/pets", 10)["samples"] == 12
    assert not list(tmp_path.glob(".*.partial"))


# --- files of others -------------------------------------------------------------------------------------------------
@pytest.fixture
def foreign(tmp_path):
    """What the converter of Scaling MLPs writes: FFCV's own writer, "smart" (so raw), longest side 32, aspect kept."""
    from engine.data.ffcv.package import DatasetWriter, IntField, RGBImageField

    rng = np.random.default_rng(0)
    samples = [(rng.integers(0, 256, (32, 20 + i, 3), dtype=np.uint8), i % 10) for i in range(12)]
    path = tmp_path / "beton" / "cifar10" / "ffcv" / "train" / "train_32.beton"
    path.parent.mkdir(parents=True)
    fields = {"image": RGBImageField(write_mode="smart", max_resolution=32), "label": IntField()}
    DatasetWriter(str(path), fields, num_workers=1).from_indexed_dataset(samples)
    return path, samples


def test_a_file_of_scaling_mlps_is_adopted_and_read(foreign, tmp_path):
    from engine.data import loaders
    from engine.run import make_how, make_run

    file, samples = foreign
    path = write.adopt(file, "cifar10", "train", 32, tmp_path / "ours")
    assert path.name == "cifar10_train_32.beton" and path.samefile(file)
    facts = beton.check(path, "cifar10", 32)
    assert (facts["samples"], facts["num_classes"], facts["adopted"]) == (12, 10, "train_32.beton")
    assert facts["keep_aspect"] and facts["write_mode"] == "raw"
    pixels = np.concatenate([image.reshape(-1, 3) for image, _ in samples])
    assert facts["mean"] == pytest.approx(pixels.mean(0), abs=1e-3)
    assert facts["std"] == pytest.approx(pixels.std(0), abs=1e-3)
    run = make_run({"dataset": "cifar10", "batch_size": 12, "holdout": 0.6})
    _, val, _ = loaders.make_loaders(run.but(batch_size=1), make_how({"data_dir": tmp_path / "ours"}))
    for index, (image, label) in zip(val.indices, val.epoch(0), strict=True):
        original = samples[index][0]
        side = original.shape[1]
        crop = original[(32 - side) // 2 :][:side]
        assert label.item() == index % 10
        # Both axes grow, or stay: bilinear.
        wanted = cv2.resize(crop, (32, 32), interpolation=cv2.INTER_LINEAR)
        assert abs(image[0].numpy().astype(int) - wanted).max() <= 1


def test_what_cannot_be_adopted_is_refused(foreign, tmp_path):
    file, _ = foreign
    for dataset, img_size, words in (
        ("cifar10", 64, "give --img-size 32"),
        ("cifar10", 32, ""),
    ):
        if words:
            with pytest.raises(Refusal, match=words):
                write.adopt(file, dataset, "train", img_size, tmp_path)
    cut = tmp_path / "cut.beton"
    cut.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(Refusal, match="damaged") as caught:
        write.adopt(cut, "cifar10", "train", 32, tmp_path)
    assert caught.value.code == DATA
    mutate(file, poke(FIRST_SAMPLE + 16, 10, "<i8"))
    with pytest.raises(Refusal, match=r"labels \d to 10; cifar10 has 10 classes"):
        write.adopt(file, "cifar10", "train", 32, tmp_path)
    assert not list(tmp_path.glob("cifar10*"))
    with pytest.raises(Refusal, match="no such file"):
        write.adopt(tmp_path / "nothing", "cifar10", "train", 32, tmp_path)


def test_adopting_twice_is_refused(foreign, tmp_path):
    file, _ = foreign
    write.adopt(file, "cifar10", "train", 32, tmp_path)
    with pytest.raises(Refusal, match="exists; to adopt"):
        write.adopt(file, "cifar10", "train", 32, tmp_path)


# --- looking at a file -----------------------------------------------------------------------------------------------
def test_verify_says_what_is_in_a_file_and_draws_it(copy):
    *lines, last = verify(copy)
    text = "\n".join(lines)
    assert "structure and checksum right" in text and "500 images" in text and "10 classes of " in text
    sheet = Image.open(last)
    assert last == str(copy.with_suffix(".png")) and sheet.size[0] > 10 * 9 and sheet.size[1] == 10 * 13
    layout, pixels = beton.read_layout(copy), np.fromfile(copy, "u1")
    fourth = np.flatnonzero(layout.labels == 3)[1]
    margin = sheet.size[0] - 10 * 9  # the names of the classes
    assert (np.asarray(sheet)[39:47, margin + 9 : margin + 17] == layout.pixels(pixels, fourth)).all()


def test_verify_notices_what_is_not_whole(copy, monkeypatch):
    facts = json.loads(copy.with_suffix(".json").read_text())
    monkeypatch.setattr(beton, "ALWAYS_HASH_BYTES", 0)
    mutate(copy, lambda data: data.__setitem__(3_000_000, data[3_000_000] ^ 1))
    assert beton.check(copy, "digits", 8) == facts, "a large file is not hashed at every opening"
    with pytest.raises(Refusal, match="checksum is wrong"):
        list(verify(copy))
    copy.with_suffix(".json").unlink()
    with pytest.raises(Refusal, match="take it over with --adopt"):
        list(verify(copy))
    copy.unlink()
    with pytest.raises(Refusal, match="no such file"):
        list(verify(copy))


def script(*args):
    return warm.run("-m", "scripts.make_beton", *args)


def test_the_script_converts_verifies_and_refuses(folder_of_images, tmp_path):
    common = ["--dataset", "imagefolder/pets", "--raw-dir", folder_of_images, "--data-dir", tmp_path]
    done = script(*common, "--max-resolution", 16, "--write-mode", "jpg", "--splits", "val")
    assert done.returncode == 0 and not done.stderr, done.stderr
    file = tmp_path / "imagefolder-pets_val_16.beton"
    assert done.stdout.splitlines()[-1] == str(file)
    done = script("--verify", file)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == str(file.with_suffix(".png")), done.stderr
    for args, code, words in (
        ([], USAGE, "name a --dataset"),
        ([*common, "--img-size", 8, "--max-resolution", 8], USAGE, "give one of them"),
        ([*common, "--img-size", 8, "--write-mode", "smart"], USAGE, "smart-threshold"),
        ([*common, "--img-size", 8, "--adopt", file], USAGE, "--splits train or --splits val"),
        (["--dataset", "imagenet", "--raw-dir", tmp_path, "--data-dir", tmp_path], DATA, "unpack ILSVRC2012"),
    ):
        done = script(*args)
        assert done.returncode == code and words in done.stderr and done.stderr.count("\n") == 1, done.stderr
