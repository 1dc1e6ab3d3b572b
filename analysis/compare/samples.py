"""Sample efficiency: how many images a rung needs for an accuracy, and what one rung's bias is worth in images.

DE = n_A(tau) / n_B(tau): the baseline A needs DE times the images that B needs for accuracy tau; above 1 the bias of B
saves data, below it costs them. n(tau) comes from the mean accuracies over seeds, made monotone and interpolated in
log n, never beyond the sizes that were trained. An accuracy that is reached at the smallest size already needs 0 of
these data, one that is never reached infinitely many; so an interval ends at 0 or infinity where the data say no more.

A curve is one rung under one recipe: what differs between runs of one size and seed is another curve, which is called
by it. What differs between sizes only (epochs, so that all have as many updates; a learning rate tuned per size) is
one recipe, and should be so, or DE compares recipes.

The interval is BCa over the seeds that both rungs have at every size, drawn jointly.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis import stats
from analysis.typeset import MISSING, Sheet, number, quantity
from engine.data.sets import DATASETS
from engine.errors import Refusal
from engine.fields.rungs import RECIPE, text

RESAMPLES = 10_000
LEVELS = 3  # accuracies to compare at, where none are given
FIELDS = ("dataset", "holdout", "permute")  # what all runs of a curve share


def curves(frame: pd.DataFrame) -> pd.DataFrame:
    """Finished runs by number of training images: columns name, bare, condition, seed, samples, acc1, and `data`.

    `data` is what all share, `bare` the rung, `condition` what tells its curves apart ("" for only one), `name` both.
    """
    done = frame[frame["acc1"].notna()]
    data = done[list(FIELDS)].astype(str).agg(" ".join, axis=1)
    found = done[["seed", "acc1"]].assign(bare=done["name"], samples=images(done), data=data)
    fields = [field for field in RECIPE if field in done and field not in (*FIELDS, "train_samples")]
    told = done[fields].map(text)
    found["condition"] = ""
    for _, rows in found.groupby(["bare", "data"], sort=False):
        sizes = rows["samples"]
        varies = [field for field in fields if told.loc[rows.index, field].groupby(sizes).nunique().max() > 1]
        words = [" ".join(f"{field}={told.at[i, field]}" for field in varies) for i in rows.index]
        found.loc[rows.index, "condition"] = words
    found["name"] = (found["bare"] + " " + found["condition"]).str.strip()
    return found[["name", "bare", "condition", "seed", "samples", "acc1", "data"]].dropna()


def images(frame: pd.DataFrame) -> pd.Series:
    """Training images of each run; NaN for all of a data set whose size is not in the table."""
    full = frame["dataset"].map({name: entry.train_size for name, entry in DATASETS.items()})
    left = (full * (1 - frame["holdout"].astype(float))).round()
    return frame["train_samples"].astype(float).fillna(left)


def needed(samples: np.ndarray, acc1_RN: np.ndarray, level: float) -> np.ndarray:
    """Images needed for an accuracy, (R,), from curves over rising `samples` (N,); 0 and inf are beyond the sizes."""
    rising = np.maximum.accumulate(acc1_RN, axis=1)
    reached = rising >= level
    index = np.argmax(reached, axis=1)
    rows = np.arange(len(rising))
    before = np.maximum(index - 1, 0)
    low, high = rising[rows, before], rising[rows, index]
    log = np.log(samples)
    with np.errstate(invalid="ignore", divide="ignore"):  # where it is not inside, what comes out is not used
        inside = np.exp(log[before] + (level - low) / (high - low) * (log[index] - log[before]))
    below = np.where(high > level, 0.0, samples[0])
    return np.where(reached.any(axis=1), np.where(index == 0, below, inside), np.inf)


def equivalents(table: pd.DataFrame, name: str, over: str, level: float, seed: int = 0) -> dict[str, Any]:
    """Data-equivalents of `name` over the baseline `over` at an accuracy in percent, with a 95 % interval.

    Args:
        table: of `curves`, for one `data`; a seed has one run of each size.

    Returns:
        name, over, level, n (seeds), sizes, smallest and largest (of these sizes), needs and over_needs (images),
        equivalent, low, high, undefined (share of the resamples in which neither rung says anything).
    """
    cubes = [table[table["name"] == which].pivot_table(index="seed", columns="samples", values="acc1") for which in
             (name, over)]  # fmt: skip
    sizes = cubes[0].columns.intersection(cubes[1].columns)
    seeds = cubes[0][sizes].dropna().index.intersection(cubes[1][sizes].dropna().index)
    found = {"name": name, "over": over, "level": level, "n": len(seeds), "sizes": len(sizes)}
    found |= {"smallest": sizes.min(), "largest": sizes.max()}
    if len(sizes) < 2 or not len(seeds):
        nothing = ("needs", "over_needs", "equivalent", "low", "high", "undefined")
        return {**found, **dict.fromkeys(nothing, math.nan)}
    a_SN, b_SN = (cube.loc[seeds, sizes].to_numpy() for cube in cubes)
    axis = sizes.to_numpy(float)

    def ratio(draws_RS: np.ndarray) -> np.ndarray:
        own, other = (needed(axis, values[draws_RS].mean(1), level) for values in (a_SN, b_SN))
        with np.errstate(invalid="ignore", divide="ignore"):
            return other / own

    everyone = np.arange(len(seeds))
    whole = everyone[None]
    needs, over_needs = (float(needed(axis, values[whole].mean(1), level)[0]) for values in (a_SN, b_SN))
    value, low, high, undefined = float(ratio(whole)[0]), math.nan, math.nan, math.nan
    if len(seeds) > 1:
        resampled = ratio(stats.resample_seeds(len(seeds), RESAMPLES, seed))
        undefined = float(np.isnan(resampled).mean())
        without = np.array([np.delete(everyone, i) for i in everyone])
        with np.errstate(divide="ignore", invalid="ignore"):
            influence = stats.jackknife(np.log(ratio(without)))
        low, high = stats.bca(value, resampled, [influence])[1:]
    return {**found, "needs": needs, "over_needs": over_needs, "equivalent": value, "low": low, "high": high,
            "undefined": undefined}  # fmt: skip


def levels(table: pd.DataFrame, count: int = LEVELS) -> list[float]:
    """Accuracies spread evenly inside the range that most rungs reach and few start above, rounded to half points."""
    means = table.groupby(["name", "samples"])["acc1"].mean().groupby("name").agg(["min", "max"])
    low, high = means["min"].median(), means["max"].median()
    return list(dict.fromkeys(round(2 * value) / 2 for value in np.linspace(low, high, count + 2)[1:-1]))


def sheets(frame: pd.DataFrame, baseline: str | None, asked: Sequence[float] = ()) -> list[Sheet]:
    """A table of data-equivalents per set of data and baseline.

    Args:
        baseline: a rung; where it was trained in several ways, each curve is compared with that of its own condition.
            Without one, the first rung.

    Raises:
        Refusal: no rung was trained on two sizes, or the baseline was not, or not in the ways of the others.
    """
    found = []
    for data, table in curves(frame).groupby("data", sort=False):
        sizes = table.groupby("name", sort=False)["samples"].nunique()
        names = list(sizes.index[sizes > 1])
        if not names:
            continue
        first = table[table["name"].isin(names)].drop_duplicates("name").set_index("name")
        pairs: dict[str, list[str]] = {}
        for name in names:
            base = _baseline(first, name, baseline or str(first["bare"].iloc[0]))
            if base != name:
                pairs.setdefault(base, []).append(name)
        for base, others in pairs.items():
            rows = [equivalents(table, name, base, level) for level in asked or levels(table) for name in others]
            found.append(_sheet(str(data).partition(" ")[0], base, rows))
    if not found:
        raise Refusal("--samples needs two rungs that were trained on at least two sizes; see train_samples")
    return found


def _baseline(curves: pd.DataFrame, name: str, chosen: str) -> str:
    """The baseline's curve that stands beside this one. Raises Refusal where there is none, or more than one."""
    if chosen in curves.index:
        return chosen
    own = curves[curves["bare"] == chosen]
    alike = own[own["condition"] == curves.at[name, "condition"]]
    fitting = alike if len(alike) else own
    if len(fitting) == 1:
        return str(fitting.index[0])
    listed = ", ".join(map(repr, own.index if len(own) else curves.index))
    if not len(own):
        raise Refusal(f"no rung '{chosen}' was trained on two sizes or more; these were: {listed}")
    raise Refusal(f"'{chosen}' was trained in {len(own)} ways, none of them that of '{name}'; name one: {listed}")


def _sheet(dataset: str, base: str, rows: list[dict[str, Any]]) -> Sheet:
    cells = []
    for row in rows:
        bounds = MISSING if math.isnan(row["low"]) else f"[{number(row['low'])}, {number(row['high'])}]"
        both = [_images(row[key]) for key in ("needs", "over_needs")]
        cells.append([row["name"], f"{row['level']:g}", *both, _equivalent(row), bounds, str(row["n"])])
    header = ("rung", "accuracy, %", "images needed", f"by {base}", "data-equivalents", "95 % interval", "n")
    note = "data-equivalents: images that the baseline needs / images needed; above 1 the rung saves data"
    return Sheet(f"Data-equivalents on {dataset}", header, cells, pd.DataFrame(rows), note)


def _equivalent(row: dict[str, Any]) -> str:
    """Data-equivalents; where one of the two is beyond the sizes, the bound that this leaves."""
    if row["equivalent"] not in (0.0, math.inf):
        return number(row["equivalent"])
    within = {0.0: row["smallest"], math.inf: row["largest"]}
    over, own = (within.get(row[key], row[key]) for key in ("over_needs", "needs"))
    return f"{'<' if row['equivalent'] == 0 else '>'} {over / own:.2f}"


def _images(value: float) -> str:
    return {0.0: "below range", math.inf: "beyond range"}.get(value) or quantity(value)
