"""When does structure emerge, and does it tell who will miss the layout of the image?

Probes with OVER_TRAINING are measured at every epoch whose weights a run kept. The onset of a number is the epoch, by
interpolation, at which what it has above its null is first half of what it has at the end. Over runs, numbers are
compared with the permutation gap (analysis/probes/permutation_gap.py) by Spearman's rank correlation; as runs of one
rung are alike, its interval is over rungs: each is drawn with all its runs.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from scipy.stats import rankdata

from analysis import probes, stats
from analysis.bias import probe_table
from analysis.figures import draw
from analysis.figures.looks import Look, looks
from engine.folder import published, store
from engine.rng import derive

COLUMNS = ["folder", "rung", "seed", "probe", "key", "epoch", "value", "low", "high", "null"]
ONSETS = ["rung", "probe", "key", "n", "first", "last", "null", "onset"]
RANKED = ["gap", "probe", "key", "rho", "low", "high", "runs", "rungs"]
RESAMPLES = 2000
LEAST = 4  # rungs (or runs of the only one) below which a rank correlation says nothing


def over_training(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per run, probe, key and epoch, the end of the run with it; only of runs that kept weights.

    Args:
        frame: of `frames.load`; of a run from a published table what is in the emergence.csv beside it.
    """
    rows = []
    tables = {table: published.emergence(Path(table)) for table in frame["table"].unique() if table}
    ends = {table: published.probes(Path(table)) for table in tables}
    for run in frame.itertuples():
        if run.table:
            kept = tables[run.table].get(run.signature, [])
            over = {each["probe"] for each in kept}
            last = [each for each in ends[run.table].get(run.signature, ()) if each["probe"] in over]
            found = [*kept, *({**each, "epoch": run.epochs} for each in last)]
        else:
            found = _of_folder(run.folder, run.epochs)
        own = {"folder": run.folder, "rung": run.rung, "seed": run.seed}
        rows += [{**own, **each, "epoch": int(each["epoch"])} for each in found]
    return pd.DataFrame(rows, columns=COLUMNS)


def _of_folder(folder: Path, end: float) -> list[dict[str, Any]]:
    """The same of the files of one run."""
    rows = []
    for name in probes.names() if (folder / "probes").is_dir() else ():
        found = store.read_or_warn(probe_table.path_of(folder, name))
        if found.get("epochs"):
            for epoch, values in (found["epochs"] | {str(int(end)): found["values"]}).items():
                for key, each in values.items():
                    numbers = {field: math.nan if number is None else number for field, number in each.items()}
                    rows.append({"probe": name, "key": key, "epoch": epoch, **numbers})
    return rows


def onsets(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per rung, probe and key of `over_training`: means over n runs at the first and the last epoch, and the
    onset over those runs whose interval at the end excludes the null; NaN where there is none."""
    rows = []
    for (rung, name, key), group in frame.groupby(["rung", "probe", "key"], sort=False):
        runs = [one.sort_values("epoch") for _, one in group.groupby("folder", sort=False)]
        found = [
            onset(one["epoch"].to_numpy(), (one["value"] - one["null"]).to_numpy()) for one in runs if _is_clear(one)
        ]
        first, last = (np.mean([one["value"].iloc[i] for one in runs]) for i in (0, -1))
        null, known = np.mean([one["null"].iloc[-1] for one in runs]), [each for each in found if not math.isnan(each)]
        mean = float(np.mean(known)) if known else math.nan
        rows.append(dict(zip(ONSETS, (rung, name, key, len(runs), first, last, null, mean), strict=True)))
    return pd.DataFrame(rows, columns=ONSETS)


def onset(epochs: np.ndarray, above: np.ndarray) -> float:
    """Where `above`, at the epochs in ascending order, first reaches half of its last value; NaN if it starts there.

    It is 0 at epoch 0 if that was not measured: there is no change yet.
    """
    if epochs[0] > 0:
        epochs, above = np.append(0, epochs), np.append(0.0, above)
    signed = above * np.sign(above[-1])
    half = signed[-1] / 2
    if not half > 0 or signed[0] >= half:
        return math.nan
    i = int((signed >= half).argmax())
    return float(epochs[i - 1] + (half - signed[i - 1]) / (signed[i] - signed[i - 1]) * (epochs[i] - epochs[i - 1]))


def against_gap(frame: pd.DataFrame, wanted: Callable[[str, str], bool] = lambda name, key: True) -> pd.DataFrame:
    """Rank correlation of each number with the permutation gap, over runs on whole images with a shuffled partner.

    Args:
        frame: of `frames.load`.
        wanted: of probe and key, whether the number is looked at.
    """
    found = probe_table.of(frame)
    gaps = found[found["probe"] == "permutation_gap"]
    rows = []
    for gap, pairs in gaps[~gaps["key"].str.endswith("_relative")].groupby("key"):
        of_folder = pairs.set_index("folder")["value"]
        others = found[(found["probe"] != "permutation_gap") & found["folder"].isin(of_folder.index)]
        for (name, key), group in others.dropna(subset="value").groupby(["probe", "key"], sort=False):
            if not wanted(name, key):
                continue
            parts = [
                np.stack([one["value"], of_folder[one["folder"]]], 1) for _, one in group.groupby("rung", sort=False)
            ]
            bounds = correlation(parts)
            if bounds is not None:
                numbers = (gap, name, key, *bounds, sum(map(len, parts)), len(parts))
                rows.append(dict(zip(RANKED, numbers, strict=True)))
    return pd.DataFrame(rows, columns=RANKED)


def correlation(parts: list[np.ndarray]) -> stats.Bounds | None:
    """Spearman's, of pairs (n, 2) by rung, with the percentile interval over rungs, over runs where there is one rung.

    None for too few of them, or where one side is the same throughout.
    """
    units = parts if len(parts) > 1 else [pair[None] for pair in parts[0]]
    whole = np.concatenate(units)
    if len(units) < LEAST or (np.ptp(whole, 0) == 0).any():
        return None
    rng = np.random.Generator(np.random.Philox(derive(0, "emergence")))
    chosen = rng.integers(0, len(units), (RESAMPLES, len(units)))
    if len({len(unit) for unit in units}) == 1:  # as many runs of each: all at once
        drawn = _spearman(np.stack(units)[chosen].reshape(RESAMPLES, -1, 2))
    else:
        drawn = [_spearman(np.concatenate([units[i] for i in row])) for row in chosen]
    return stats.Bounds(float(_spearman(whole)), *map(float, np.nanquantile(drawn, [0.025, 0.975])))


def figure(
    frame: pd.DataFrame,
    keys: Sequence[str],
    look_of: Callable[[str], Look] | None = None,
    label: Callable[[str], str] = str,
) -> str:
    """A small panel per key of `over_training`, as inline SVG: a line per run, its null dotted.

    Args:
        look_of, label: how a rung is drawn and called, where a page has looks and labels of its own.
    """
    shown = [key for key in keys if key in set(frame["key"])]
    rungs = list(dict.fromkeys(frame["rung"]))
    own, told = looks(rungs), set()
    look = {rung: look_of(rung) if look_of else own[rung] for rung in rungs}
    with matplotlib.rc_context(draw.STYLE):
        sheet = matplotlib.figure.Figure(figsize=(7.2, 2.1 * math.ceil(len(shown) / 2) + 0.5), layout="constrained")
        for i, key in enumerate(shown, 1):
            axes = sheet.add_subplot(math.ceil(len(shown) / 2), 2, i)
            for (_, rung), one in frame[frame["key"] == key].groupby(["folder", "rung"], sort=False):
                colour, marker = draw.hue(look[rung]), draw.marker(look[rung])
                one = one.sort_values("epoch")
                called = label(rung) if i == 1 and rung not in told else None
                told.add(rung)
                style = {"color": colour, "marker": marker, "markersize": 4, "linewidth": 1}
                axes.plot(one["epoch"], one["value"], label=called, **style)
                axes.plot(one["epoch"], one["null"], color=colour, linewidth=0.8, linestyle=":")
            axes.set_title(key, loc="left", fontsize=10)
            axes.set_xlabel("epoch")
        sheet.legend(loc="outside lower center", ncols=2)
        return draw.inline(sheet, "emergence", "Probes over training; dotted: the null", {})


def _is_clear(one: pd.DataFrame) -> bool:
    last = one.iloc[-1]
    return bool(last["low"] > last["null"] or last["high"] < last["null"])


def _spearman(pairs: np.ndarray) -> np.ndarray:
    """Of pairs (..., N, 2); NaN where one side is the same throughout."""
    ranks = rankdata(pairs, axis=-2) - (pairs.shape[-2] + 1) / 2
    both, own = ranks.prod(-1).sum(-1), (ranks**2).sum(-2).prod(-1)
    return np.where(own > 0, both / np.sqrt(np.where(own > 0, own, 1)), np.nan)
