"""`.beton` files: where they are, whether they are whole, what is in them. Reading here does not import FFCV (3 s).

FFCV trusts its file: one byte short gives wrong pixels with exit code 0, and an unfinished file crashes the process.
So files are written under another name and renamed when complete (engine/data/write.py), a JSON beside each holds
checksum and settings, and `check` reads the structure before FFCV does.
"""

import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.data.sets import SPLITS, lookup
from engine.errors import DATA, Refusal
from engine.fields import sizes
from engine.fields.sizes import Size

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


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _size(value: Any) -> bool:
    try:
        return type(value) in (int, str) and sizes.plain(sizes.read(value)) == value
    except ValueError:
        return False


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _numbers(value: Any) -> bool:
    whole = isinstance(value, list) and len(value) == 3
    return whole and all(isinstance(each, int | float) and math.isfinite(each) for each in value)


def _names(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(map(_text, value)) and len({*value}) == len(value))


# What stands in the JSON beside a file: for each key whether a value fits, and in words what would.
FACTS = {
    "dataset": (_text, "a name"),
    "split": (lambda value: value in SPLITS, " or ".join(SPLITS)),
    "img_size": (_size, "a whole number above 0, or such as 32x64"),
    "write_mode": (_text, "a name"),
    "samples": (_whole, "a whole number above 0"),
    "num_classes": (_whole, "a whole number above 0"),
    "mean": (_numbers, "three numbers"),
    "std": (_numbers, "three numbers"),
    "size": (_whole, "a whole number above 0"),
    "sha256": (_text, "a checksum"),
    "classes": (_names, "a list of different names, or null where they are not known"),
    "raw": (lambda value: value is None or isinstance(value, dict), "an object, or null where there was no folder"),
    "subset": (lambda value: value is None or _whole(value), "a whole number above 0, or null"),
    "keep_aspect": (lambda value: isinstance(value, bool), "true or false"),
    "val_split": (lambda value: value is None or (isinstance(value, float) and 0 < value < 1), "a share, or null"),
}
# Older files lack them; foreign ones have no subset.
OPTIONAL = ("classes", "raw", "subset", "keep_aspect", "val_split")


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

    def is_all_of(self, size: Size) -> bool:
        """Whether every image has this size."""
        height, width = sizes.pair(size)
        return bool((self.heights == height).all() and (self.widths == width).all())

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


def path_of(dataset: str, split: str, img_size: Size, data_dir: Path) -> Path:
    """`cifar10_train_32.beton` under `data_dir`; of oblong images `..._32x64.beton`."""
    return data_dir / f"{dataset.replace('/', '-')}_{split}_{sizes.text(img_size)}.beton"


def sidecar(path: Path) -> Path:
    """The JSON beside a .beton."""
    return path.with_suffix(".json")


def stored_sizes(dataset: str, split: str, data_dir: Path) -> list[Size]:
    """The sizes in pixels that a split is stored at, ascending by area."""
    start = path_of(dataset, split, 1, Path()).stem[:-1]
    names = [path.stem.removeprefix(start) for path in data_dir.glob(f"{start}*.beton")]
    found = [sizes.read(name) for name in names if re.fullmatch(r"[1-9]\d*(x[1-9]\d*)?", name)]
    return sorted(found, key=lambda size: (math.prod(sizes.pair(size)), sizes.pair(size)))


def larger_sizes(dataset: str, splits: Sequence[str], img_size: Size, data_dir: Path) -> list[Size]:
    """The sizes that all of these splits are stored at and that can be shrunk to img_size, the smallest first."""
    found = [stored_sizes(dataset, split, data_dir) for split in splits]
    return [size for size in found[0] if all(size in other for other in found) and sizes.holds(size, img_size)]


def check(path: Path, dataset: str, img_size: Size, *, always_hash: bool = False) -> dict[str, Any]:
    """The facts of a .beton, from the JSON beside it, after the file was found whole and written for these settings.

    Raises Refusal (DATA) with the command that writes the file anew. Costs milliseconds, plus the checksum of files up
    to `ALWAYS_HASH_BYTES`, or of any if `always_hash`.
    """
    if not path.exists():
        raise missing(path, dataset, path.stem.split("_")[-2], img_size)
    again = f"write it again: rm {path}; {_command(dataset, img_size, path.parent)}"
    facts = read_facts(path)
    if not facts:
        raise Refusal(
            f"{path} has no {sidecar(path).name} beside it, so it was not finished or not ours; {again}", DATA
        )
    for key, wanted in (("dataset", dataset), ("img_size", sizes.plain(img_size))):
        if facts[key] != wanted:
            raise Refusal(f"{path} was written for {key} {facts[key]}, not {wanted}; {again}", DATA)
    fault = _fault(path, facts)
    if not fault and path.stat().st_size != facts["size"]:
        fault = f"it has {path.stat().st_size} bytes instead of {facts['size']}"
    if not fault and path.name != path_of(dataset, facts["split"], img_size, path.parent).name:
        fault = f"it holds the images of {facts['split']}"
    if not fault and (always_hash or facts["size"] <= ALWAYS_HASH_BYTES) and digest(path) != facts["sha256"]:
        fault = "its checksum is wrong"
    if fault:
        raise Refusal(f"{path} is damaged ({fault}); {again}", DATA)
    return facts


def read_facts(path: Path) -> dict[str, Any]:
    """What the JSON beside a .beton says; {} where there is none.

    Raises Refusal (DATA) for one that lacks a key, as those of other versions do, or holds another type of value.
    """
    side = sidecar(path)
    try:
        facts = json.loads(side.read_bytes())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise Refusal(f"cannot read {side}: {error.strerror}", DATA) from None
    except ValueError:
        facts = None
    if fault := _facts_fault(facts):
        name, split, img_size = path.stem.rsplit("_", 2)
        dataset = name.replace("imagefolder-", "imagefolder/", 1)
        again = f"{_command(dataset, img_size, path.parent)} --split {split}"
        raise Refusal(f"{side}: {fault}; write both files again: rm {path} {side}; {again}", DATA)
    return facts


def _facts_fault(facts: Any) -> str | None:
    if not isinstance(facts, dict):
        return "it is no JSON object"
    for key, (fits, kind) in FACTS.items():
        if key not in facts and key not in OPTIONAL:
            return f"'{key}' is missing"
        if key in facts and not fits(facts[key]):
            return f"'{key}' is {json.dumps(facts[key])[:40]} and not {kind}"
    classes = facts.get("classes")
    if classes is not None and len(classes) != facts["num_classes"]:
        return f"'classes' names {len(classes)} of {facts['num_classes']} classes"
    return None


def require_same_classes(train: Path, val: Path) -> None:
    """Raise Refusal (DATA) where label i of one file is another class than label i of the other, or may be.

    Files that were taken over have no names; there the number of classes is all that can be compared. Nor have older
    files; they are accepted for the data sets of the table, whose classes are always the same.
    """
    facts, other = read_facts(train), read_facts(val)
    again = _command(facts["dataset"], facts["img_size"], val.parent)
    named = [said.keys() & {"classes", "adopted"} for said in (facts, other)]
    if not all(named) and lookup(facts["dataset"]) is None:
        old = [str(path) for path, known in zip((train, val), named, strict=True) if not known]
        raise Refusal(
            f"{sidecar(Path(old[0]))} does not name its classes, as older ones do not, so that labels of train and val "
            f"may mean different ones; write it again: rm {' '.join(old)}; {again}",
            DATA,
        )
    names, others = facts.get("classes"), other.get("classes")
    if names is None or others is None:
        if other["num_classes"] > facts["num_classes"]:
            raise Refusal(
                f"{val} has {other['num_classes']} classes and {train} {facts['num_classes']}; take over two files of "
                "one data set",
                DATA,
            )
    elif names != others:
        i = next((i for i, pair in enumerate(zip(names, others, strict=False)) if pair[0] != pair[1]), None)
        differ = (
            f"{len(others)} classes, not {len(names)}" if i is None else f"class {i} '{others[i]}', not '{names[i]}'"
        )
        raise Refusal(f"{val} has {differ} as {train.name}; write it again: rm {val}; {again}", DATA)


def missing(path: Path, dataset: str, split: str, img_size: Size) -> Refusal:
    """The refusal of a missing file; it names the larger sizes that are there, of which a run may take one instead."""
    there = [sizes.text(size) for size in larger_sizes(dataset, (split,), img_size, path.parent)]
    other = f"there it is of {' and '.join(there)} pixels: take it by --stored-size {there[0]}, or " if there else ""
    return Refusal(f"{path} is missing; {other}write it: {_command(dataset, img_size, path.parent)}", DATA)


def _fault(path: Path, facts: dict[str, Any]) -> str | None:
    """What is wrong with the structure of a .beton, or contradicts its JSON."""
    try:
        layout = read_layout(path)
    except ValueError as error:
        return str(error)
    if len(layout.labels) != facts["samples"]:
        return f"it has {len(layout.labels)} images, and its JSON says {facts['samples']}"
    if layout.labels.min() < 0 or layout.labels.max() >= facts["num_classes"]:
        return f"its labels are {layout.labels.min()} to {layout.labels.max()}, of {facts['num_classes']} classes"
    return None


def structure_fault(path: Path) -> str | None:
    """What is wrong with the structure of a .beton of (image, label), in a few words; None if nothing is."""
    try:
        read_layout(path)
    except ValueError as error:
        return str(error)
    return None


def read_labels(path: Path) -> np.ndarray:
    """The labels of a .beton, (N,) int64, without a look at its images. Raises ValueError as `read_layout`."""
    return _lists(path)[0]["f1"].astype(np.int64)


def _lists(path: Path) -> tuple[np.ndarray, np.ndarray, int, int]:
    """The list of samples and the allocation table, and where the images begin and end."""
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
    return samples, table, data_start, table_start


def read_layout(path: Path) -> Layout:
    """Where the images of a .beton of (image, label) lie. Raises ValueError, in a few words, for a damaged file."""
    samples, table, data_start, table_start = _lists(path)
    images, count = samples["f0"], len(samples)
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


def _command(dataset: str, img_size: Size | str, data_dir: Path) -> str:
    raw = "" if dataset == "digits" else " --raw-dir FOLDER"
    size = sizes.text(img_size)
    return f"python scripts/make_beton.py --dataset {dataset} --img-size {size} --data-dir {data_dir}{raw}"
