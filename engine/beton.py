"""`.beton` files: written so that a half-written one never has the final name, checked before FFCV opens one.

FFCV trusts its file: one byte short gives wrong pixels with exit code 0, an unfinished file crashes the process, and
its writer waits for ever when a worker dies. So files are written in this process under another name and renamed
when complete; a JSON beside each holds checksum and settings; and `check` reads the structure before FFCV does.
"""

import collections
import fcntl
import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from engine.datasets import SPLITS, Samples, lookup, read_raw
from engine.errors import DATA, OUTPUT, Refusal
from engine.store import read_json, write_json

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
_RAW = 1


def path_of(dataset: str, split: str, img_size: int, data_dir: Path) -> Path:
    """`cifar10_train_32.beton` under `data_dir`."""
    return data_dir / f"{dataset.replace('/', '-')}_{split}_{img_size}.beton"


def ensure(dataset: str, img_size: int, data_dir: Path, say: Callable[[str], None] = print) -> None:
    """Write both splits of a data set that needs no download; for others, refuse where they are missing."""
    for split in SPLITS:
        path = path_of(dataset, split, img_size, data_dir)
        if path.exists() and _sidecar(path).exists():
            continue
        entry = lookup(dataset)
        if entry is None or not entry.source.startswith("sklearn"):
            raise _missing(path, dataset, img_size)
        write(dataset, split, img_size, data_dir, data_dir, say=say)


def write(
    dataset: str,
    split: str,
    img_size: int,
    raw_dir: Path,
    data_dir: Path,
    *,
    workers: int = 2,
    say: Callable[[str], None] = print,
) -> Path:
    """Convert one split to `data_dir`, centre-cropped and resized (INTER_AREA) to img_size squares of raw pixels.

    Two processes that write the same file wait for each other; the second finds it done. Raises Refusal: the raw files
    cannot be had or read (DATA), the folder cannot be written or the disk is full (OUTPUT).
    """
    path = path_of(dataset, split, img_size, data_dir)
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        guard = (data_dir / f".{path.name}.lock").open("w")
    except OSError as error:
        raise Refusal(f"cannot write in {data_dir}: {error.strerror}; choose another --data-dir", OUTPUT) from None
    with guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        if path.exists() and _sidecar(path).exists():
            return path
        try:
            samples = read_raw(dataset, split, raw_dir)
        except ValueError as error:
            raise Refusal(str(error), DATA) from None
        from engine.mended_ffcv import Writer  # not at the top: checking a file must not cost FFCV's import

        say(f"writing {path}: {len(samples):,} images of {img_size} px")
        partial = path.with_name(f".{path.name}.partial")
        try:
            with ThreadPoolExecutor(workers) as pool:
                squares = _Squares(samples, img_size, pool)
                Writer(partial).write(squares)
            size, digest = partial.stat().st_size, _digest(partial)
            facts = {
                "dataset": dataset,
                "split": split,
                "img_size": img_size,
                "write_mode": "raw",
                "samples": len(samples),
                "num_classes": _num_classes(dataset, samples),
                **squares.statistics(),
                "size": size,
                "sha256": digest,
            }
            descriptor = os.open(partial, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
            # A file without its JSON is not accepted, so a crash between these two lines costs only a repeat.
            partial.replace(path)
            write_json(_sidecar(path), facts)
        except OSError as error:
            raise Refusal(f"cannot write {path}: {error.strerror or error}; free space and repeat", OUTPUT) from None
        finally:
            partial.unlink(missing_ok=True)
        return path


def check(path: Path, dataset: str, img_size: int) -> dict[str, Any]:
    """The facts of a .beton, from the JSON beside it, after the file was found whole and written for these settings.

    Raises Refusal (DATA) with the command that writes the file anew. Costs milliseconds, plus the checksum of files up
    to `ALWAYS_HASH_BYTES`.
    """
    if not path.exists():
        raise _missing(path, dataset, img_size)
    again = f"write it again: rm {path}; {_command(dataset, img_size, path.parent)}"
    facts = read_json(_sidecar(path))
    if not facts:
        raise Refusal(
            f"{path} has no {_sidecar(path).name} beside it, so it was not finished or not ours; {again}", DATA
        )
    for key, wanted in (("dataset", dataset), ("img_size", img_size)):
        if facts[key] != wanted:
            raise Refusal(f"{path} was written for {key} {facts[key]}, not {wanted}; {again}", DATA)
    fault = structure_fault(path)
    if not fault and path.stat().st_size != facts["size"]:
        fault = f"it has {path.stat().st_size} bytes instead of {facts['size']}"
    if not fault and facts["size"] <= ALWAYS_HASH_BYTES and _digest(path) != facts["sha256"]:
        fault = "its checksum is wrong"
    if fault:
        raise Refusal(f"{path} is damaged ({fault}); {again}", DATA)
    return facts


def structure_fault(path: Path) -> str | None:
    """What is wrong with the structure of a .beton of (image, label), in a few words; None if nothing is."""
    size = path.stat().st_size
    data = np.memmap(path, "u1", "r") if size else np.zeros(0, "u1")
    fields_end = _HEADER.itemsize + 2 * _FIELD.itemsize
    if size < fields_end:
        return "it is too short"
    header = data[: _HEADER.itemsize].view(_HEADER)[0]
    if header["version"] != 2 or header["num_fields"] != 2:
        return "it is not a .beton of images and labels"
    if list(data[_HEADER.itemsize : fields_end].view(_FIELD)["type_id"]) != [2, 1]:
        return "its fields are not an image and a label"
    page, count, table_start = int(header["page_size"]), int(header["num_samples"]), int(header["table"])
    if page == 0 or page & (page - 1):
        return "its page size is wrong"
    data_start = fields_end + count * _SAMPLE.itemsize
    if data_start > size:
        return "it ends inside the list of samples"
    if table_start < data_start or table_start > size:
        return "it was not written to the end"
    if (size - table_start) % _TABLE.itemsize or (size - table_start) // _TABLE.itemsize != count:
        return "its allocation table is not whole"
    table = np.frombuffer(data[table_start:].tobytes(), _TABLE)
    samples = np.frombuffer(data[fields_end:data_start].tobytes(), _SAMPLE)["f0"]
    sizes = np.uint64(3) * samples["height"].astype("u8") * samples["width"].astype("u8")
    if (samples["mode"] != _RAW).any() or len(set(zip(samples["height"], samples["width"], strict=True))) != 1:
        return "its images are not raw pixels of one size"
    if (samples["data_ptr"] < data_start).any() or (samples["data_ptr"] + sizes > table_start).any():
        return "an image lies outside the file"
    order = np.argsort(table["ptr"])
    place = np.searchsorted(table["ptr"], samples["data_ptr"], sorter=order)
    if (place >= count).any() or (table["ptr"][order[place]] != samples["data_ptr"]).any():
        return "an image is not in the allocation table"
    if (table["size"][order[place]] != sizes).any():
        return "an image has another size than its entry in the allocation table"
    return None


class _Squares:
    """The samples as img_size squares, decoded by threads a little ahead; counts the sums for the statistics."""

    def __init__(self, samples: Samples, img_size: int, pool: ThreadPoolExecutor) -> None:
        self.samples, self.img_size, self.pool = samples, img_size, pool
        self.next, self.waiting = 0, collections.deque()
        self.pixels, self.sums, self.squares = 0, np.zeros(3), np.zeros(3)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        while self.next < len(self.samples) and len(self.waiting) < 256:
            self.waiting.append(self.pool.submit(self._square, self.next))
            self.next += 1
        try:
            image, label = self.waiting.popleft().result()
        except Exception as error:
            name = self.samples.samples[index][0] if hasattr(self.samples, "samples") else f"image {index}"
            raise Refusal(f"cannot read {name} ({error}); remove or replace it and repeat", DATA) from None
        values = image.reshape(-1, 3).astype(np.float64)
        self.pixels += len(values)
        self.sums += values.sum(0)
        self.squares += (values**2).sum(0)
        return image, label

    def statistics(self) -> dict[str, list[float]]:
        mean = self.sums / self.pixels
        std = np.sqrt(self.squares / self.pixels - mean**2)
        return {"mean": [round(float(v), 3) for v in mean], "std": [round(float(v), 3) for v in std]}

    def _square(self, index: int) -> tuple[np.ndarray, int]:
        import cv2

        image, label = self.samples[index]
        image = np.asarray(image.convert("RGB") if hasattr(image, "convert") else image, dtype=np.uint8)
        side = min(image.shape[:2])
        top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
        image = image[top : top + side, left : left + side]
        if side != self.img_size:
            image = cv2.resize(image, (self.img_size, self.img_size), interpolation=cv2.INTER_AREA)
        return np.ascontiguousarray(image), label


def _num_classes(dataset: str, samples: Samples) -> int:
    entry = lookup(dataset)
    return entry.num_classes if entry else len(samples.classes)


def _sidecar(path: Path) -> Path:
    return path.with_suffix(".json")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _command(dataset: str, img_size: int, data_dir: Path) -> str:
    raw = "" if dataset == "digits" else " --raw-dir FOLDER"
    return f"python scripts/make_beton.py --dataset {dataset} --img-size {img_size} --data-dir {data_dir}{raw}"


def _missing(path: Path, dataset: str, img_size: int) -> Refusal:
    return Refusal(f"{path} is missing; write it: {_command(dataset, img_size, path.parent)}", DATA)
