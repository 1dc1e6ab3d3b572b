"""The files that a run needs: written where that takes no download, or missed before anything else is done."""

from collections.abc import Callable, Sequence
from pathlib import Path

from engine.data import beton
from engine.data.sets import SPLITS, lookup


def ensure(
    dataset: str,
    size: int,
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
