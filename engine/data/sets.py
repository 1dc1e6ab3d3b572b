"""The data sets: one table entry each. Importing this imports neither torch nor torchvision.

A folder of images is `imagefolder/NAME`, with NAME chosen by the user: what this table says of the others (classes,
statistics) is then measured by scripts/make_beton.py and read from the JSON beside the .beton file. Grey images are
stored with three equal channels and read as one where `in_chans` is 1.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine.data import folders, splits

Samples = Sequence[tuple[Any, int]]  # (H, W, 3) uint8 array or PIL image, label


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Facts about a data set. Mean and deviation are per channel of the training images on the 0..255 scale."""

    num_classes: int
    img_size: int
    in_chans: int = 3
    train_size: int
    val_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str
    """`torchvision.datasets.NAME`, downloaded on demand, or a reader in this file (lower case)."""
    folders: tuple[str, str] = ("train", "val")
    """Where an image folder of it keeps its two splits."""
    layout: str = ""
    """Where the raw files come from, if not by download: one line for whoever lacks them."""
    clone_of: str = ""
    """The data set whose Gaussian clone it is (engine/data/gaussian.py); `source` and `folders` are the original's."""


_IMAGENET = {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)}
DATASETS = {
    "digits": Dataset(
        num_classes=10,
        img_size=8,
        in_chans=1,
        train_size=1297,
        val_size=500,
        mean=(77.878,),
        std=(95.818,),
        source="sklearn_digits",
    ),
    "mnist": Dataset(
        num_classes=10,
        img_size=28,
        in_chans=1,
        train_size=60_000,
        val_size=10_000,
        mean=(33.318,),
        std=(78.567,),
        source="MNIST",
        folders=("train", "test"),
    ),
    "fashion_mnist": Dataset(
        num_classes=10,
        img_size=28,
        in_chans=1,
        train_size=60_000,
        val_size=10_000,
        mean=(72.940,),
        std=(90.021,),
        source="FashionMNIST",
        folders=("train", "test"),
    ),
    "cifar10": Dataset(
        num_classes=10,
        img_size=32,
        train_size=50_000,
        val_size=10_000,
        mean=(125.307, 122.950, 113.865),
        std=(62.993, 62.089, 66.705),
        source="CIFAR10",
        folders=("train", "test"),
    ),
    "cifar100": Dataset(
        num_classes=100,
        img_size=32,
        train_size=50_000,
        val_size=10_000,
        mean=(129.304, 124.070, 112.434),
        std=(68.170, 65.392, 70.418),
        source="CIFAR100",
        folders=("train", "test"),
    ),
    "stl10": Dataset(
        num_classes=10,
        img_size=96,
        train_size=5000,
        val_size=8000,
        mean=(113.911, 112.152, 103.695),
        std=(66.387, 65.427, 69.173),
        source="STL10",
        folders=("train", "test"),
    ),
    "tiny_imagenet": Dataset(
        num_classes=200,
        img_size=64,
        train_size=100_000,
        val_size=10_000,
        mean=(122.451, 114.266, 101.363),
        std=(70.635, 68.621, 71.936),
        source="tiny_imagenet",
        layout="unzip tiny-imagenet-200.zip; the folder holds train/WNID/images/*.JPEG and val/val_annotations.txt",
    ),
    "imagenet": Dataset(
        num_classes=1000,
        img_size=224,
        train_size=1_281_167,
        val_size=50_000,
        **_IMAGENET,
        source="folders",
        layout="unpack ILSVRC2012, train and validation, by class: train/WNID/*.JPEG and val/WNID/*.JPEG",
    ),
    # ImageNet again, its validation images in the order of their names, which is that of real.json.
    "imagenet_real": Dataset(
        num_classes=1000,
        img_size=224,
        train_size=1_281_167,
        val_size=50_000,
        **_IMAGENET,
        source="folders_by_name",
        layout="unpack ILSVRC2012, train and validation, by class: train/WNID/*.JPEG and val/WNID/*.JPEG",
    ),
    # Sizes, classes and statistics as Scaling MLPs use it; other cleanings have 11,221 or 10,450 classes.
    "imagenet21k": Dataset(
        num_classes=11_230,
        img_size=64,
        train_size=11_801_680,
        val_size=561_500,
        **_IMAGENET,
        source="folders",
        layout="unpack ImageNet-21K-P by class: imagenet21k_train/WNID/*.JPEG and imagenet21k_val/WNID/*.JPEG",
        folders=("imagenet21k_train", "imagenet21k_val"),
    ),
}


def _clone(name: str) -> Dataset:
    """The entry of a Gaussian clone, whose images have half of the contrast about 127.5."""
    own = DATASETS[name]
    mean, std = tuple(127.5 + (each - 127.5) / 2 for each in own.mean), tuple(each / 2 for each in own.std)
    return replace(own, mean=mean, std=std, clone_of=name)


DATASETS |= {f"{name}_gaussian": _clone(name) for name in ("digits", "cifar10")}
SPLITS = ("train", "val")


def lookup(name: str) -> Dataset | None:
    """The entry of a data set; None for `imagefolder/NAME`. Raises ValueError, naming the nearest, for another name."""
    if name in DATASETS:
        return DATASETS[name]
    family, _, own = name.partition("/")
    if family == "imagefolder" and own and own.replace("_", "").replace("-", "").isalnum():
        return None
    close = difflib.get_close_matches(name, DATASETS, n=1, cutoff=0.4)
    hint = f"did you mean '{close[0]}'? " if close else ""
    raise ValueError(f"unknown dataset '{name}'; {hint}known: {', '.join(DATASETS)}, imagefolder/NAME")


def read_raw(
    name: str, split: str, data_dir: Path, classes: Sequence[str] | None = None, val_split: float | None = None
) -> Samples:
    """All samples of a split from its raw files, as (image, label).

    An image folder under `data_dir` (train/CLASS/*.png ...) is used where there is one; otherwise the data set is
    downloaded by torchvision, if it can be. Classes are numbered by the folders of train, for val too; where train is
    not there by `classes`, and without these by the folders of val. Raises ValueError, saying what to do, where the raw
    files cannot be had or the folders of val are not those of train. With `val_split`, one folder holds both splits
    (engine/data/splits.py).
    """
    dataset = lookup(name)
    if dataset is not None and dataset.clone_of:
        from engine.data.gaussian import Clone

        train, own = (read_raw(dataset.clone_of, each, data_dir) for each in (SPLITS[0], split))
        return Clone(train, own, SPLITS.index(split))
    folder = raw_folder(name, split, data_dir)
    if val_split is not None and folder is not None and folder.is_dir():
        return splits.part(folders.read(folder, complete=True), folder, split, val_split)
    if folder is not None and folder.is_dir():
        annotations = folder / "val_annotations.txt"
        train = raw_folder(name, SPLITS[0], data_dir)
        if annotations.exists():
            samples = _annotated(annotations)
        elif split == SPLITS[0]:
            samples = folders.read(folder, complete=True)
        else:
            samples = folders.read(folder, folders.class_names(train) if train and train.is_dir() else classes)
        if dataset is not None and dataset.source == "folders_by_name" and split == "val":
            samples.samples.sort(key=lambda sample: Path(sample[0]).name)
        return samples
    if dataset is None:
        raise ValueError(
            f"no folder {folder}; an image folder holds train/CLASS/*.png and val/CLASS/*.png, or CLASS/*.png"
        )
    if dataset.layout:
        raise ValueError(f"no folder {folder}; {dataset.layout}; name the folder above with --raw-dir")
    if dataset.source == "sklearn_digits":
        return _sklearn_digits(split)
    import torchvision

    kind = getattr(torchvision.datasets, dataset.source)
    which = (
        {"split": ("train", "test")[SPLITS.index(split)]} if dataset.source == "STL10" else {"train": split == "train"}
    )
    try:
        return kind(str(data_dir), **which, download=True)
    except (OSError, RuntimeError) as error:
        line = " ".join(str(error).split())
        raise ValueError(
            f"cannot download {name} ({line}); unpack it as an image folder, {folder}/CLASS/*.png, and repeat"
        ) from error


def raw_folder(name: str, split: str, data_dir: Path) -> Path | None:
    """Where an image folder of a split is, if there is one; None for a data set that comes with a package."""
    dataset = lookup(name)
    if dataset is not None and dataset.source == "sklearn_digits":
        return None
    if dataset is not None and dataset.source == "tiny_imagenet" and (data_dir / "tiny-imagenet-200").is_dir():
        return data_dir / "tiny-imagenet-200" / split
    return data_dir / dataset.folders[SPLITS.index(split)] if dataset else splits.folder_of(data_dir, split)


def check_folders(name: str, wanted: Sequence[str], data_dir: Path) -> None:
    """Look at the class folders of raw image folders, before the first of them is read, which may take hours.

    Raises ValueError: a class of val that train has not, another number of classes than the data set has.
    """
    dataset, known = lookup(name), None
    for split in SPLITS:
        folder = raw_folder(name, split, data_dir)
        if folder is None or not folder.is_dir() or (folder / "val_annotations.txt").exists():
            continue
        own = folders.class_names(folder)
        if split in wanted and known is not None:
            folders.require_known(folder, own, known)
        elif split in wanted and dataset is not None and len(own) != dataset.num_classes:
            raise ValueError(
                f"{folder} has {len(own)} classes and {name} {dataset.num_classes}, so that labels would be other "
                "classes; name another --raw-dir, or for a data set of your own --dataset imagefolder/NAME"
            )
        known = own if known is None else known


def names_of_classes(name: str, samples: Samples) -> list[str]:
    """The classes by name, in the order of their labels; numbers where they have no names."""
    dataset = lookup(name)
    names = getattr(samples, "classes", None) or range(dataset.num_classes if dataset else 0)
    return [str(each) for each in names]


def _annotated(annotations: Path) -> folders.ImageFiles:
    """Tiny ImageNet's validation images: one folder, and a table of names and classes beside it."""
    train = annotations.parent.parent / "train"
    if not train.is_dir():
        raise ValueError(f"no folder {train}, from which the classes of {annotations} are numbered")
    classes = folders.class_names(train)
    rows = [line.split("\t") for line in annotations.read_text().splitlines()]
    try:
        samples = [(str(annotations.parent / "images" / row[0]), classes.index(row[1])) for row in rows]
    except (IndexError, ValueError) as error:
        raise ValueError(f"{annotations} does not name images and classes of {train} ({error})") from None
    raw = folders.fingerprint(annotations.parent, [str(annotations), *(name for name, _ in samples)])
    return folders.ImageFiles(samples=samples, classes=classes, raw=raw)


def _sklearn_digits(split: str) -> Samples:
    """scikit-learn's 1,797 8 x 8 digits, grey 0..16 stretched to 0..255."""
    import numpy as np
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    pixels = np.round(images.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8).repeat(3, axis=3)
    # The file is ordered by writer, so the first rows and the last are different hands; a fixed shuffle mixes them.
    order = np.random.default_rng(0).permutation(len(pixels))
    order = order[:1297] if split == "train" else order[1297:]
    return [(pixels[i], int(labels[i])) for i in order]
