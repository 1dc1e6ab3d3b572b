"""The readers of raw files, on small made-up copies of each data set's own layout; no download."""

import gzip
import pickle
import struct

import numpy as np
import pytest
import torchvision
from PIL import Image

from engine.data import beton, gaussian, write
from engine.data.sets import DATASETS, SPLITS, lookup, read_raw

RNG = np.random.default_rng(0)


def write_images(folder, classes, count=2, size=(12, 10), suffix="png", name="{label}_{i}"):
    for label, wnid in enumerate(classes):
        (folder / wnid).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = RNG.integers(0, 256, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / wnid / f"{name.format(label=label, i=i)}.{suffix}")


def make_mnist(folder, name):
    """idx files, gzipped, as they are downloaded; torchvision's check of the checksums is what the test turns off."""
    raw = folder / name / "raw"
    raw.mkdir(parents=True)
    truth = {}
    for split, word, count in (("train", "train", 6), ("val", "t10k", 4)):
        images = RNG.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = RNG.integers(0, 10, count).astype(np.uint8)
        for kind, data, header in (
            ("images-idx3", images, struct.pack(">IIII", 2051, count, 28, 28)),
            ("labels-idx1", labels, struct.pack(">II", 2049, count)),
        ):
            (raw / f"{word}-{kind}-ubyte").write_bytes(header + data.tobytes())
            with gzip.open(raw / f"{word}-{kind}-ubyte.gz", "wb") as file:
                file.write(header + data.tobytes())
        truth[split] = (images[..., None].repeat(3, 3), labels)
    return truth


def make_cifar(folder, name):
    kind = getattr(torchvision.datasets, DATASETS[name].source)
    truth = {}
    for split, files in (("train", kind.train_list), ("val", kind.test_list)):
        images, labels = [], []
        for file, _ in files:
            data = RNG.integers(0, 256, (2, 3072), dtype=np.uint8)
            numbers = RNG.integers(0, 10, 2).tolist()
            path = folder / kind.base_folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(pickle.dumps({"data": data, "labels": numbers, "fine_labels": numbers}))
            images.append(data.reshape(2, 3, 32, 32).transpose(0, 2, 3, 1))
            labels += numbers
        truth[split] = np.concatenate(images), np.array(labels)
    meta = folder / kind.base_folder / kind.meta["filename"]
    meta.write_bytes(pickle.dumps({kind.meta["key"]: [str(i) for i in range(10)]}))
    return truth


def make_stl10(folder, _):
    base = folder / "stl10_binary"
    base.mkdir(parents=True)
    truth = {}
    for split, word, count in (("train", "train", 3), ("val", "test", 2)):
        pixels = RNG.integers(0, 256, (count, 3, 96, 96), dtype=np.uint8)  # each channel stored by columns
        labels = RNG.integers(0, 10, count).astype(np.uint8)
        (base / f"{word}_X.bin").write_bytes(pixels.tobytes())
        (base / f"{word}_y.bin").write_bytes((labels + 1).tobytes())
        truth[split] = pixels.transpose(0, 3, 2, 1), labels
    (base / "class_names.txt").write_text("\n".join(map(str, range(10))))
    return truth


MAKERS = {
    "mnist": lambda folder, _: make_mnist(folder, "MNIST"),
    "fashion_mnist": lambda folder, _: make_mnist(folder, "FashionMNIST"),
    "cifar10": make_cifar,
    "cifar100": make_cifar,
    "stl10": make_stl10,
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_download_of_torchvision_becomes_the_same_pixels_and_labels(name, tmp_path, monkeypatch):
    truth = MAKERS[name](tmp_path / "raw", name)
    kind = getattr(torchvision.datasets, DATASETS[name].source)
    monkeypatch.setattr(kind, "download", lambda self: None)
    monkeypatch.setattr(kind, "_check_integrity", lambda self: True, raising=False)
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *args: True)
    monkeypatch.setattr(torchvision.datasets.stl10, "check_integrity", lambda *args: True)
    for split in SPLITS:
        size = DATASETS[name].img_size
        path = write.write(name, split, size, tmp_path / "raw", tmp_path, say=lambda line: None)
        layout, data = beton.read_layout(path), np.fromfile(path, "u1")
        images, labels = truth[split]
        assert layout.labels.tolist() == labels.tolist() and layout.is_all_of(size)
        assert all((layout.pixels(data, i) == image).all() for i, image in enumerate(images))


def test_tiny_imagenet_as_it_is_unzipped(tmp_path):
    root = tmp_path / "tiny-imagenet-200"
    for wnid in ("n01", "n02"):
        write_images(root / "train" / wnid, ["images"], 3, (64, 64), "JPEG", f"{wnid}_{{i}}")
    write_images(root / "val", ["images"], 4, (64, 64), "JPEG", "val_{i}")
    rows = [f"val_{i}.JPEG\t{('n02', 'n01', 'n02', 'n01')[i]}\t0\t0\t9\t9" for i in (2, 0, 1, 3)]
    (root / "val" / "val_annotations.txt").write_text("\n".join(rows) + "\n")
    for folder in (tmp_path, root):  # the folder above, or the unzipped one itself
        train, val = (read_raw("tiny_imagenet", split, folder) for split in SPLITS)
        assert [train[i][1] for i in range(6)] == [0, 0, 0, 1, 1, 1]
        assert [val[i][1] for i in range(4)] == [1, 1, 0, 0]
        assert val.samples[0][0].endswith("val_2.JPEG") and val[0][0].shape == (64, 64, 3)
    (root / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn99\n")
    with pytest.raises(ValueError, match="does not name images and classes"):
        read_raw("tiny_imagenet", "val", tmp_path)


@pytest.mark.parametrize("name", ["imagenet", "imagenet_real", "imagenet21k", "imagefolder/own", "cifar10"])
def test_an_image_folder_is_read_by_class(name, tmp_path):
    entry = lookup(name)
    folders = entry.folders if entry else SPLITS
    for folder in folders:
        write_images(tmp_path / folder, ["n01", "n02", "n03"], suffix="JPEG")
    for split in SPLITS:
        samples = read_raw(name, split, tmp_path)
        assert sorted(samples[i][1] for i in range(len(samples))) == [0, 0, 1, 1, 2, 2]


def test_the_validation_images_of_imagenet_real_are_in_the_order_of_their_names(tmp_path):
    """So that the i-th list of real.json belongs to the i-th image, whatever class it is in."""
    for label, wnid in enumerate(("n01", "n02")):
        (tmp_path / "val" / wnid).mkdir(parents=True)
        for number in range(1 + label, 7, 2):
            name = f"ILSVRC2012_val_{number:08}.JPEG"
            Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / "val" / wnid / name, quality=100)
    samples = read_raw("imagenet_real", "val", tmp_path)
    assert [samples[i][1] for i in range(6)] == [0, 1, 0, 1, 0, 1]
    assert [abs(int(samples[i][0][0, 0, 0]) - i - 1) <= 1 for i in range(6)] == [True] * 6
    assert [read_raw("imagenet", "val", tmp_path)[i][1] for i in range(6)] == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("name", [name for name, entry in DATASETS.items() if entry.layout])
def test_missing_raw_files_are_refused_with_their_layout(name, tmp_path):
    with pytest.raises(ValueError, match="--raw-dir") as caught:
        read_raw(name, "train", tmp_path)
    assert DATASETS[name].layout in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_without_images_is_refused_in_one_line(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(ValueError, match="is no image folder") as caught:
        read_raw("imagefolder/x", "train", tmp_path)
    assert "\n" not in str(caught.value)


def test_a_failed_download_says_what_to_do(tmp_path, monkeypatch):
    def fails(*args, **kwargs):
        raise OSError("no network\nat all")

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", fails)
    with pytest.raises(ValueError, match="unpack it as an image folder") as caught:
        read_raw("cifar10", "train", tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_with_other_classes_than_the_data_set_is_refused(tmp_path):
    from engine.errors import Refusal

    write_images(tmp_path / "raw" / "train", [f"class{i:02}" for i in range(11)], 1)
    with pytest.raises(Refusal, match=r"has 11 classes and cifar10 10, .*imagefolder/NAME"):
        write.write("cifar10", "train", 8, tmp_path / "raw", tmp_path, say=lambda line: None)


def test_a_label_beyond_the_classes_is_refused(tmp_path, monkeypatch):
    """As a damaged download may hold it."""
    from engine.errors import Refusal

    truth = MAKERS["mnist"](tmp_path / "raw", "mnist")["train"][1]
    monkeypatch.setattr(torchvision.datasets.MNIST, "download", lambda self: None)
    path = tmp_path / "raw" / "MNIST" / "raw" / "train-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1] + bytes([10]))
    with pytest.raises(Refusal, match="image 5 has label 10, but there are 10 classes"):
        write.write("mnist", "train", 28, tmp_path / "raw", tmp_path, say=lambda line: None)
    assert len(truth) == 6


def test_every_entry_is_complete():
    for name, entry in DATASETS.items():
        assert len(entry.mean) == len(entry.std) == entry.in_chans, name
        assert all(20 < value < 140 for value in (*entry.mean, *entry.std)), name
        assert entry.layout or entry.source.startswith("sklearn") or hasattr(torchvision.datasets, entry.source), name


def test_the_digits_statistics_are_those_measured(digits):
    facts = beton.check(digits / "digits_train_8.beton", "digits", 8)
    assert facts["mean"][0] == DATASETS["digits"].mean[0] and facts["std"][0] == DATASETS["digits"].std[0]
    assert facts["samples"] == DATASETS["digits"].train_size


@pytest.mark.parametrize(
    "name, words", [("cifr10", "did you mean 'cifar10'"), ("imagefolder/", "known: digits, mnist")]
)
def test_an_unknown_name_is_refused(name, words):
    with pytest.raises(ValueError, match=words):
        lookup(name)


def flat(samples):
    """Pixels (N, D) as the model is given them but for the data set's mean and deviation, and labels (N,)."""
    pairs = [samples[i] for i in range(len(samples))]
    return np.stack([image[..., 0] for image, _ in pairs]).reshape(len(pairs), -1).astype(float), np.array(
        [label for _, label in pairs]
    )


def test_a_gaussian_clone_has_the_mean_and_covariance_of_each_class_and_nothing_else(tmp_path):
    """Of many draws; of the digits the third moment, which a Gaussian has none of, is there and is gone."""
    (x, y), (entry, clone) = flat(read_raw("digits", "train", tmp_path)), (lookup("digits"), lookup("digits_gaussian"))
    assert (clone.source, clone.clone_of, clone.num_classes) == ("sklearn_digits", "digits", 10)
    one = x[y == 3]
    drawn = gaussian.to_bytes(gaussian.draw(one, 40_000, 0, 3)).astype(float)
    standard = (drawn - clone.mean[0]) / clone.std[0]
    truth = (one - entry.mean[0]) / entry.std[0]
    assert abs(standard.mean(0) - truth.mean(0)).max() < 0.02
    covariance = np.cov(truth.T)
    assert abs(np.cov(standard.T) - covariance).max() < 0.03 * covariance.max()
    skew = [(((each - each.mean(0)) ** 3).mean(0)[one.std(0) > 40] ** 2).mean() for each in (truth, standard)]
    assert skew[0] > 50 * skew[1]


def test_a_clone_has_the_labels_of_its_original_and_draws_of_its_own_in_each_split(tmp_path):
    clones = {split: flat(read_raw("digits_gaussian", split, tmp_path)) for split in SPLITS}
    for split, (x, y) in clones.items():
        assert (y == flat(read_raw("digits", split, tmp_path))[1]).all() and len(np.unique(x, axis=0)) == len(x)
    assert not (clones["train"][0][:20] == clones["val"][0][:20]).all(1).any()
    (x, y), (drawn, _) = flat(read_raw("digits", "train", tmp_path)), clones["train"]
    for label in range(10):  # each class has its own mean, at half of the contrast
        wanted = 127.5 + (x[y == label].mean(0) - 127.5) / 2
        assert abs(drawn[y == label].mean(0) - wanted).mean() < 4 < abs(drawn.mean(0) - wanted).mean()
    image, label = read_raw("digits_gaussian", "val", tmp_path)[7]
    assert image.shape == (8, 8, 3) and image.dtype == np.uint8 and (image[..., 0] == image[..., 2]).all()
    again = read_raw("digits_gaussian", "val", tmp_path)[7]
    assert (again[0] == image).all() and again[1] == label


def test_a_clone_of_colour_images_keeps_the_correlation_of_channels(tmp_path):
    """From an image folder; blue follows red and never green. The names of the classes go with it."""
    for split in DATASETS["cifar10"].folders:
        for label in range(10):
            (tmp_path / split / f"c{label}").mkdir(parents=True)
            for i in range(12):
                pixels = RNG.integers(60, 200, (4, 4, 3), dtype=np.uint8)
                pixels[..., 2] = pixels[..., 0]
                Image.fromarray(pixels).save(tmp_path / split / f"c{label}" / f"{i}.png")
    samples = read_raw("cifar10_gaussian", "val", tmp_path)
    assert len(samples) == 120 and samples.classes == [f"c{label}" for label in range(10)]
    x = np.stack([samples[i][0] for i in range(120)]).astype(float)
    assert abs(x[..., 0] - x[..., 2]).max() <= 1 and abs(x[..., 0] - x[..., 1]).mean() > 10
    path = write.write("cifar10_gaussian", "val", 4, tmp_path, tmp_path / "out", say=lambda line: None)
    assert beton.check(path, "cifar10_gaussian", 4)["samples"] == 120
