"""Which folder of an image folder holds which split; where none holds the validation images, a split by a hash.

Splits are found by their usual names, whatever the case of the letters, the first of NAMES that is there. A folder
with neither is itself the one of training images, CLASS/*.png. An image belongs to the validation images if the hash
of CLASS/NAME is below the share: so it stays on its side whatever other images come or go, and a larger share takes
the same images and more.
"""

import hashlib
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

from engine.data.folders import ImageFiles

NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation", "dev", "test", "testing")}
SHARE = 0.1


def folder_of(raw_dir: Path, split: str) -> Path:
    """Where the images of a split are; a folder that is not there where none is found.

    Without one for validation images that is the folder of the training images, which are to be split.
    """
    found = _named(raw_dir)
    if split in found:
        return found[split]
    if split == "val" and "train" in found:
        return found["train"]
    return raw_dir / split if found or not _has_folders(raw_dir) else raw_dir


def share_of(raw_dir: Path, asked: float | None) -> float | None:
    """The share of the training images that becomes the validation images; None where these have a folder.

    Raises ValueError where they have one and a share is asked for.
    """
    found = _named(raw_dir)
    if "val" not in found:
        return asked or SHARE
    if asked is not None:
        raise ValueError(f"{found['val']} holds the validation images; leave out --val-split {asked:g}, or that folder")
    return None


def part(files: ImageFiles, folder: Path, split: str, share: float) -> ImageFiles:
    """The images of one split of a folder of both. A class of which none would be left to train on keeps all."""
    chosen = [_uniform(path[len(str(folder)) + 1 :]) < share for path, _ in files.samples]
    left = Counter(label for (_, label), held in zip(files.samples, chosen, strict=True) if not held)
    chosen = [held and label in left for (_, label), held in zip(files.samples, chosen, strict=True)]
    if not any(chosen):
        raise ValueError(f"--val-split {share:g} of the {len(files)} images of {folder} is none; raise it")
    words = (*files.words, f"{folder}: {sum(chosen):,} of {len(files):,} images validate, by a hash of their names "
             f"(--val-split {share:g})")  # fmt: skip
    samples = [each for each, held in zip(files.samples, chosen, strict=True) if held == (split == "val")]
    return replace(files, samples=samples, words=words)


def left_alone(raw_dir: Path) -> list[str]:
    """Folders that could hold a split and are not read, because another has the better name for it."""
    found = {path.name for path in _named(raw_dir).values()}
    return [name for name in _folders(raw_dir) if name.casefold() in sum(NAMES.values(), ()) and name not in found]


def _named(raw_dir: Path) -> dict[str, Path]:
    there = {name.casefold(): raw_dir / name for name in reversed(_folders(raw_dir))}
    first = {split: next((there[name] for name in names if name in there), None) for split, names in NAMES.items()}
    return {split: path for split, path in first.items() if path}


def _folders(raw_dir: Path) -> list[str]:
    try:
        return sorted(path.name for path in raw_dir.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:  # not there, or not to be read: whoever reads it says so
        return []


def _has_folders(raw_dir: Path) -> bool:
    return bool(_folders(raw_dir))


def _uniform(name: str) -> float:
    """A number from 0 to below 1 that depends on a name alone."""
    return int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:8], "big") / 2**64
