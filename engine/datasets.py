"""The data sets: one table entry each. Importing this imports neither torch nor torchvision.

A folder of images is `imagefolder/NAME`, with NAME chosen by the user: what this table says of the others (classes,
statistics) is then measured by scripts/make_beton.py and read from the JSON beside the .beton file.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    """`torchvision.datasets.NAME`, downloaded on demand, or the name of a reader in this file."""
    folders: tuple[str, str] = ("train", "val")
    """Where an ImageFolder copy of it keeps its two splits."""


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
}
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


def read_raw(name: str, split: str, data_dir: Path) -> Samples:
    """All samples of a split from its raw files, as (image, label).

    An ImageFolder under `data_dir` (train/CLASS/*.png ...) is used where there is one; otherwise the data set is
    downloaded by torchvision. Raises ValueError where neither can be had.
    """
    dataset = lookup(name)
    folder = data_dir / (dataset.folders if dataset else ("train", "val"))[SPLITS.index(split)]
    if folder.is_dir():
        from torchvision.datasets import ImageFolder

        return ImageFolder(str(folder))
    if dataset is None:
        raise ValueError(f"no folder {folder}; an image folder holds train/CLASS/*.png and val/CLASS/*.png")
    if dataset.source == "sklearn_digits":
        return _sklearn_digits(split)
    import torchvision

    kind = getattr(torchvision.datasets, dataset.source)
    try:
        return kind(str(data_dir), train=split == "train", download=True)
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"cannot download {name} ({error}); unpack it as an image folder, {folder}/CLASS/*.png, and repeat"
        ) from error


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
