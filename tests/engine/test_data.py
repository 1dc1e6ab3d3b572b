"""The loader: reproducible pixels for any number of workers, exact counts, errors that end the run."""

import logging

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from engine.data import beton, loaders, normalize, write
from engine.data.augment import pipeline
from engine.data.ensure import ensure
from engine.errors import DATA, Refusal
from engine.run import make_how, make_run
from tests.oracles import MemoryLoader, read_numpy

PETS = "imagefolder/pets"
EVERY = {
    "crop and flip": {"crop_pad": 2, "hflip": 0.5},
    "crop around the border": {"crop_pad": 16, "crop_fill": "wrap", "crop_step": 4, "hflip": 0.5},
    "resized crop": {"scale": (0.2, 1.0)},
    "resized crop and flip": {"scale": (0.3, 0.9), "ratio": (0.5, 2.0), "hflip": 0.3},
    "RandAugment": {"aa": "rand-m9-n2-mstd0.5-inc1"},
    "TrivialAugment": {"aa": "trivial"},
    "AutoAugment": {"aa": "cifar10"},
    "jitter": {"color_jitter": 0.4},
    "erasing": {"reprob": 0.5},
    "random erasing": {"reprob": 0.5, "remode": "pixel"},
    "all": {"scale": (0.2, 1.0), "hflip": 0.5, "aa": "rand-m9-n3-p0.8-inc1", "reprob": 0.5, "remode": "pixel"},
}
STORED = {
    "squares": write.Settings(),
    "jpg": write.Settings(write_mode="jpg", quality=95),
    "mixed": write.Settings(write_mode="proportion", keep_aspect=True, compress_probability=0.5),
}


def batches(run, how, epochs=(0,), first_batch=0):
    loader, _, _ = loaders.make_loaders(run, how)
    return [(x.clone(), y.clone()) for epoch in epochs for x, y in loader.epoch(epoch, first_batch)]


def same(first, second):
    return len(first) == len(second) and all(
        torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(first, second, strict=True)
    )


def joined(batches):
    return [torch.cat(parts) for parts in zip(*batches, strict=True)]


@pytest.fixture(scope="session")
def pets(tmp_path_factory):
    """An image folder of two classes, images of several sizes and soft enough for JPEG: 48 to train, 20 to validate."""
    folder = tmp_path_factory.mktemp("pets") / "raw"
    rng = np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 10)):
        for label, name in enumerate(("cat", "dog")):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                noise = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
                pixels = cv2.resize(noise, (40 + i, 36 + 8 * label), interpolation=cv2.INTER_CUBIC)
                Image.fromarray(pixels).save(folder / split / name / f"{i:02}.png")
    return folder


@pytest.fixture(scope="session")
def stored(pets, tmp_path_factory):
    """Folders of .beton files of those images, 32 px, by how they are stored."""
    folders = {}
    for name, settings in STORED.items():
        folders[name] = tmp_path_factory.mktemp(name)
        for split in ("train", "val"):
            write.write(PETS, split, 32, pets, folders[name], settings, say=lambda line: None)
    return folders


@pytest.fixture
def pets_run():
    return make_run({"dataset": PETS, "img_size": 32, "batch_size": 12})


def how_of(folder, **fields):
    return make_how({"data_dir": folder, "threads": 1, **fields})


@pytest.mark.parametrize("workers", [2, 3])
def test_pixels_do_not_depend_on_workers(tiny, how, workers):
    expected = batches(tiny, how, epochs=(0, 1))
    assert same(batches(tiny, how.model_copy(update={"workers": workers}), epochs=(0, 1)), expected)


def test_pixels_are_those_of_numpy(tiny, how, monkeypatch):
    expected = batches(tiny, how, epochs=(0, 1))
    monkeypatch.setattr(loaders, "FfcvLoader", MemoryLoader)
    assert same(batches(tiny, how, epochs=(0, 1)), expected)


def test_an_epoch_can_be_entered_in_the_middle(tiny, how):
    assert same(batches(tiny, how, first_batch=3), batches(tiny, how)[3:])


@pytest.mark.parametrize("kind", STORED)
@pytest.mark.parametrize("name", EVERY)
def test_augmented_pixels_depend_on_the_sample_alone(stored, pets_run, name, kind):
    """Any number of workers, any batch size, any first batch; another epoch or seed has other pixels."""
    run = pets_run.but(**EVERY[name])
    expected = batches(run, how_of(stored[kind]))
    for workers in (2, 3):
        assert same(batches(run, how_of(stored[kind], workers=workers)), expected)
    assert same(batches(run, how_of(stored[kind]), first_batch=2), expected[2:])
    x, y = joined(expected)
    for batch_size in (1, 8, 48):
        other_x, other_y = joined(batches(run.but(batch_size=batch_size), how_of(stored[kind], workers=2)))
        assert torch.equal(other_x, x) and torch.equal(other_y, y)
    for other in (batches(run, how_of(stored[kind]), epochs=(1,)), batches(run.but(seed=1), how_of(stored[kind]))):
        assert not same(other, expected)
    plain, _ = joined(batches(pets_run, how_of(stored[kind])))
    assert (plain != x).any()


CROPS = [(0, {}), (1, {}), (3, {}), (31, {}), (28, {"crop_step": 4}), (3, {"crop_fill": "wrap", "crop_step": 3})]
CROPS += [(pad, {"crop_fill": "wrap"}) for pad in (1, 15, 16)] + [(16, {"crop_fill": "wrap", "crop_step": 8})]


@pytest.mark.parametrize("crop_pad, more", CROPS)
@pytest.mark.parametrize("hflip", [0.0, 0.5, 1.0])
def test_crop_and_flip_of_colour_images_are_numpys(stored, pets_run, crop_pad, more, hflip, monkeypatch):
    run = pets_run.but(crop_pad=crop_pad, hflip=hflip, **more)
    ours = batches(run, how_of(stored["squares"]))
    monkeypatch.setattr(loaders, "FfcvLoader", MemoryLoader)
    assert same(ours, batches(run, how_of(stored["squares"])))


def centre(image, size):
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    kind = cv2.INTER_AREA if side >= size else cv2.INTER_LINEAR
    return cv2.resize(image[top : top + side, left : left + side], (size, size), interpolation=kind)


def evaluated(run, folder):
    _, val, _ = loaders.make_loaders(run, how_of(folder))
    return torch.cat([x.clone() for x, _ in val.epoch(0)]).numpy()


def test_a_larger_stored_size_is_read_where_the_run_says_so(stored, pets_run, tmp_path, pets):
    """It changes the pixels, so it is the run that says it; evaluation takes the centre square, by area."""
    run = pets_run.but(img_size=20, stored_size=32)
    _, _, facts = loaders.make_loaders(run, how_of(stored["squares"]))
    assert (facts["file"], facts["img_size"]) == ("imagefolder-pets_train_32.beton", 32)
    ours = evaluated(run, stored["squares"])
    wanted = np.stack([centre(image, 20) for image in evaluated(pets_run, stored["squares"])])
    assert ours.shape == (20, 20, 20, 3) and abs(ours - wanted.astype(int)).max() <= 1
    for split in ("train", "val"):
        write.write(PETS, split, 32, pets, tmp_path, say=lambda line: None)
        write.write(PETS, split, 24, pets, tmp_path, say=lambda line: None)
    write.write(PETS, "train", 20, pets, tmp_path, say=lambda line: None)
    assert loaders.make_loaders(run, how_of(tmp_path))[2]["img_size"] == 32
    assert loaders.make_loaders(run.but(stored_size=24), how_of(tmp_path))[2]["img_size"] == 24
    assert loaders.make_loaders(pets_run, how_of(tmp_path))[2]["img_size"] == 32
    assert len({each.signature for each in (run, run.but(stored_size=24), run.but(stored_size=None))}) == 3


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"img_size": 20},
            "imagefolder-pets_train_20.beton is missing; there it is of 24 and 32 pixels: take it by --stored-size 24, "
            "or write it: python scripts/make_beton.py --dataset imagefolder/pets --img-size 20",
        ),
        ({"img_size": 20, "stored_size": 30}, "train_30.beton is missing; there it is of 32 pixels: take it by"),
        ({"img_size": 33}, "imagefolder-pets_train_33.beton is missing; write it: python scripts/make_beton.py"),
    ],
)
def test_a_missing_size_names_those_that_are_there(pets_run, tmp_path, fields, words):
    for name in ("pets_train_24", "pets_train_32", "pets_train_8", "pets_train_x", "pets2_train_40"):
        (tmp_path / f"imagefolder-{name}.beton").touch()
    run = pets_run.but(**fields)
    for attempt in (
        lambda: loaders.make_loaders(run, how_of(tmp_path)),
        lambda: ensure(run.dataset, run.stored, tmp_path),
    ):
        with pytest.raises(Refusal) as caught:
            attempt()
        assert words in str(caught.value) and "\n" not in str(caught.value) and caught.value.code == DATA


def test_padding_and_cropping_follow_the_resizing(stored, pets_run):
    run = pets_run.but(img_size=20, stored_size=32, crop_pad=3, hflip=0.5)
    loader, _, _ = loaders.make_loaders(run, how_of(stored["squares"]))
    plain, _, _ = loaders.make_loaders(run.but(crop_pad=0, hflip=0), how_of(stored["squares"]))
    ours, base = (torch.cat([x.clone() for x, _ in each.epoch(0)]).numpy() for each in (loader, plain))
    order = loader._order(0, 0)
    by_sample = np.empty_like(base)
    by_sample[order] = base
    wanted = read_numpy(by_sample, order, loader._key(0), 3, 0.5)
    assert (ours == wanted).all()


@pytest.mark.parametrize("kind", ["squares", "mixed"])
def test_a_shuffle_before_augmentation_follows_the_resizing(stored, pets_run, kind):
    """Of images that are decoded or shrunk as they are read, as of others."""
    small = {"img_size": 20, "stored_size": 32} if kind == "squares" else {}
    run = pets_run.but(**small, crop_pad=3, hflip=0.5, permute="pixels_first")
    loader, _, _ = loaders.make_loaders(run, how_of(stored[kind]))
    plain, _, _ = loaders.make_loaders(run.but(crop_pad=0, hflip=0, permute="none"), how_of(stored[kind]))
    ours, base = (torch.cat([x.clone() for x, _ in each.epoch(0)]).numpy() for each in (loader, plain))
    order, shuffle = loader._order(0, 0), normalize.places(run)
    by_sample = np.empty_like(base)
    by_sample[order] = base.reshape(len(base), -1, 3)[:, shuffle].reshape(base.shape)
    assert (ours == read_numpy(by_sample, order, loader._key(0), 3, 0.5)).all()


@pytest.mark.parametrize("kind", ["jpg", "mixed"])
def test_jpegs_are_decoded_as_pillow_does(stored, pets_run, kind, tmp_path):
    """The same bytes; libjpeg-turbo's fast transform differs from Pillow's exact one by a few levels."""
    layout = beton.read_layout(stored[kind] / "imagefolder-pets_val_32.beton")
    stored_bytes = (stored[kind] / "imagefolder-pets_val_32.beton").read_bytes()
    assert not layout.is_raw and (kind == "jpg" or (len(set(layout.modes)) == 2 and not layout.is_all_of(32)))
    ours = evaluated(pets_run, stored[kind])
    for index, image in enumerate(ours):
        start = layout.pointers[index]
        if layout.modes[index] == beton.JPG:
            (tmp_path / "x.jpg").write_bytes(stored_bytes[start : start + layout.sizes[index]])
            pixels = np.asarray(Image.open(tmp_path / "x.jpg").convert("RGB"))
        else:
            pixels = layout.pixels(np.frombuffer(stored_bytes, "u1"), index)
        assert pixels.shape[:2] == (layout.heights[index], layout.widths[index])
        difference = abs(image - centre(pixels, 32).astype(int))
        assert difference.mean() < 3 and difference.max() <= 24


def test_a_damaged_jpeg_ends_the_epoch(stored, pets_run, tmp_path):
    for path in stored["jpg"].glob("*.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    path = tmp_path / "imagefolder-pets_train_32.beton"
    layout = beton.read_layout(path)
    damaged = bytearray(path.read_bytes())
    start = layout.pointers[5]
    damaged[start : start + layout.sizes[5]] = bytes(layout.sizes[5])
    path.write_bytes(damaged)
    loader = loaders.FfcvLoader(path, 12, pipeline.Augmentation(32), workers=2)
    with pytest.raises(Refusal, match=r"image 5 of .* is a damaged JPEG") as caught:
        list(loader.epoch(0))
    assert caught.value.code == DATA and "\n" not in str(caught.value)


def test_the_held_out_images_are_the_same_for_every_seed_and_not_trained_on(stored, pets_run, tmp_path):
    """Together with the training images they are all; a larger share holds the smaller; no val file is needed."""
    for suffix in ("beton", "json"):
        name = f"imagefolder-pets_train_32.{suffix}"
        (tmp_path / name).write_bytes((stored["squares"] / name).read_bytes())
    chosen = {}
    for share in (0.2, 0.5):
        for seed in (0, 1):
            run = pets_run.but(holdout=share, seed=seed, batch_size=1)
            train, val, _ = loaders.make_loaders(run, how_of(tmp_path))
            assert sorted([*train.indices, *val.indices]) == list(range(48))
            assert val.num_samples == len(list(val.epoch(0))) == len(val.indices)
            chosen.setdefault(share, set()).add(tuple(val.indices))
    assert all(len(sets) == 1 for sets in chosen.values())
    assert set(*chosen[0.2]) < set(*chosen[0.5])
    assert loaders.held_out_of(100_000, 0.1).mean() == pytest.approx(0.1, abs=0.005)
    train, _, _ = loaders.make_loaders(pets_run.but(holdout=0.5, train_samples=12), how_of(tmp_path))
    assert len(train.indices) == 12 and not set(train.indices) & set(*chosen[0.5])
    with pytest.raises(Refusal, match="train_samples 48 is more"):
        loaders.make_loaders(pets_run.but(holdout=0.5, train_samples=48), how_of(tmp_path))
    with pytest.raises(Refusal, match="is none; raise it"):
        loaders.make_loaders(pets_run.but(holdout=1e-6), how_of(tmp_path))


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"scale": (0.1, 1), "crop_pad": 4}, "two ways to crop"),
        ({"aa": "rand-m9-mst0.5"}, "valid: rand-m9-n2"),
        ({"aa": "trivial", "color_jitter": 0.3}, "leaves color_jitter out"),
    ],
)
def test_augmentation_that_makes_no_sense_is_refused(stored, pets_run, fields, words):
    with pytest.raises(Refusal, match=words):  # by the run, or else by the loader
        loaders.make_loaders(pets_run.but(**fields), how_of(stored["squares"]))


def test_more_data_than_memory_is_said_with_numbers(stored, pets_run, monkeypatch, caplog):
    assert 1 << 20 < loaders.free_memory() < 1 << 50
    monkeypatch.setattr(loaders, "free_memory", lambda: 1000)
    with caplog.at_level(logging.WARNING, "softmlp"):
        loaders.make_loaders(pets_run, how_of(stored["squares"]))
    assert "more than the 0.0 GB of free memory" in caplog.text


def test_seeds_and_epochs_differ_and_one_seed_repeats(tiny, how):
    assert same(batches(tiny, how), batches(tiny, how))
    assert not same(batches(tiny, how), batches(tiny, how, epochs=(1,)))
    assert not same(batches(tiny, how), batches(tiny.but(seed=1), how))


def test_seed_plus_one_is_not_the_next_epoch(tiny, how):
    assert not same(batches(tiny.but(seed=1), how), batches(tiny, how, epochs=(1,)))


def test_augmentation_covers_its_range(tiny, how):
    """Every crop offset and both flips occur, about equally often, over many samples."""
    samples = np.arange(20_000)
    draws = [pipeline._numpy_draw(np.uint64(7), samples, operation) for operation in (1, 2, 3)]
    for draw in draws[:2]:
        counts = np.bincount((draw % np.uint64(3)).astype(int))
        assert abs(counts / len(samples) - 1 / 3).max() < 0.02
    assert abs((draws[2] / 2**53 < 0.5).mean() - 0.5) < 0.02
    assert abs(np.corrcoef([draw.astype(float) for draw in draws]) - np.eye(3)).max() < 0.02


def test_evaluation_scores_every_sample_once(tiny, how):
    _, val, _ = loaders.make_loaders(tiny, how)
    labels = torch.cat([y.clone() for _, y in val.epoch(0)])
    assert len(labels) == val.num_samples == 500
    images = torch.cat([x.clone() for x, _ in val.epoch(0)])
    assert len(torch.unique(images.reshape(500, -1), dim=0)) == 500


def test_training_batches_are_all_full(tiny, how):
    assert [len(y) for _, y in batches(tiny, how)] == [64] * 5


def test_train_samples_is_the_same_subset_for_every_seed(tiny, how):
    def labels(run):
        loader, _, _ = loaders.make_loaders(run.but(batch_size=330), how)
        return sorted(y.item() for _, batch in loader.epoch(0) for y in batch)

    assert labels(tiny) == labels(tiny.but(seed=5))


def test_normalisation_is_mean_zero_deviation_one(tiny, how):
    loader, _, facts = loaders.make_loaders(tiny.but(train_samples=None, batch_size=1297, crop_pad=0), how)
    prepare = normalize.Normalize(*normalize.channel_statistics(tiny, facts), torch.device("cpu"))
    images, _ = next(loader.epoch(0))
    x_BCHW = prepare(images)
    assert x_BCHW.shape == (1297, 1, 8, 8) and x_BCHW.dtype == torch.float32
    assert abs(x_BCHW.mean()) < 1e-4 and abs(x_BCHW.std() - 1) < 1e-3


def test_a_batch_larger_than_the_training_set_is_refused(tiny, how):
    with pytest.raises(Refusal, match="batch_size 400"):
        loaders.make_loaders(tiny.but(batch_size=400), how)
