"""Every rung against one baseline, and against all others: differences, equivalence, ranks.

A difference is over the runs that share a seed and a data order with one of the baseline's (`compare.paired`). Two
questions are each corrected by Holm over the rungs of a table that were trained on the same data, shuffle included: is
there a difference (two-sided t), and is it smaller than ± 0.5 points (TOST). A rung that passes neither is undecided,
which is not the same as equal. What was asked of shuffled images does not dilute what was asked of whole ones.

A rank has an interval, too: from all pairs of rungs, corrected by Holm, it is 1 + the number of rungs that are surely
better, to the number of rungs - those surely worse (the construction of Mogstad, Romano, Shaikh and Wilhelm 2024).

Where the runs' folders hold a predictions.npz, as training leaves it (or scripts/validate.py RUN --predictions
RUN/predictions.npz), a difference also has a bootstrap interval over seeds and test images; a single pair has McNemar's
test.

The few comparisons that a sweep was made for (CONTRASTS of its file) are tested apart, and corrected among themselves,
for each kind of data: against one baseline, with all rungs and few seeds, hardly anything passes.
"""

import functools
import itertools
import math
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis import stats
from analysis.compare import frames
from analysis.typeset import MISSING, Sheet, accuracy, count_text, number, plus_minus, probability, quantity
from engine.errors import DATA, Refusal
from engine.fields import claims
from engine.fields.rungs import resolve
from engine.fields.values import nearest
from engine.folder import predictions

BETTER, WORSE, EQUAL, NO_PAIRS = "better", "worse", "equal", "no pairs"
IMAGES = 3  # test images that may change sides between two evaluations of the same weights
HEADER = ("rung", "parameters", "MACs", "images/s", "n", "accuracy, %", "rank", "difference", "pairs", "p", "p equal")
FAMILY = "p: two-sided, p equal: within ± {margin:g} points (TOST), both after Holm over {family}"
TWO = "± 95 % interval over seeds, of two seeds both in brackets"
NOTE = "difference: to the baseline, points, paired by seed and data order; rank: 95 % interval; " + TWO
NOTE += f"; {FAMILY}".replace("{family}", "the rungs on the same data")
REGISTERED = "difference: weighted sum of accuracies, points, over the seeds that all its rungs have finished; " + TWO
REGISTERED += f"; {FAMILY}".replace("{family}", "the contrasts on the same data")
SAMPLED = "; over images, too: bootstrap over seeds and the images that judge, too narrow where seeds are few"


def against(
    frame: pd.DataFrame, baseline: str | Sequence[str] | None = None, margin: float = stats.MARGIN
) -> pd.DataFrame:
    """The table of rungs with rank and difference to a baseline.

    Added columns: `data`, `rank_low`, `rank_high`; `baseline` (empty: none on these data), `diff`, `diff_half`,
    `diff_n`, `diff_p`, `diff_p_holm`, `equal_p`, `equal_p_holm`, `verdict`; and with predictions `low`, `high` (BCa),
    `mcnemar_p` (one pair), `examples`.

    Args:
        frame: of `frames.load`.
        baseline: a rung, with or without its condition, or several, of which the first that is here counts; None for
            the first rung of the frame, () for no differences at all. A rung trained under a condition of its own is
            compared with the baseline under the same condition where there is one.
        margin: points within which two rungs count as equal.

    Raises:
        Refusal: no rung is called `baseline` (of several, one may be), or predictions do not belong to their run.
    """
    table = frames.rungs(frame)
    first = frame.drop_duplicates("rung").set_index("rung")
    table["data"] = first["data"].reindex(table["rung"]).to_numpy()
    names = first["name"]
    asked = [str(names.iloc[0])] if baseline is None else [baseline] if isinstance(baseline, str) else list(baseline)
    chosen = next((name for name in asked if name in set(names) | set(table["rung"])), "")
    if asked and not chosen:
        known = list(dict.fromkeys(table["rung"]))
        hint = nearest(asked[0], known)
        raise Refusal(f"no rung '{asked[0]}' here; " + (f"did you mean '{hint}'?" if hint else f"there are: {known}"))
    wide = frames.accuracies(frame)
    bases = [_baseline(table, names, row, chosen) for row in table.itertuples()]
    rows = [_difference(frame, wide, row, base, margin) for row, base in zip(table.itertuples(), bases, strict=True)]
    table = pd.concat([table, pd.DataFrame(rows)], axis=1)
    for test in ("diff_p", "equal_p"):
        table[f"{test}_holm"] = stats.holm_by(table[test], table["data"])
    table["verdict"] = [_verdict(row) for row in table.itertuples()]
    ranks = [_ranks(wide, group) for _, group in table.groupby("data", sort=False)]
    return table.join(pd.concat(ranks))


def _baseline(table: pd.DataFrame, names: pd.Series, row: Any, chosen: str) -> str:
    """The rung that stands for the baseline beside this one; "" without one on the same data, or with several."""
    if chosen in set(table["rung"]):
        return chosen
    same = table[(table["data"] == row.data) & (table["rung"].map(names) == chosen)]
    alike = same[same["condition"] == row.condition]
    found = alike if len(alike) else same
    return str(found["rung"].iloc[0]) if len(found) == 1 else ""


def _difference(frame: pd.DataFrame, wide: pd.DataFrame, row: Any, baseline: str, margin: float) -> dict[str, Any]:
    values = _differences(wide, row.rung, baseline)
    gain = stats.interval(values.to_numpy())
    found = {"baseline": baseline, "diff": gain.mean, "diff_half": gain.half, "diff_n": gain.n, "diff_p": gain.p}
    found |= {"equal_p": stats.equivalence(values.to_numpy(), margin)}
    return found | _by_example(frame, row.rung, baseline, list(values.index))


def _differences(wide: pd.DataFrame, rung: str, over: str) -> pd.Series:
    """By pair, in points; empty for the baseline itself and without one."""
    return (wide[rung] - wide[over]).dropna() if over and rung != over else pd.Series(dtype=float)


def _by_example(frame: pd.DataFrame, rung: str, over: str, pairs: list[str]) -> dict[str, float]:
    """BCa interval, or McNemar's p, where all the runs of these pairs have their predictions."""
    found = {"low": math.nan, "high": math.nan, "mcnemar_p": math.nan, "examples": 0}
    if not pairs:
        return found
    sides = []
    for name in (rung, over):
        done = (frame["rung"] == name) & frame["acc1"].notna()
        rows = frame.loc[done, ["pair", "folder", "signature", "acc1", "holdout", "table"]].set_index("pair").loc[pairs]
        sides.append([right_of(row) for row in rows.itertuples()])
    if any(right is None for side in sides for right in side):
        return found
    first, second = (np.array(side) for side in sides)
    if len(pairs) == 1:
        return found | {"mcnemar_p": stats.mcnemar(first[0], second[0]), "examples": first.shape[1]}
    bounds = stats.paired_bootstrap(100.0 * first - 100.0 * second)
    return found | {"low": bounds.low, "high": bounds.high, "examples": first.shape[1]}


def right_of(row: Any) -> np.ndarray | None:
    """`correct` for a row of `frames.load`, of a run from a published table by the predictions beside it.

    Reads its folder, signature, acc1, holdout and table.
    """
    if not row.table:
        return correct(Path(row.folder), row.acc1, row.holdout)
    path = Path(row.table).with_name(predictions.FILE)
    one = _published(path, path.stat().st_mtime_ns).get(row.signature) if path.exists() else None
    return one.right if one and one.are_of(row.acc1) else None


@functools.lru_cache(maxsize=8)
def _published(path: Path, changed: int) -> Mapping[str, predictions.Predictions]:
    return predictions.read_table(path)


def correct(folder: Path, acc1: float, holdout: float = 0.0) -> np.ndarray | None:
    """Which validation images the run got right, (N,) bool, from its predictions.npz; None without one.

    Raises Refusal (DATA) where the file is damaged or its accuracy is not the run's.
    """
    path = folder / "predictions.npz"
    split = " --split holdout" if holdout else ""
    again = f"write it again: python scripts/validate.py {folder} --predictions {path}{split}"
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            right = file["label"] == file["prediction"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise Refusal(f"{path} cannot be read ({error}); {again}", DATA) from None
    if abs(100 * right.mean() - acc1) * len(right) > 100 * IMAGES:
        raise Refusal(f"{path} has an accuracy of {100 * right.mean():.2f} and its run {acc1:.2f}; {again}", DATA)
    return right


def _verdict(row: Any) -> str:
    if row.rung == row.baseline:
        return "baseline"
    if not row.baseline:
        return MISSING
    if not row.diff_n:
        return NO_PAIRS
    return stats.verdict(row.diff, row.diff_p_holm, row.equal_p_holm, (BETTER, WORSE, EQUAL))


def _ranks(wide: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """Interval of each rung's rank among those of the same data; NaN for one without a result."""
    shown = table[table["n"] > 0]
    pairs = list(itertools.combinations(shown["rung"], 2))
    gains = [stats.interval((wide[one] - wide[other]).to_numpy()) for one, other in pairs]
    adjusted = stats.holm(pd.Series([gain.p for gain in gains], dtype=float))
    better, worse = dict.fromkeys(shown["rung"], 0), dict.fromkeys(shown["rung"], 0)  # how many are surely so
    for (one, other), gain, p in zip(pairs, gains, adjusted, strict=True):
        if p < 0.05:
            high, low = (one, other) if gain.mean > 0 else (other, one)
            worse[high] += 1
            better[low] += 1
    ranks = [(1 + better[rung], len(shown) - worse[rung]) for rung in shown["rung"]]
    return pd.DataFrame(ranks, columns=["rank_low", "rank_high"], index=shown.index, dtype=float).reindex(table.index)


def sheet(table: pd.DataFrame, title: str = "", margin: float = stats.MARGIN) -> Sheet:
    """The table of `against`, to be shown; a column on the bootstrap where there are predictions."""
    header, rows = [*HEADER, "verdict"], []
    sampled = bool((table["examples"] > 0).any())
    if sampled:
        header.insert(9, "over images, too")
    for row in table.itertuples():
        rank = MISSING if math.isnan(row.rank_low) else f"{row.rank_low:.0f}–{row.rank_high:.0f}"
        cells = [row.rung, quantity(row.params), quantity(row.macs)]
        cells += [MISSING if math.isnan(row.images_per_s) else f"{row.images_per_s:,.0f}", count_text(row)]
        cells += [accuracy(row.acc1, row.acc1_half, row.n), rank.removesuffix("–" + rank.partition("–")[0])]
        cells += [plus_minus(row.diff, row.diff_half, row.diff_n, "+"), str(row.diff_n or MISSING)]
        cells += [_sampled(row)] if sampled else []
        cells += [probability(row.diff_p_holm), probability(row.equal_p_holm), row.verdict]
        rows.append(cells)
    return Sheet(
        title,
        tuple(header),
        rows,
        table,
        NOTE.format(margin=margin) + SAMPLED * sampled,
        "l".ljust(len(header) - 1, "r") + "l",
    )


def _sampled(row: Any) -> str:
    if not math.isnan(row.mcnemar_p):
        return f"McNemar p {probability(row.mcnemar_p)}"
    return MISSING if math.isnan(row.low) else f"[{number(row.low, sign='+')}, {number(row.high, sign='+')}]"


def power_note(frame: pd.DataFrame, table: pd.DataFrame) -> str:
    """What these numbers of pairs can show: one sentence, from the median spread of the differences."""
    tested = table[table["diff_n"] > 1]
    if not (table["baseline"] != "").any():
        return "No baseline was named, so nothing is compared with one; ranks are from all pairs."
    if (table["verdict"] == "baseline").all():
        return "Every rung is its own baseline, so nothing is compared with one; ranks are from all pairs."
    if tested.empty:
        return "No difference has two pairs of runs, so nothing can be told from chance."
    wide = frames.accuracies(frame)
    spread = float(np.median([_differences(wide, row.rung, row.baseline).std(ddof=1) for row in tested.itertuples()]))
    if not spread > 0:
        return "The differences have no spread between seeds, so nothing can be told from chance."
    n = int(tested["diff_n"].median())
    effect = stats.detectable(n) * spread
    wanted = next((pairs for pairs in range(2, 200) if stats.detectable(pairs) * spread <= 1), None)
    return (
        f"With {n} pairs, whose differences have a standard deviation of {spread:.2f} points (median), a true "
        f"difference of {effect:.1f} points is found four times in five, before any correction"
        + (f"; for one of a point, take {wanted} seeds." if wanted and effect > 1 else ".")
    )


def unfinished(frame: pd.DataFrame) -> Sheet | None:
    """The runs that have no accuracy, none left out; None if all have."""
    missing = frame[frame["acc1"].isna()]
    columns = ["rung", "seed", "state", "error_class", "error", "signature"]
    rows = [
        [
            row.rung,
            MISSING if math.isnan(row.seed) else f"{row.seed:.0f}",
            *(str(value or MISSING) for value in (row.state, row.error_class, row.error, row.signature)),
        ]
        for row in missing.itertuples()
    ]
    return Sheet("Runs without a result", tuple(columns), rows, missing[columns], align="llllll") if rows else None


def registered(
    frame: pd.DataFrame, wanted: Mapping[str, Mapping[str, float]], margin: float = stats.MARGIN
) -> pd.DataFrame:
    """The contrasts that a sweep was made for, corrected by Holm over those on the same data.

    Columns: `contrast` (with the condition, where it is tested under several), `condition`, `data`, `weights` (by rung
    with its condition), `differs` (between its two sides), `differs_in` (names), `diff`, `diff_half`, `diff_n`,
    `diff_p`, `diff_p_holm`, `equal_p`, `equal_p_holm`, `verdict` (as of `against`). One whose rungs share no finished
    seed has diff_n 0 and NaN.

    Args:
        frame: of `frames.load`, of the runs of this sweep alone: which others stand beside them would decide what a
            condition is.
        wanted: per contrast, weights by rung, as `engine.fields.rungs.resolve` reads them.

    Raises:
        Refusal: a name means no rung, or several.
    """
    first = frame.drop_duplicates("rung").set_index("rung")
    known = {rung: (own, way) for rung, own, way in zip(first.index, first["name"], first["condition"], strict=True)}
    fields = dict(zip(first.index, first.to_dict("records"), strict=True))
    wide, rows = frames.accuracies(frame), []
    for name, asked in wanted.items():
        for condition, weights in _resolved(name, asked, known):
            values = sum(weight * wide[rung] for rung, weight in weights.items()).dropna().to_numpy()
            found = stats.interval(values)
            row = {"contrast": f"{name} ({condition})" if condition else name, "condition": condition}
            row |= {"data": " | ".join(sorted(set(first.loc[list(weights), "data"]))), "weights": weights}
            contrast = claims.Contrast(weights)
            row |= {"differs": claims.told(contrast, fields), "differs_in": list(claims.sides(contrast, fields))}
            row |= {"diff": found.mean, "diff_half": found.half, "diff_n": found.n, "diff_p": found.p}
            rows.append({**row, "equal_p": stats.equivalence(values, margin)})
    table = pd.DataFrame(rows)
    for test in ("diff_p", "equal_p"):
        table[f"{test}_holm"] = stats.holm_by(table[test], table["data"])
    table["verdict"] = [_verdict(row) for row in table.assign(rung="", baseline=table["contrast"]).itertuples()]
    return table


def parsed(words: str) -> dict[str, float]:
    """Weights by rung of `A - B`, or of sums of as many rungs on either side. Raises Refusal for anything else."""
    first, *others = re.split(r"\s+([+-])\s+", words.strip())
    terms = [("+", first), *zip(others[::2], others[1::2], strict=True)]
    weights = {rung.strip(): 1.0 if sign == "+" else -1.0 for sign, rung in terms}
    if len(weights) < len(terms) or sum(weights.values()) or not all(weights):
        raise Refusal(f"--contrast '{words}' must have as many rungs to add as to take away, as in 'mixer_1m - mlp_1m'")
    return weights


def _resolved(
    name: str, weights: Mapping[str, float], known: Mapping[str, tuple[str, str]]
) -> list[tuple[str, dict[str, float]]]:
    try:
        return resolve(weights, known)
    except Refusal as error:
        raise Refusal(f"CONTRASTS {name!r}: {error}", error.code) from None


def registered_sheet(table: pd.DataFrame, title: str = "", margin: float = stats.MARGIN) -> Sheet:
    """The table of `registered`, to be shown."""
    rows = [
        [
            row.contrast,
            plus_minus(row.diff, row.diff_half, row.diff_n, "+"),
            str(row.diff_n or MISSING),
            *(probability(row.diff_p_holm), probability(row.equal_p_holm), row.verdict, row.differs),
        ]
        for row in table.itertuples()
    ]
    header = ("contrast", "difference", "n", "p", "p equal", "verdict", "differs in")
    return Sheet(
        title, header, rows, table.drop(columns=["weights", "differs_in"]), REGISTERED.format(margin=margin), "lrrrrll"
    )


def tables(
    parts: Sequence[pd.DataFrame], baseline: str | Sequence[str] | None, margin: float = stats.MARGIN
) -> list[pd.DataFrame]:
    """`against` for each part of a frame; one that holds no baseline, or without one that was named, has ranks alone.

    Which rung of a budget comes first in a file says nothing, so it is never taken for one.

    Raises:
        Refusal: no part holds the baseline.
    """
    asked = [baseline] if isinstance(baseline, str) else list(baseline or ())
    held = [[name for name in asked if name in {*part["name"], *part["rung"]}] for part in parts]
    if asked and not any(held):
        against(pd.concat(parts), asked)  # refuses, with the nearest name
    return [against(part, own, margin) for part, own in zip(parts, held, strict=True)]
