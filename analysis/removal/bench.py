"""The bench of removals: a row per choice and run, means over seeds, and what criteria and ways are worth.

Differences are paired by seed: a criterion against the mean of the draws by chance of the same way and share, a way
against `drop` of the same criterion and share. Intervals are Student's over seeds; p values are corrected by Holm
within each of the two families, for shares below all layers: where all go, criteria choose alike.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from analysis import stats
from analysis.compare.frames import Sheet
from analysis.typeset import accuracy
from engine.fields.choices import Choice

CHANCE, DROP, EVERY = "random_layers", "drop", "all layers"
MIN_SEEDS = 2


def labels(choices: Iterable[Choice], source: str, layers: Sequence[int]) -> list[str]:
    """All criteria that choose just these layers of that source; `all layers` where none is left to choose."""
    own, wanted = [choice for choice in choices if choice.source == source], sorted(layers)
    if own and len(wanted) == len(own[0].order):
        return [EVERY]
    return [choice.label for choice in own if sorted(choice.order[: len(wanted)]) == wanted]


def table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows of removal.csv, `asked` their criterion, which all draws of chance share.

    Args:
        rows: with source, seed, criterion, share, way, acc_whole, acc_before and, of healed ones, acc_after; `claimed`
            says whether the criterion's choices were healed on purpose: a coincidence is not counted for it.
    """
    frame = pd.DataFrame(list(rows))
    numbers = [key for key in frame if key.startswith("acc_") or key in ("seed", "share")]
    frame[numbers] = frame[numbers].apply(pd.to_numeric)
    by_chance = frame["criterion"].str.startswith(CHANCE)
    frame["asked"] = frame["criterion"].where(~by_chance, CHANCE)
    if "claimed" in frame:
        frame.loc[frame["claimed"].astype(str) == "False", "acc_after"] = math.nan
    return frame


def by_seed(frame: pd.DataFrame, value: str) -> pd.DataFrame:
    """Mean over draws: one row per criterion, way and share, one column per seed."""
    known = frame.dropna(subset=value)
    return known.pivot_table(value, ["share", "way", "asked"], "seed", aggfunc="mean", sort=True)


def cells(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per criterion, way and share: n seeds, mean and half-width of the 95 % interval before and after."""
    found = []
    for value in ("acc_before", "acc_after"):
        for key, row in by_seed(frame, value).iterrows():
            estimate = stats.interval(row)
            name = value.removeprefix("acc_")
            found.append({**dict(zip(("share", "way", "asked"), key, strict=True)), "when": name, **_plain(estimate)})
    return pd.DataFrame(found, columns=["share", "way", "asked", "when", "n", "mean", "half"])


def effects(frame: pd.DataFrame, margin: float, value: str = "acc_after") -> pd.DataFrame:
    """Paired differences of both families: what is compared, n, mean, half, p and p_same, both after Holm."""
    wide, found = by_seed(frame, value), []
    for share, way, asked in wide.index:
        for family, other in (("criterion", (share, way, CHANCE)), ("way", (share, DROP, asked))):
            if other == (share, way, asked) or other not in wide.index:
                continue
            gain = wide.loc[(share, way, asked)] - wide.loc[other]
            estimate = stats.interval(gain)
            same = stats.equivalence(gain, margin) if estimate.n >= MIN_SEEDS else math.nan
            against = CHANCE if family == "criterion" else DROP
            cell = {"family": family, "share": share, "way": way, "asked": asked, "against": against}
            found.append({**cell, **_plain(estimate), "p": estimate.p, "p_same": same})
    columns = ["family", "share", "way", "asked", "against", "n", "mean", "half", "p", "p_same"]
    result = pd.DataFrame(found, columns=columns)
    for test in ("p", "p_same"):
        result[f"{test}_holm"] = stats.holm_by(result[test].astype(float), list(result["family"]))
    return result


def sheet(frame: pd.DataFrame) -> Sheet:
    """The accuracies as a table: per share and way a row, criteria before and after healing."""
    means = cells(frame)
    header = ("share, %", "way", "criterion", "seeds", "before", "after")
    rows = []
    for (share, way, asked), group in means.groupby(["share", "way", "asked"], sort=True):
        told = {row.when: accuracy(row.mean, row.half, row.n) for row in group.itertuples()}
        row = [f"{share:g}", way, asked.replace("_", " "), str(group["n"].max())]
        rows.append([*row, told.get("before", ""), told.get("after", "")])
    return Sheet("Mixing removed: accuracy before and after healing", header, rows, means, align="rllrrr")


def effect_sheet(frame: pd.DataFrame, margin: float) -> Sheet:
    """The differences as a table."""
    found = effects(frame, margin)
    header = ("share, %", "way", "criterion", "against", "points", "p (Holm)", f"p within {margin:g} (Holm)")
    rows = [
        [
            *(f"{row.share:g}", row.way, row.asked.replace("_", " "), row.against.replace("_", " ")),
            f"{row.mean:+.2f}" + (f" ± {row.half:.2f}" if math.isfinite(row.half) else ""),
            *("" if math.isnan(p) else f"{p:.2g}" for p in (row.p_holm, row.p_same_holm)),
        ]
        for row in found.itertuples()
    ]
    return Sheet("What criteria and ways are worth", header, rows, found, align="rlllrrr")


def _plain(estimate: Any) -> dict[str, Any]:
    return {"n": estimate.n, "mean": estimate.mean, "half": estimate.half}
