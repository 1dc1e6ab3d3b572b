"""What a `.beton` holds, for a person to look at: counts, balance of the classes, and a sheet of pictures."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from engine.data import beton
from engine.data.sets import SPLITS, lookup
from engine.errors import DATA, Refusal
from engine.folder.files import replacing

COLUMNS, ROWS, LARGEST_TILE = 10, 100, 64
SHOWN_OTHERWISE = ("dataset", "split", "img_size", "sha256", "size", "classes", "raw")


def verify(path: Path) -> Iterator[str]:
    """Check a file from end to end and say, line by line, what is in it; the last line is the path of a PNG beside it.

    The PNG has a row of ten images for each class (of the first 100). Raises Refusal (DATA) for a damaged file.
    """
    if not path.exists():
        raise Refusal(f"{path}: no such file", DATA)
    facts = beton.read_facts(path)
    if not facts:
        raise Refusal(f"{path} has no {beton.sidecar(path).name} beside it; take it over with --adopt {path}", DATA)
    dataset, split, img_size = facts["dataset"], facts["split"], facts["img_size"]
    beton.check(path, dataset, img_size, always_hash=True)
    layout = beton.read_layout(path)
    kept = {key: value for key, value in facts.items() if key not in SHOWN_OTHERWISE}
    names = facts.get("classes") or range(facts["num_classes"])
    yield f"{path}: {dataset} {split}, {facts['size']:,} bytes, structure and checksum right"
    yield "  ".join(f"{key} {value}" for key, value in kept.items())
    count, entry = len(layout.labels), lookup(dataset)
    expected = (entry.train_size, entry.val_size)[SPLITS.index(split)] if entry else count
    yield f"{count:,} images" + ("" if count == expected else f", not the {expected:,} of the whole {dataset}")
    per_class = np.bincount(layout.labels, minlength=facts["num_classes"])
    empty = np.flatnonzero(per_class == 0)
    yield f"{len(per_class)} classes of {per_class.min():,} to {per_class.max():,} images" + (
        f"; {len(empty)} without any, the first is {names[empty[0]]}" if len(empty) else ""
    )
    if facts.get("classes"):
        yield f"in the order of their labels: {', '.join(names[:ROWS])}" + (" ..." if len(names) > ROWS else "")
    sides = np.concatenate([layout.heights, layout.widths])
    jpgs = (layout.modes == beton.JPG).mean()
    stored = f"{100 * jpgs:.1f} % JPEG, {layout.sizes.mean():,.0f} bytes per image"
    yield f"sides of {sides.min()} to {sides.max()} px, {stored}"
    yield str(_sheet(path, layout, min(len(per_class), ROWS), min(img_size, LARGEST_TILE)))


def _sheet(path: Path, layout: beton.Layout, rows: int, tile: int) -> Path:
    from PIL import Image

    data = np.memmap(path, "u1", "r")
    sheet = Image.new("RGB", (COLUMNS * (tile + 1), rows * (tile + 1)), (255, 255, 255))
    for label in range(rows):
        for column, index in enumerate(np.flatnonzero(layout.labels == label)[:COLUMNS]):
            try:
                image = Image.fromarray(np.ascontiguousarray(layout.pixels(data, index)))
            except ValueError as error:
                raise Refusal(f"{path} is damaged ({error})", DATA) from None
            image.thumbnail((tile, tile))
            sheet.paste(image, (column * (tile + 1), label * (tile + 1)))
    target = path.with_suffix(".png")
    with replacing(target) as file:
        sheet.save(file, "PNG")
    return target
