"""Writing `.beton` files, so that a half-written one never has the final name, and taking over foreign ones.

FFCV's writer waits for ever when a worker dies and leaves a half file under the final name. Here images are decoded,
cropped and encoded by threads, written by this process under another name, checked, and renamed; the JSON with
settings and checksum comes last. A file without its JSON is not accepted, so a crash in between costs only a repeat.
"""

import collections
import contextlib
import fcntl
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from engine.data import beton
from engine.data.augment import resample
from engine.data.beton import JPG, RAW
from engine.data.rgb import to_rgb8
from engine.data.sets import SPLITS, Samples, check_folders, lookup, names_of_classes, raw_folder, read_raw
from engine.errors import DATA, OUTPUT, USAGE, Refusal
from engine.fields import sizes
from engine.fields.sizes import Size
from engine.folder.store import write_json
from engine.rng import derive, permutation

WRITE_MODES = ("raw", "jpg", "smart", "proportion")
SAY_SECONDS = 5.0
# Of an adopted file, which nobody has read from end to end, at most so many images are measured.
MEASURED_IMAGES = 5000


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How images are stored, in FFCV's words. Raises ValueError for what makes no sense."""

    write_mode: str = "raw"
    """smart: JPEG where the pixels take more than smart_threshold bytes; proportion: a random share as JPEG."""
    quality: int = 90
    smart_threshold: int | None = None
    compress_probability: float = 0.5
    keep_aspect: bool = False
    """Shrink the longer side to img_size (FFCV's max_resolution) instead of cutting to that size."""
    subset: int | None = None
    """Only so many images, a fixed random choice."""
    val_split: float | None = None
    """Of an image folder of one split: the share that validates (engine/data/splits.py)."""

    def __post_init__(self) -> None:
        if self.write_mode not in WRITE_MODES:
            raise ValueError(f"unknown write mode '{self.write_mode}'; known: {', '.join(WRITE_MODES)}")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality {self.quality} is not from 1 to 100")
        if (self.write_mode == "smart") != (self.smart_threshold is not None):
            raise ValueError(
                "write mode smart, and no other, needs a smart-threshold in bytes (FFCV: without one, raw)"
            )
        if not 0 <= self.compress_probability <= 1:
            raise ValueError(f"compress-probability {self.compress_probability} is not from 0 to 1")
        if self.val_split is not None and not 0 < self.val_split < 1:
            raise ValueError(f"val-split {self.val_split:g} is not above 0 and below 1")
        if self.subset is not None and self.subset < 1:
            raise ValueError(f"a subset of {self.subset} images is none")

    def record(self) -> dict[str, Any]:
        """Those settings that have a meaning for this write mode, with values other than the default."""
        wanted = {"keep_aspect", "subset", "val_split"} | {
            "raw": set(),
            "jpg": {"quality"},
            "smart": {"quality", "smart_threshold"},
            "proportion": {"quality", "compress_probability"},
        }[self.write_mode]
        return {"write_mode": self.write_mode, **{key: getattr(self, key) for key in sorted(wanted)}}


class Encoded(NamedTuple):
    """An image as it is stored."""

    mode: int
    height: int
    width: int
    data: np.ndarray


def write(
    dataset: str,
    split: str,
    img_size: Size,
    raw_dir: Path,
    data_dir: Path,
    settings: Settings | None = None,
    *,
    workers: int = 2,
    say: Callable[[str], None] = print,
) -> Path:
    """Convert one split to `data_dir`; by default raw pixels, cut to the shape of img_size and resized (resample.py).

    Two processes that write the same file wait for each other; the second finds it done. Raises Refusal: the raw files
    cannot be had or read (DATA), the folder cannot be written or the disk is full (OUTPUT), the file is there with
    other settings, or from other raw files (USAGE).
    """
    settings = settings or Settings()
    path = beton.path_of(dataset, split, img_size, data_dir)
    train = beton.path_of(dataset, SPLITS[0], img_size, data_dir)
    with _writing(path):
        facts = beton.read_facts(path) if path.exists() else {}
        folder = raw_folder(dataset, split, raw_dir)
        if facts and not (folder and folder.is_dir()):
            _same_settings(path, facts, replace(settings, val_split=settings.val_split or facts.get("val_split")))
            say(f"{path} is there already" + (f"; there is no {folder} to compare it with" if facts.get("raw") else ""))
            return path
        try:
            known = beton.read_facts(train).get("classes") if split != SPLITS[0] and train.exists() else None
            check_folders(dataset, (split,), raw_dir)
            samples = read_raw(dataset, split, raw_dir, known, settings.val_split)
        except ValueError as error:
            raise Refusal(str(error), DATA) from None
        classes = names_of_classes(dataset, samples)
        if facts:
            _same_settings(path, facts, settings)
            _same_raw(path, facts, folder, samples, classes)
            say(f"{path} is there already, of these raw files")
            return path
        for line in getattr(samples, "words", ()):
            say(line)
        from engine.data.ffcv.writer import Writer  # not at the top: FFCV and numba take a second

        partial = _partial(path)
        with ThreadPoolExecutor(workers) as pool:
            ahead = max(2 * workers, min(256, (1 << 26) // _bytes(img_size)))  # within 64 MB
            images = _Images(samples, img_size, settings, pool, ahead, len(classes), say)
            say(f"writing {path}: {len(images):,} images of {sizes.text(img_size)} px, {settings.write_mode}")
            try:
                Writer(partial, page_size=_page_size(_bytes(img_size))).write(images)
            finally:
                pool.shutdown(cancel_futures=True)
        facts = {
            "dataset": dataset,
            "split": split,
            "img_size": sizes.plain(img_size),
            **settings.record(),
            "samples": len(images),
            "num_classes": len(classes),
            "classes": classes,
            "raw": getattr(samples, "raw", None),
            **images.statistics(),
        }
        _publish(path, facts)
    return path


def adopt(file: Path, dataset: str, split: str, img_size: Size, data_dir: Path) -> Path:
    """Take over a foreign .beton of (image, label), such as Scaling MLPs' own: a hard link, else a copy, and a JSON.

    Raises Refusal: the file is damaged or does not fit the data set (DATA), `data_dir` cannot be written (OUTPUT).
    """
    path = beton.path_of(dataset, split, img_size, data_dir)
    if not file.exists():
        raise Refusal(f"{file}: no such file", DATA)
    try:
        layout = beton.read_layout(file)
    except ValueError as fault:
        raise Refusal(f"{file} is damaged or not a .beton of images and labels ({fault})", DATA) from None
    entry = lookup(dataset)
    num_classes = entry.num_classes if entry else int(layout.labels.max()) + 1
    if layout.labels.min() < 0 or layout.labels.max() >= num_classes:
        raise Refusal(
            f"{file} has labels {layout.labels.min()} to {layout.labels.max()}; {dataset} has {num_classes} classes",
            DATA,
        )
    largest = int(max(layout.heights.max(), layout.widths.max()))
    if largest != max(sizes.pair(img_size)):
        raise Refusal(
            f"the longest side in {file} is {largest}, not {sizes.text(img_size)}; give --img-size {largest}", DATA
        )
    modes = set(layout.modes.tolist())
    data = np.memmap(file, "u1", "r")
    sums = np.zeros((3, 3))
    for index in np.sort(permutation(len(layout.modes), 0, "measure")[:MEASURED_IMAGES]):
        try:
            sums += _sums(layout.pixels(data, index))
        except ValueError as error:
            raise Refusal(f"{file} is damaged ({error})", DATA) from None
    with _writing(path):
        if path.exists() and (beton.sidecar(path).exists() or not path.samefile(file)):
            raise Refusal(f"{path} exists; to adopt {file} in its place: rm {path}")
        partial = _partial(path)
        try:
            os.link(file, partial)
        except OSError:  # another file system, or one without hard links
            shutil.copyfile(file, partial)
        facts = {
            "dataset": dataset,
            "split": split,
            "img_size": sizes.plain(img_size),
            "write_mode": {(JPG,): "jpg", (RAW,): "raw"}.get(tuple(modes), "mixed"),
            "keep_aspect": not layout.is_all_of(img_size),
            "adopted": file.name,
            "samples": len(layout.modes),
            "num_classes": num_classes,
            "classes": None,
            "raw": None,
            **_statistics(sums),
        }
        _publish(path, facts)
    return path


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Own a .beton while it is written; whatever fails, nothing is left under its name, nor under the partial one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        guard = (path.parent / f".{path.name}.lock").open("w")
    except OSError as error:
        raise Refusal(f"cannot write in {path.parent}: {error.strerror}; choose another --data-dir", OUTPUT) from None
    with guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        try:
            yield
        except OSError as error:
            raise Refusal(f"cannot write {path}: {error.strerror or error}; free space and repeat", OUTPUT) from None
        finally:
            _partial(path).unlink(missing_ok=True)


def _publish(path: Path, facts: dict[str, Any]) -> None:
    """Give a partial file its name, and its JSON, once it is whole and on the disk."""
    partial = _partial(path)
    if fault := beton.structure_fault(partial):  # a full disk may cut a write short without an error
        raise Refusal(f"{path} could not be written whole ({fault}); free space and repeat", OUTPUT)
    facts |= {"size": partial.stat().st_size, "sha256": beton.digest(partial)}
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    partial.replace(path)
    write_json(beton.sidecar(path), facts)


def _same_settings(path: Path, facts: dict[str, Any], settings: Settings) -> None:
    before = {"keep_aspect": False, "subset": None, "val_split": None, **facts}
    for key, wanted in settings.record().items():
        if before.get(key) != wanted:
            raise Refusal(
                f"{path} is there with {key} {before.get(key)}, not {wanted}; to replace it: rm {path}", USAGE
            )


def _same_raw(path: Path, facts: dict[str, Any], folder: Path, samples: Any, classes: list[str]) -> None:
    """Refuse to pass a file off as the answer for raw files that it was not written from."""
    replace = f"to replace it: rm {path}; then repeat"
    if "classes" not in facts and lookup(facts["dataset"]) is None:
        raise Refusal(f"{path} was written before class names were kept; {replace}", USAGE)
    if facts.get("classes", classes) != classes:
        raise Refusal(f"{path} was written for other classes than {folder} has now; {replace}", USAGE)
    raw, now = facts.get("raw", samples.raw), samples.raw
    if raw != now:
        before = f"from {raw.get('files')} files of {raw.get('bytes')} bytes" if raw else "not from a folder"
        raise Refusal(
            f"{path} is not of what {folder} holds now, {now['files']} files of {now['bytes']} bytes: it was written "
            f"{before}, or before one of them changed; {replace}",
            USAGE,
        )
    if "raw" not in facts and not facts.get("subset") and facts["samples"] != len(samples):
        raise Refusal(
            f"{path} has {facts['samples']:,} images, and {folder} has {len(samples):,} now; {replace}", USAGE
        )


def _bytes(img_size: Size) -> int:
    """Of the pixels of an image."""
    return 3 * math.prod(sizes.pair(img_size))


def _page_size(image: int) -> int:
    """Bytes of FFCV's pages: an image lies on one, a small data set takes a whole one, so the smallest that does."""
    wanted = max(1 << 21, image, min(16 * image, 1 << 23))
    return 1 << (wanted - 1).bit_length()


class _Images:
    """The samples as they are stored, prepared by threads a little ahead, with statistics and reports of progress."""

    def __init__(
        self,
        samples: Samples,
        img_size: Size,
        settings: Settings,
        pool: ThreadPoolExecutor,
        ahead: int,
        num_classes: int,
        say: Callable[[str], None],
    ) -> None:
        self.samples, self.img_size, self.settings, self.pool = samples, img_size, settings, pool
        self.ahead, self.num_classes, self.say = ahead, num_classes, say
        self.order = np.arange(len(samples))
        if settings.subset is not None:
            if settings.subset > len(samples):
                raise Refusal(f"a subset of {settings.subset} is more than the {len(samples)} images", USAGE)
            self.order = np.sort(permutation(len(samples), 0, "subset")[: settings.subset])
        self.next, self.waiting = 0, collections.deque()
        self.sums = np.zeros((3, 3))
        self.began = self.said = time.monotonic()

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, place: int) -> tuple[Encoded, int]:
        while self.next < len(self.order) and len(self.waiting) < self.ahead:
            self.waiting.append(self.pool.submit(self._prepare, int(self.order[self.next])))
            self.next += 1
        try:
            image, label, sums = self.waiting.popleft().result()
        except Exception as error:
            index = int(self.order[place])
            name = self.samples.samples[index][0] if hasattr(self.samples, "samples") else f"image {index}"
            raise Refusal(f"cannot read {name} ({error}); remove or replace it and repeat", DATA) from None
        if not 0 <= label < self.num_classes:
            raise Refusal(f"image {place} has label {label}, but there are {self.num_classes} classes", DATA)
        self.sums += sums
        self._progress(place + 1)
        return image, label

    def statistics(self) -> dict[str, list[float]]:
        return _statistics(self.sums)

    def _prepare(self, index: int) -> tuple[Encoded, int, np.ndarray]:
        image, label = self.samples[index]
        image = to_rgb8(image)
        height, width = image.shape[:2]
        if self.settings.keep_aspect:
            share = min(1.0, max(sizes.pair(self.img_size)) / max(height, width))
            target = max(1, int(height * share)), max(1, int(width * share))
        else:
            target = sizes.pair(self.img_size)
            top, left, tall, wide = resample.centre_box(height, width, *target)
            image = image[top : top + tall, left : left + wide]
        image = np.ascontiguousarray(resample.resized(image, *target))
        mode, data = RAW, image.reshape(-1)
        if self._as_jpg(index, image.nbytes):
            import cv2

            done, jpg = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, self.settings.quality])
            assert done, "OpenCV could not encode an image"
            mode, data = JPG, jpg.reshape(-1)
        return Encoded(mode, *image.shape[:2], data), int(label), _sums(image)

    def _as_jpg(self, index: int, size: int) -> bool:
        if self.settings.write_mode == "smart":
            return size > self.settings.smart_threshold
        if self.settings.write_mode == "proportion":  # by a hash, where FFCV draws: the same file every time
            return derive(0, "jpg", index) < self.settings.compress_probability * 2**64
        return self.settings.write_mode == "jpg"

    def _progress(self, done: int) -> None:
        now = time.monotonic()
        if now - self.said >= SAY_SECONDS:
            rate = done / (now - self.began)
            left = (len(self) - done) / rate
            self.say(f"  {done:,} of {len(self):,} images, {rate:,.0f} images/s, {left:,.0f} s left")
            self.said = now


def _sums(image: np.ndarray) -> np.ndarray:
    """Number of pixels, sums and sums of squares per channel, (3, 3); whole numbers, so exact in any order."""
    flat = image.reshape(-1, 3)
    squares = np.square(flat, dtype=np.uint32).sum(0, dtype=np.uint64)
    return np.stack([np.full(3, len(flat)), flat.sum(0, dtype=np.uint64), squares]).astype(float)


def _statistics(sums: np.ndarray) -> dict[str, list[float]]:
    mean = sums[1] / sums[0]
    std = np.sqrt(np.maximum(sums[2] / sums[0] - mean**2, 0))
    return {"mean": [round(float(v), 3) for v in mean], "std": [round(float(v), 3) for v in std]}


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")
