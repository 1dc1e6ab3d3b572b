"""What a `.beton` holds, for a person to look at: counts, balance of the classes, and a sheet of pictures.

Neither torch nor FFCV is imported here.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from engine.data import beton
from engine.data.sets import SPLITS, lookup
from engine.errors import DATA, Refusal
from engine.fields import sizes
from engine.folder.files import replacing
from engine.run import unknown

COLUMNS, ROWS, LARGEST_TILE = 10, 100, 64
LETTERS, LONGEST_NAME = 11, 24  # pixels, characters
SHOWN_OTHERWISE = ("dataset", "split", "img_size", "sha256", "size", "classes", "raw")


def verify(path: Path) -> Iterator[str]:
    """Check a file from end to end and say, line by line, what is in it; the last line is the path of a PNG beside it.

    The PNG has a row for each class (of the first 100), its name and ten images. Raises Refusal (DATA) for a damaged
    file.
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
    names = facts.get("classes") or [str(label) for label in range(facts["num_classes"])]
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
    yield str(_sheet(path, layout, names[:ROWS], min(max(sizes.pair(img_size)), LARGEST_TILE)))


def about(what: str, data_dir: Path) -> Iterator[str]:
    """What the file `what`, or every file of the data set of this name, holds, line by line, by its JSON and labels.

    Raises Refusal: there is no such file, or none of such a data set (DATA), naming what there is.
    """
    path = Path(what)
    if path.suffix == ".beton":
        found = [path]
        if not path.is_file():
            raise Refusal(f"{path}: no such file", DATA)
    else:
        there = {sided: beton.read_facts(sided) for sided in sorted(data_dir.glob("*.beton"))}
        found = [path for path, facts in there.items() if facts.get("dataset") == what]
        if not found:
            names = sorted({facts["dataset"] for facts in there.values() if facts})
            word = unknown("data set", what, names) if names else f"no .beton of {what}"
            raise Refusal(f"{word} in {data_dir}; python scripts/make_beton.py --dataset NAME writes one", DATA)
    for path in found:
        yield from _about(path)


def _about(path: Path) -> Iterator[str]:
    facts = beton.read_facts(path)
    if not facts:
        raise Refusal(f"{path} has no {beton.sidecar(path).name} beside it; take it over with --adopt {path}", DATA)
    try:
        per_class = np.bincount(beton.read_labels(path), minlength=facts["num_classes"])
    except ValueError as fault:
        raise Refusal(f"{path} is damaged ({fault}); --verify {path} says more", DATA) from None
    names = facts.get("classes") or [str(label) for label in range(facts["num_classes"])]
    size = sizes.text(facts["img_size"])
    form = f"{facts['write_mode']}{', longer side at most' if facts.get('keep_aspect') else ', of'} {size} px"
    yield f"{path}: {facts['dataset']} {facts['split']}, {facts['samples']:,} images, {form}, {facts['size']:,} bytes"
    for key, words in (("val_split", "validation images chosen by a hash, a share of"), ("subset", "a subset of")):
        if facts.get(key):
            yield f"  {words} {facts[key]:g}"
    yield f"  mean {facts['mean']}  std {facts['std']}"
    counts = [f"{name} {count:,}" for name, count in zip(names[:ROWS], per_class, strict=False)]
    yield f"  {len(names)} classes: {', '.join(counts)}" + (" ..." if len(names) > ROWS else "")


def _sheet(path: Path, layout: beton.Layout, names: Sequence[str], tile: int) -> Path:
    """A row for each class: its label, which any font has the digits of, its name and its first images."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    letters = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"  # Pillow's own has no ä
    data, font = np.memmap(path, "u1", "r"), ImageFont.truetype(str(letters), LETTERS)
    short = [name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…" for name in names]
    shown = [f"{label} {name}" for label, name in enumerate(short)]
    margin, step = int(max(font.getlength(name) for name in shown)) + 6, max(tile + 1, LETTERS + 2)
    sheet = Image.new("RGB", (margin + COLUMNS * (tile + 1), len(names) * step), (255, 255, 255))
    pen = ImageDraw.Draw(sheet)
    for label, name in enumerate(shown):
        pen.text((2, label * step + step // 2), name, (0, 0, 0), font, anchor="lm")
        for column, index in enumerate(np.flatnonzero(layout.labels == label)[:COLUMNS]):
            try:
                image = Image.fromarray(np.ascontiguousarray(layout.pixels(data, index)))
            except ValueError as error:
                raise Refusal(f"{path} is damaged ({error})", DATA) from None
            image.thumbnail((tile, tile))
            sheet.paste(image, (margin + column * (tile + 1), label * step))
    target = path.with_suffix(".png")
    with replacing(target) as file:
        sheet.save(file, "PNG")
    return target
