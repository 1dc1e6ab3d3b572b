"""Resolution transfer: what a model that was trained at one size of image is worth at others, as it is.

    acc(r, r') = accuracy on the test images at r' of weights trained at r

Only a model without weights for places of the grid (`BIAS.grid_bound` False) can be asked without a change of its
weights; what is left of its accuracy shows how far what it learned is bound to the size of things. Size decides what
is seen, too: images at r' are those stored at r', else larger stored ones shrunk as they are read.

Source: Touvron et al., arXiv 1906.06423 (the accuracy of convolution networks at other test sizes). Cost: one pass over
the test images for each size.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

import archs
from analysis import stats
from analysis.bias.probe_runs import weights_of
from analysis.typeset import Sheet, accuracy
from archs.parts.family import read
from engine.cli.validate import predict
from engine.data.ensure import ensure, settled
from engine.errors import USAGE, Refusal
from engine.fields import sizes
from engine.fields.sizes import Size
from engine.folder import store
from engine.run import How, Run


def check(run: Run) -> None:
    """Raise Refusal for a run whose weights have places, or whose images had theirs shuffled."""
    if run.permute != "none":
        raise Refusal(f"{run.name} was trained on permuted {run.permute}: they have no other size")
    if run.model.startswith("timm/"):  # which of them have places is known to nobody but the model, when it is built
        return
    family, _, variant = run.model.partition("_")
    if read(family).bias(variant).grid_bound:
        free = [name for name in archs.families() if not read(name).bias("").grid_bound]
        raise Refusal(f"{run.rung}: its weights belong to the grid of {run.pixels} px; without one: {', '.join(free)}")


def sized(run: Run, wanted: Sequence[Size], how: How, say: Callable[[str], None]) -> list[Run]:
    """The run as it is judged at each size. Raises Refusal (DATA) where one is not stored, nor any larger one."""
    run, found = run.but(holdout=0.0).ended, []
    for size in wanted:
        judged = run if size == run.img_size else settled(run.but(img_size=size, stored_size=None), how.data_dir, say)
        ensure(run.dataset, judged.stored, how.data_dir, say, run.splits)
        found.append(judged)
    return found


def measure(folder: Path, wanted: Sequence[Size], how: How, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """A row per size: signature, rung, family, seed, `trained_px`, `img_size`, `side` (root of the area), `acc1`.

    Raises Refusal as `check`; a run without weights, a size at which a model cannot be built, or that is not stored.
    """
    run = store.read_run(folder).but(holdout=0.0).ended
    check(run)
    path = weights_of(folder)
    head = {
        "signature": store.read_run(folder).signature,
        "rung": run.rung,
        "family": "timm" if run.model.startswith("timm/") else run.model.partition("_")[0],
        "seed": run.seed,
        "trained_px": run.pixels,
    }
    rows = []
    for size, judged in zip(wanted, sized(run, wanted, how, say), strict=True):
        logp, labels = predict(path, judged, how)
        height, width = sizes.pair(size)
        right = 100 * float((logp.argmax(1) == labels).mean())
        rows.append({**head, "img_size": sizes.text(size), "side": (height * width) ** 0.5, "acc1": right})
    return rows


def summary(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Mean over seeds by rung, training size and size, with half of its 95 % interval and the number of seeds."""
    found = []
    keys = ["rung", "family", "trained_px", "img_size", "side"]
    for key, group in pd.DataFrame(list(rows)).groupby(keys, sort=False):
        mean = stats.interval(group["acc1"])
        found.append({**dict(zip(keys, key, strict=True)), "n": mean.n, "acc1": mean.mean, "acc1_half": mean.half})
    return pd.DataFrame(found)


def sheet(table: pd.DataFrame) -> Sheet:
    """The curve as a table: a row per rung and training size, a column per size."""
    wanted = table.sort_values("side")["img_size"].drop_duplicates().tolist()
    rows = []
    for (rung, trained), group in table.groupby(["rung", "trained_px"], sort=False):
        by_size = {row.img_size: accuracy(row.acc1, row.acc1_half, row.n) for row in group.itertuples()}
        rows.append([rung, trained, str(group["n"].max()), *(by_size.get(size, "") for size in wanted)])
    header = ("rung", "trained at, px", "n", *(f"at {size}" for size in wanted))
    note = "accuracy, %, ± 95 % interval over seeds, of two seeds both in brackets; weights as trained"
    if not rows:
        raise Refusal("no run could be judged at another size", USAGE)
    return Sheet("Accuracy at other sizes of image", header, rows, table, note)
