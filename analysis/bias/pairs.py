"""Two runs against each other, block by block: CKA and shared neighbours on the same test images.

The null is what two seeds of one rung have: name those runs, too.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from analysis.bias import probe_runs
from analysis.bias.probe import Estimate, Subject, over_images
from analysis.compare import frames
from analysis.measures import depth
from analysis.measures.alike import NEIGHBOURS, products, shared_neighbours
from analysis.probes.cka import batches_of, over_batches
from engine.errors import USAGE, Refusal
from engine.folder import store
from engine.run import How

COLUMNS = ["folder", "rung", "seed", "key", "value", "low", "high", "null"]
SEEN = ("dataset", "img_size")  # what the images follow from


def against(folders: Sequence[Path], other: Path, how: How) -> pd.DataFrame:
    """One row per run and key of `compare`; the run itself is left out. Raises Refusal for runs of other images."""
    reference, own = probe_runs.open_run(other, how), store.read_run(other)
    rows = []
    for run in frames.load(list(folders)).itertuples():
        if run.folder.resolve() == other.resolve():
            continue
        theirs = store.read_run(run.folder)
        if unlike := [field for field in SEEN if getattr(own, field) != getattr(theirs, field)]:
            words = f"{unlike[0]} is {getattr(theirs, unlike[0])}, of {other.name} {getattr(own, unlike[0])}"
            raise Refusal(f"{run.folder.name}: {words}; compare runs that see the same images", USAGE)
        for key, estimate in compare(probe_runs.open_run(run.folder, how), reference).items():
            rows.append({"folder": run.folder, "rung": run.rung, "seed": run.seed, "key": key, **estimate._asdict()})
    return pd.DataFrame(rows, columns=COLUMNS)


def compare(first: Subject, second: Subject) -> dict[str, Estimate]:
    """How alike two models are on the images of the first: cka_last of their last blocks, cka_depth the mean over
    the depths of the blocks there, neighbours of the last blocks in percent. {} if one does not show its blocks.
    """
    lengths = depth.count(first), depth.count(second)
    if not min(lengths):
        return {}
    images, size = batches_of(first)
    both = zip(depth.batches(first, images, size), depth.batches(second, images, size), strict=True)
    hsic_UFF, last = [], []
    for ours, theirs in both:
        hsic_UFF.append(products([*ours, *theirs]))
        last.append((ours[-1].mean((2, 3)), theirs[-1].mean((2, 3))))
    # Every block of the longer model, and that of the other at the same share of its depth.
    rows, columns = (np.linspace(0, length - 1, max(lengths)).round().astype(int) for length in lengths)
    columns += lengths[0]
    near = shared_neighbours(*(torch.cat(side) for side in zip(*last, strict=True)))
    by_chance = 100 * NEIGHBOURS / (len(images) - 1)
    return {
        "cka_last": over_batches(np.stack(hsic_UFF), lambda each: each[..., lengths[0] - 1, -1]),
        "cka_depth": over_batches(np.stack(hsic_UFF), lambda each: each[..., rows, columns].mean(-1)),
        "neighbours": over_images(near[:, None], lambda means: means[..., 0], by_chance),
    }
