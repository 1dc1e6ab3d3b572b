"""Image folders, CLASS/*.png: which folders are classes, which files are images, and what is there at all.

Classes are numbered in the order of their names by code point, whatever the locale; images come in the order of
torchvision's ImageFolder. Hidden entries, and what systems leave behind, are neither. Links are followed, to images
and to folders; one that leads back to where it stands, or to a folder of the same class again, is left out.
"""

import difflib
import hashlib
import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
LEFT_BEHIND = ("__MACOSX", "Thumbs.db", "desktop.ini", "@eaDir", "$RECYCLE.BIN", "lost+found")
Place = tuple[int, int]  # device and inode: where a path leads in the end


@dataclass(frozen=True, kw_only=True)
class ImageFiles:
    """Image files, their labels and the names of these, indexed as torchvision's ImageFolder is."""

    samples: list[tuple[str, int]]
    classes: list[str]
    raw: dict[str, Any]
    """What was there: number of files, bytes, and a hash of names, sizes and times."""
    words: tuple[str, ...] = ()
    """What a user may not expect, a line each."""

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """(H, W, 3) uint8 and the label. Raises OSError or ValueError for what is no image that can be RGB."""
        from engine.data.rgb import read_rgb8  # not at the top: listing folders needs neither Pillow nor NumPy

        path, label = self.samples[index]
        return read_rgb8(path), label


def class_names(folder: Path) -> list[str]:
    """The names of the class folders, sorted. Raises ValueError where there are none, or the folder cannot be read."""
    return [name for name, _ in _class_folders(folder, Counter(), _above(folder))]


def require_known(folder: Path, own: Sequence[str], classes: Sequence[str]) -> None:
    """Raise ValueError for class folders of `folder` that are not among `classes`, those of train."""
    if unknown := sorted(set(own) - set(classes)):
        by_case = {name.casefold(): name for name in classes}
        close = difflib.get_close_matches(unknown[0].casefold(), by_case, n=1, cutoff=0.8)
        hint = f", which has '{by_case[close[0]]}'" if close else ""
        more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
        raise ValueError(
            f"{folder} has the class '{unknown[0]}'{more} that train has not{hint}; name both alike, or remove it"
        )


def read(folder: Path, classes: Sequence[str] | None = None, *, complete: bool = False) -> ImageFiles:
    """The images of an image folder.

    Args:
        classes: the classes of train, by which labels are numbered; None: the folder's own.
        complete: every class needs an image.

    Raises ValueError, in one line: no image, a class without one if `complete`, a class that is not among `classes`,
    one folder under two classes, a link that leads nowhere, a folder that cannot be read.
    """
    scan, above = _Scan(folder), _above(folder)
    folders = _class_folders(folder, scan.left_out, above)
    own = [name for name, _ in folders]
    classes = own if classes is None else classes
    require_known(folder, own, classes)
    label_of = {name: label for label, name in enumerate(classes)}
    samples, rows = [], []
    for name, place in folders:
        found = sorted(scan.images(name, name, folder / name, place, above))
        samples += [(f"{root}/{file}", label_of[name]) for root, file, *_ in found]
        rows += [(f"{root}/{file}", size, time) for root, file, size, time in found]
    if not samples:
        raise ValueError(f"{folder} is no image folder, CLASS/*.png: there is no image in its class folders")
    full = {label for _, label in samples}
    if empty := [name for name, label in label_of.items() if label not in full]:
        listed = ", ".join(empty[:5]) + (" ..." if len(empty) > 5 else "")
        if complete:
            raise ValueError(f"{folder} has no image of {listed}; put some there or remove the folder")
        scan.words.append(f"{folder} has no image of {len(empty)} of the {len(classes)} classes: {listed}")
    raw = _summary(folder, rows)
    return ImageFiles(samples=samples, classes=list(classes), raw=raw, words=tuple(scan.said()))


def fingerprint(folder: Path, files: Sequence[str]) -> dict[str, Any]:
    """Number, bytes, and a hash of names, sizes and times of files in a folder. Raises ValueError for a missing one."""
    try:
        found = [(file, Path(file).stat()) for file in files]
    except OSError as error:
        raise ValueError(f"cannot read {error.filename}: {error.strerror}") from None
    return _summary(folder, [(name, info.st_size, int(info.st_mtime)) for name, info in found])


def _summary(folder: Path, files: Sequence[tuple[str, int, int]]) -> dict[str, Any]:
    whole = hashlib.sha256()
    for path, size, time in files:  # whole seconds, as copies over a network keep no more
        whole.update(os.fsencode(path[len(str(folder)) :]) + f"\0{size}\0{time}\n".encode())
    return {"files": len(files), "bytes": sum(size for _, size, _ in files), "sha256": whole.hexdigest()}


@dataclass
class _Scan:
    """One walk over an image folder."""

    folder: Path
    left_out: Counter = field(default_factory=Counter)
    words: list[str] = field(default_factory=list)
    class_of: dict[Place, str] = field(default_factory=dict)
    """Folders that were read."""
    linked: set[Place] = field(default_factory=set)

    def images(
        self, label: str, name: str, folder: Path, place: Place, above: set[Place]
    ) -> Iterator[tuple[str, str, int, int]]:
        """(folder, file name, bytes, time) of the images in a folder of a class and in those below it."""
        if place in self.class_of:
            if self.class_of[place] != label:
                raise ValueError(
                    f"{folder} leads to a folder of the class '{self.class_of[place]}' again; remove that link"
                )
            self.left_out["link to a folder that is read already", name] += 1
            return
        self.class_of[place] = label
        for entry, info in _entries(folder, self.left_out):
            below = f"{name}/{entry.name}"
            if stat.S_ISDIR(info.st_mode):
                if _key(info) in above | {place}:
                    self.left_out["link to a folder above it", below] += 1
                else:
                    yield from self.images(label, below, folder / entry.name, _key(info), above | {place})
            elif stat.S_ISREG(info.st_mode) and entry.name.lower().endswith(SUFFIXES):
                if info.st_nlink > 1 or entry.is_symlink():
                    if _key(info) in self.linked:
                        self.left_out["", below] += 1
                    self.linked.add(_key(info))
                yield str(folder), entry.name, info.st_size, int(info.st_mtime)
            else:
                self.left_out["file that is no image by its suffix", below] += 1

    def said(self) -> Iterator[str]:
        """What was left out, a line for each reason, with the first of its kind."""
        first, count = {}, Counter()
        for (why, name), times in self.left_out.items():
            first.setdefault(why, name)
            count[why] += times
        for why, name in first.items():
            if why:
                yield f"{self.folder}: left out {count[why]:,} x {why}, such as {name}"
            else:
                yield f"{self.folder}: {count[why]:,} x another link to an image that counts already, such as {name}"
        yield from self.words


def _class_folders(folder: Path, left_out: Counter, above: set[Place]) -> list[tuple[str, Place]]:
    found = []
    for entry, info in _entries(folder, left_out):
        if not stat.S_ISDIR(info.st_mode):
            left_out["file outside the class folders", entry.name] += 1
        elif _key(info) in above:
            left_out["link to a folder above it", entry.name] += 1
        else:
            found.append((entry.name, _key(info)))
    if not found:
        raise ValueError(f"{folder} is no image folder, CLASS/*.png: it holds no class folder")
    return found


def _above(folder: Path) -> set[Place]:
    """The folder itself and those that it lies in."""
    return {_key(path.stat()) for path in (folder.resolve(), *folder.resolve().parents)}


def _entries(folder: Path, left_out: Counter) -> Iterator[tuple[os.DirEntry, os.stat_result]]:
    """What is in a folder, by name, links followed, without what is hidden. Raises ValueError in one line."""
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise ValueError(f"cannot read {folder}: {error.strerror}") from None
    for entry in found:
        if entry.name.startswith(".") or entry.name in LEFT_BEHIND:
            left_out["hidden or system entry", entry.name] += 1
            continue
        try:
            yield entry, entry.stat()
        except OSError as error:
            leads = "is a link that leads nowhere" if entry.is_symlink() else "cannot be read"
            raise ValueError(f"{entry.path} {leads} ({error.strerror}); remove or mend it") from None


def _key(info: os.stat_result) -> Place:
    return info.st_dev, info.st_ino
