"""`.beton` files: where they are, whether they are whole, what is in them. Reading here does not import FFCV (3 s).

FFCV trusts its file: one byte short gives wrong pixels with exit code 0, and an unfinished file crashes the process.
So files are written under another name and renamed when complete (engine/convert.py), a JSON beside each holds
checksum and settings, and `check` reads the structure before FFCV does.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.datasets import SPLITS, lookup
from engine.errors import DATA, Refusal
from engine.store import read_json

# The checksum of a file up to this size is compared at every opening (0.1 s per 150 MB); of a larger one its size.
ALWAYS_HASH_BYTES = 1 << 30

# FFCV's own layout (ffcv/types.py of 1.0.2), restated so that checking a file does not import FFCV (3 s).
_HEADER = np.dtype(
    [("version", "<u2"), ("num_fields", "<u2"), ("page_size", "<u4"), ("num_samples", "<u8"), ("table", "<u8")],
    align=True,
)
_FIELD = np.dtype([("type_id", "<u1"), ("name", ("<u1", 16)), ("arguments", ("<u1", (1024,)))], align=True)
_TABLE = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])
_IMAGE = np.dtype([("mode", "<u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
_SAMPLE = np.dtype([("", _IMAGE), ("", np.dtype("<i8"))], align=True)
JPG, RAW = 0, 1


@dataclass(frozen=True)
class Layout:
    """Where each image lies in a file and how it is stored, (N,) each."""

    modes: np.ndarray
    """RAW pixels or JPG."""
    heights: np.ndarray
    widths: np.ndarray
    pointers: np.ndarray
    sizes: np.ndarray
    """Bytes."""
    labels: np.ndarray

    @property
    def is_raw(self) -> bool:
        return bool((self.modes == RAW).all())

    def is_square(self, size: int) -> bool:
        """Whether every image is a square of `size` pixels."""
        return bool((self.heights == size).all() and (self.widths == size).all())

    def pixels(self, data: np.ndarray, index: int) -> np.ndarray:
        """Image (H, W, 3) from the bytes of the file; JPEGs by OpenCV. Raises ValueError where that fails."""
        start = self.pointers[index]
        stored = data[start : start + self.sizes[index]]
        if self.modes[index] == RAW:
            return stored.reshape(self.heights[index], self.widths[index], 3)
        import cv2

        image = cv2.imdecode(np.asarray(stored), cv2.IMREAD_COLOR)
        if image is None:
            raise ValueError(f"image {index} is no JPEG")
        return image[..., ::-1]


def path_of(dataset: str, split: str, img_size: int, data_dir: Path) -> Path:
    """`cifar10_train_32.beton` under `data_dir`."""
    return data_dir / f"{dataset.replace('/', '-')}_{split}_{img_size}.beton"


def sidecar(path: Path) -> Path:
    """The JSON beside a .beton."""
    return path.with_suffix(".json")


def stored_size(dataset: str, img_size: int, data_dir: Path, splits: Sequence[str] = SPLITS) -> int:
    """The stored size to read: img_size where all these splits are there, else the smallest larger size with all.

    img_size where there is none, so that what is said to be missing is what was asked for.
    """
    names = [
        path.stem.rpartition("_")[2] for path in data_dir.glob(path_of(dataset, splits[0], 0, Path()).stem[:-1] + "*")
    ]
    for size in sorted({int(name) for name in names if name.isdecimal()}):
        if size >= img_size and all(path_of(dataset, split, size, data_dir).exists() for split in splits):
            return size
    return img_size


def ensure(
    dataset: str,
    img_size: int,
    data_dir: Path,
    say: Callable[[str], None] = print,
    splits: Sequence[str] = SPLITS,
) -> None:
    """Write the splits of a data set that needs no download; for others, refuse where they are missing."""
    size = stored_size(dataset, img_size, data_dir, splits)
    for split in splits:
        path = path_of(dataset, split, size, data_dir)
        if path.exists() and sidecar(path).exists():
            continue
        entry = lookup(dataset)
        if entry is None or not entry.source.startswith("sklearn"):
            raise _missing(path, dataset, size)
        from engine.convert import write

        write(dataset, split, size, data_dir, data_dir, say=say)


def check(path: Path, dataset: str, img_size: int, *, always_hash: bool = False) -> dict[str, Any]:
    """The facts of a .beton, from the JSON beside it, after the file was found whole and written for these settings.

    Raises Refusal (DATA) with the command that writes the file anew. Costs milliseconds, plus the checksum of files up
    to `ALWAYS_HASH_BYTES`, or of any if `always_hash`.
    """
    if not path.exists():
        raise _missing(path, dataset, img_size)
    again = f"write it again: rm {path}; {_command(dataset, img_size, path.parent)}"
    facts = read_json(sidecar(path))
    if not facts:
        raise Refusal(
            f"{path} has no {sidecar(path).name} beside it, so it was not finished or not ours; {again}", DATA
        )
    for key, wanted in (("dataset", dataset), ("img_size", img_size)):
        if facts[key] != wanted:
            raise Refusal(f"{path} was written for {key} {facts[key]}, not {wanted}; {again}", DATA)
    fault = structure_fault(path)
    if not fault and path.stat().st_size != facts["size"]:
        fault = f"it has {path.stat().st_size} bytes instead of {facts['size']}"
    if not fault and (always_hash or facts["size"] <= ALWAYS_HASH_BYTES) and digest(path) != facts["sha256"]:
        fault = "its checksum is wrong"
    if fault:
        raise Refusal(f"{path} is damaged ({fault}); {again}", DATA)
    return facts


def structure_fault(path: Path) -> str | None:
    """What is wrong with the structure of a .beton of (image, label), in a few words; None if nothing is."""
    try:
        read_layout(path)
    except ValueError as error:
        return str(error)
    return None


def read_layout(path: Path) -> Layout:
    """Where the images of a .beton of (image, label) lie. Raises ValueError, in a few words, for a damaged file."""
    size = path.stat().st_size
    data = np.memmap(path, "u1", "r") if size else np.zeros(0, "u1")
    fields_end = _HEADER.itemsize + 2 * _FIELD.itemsize
    _require(size >= fields_end, "it is too short")
    header = data[: _HEADER.itemsize].view(_HEADER)[0]
    _require(header["version"] == 2 and header["num_fields"] == 2, "it is not a .beton of images and labels")
    types = list(data[_HEADER.itemsize : fields_end].view(_FIELD)["type_id"])
    _require(types == [2, 1], "its fields are not an image and a label")
    page, count, table_start = int(header["page_size"]), int(header["num_samples"]), int(header["table"])
    _require(page > 0 and not page & (page - 1), "its page size is wrong")
    data_start = fields_end + count * _SAMPLE.itemsize
    _require(data_start <= size, "it ends inside the list of samples")
    _require(data_start <= table_start <= size, "it was not written to the end")
    entries, rest = divmod(size - table_start, _TABLE.itemsize)
    _require(count > 0 and not rest and entries == count, "its allocation table is not whole")
    table = np.frombuffer(data[table_start:].tobytes(), _TABLE)
    samples = np.frombuffer(data[fields_end:data_start].tobytes(), _SAMPLE)
    images = samples["f0"]
    _require(np.isin(images["mode"], (JPG, RAW)).all(), "an image is neither raw pixels nor JPEG")
    _require((images["height"] > 0).all() and (images["width"] > 0).all(), "an image has no pixels")
    order = np.argsort(table["ptr"])
    place = np.searchsorted(table["ptr"], images["data_ptr"], sorter=order)
    _require((place < count).all(), "an image lies outside the file")
    entry = table[order[place]]
    _require((entry["ptr"] == images["data_ptr"]).all(), "an image is not in the allocation table")
    outside = (entry["ptr"] < data_start) | (entry["size"] > table_start) | (entry["ptr"] > table_start - entry["size"])
    _require(not outside.any(), "an image lies outside the file")
    raw_sizes = np.uint64(3) * images["height"].astype("u8") * images["width"].astype("u8")
    wrong = np.where(images["mode"] == RAW, entry["size"] != raw_sizes, entry["size"] < 4)
    _require(not wrong.any(), "an image has another size than its entry in the allocation table")
    numbers = (images["height"], images["width"], images["data_ptr"], entry["size"], samples["f1"])
    return Layout(images["mode"].copy(), *(values.astype(np.int64) for values in numbers))


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _require(holds: bool, fault: str) -> None:
    if not holds:
        raise ValueError(fault)


def _command(dataset: str, img_size: int, data_dir: Path) -> str:
    raw = "" if dataset == "digits" else " --raw-dir FOLDER"
    return f"python scripts/make_beton.py --dataset {dataset} --img-size {img_size} --data-dir {data_dir}{raw}"


def _missing(path: Path, dataset: str, img_size: int) -> Refusal:
    return Refusal(f"{path} is missing; write it: {_command(dataset, img_size, path.parent)}", DATA)
