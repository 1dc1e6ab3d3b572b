"""Predictions of record: the class that a run's last evaluation gave every validation image.

A run's `predictions.npz` holds `prediction` and `label`, (N,) both, in the order of the validation set, as the smallest
unsigned integers that hold the classes (uint8 up to 256). They are of the very pass that gave the accuracy of record.
What `scripts/validate.py RUN --predictions` writes holds the same arrays among others, and reads alike.

A study's `predictions.npz` holds them for many runs: `CHECKSUM/label` once for each set of labels, and beside it
`CHECKSUM/SIGNATURE` per run; CHECKSUM begins the SHA-256 of the labels. Neither torch nor a data set is needed.
"""

import hashlib
import io
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine import distributed
from engine.errors import DATA, Refusal
from engine.folder.files import write_bytes

FILE = "predictions.npz"
EXACT = 6e-5  # points: an accuracy of record has four digits after the point
DAMAGE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class Predictions:
    """Of one run: predicted classes and labels, (N,) both, in the order of the validation set."""

    prediction: np.ndarray
    label: np.ndarray

    @property
    def right(self) -> np.ndarray:
        """(N,) bool."""
        return self.prediction == self.label

    @property
    def acc1(self) -> float:
        """In percent."""
        return 100.0 * float(self.right.mean())

    @property
    def checksum(self) -> str:
        """Of the labels, 16 hex digits; runs that have it in common were judged by the same images in one order."""
        return hashlib.sha256(self.label.astype("<i8").tobytes()).hexdigest()[:16]

    def are_of(self, acc1: float) -> bool:
        """Whether they are those of a run with this accuracy of record."""
        return abs(self.acc1 - acc1) <= EXACT


class Seen:
    """Collects what a pass over the validation images predicts; each process has its stretch of them."""

    def __init__(self) -> None:
        self._parts: list[tuple[Any, Any]] = []

    def __call__(self, guess_B: Any, label_B: Any) -> None:
        """Take note of a batch: tensors, copied where they are."""
        self._parts.append((guess_B.clone(), label_B.clone()))

    def all(self) -> Predictions:
        """Those of all processes, in the order of the images; every process calls it."""
        mine = [np.concatenate([part[side].cpu().numpy() for part in self._parts] or [[]]) for side in (0, 1)]
        parts = distributed.gathered(mine)
        return Predictions(*(np.concatenate([part[side] for part in parts]).astype(np.int64) for side in (0, 1)))


def write(folder: Path, seen: Predictions, num_classes: int) -> None:
    """The file of a run, replaced at once."""
    kind = np.min_scalar_type(num_classes - 1)
    arrays = {"prediction": seen.prediction.astype(kind), "label": seen.label.astype(kind)}
    write_bytes(folder / FILE, _npz(arrays), named=False)


def read(folder: Path) -> Predictions | None:
    """Those of a run; None where it has none. Raises Refusal (DATA) for a damaged file."""
    path = folder / FILE
    if not path.exists():
        return None
    arrays = _arrays(path)
    if missing := {"prediction", "label"} - arrays.keys():
        raise Refusal(f"{path} holds no {missing.pop()}; remove it", DATA)
    found = Predictions(arrays["prediction"], arrays["label"])
    if found.prediction.shape != found.label.shape or found.label.ndim != 1 or not len(found.label):
        raise Refusal(f"{path} is damaged (not one prediction per label); remove it", DATA)
    return found


def read_table(path: Path) -> dict[str, Predictions]:
    """Those of a study by signature; {} where there is no such file. Raises Refusal (DATA) for a damaged one."""
    if not path.exists():
        return {}
    arrays, found = _arrays(path), {}
    for key, prediction in arrays.items():
        checksum, _, signature = key.partition("/")
        if signature == "label":
            continue
        label = arrays.get(f"{checksum}/label")
        if label is None or label.shape != prediction.shape or signature in found:
            raise Refusal(f"{path} is damaged ({key} has no labels of its own); restore it or move it away", DATA)
        found[signature] = Predictions(prediction, label)
    for one in {id(each.label): each for each in found.values()}.values():
        if f"{one.checksum}/label" not in arrays or arrays[f"{one.checksum}/label"] is not one.label:
            raise Refusal(f"{path} is damaged (labels of another checksum); restore it or move it away", DATA)
    return found


def write_table(path: Path, found: Mapping[str, Predictions]) -> None:
    """The file of a study, replaced at once; equal predictions give equal bytes."""
    arrays: dict[str, np.ndarray] = {}
    for signature, one in found.items():
        checksum = one.checksum
        arrays.setdefault(f"{checksum}/label", one.label)
        arrays[f"{checksum}/{signature}"] = one.prediction
    write_bytes(path, _npz(arrays))


def _npz(arrays: Mapping[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except DAMAGE:
        raise Refusal(f"{path} cannot be read as a whole .npz file; restore it or move it away", DATA) from None
