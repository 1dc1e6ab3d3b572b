"""What probes measured, as tables; read from RUN/probes/NAME.json without torch."""

import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from analysis import probes, stats
from analysis.compare import frames
from analysis.probes import permutation_gap
from engine.folder import published, store

COLUMNS = ["folder", "rung", "seed", "probe", "key", "value", "low", "high", "null"]
SUMMARY = ["rung", "probe", "key", "n", "value", "low", "high", "null"]


def path_of(folder: Path, name: str) -> Path:
    """Where a run keeps what a probe measured."""
    return folder / "probes" / f"{name}.json"


def is_lacking(folder: Path, wanted: Sequence[str]) -> bool:
    """Whether a finished run has not been probed since it ended; a look at the files' times, without torch.

    `probe_runs.probe` looks at weights and code themselves.
    """
    if not store.is_done(folder):
        return False
    ended = (folder / "status.json").stat().st_mtime
    return any(not (path := path_of(folder, name)).exists() or path.stat().st_mtime < ended for name in wanted)


def load(folders: Sequence[Path]) -> pd.DataFrame:
    """What is known of these runs, one row per run, probe and key; see `of`."""
    return of(frames.load(folders))


def of(frame: pd.DataFrame) -> pd.DataFrame:
    """What is known of the runs of a frame of `frames.load`, one row per run, probe and key; NaN for undefined.
    Of a run from a published table what is in the probes.csv beside it.

    `low` and `high` are the 95 % interval over test images. Probe `permutation_gap` is computed here from the runs'
    accuracies; its rows belong to the run on whole images, its keys say which shuffle, and it has an interval over
    seeds only (`summary`).
    """
    rows, known = [], probes.names()
    tables = {table: published.probes(Path(table)) for table in frame["table"].unique() if table}
    for run in frame.itertuples():
        for estimate in tables[run.table].get(run.signature, ()) if run.table else ():
            if estimate["probe"] in known:
                rows.append({"folder": run.folder, "rung": run.rung, "seed": run.seed, **estimate})
        for name in known if (run.folder / "probes").is_dir() else ():
            for key, estimate in store.read_or_warn(path_of(run.folder, name)).get("values", {}).items():
                numbers = {field: math.nan if number is None else number for field, number in estimate.items()}
                rows.append(
                    {"folder": run.folder, "rung": run.rung, "seed": run.seed, "probe": name, "key": key, **numbers}
                )
    for pair in permutation_gap.pairs(frame).dropna(subset="gap").itertuples():
        own = {"folder": pair.folder, "rung": pair.rung, "seed": pair.seed, "probe": "permutation_gap"}
        for key, value in ((pair.permute, pair.gap), (f"{pair.permute}_relative", pair.relative)):
            rows.append({**own, "key": key, "value": value, "low": math.nan, "high": math.nan, "null": 0.0})
    return pd.DataFrame(rows, columns=COLUMNS)


def with_kept(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of `of`, with a key `kept_d` for each `acc_d` of a probe that has such a unit.

    That is the percentage of the accuracy above chance that is left. It has no interval over images.
    """
    acc = rows[rows["key"] == "acc"].set_index(["folder", "probe"])["value"]
    named = {name for name in probes.names() if "kept_#" in probes.read(name)["UNITS"]}
    own = rows[rows["probe"].isin(named) & rows["key"].str.fullmatch(r"acc_\d+")]
    whole = [acc.get((row.folder, row.probe), math.nan) for row in own.itertuples()]
    above = pd.Series(whole, own.index, dtype=float) - own["null"]
    kept = 100 * (own["value"] - own["null"]) / above.where(above > 0)
    more = own.assign(key=own["key"].str.replace("acc", "kept"), value=kept, low=math.nan, high=math.nan, null=0.0)
    return pd.concat([rows, more], ignore_index=True)


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per rung, probe and key of `load`: mean over n seeds, and its 95 % interval.

    That is Student's over seeds, and ends where the scale of a percentage does; of a single seed it is the one over
    test images. Of two seeds `low` and `high` are these themselves: their interval would be 13 times as wide as they
    are apart, and a spread shared between rungs would be that of none of them.
    """
    rows = []
    for (rung, name, key), group in frame.groupby(["rung", "probe", "key"], sort=False):
        known = group.dropna(subset="value")
        mean, half, n, _ = stats.interval(known["value"])
        low, high = mean - half, mean + half
        if n == 1:
            low, high = known[["low", "high"]].iloc[0]
        elif n == 2:
            low, high = known["value"].min(), known["value"].max()
        elif probes.unit(name, key) == "%":
            low, high = stats.within(mean, half)
        rows.append(dict(zip(SUMMARY, (rung, name, key, n, mean, low, high, group["null"].mean()), strict=True)))
    return pd.DataFrame(rows, columns=SUMMARY)
