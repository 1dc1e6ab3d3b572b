"""The files that a run needs: chosen among the stored sizes, written where that takes no download, or missed before
anything else is done."""

from collections.abc import Callable, Sequence
from pathlib import Path

from engine.data import beton
from engine.data.sets import SPLITS, lookup
from engine.fields import sizes
from engine.fields.sizes import Size
from engine.run import Run


def settled(run: Run, data_dir: Path, say: Callable[[str], None]) -> Run:
    """The run as it can be trained with the files that are there, where it does not say at which size they are stored.

    The one rule: images of `img_size` where they are; else the smallest stored size that holds it in both directions.
    That is another run, with `stored_size` in its signature, because pixels that are shrunk while they are read differ
    from those that were shrunk before they were stored; `say` is told.
    """
    entry = lookup(run.dataset)
    if run.stored_size is not None or (entry is not None and entry.source.startswith("sklearn")):
        return run
    there = beton.larger_sizes(run.dataset, run.splits, run.img_size, data_dir)
    if not there or there[0] == run.img_size:
        return run
    size = sizes.text(there[0])
    say(f"{run.dataset} is not stored at {run.pixels} px in {data_dir}: its {size} px are shrunk, --stored-size {size}")
    return run.but(stored_size=there[0])


def ensure(
    dataset: str,
    size: Size,
    data_dir: Path,
    say: Callable[[str], None] = print,
    splits: Sequence[str] = SPLITS,
) -> None:
    """Write the splits of a data set that needs no download at this stored size; for others, refuse a missing one."""
    for split in splits:
        path = beton.path_of(dataset, split, size, data_dir)
        if path.exists() and beton.sidecar(path).exists():
            continue
        entry = lookup(dataset)
        if entry is None or not entry.source.startswith("sklearn"):
            raise beton.missing(path, dataset, split, size)
        from engine.data.write import write

        write(dataset, split, size, data_dir, data_dir, say=say)
