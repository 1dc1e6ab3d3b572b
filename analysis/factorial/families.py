"""The claims of a sweep, family by family: effects from one model of all its runs, corrected within the family.

Blocks are seeds, apart for each kind of images, because a seed draws the order of shuffled pixels, too; where a
contrast goes across kinds of images itself, they are the seeds alone.

A run that diverged is a result of its cell and has no accuracy: what is claimed of that cell is then not decided, and
the run is named. Other runs that are missing make the interval wider and are counted.
"""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from analysis import stats
from analysis.factorial import effects
from analysis.typeset import MISSING, Sheet, number, probability, quantity
from engine.errors import CLASSES, DIVERGED
from engine.fields import claims
from engine.fields.claims import Contrast, Family

GAIN, LOSS, EQUAL = "gain", "loss", "equal within the margin"
HEADER = ("contrast", "effect", "95 %", "95 %, all at once", "p", "p equal", "verdict", "train loss")
HEADER += ("parameters", "MACs", "differs in")
NOTE = (
    "effect: points, by accuracy ~ cell + {block}, residual deviation {deviation} points with {df} degrees of freedom; "
    "p: two-sided, p equal: within ± {margin:g} points (TOST), both after Holm over the {tests} of the family; all at "
    "once: by Bonferroni; train loss: the same contrast of the last epoch's; parameters, MACs: mean of either side"
)
COSTS = ("params", "macs")
BLOCKS = {1: "seed", 2: "seed and kind of images"}  # by how many columns make one


def table(frame: pd.DataFrame, family: Family) -> pd.DataFrame:
    """One row per contrast: `contrast`, `of`, `differs`, `diff`, `error`, `df`, `low`, `high`, `all_low`, `all_high`,
    `p`, `p_holm`, `equal_p`, `equal_p_holm`, `verdict`, `deviation`, `block`, `loss` (the contrast of training losses),
    `params_before`, `params_after`, `macs_before`, `macs_after`, `diverged` (signatures).

    Args:
        frame: of `frames.load`, of the runs of this sweep alone.
        family: of the sweep; rungs with their conditions, as the frame has them.
    """
    done = frame[frame["acc1"].notna()]
    cells = frame[frame["rung"].isin({rung for contrast in family.contrasts.values() for rung in contrast.weights})]
    fields = cells.drop_duplicates("rung").set_index("rung")
    parts = _shares(cells, family)
    # All runs of the sweep on these images tell the error, whether or not this family speaks of their cell.
    used = done[done["data"].isin(set(cells["data"]))]
    shared = used[parts].agg(" ".join, axis=1) if len(used) else []
    model = effects.fit(used["acc1"], used["rung"], shared)
    losses = effects.fit(used["train_loss"], used["rung"], shared)
    known = dict(zip(fields.index, fields.to_dict("records"), strict=True))
    fell = cells[cells["error_class"] == CLASSES[DIVERGED]]
    rows = []
    for name, contrast in family.contrasts.items():
        found = effects.effect(model, contrast.weights, family.margin)
        low, high = effects.simultaneous(model, contrast.weights, len(family.contrasts))
        row = {"contrast": name, "of": " x ".join(contrast.of), "differs": claims.told(contrast, known)}
        row |= {"diff": found.value, "error": found.error, "df": found.df, "low": found.low, "high": found.high}
        row |= {"all_low": low, "all_high": high, "p": found.p, "equal_p": found.equal_p}
        row |= {"loss": effects.effect(losses, contrast.weights, 1.0).value} | _costs(contrast, cells)
        row |= {"diverged": [*fell.loc[fell["rung"].isin(list(contrast.weights)), "signature"]]}
        rows.append(row | {"deviation": model.deviation, "block": BLOCKS[len(parts)]})
    made = pd.DataFrame(rows)
    for test in ("p", "equal_p"):
        made[f"{test}_holm"] = stats.holm(made[test])
    made["verdict"] = [_verdict(row) for row in made.itertuples()]
    return made


def _shares(cells: pd.DataFrame, family: Family) -> list[str]:
    """Columns of the frame that make a block."""
    data = cells.drop_duplicates("rung").set_index("rung")["data"]
    for contrast in family.contrasts.values():
        weights = pd.Series(contrast.weights)
        if (weights.groupby(weights.index.map(data)).sum().abs() > 1e-9).any():
            return ["pair"]
    return ["pair", "data"] if data.nunique() > 1 else ["pair"]


def _costs(contrast: Contrast, cells: pd.DataFrame) -> dict[str, float]:
    """Mean parameters and MACs of the rungs on the - and on the + side; NaN where one is not known.

    An interaction has no side that is dearer.
    """
    known = cells.groupby("rung", sort=False)[list(COSTS)].first()
    found = {}
    for cost in COSTS:
        for side, word in ((-1, "before"), (1, "after")):
            rungs = [rung for rung, weight in contrast.weights.items() if weight * side > 0]
            is_known = len(contrast.of) < 2 and known.loc[rungs, cost].notna().all()
            found[f"{cost}_{word}"] = float(known.loc[rungs, cost].mean()) if is_known else math.nan
    return found


def _verdict(row: Any) -> str:
    if math.isnan(row.diff):
        return "no runs that tell it"
    if row.diverged:
        return f"not decided: {', '.join(row.diverged)} diverged"
    return stats.verdict(row.diff, row.p_holm, row.equal_p_holm, (GAIN, LOSS, EQUAL))


def sheets(frame: pd.DataFrame, wanted: Mapping[str, Family]) -> list[Sheet]:
    """Each family as a table to be shown."""
    return [sheet(table(frame, family), name, family.margin) for name, family in wanted.items()]


def sheet(found: pd.DataFrame, name: str, margin: float) -> Sheet:
    """The table of `table`, to be shown."""
    rows = [
        [
            row.contrast,
            number(row.diff, sign="+"),
            *(_ends(*ends) for ends in ((row.low, row.high), (row.all_low, row.all_high))),
            *(probability(row.p_holm), probability(row.equal_p_holm), row.verdict, number(row.loss, 3, "+")),
            *(_sides(*sides) for sides in ((row.params_before, row.params_after), (row.macs_before, row.macs_after))),
            row.differs,
        ]
        for row in found.itertuples()
    ]
    first = found.iloc[0]
    note = NOTE.format(
        block=first["block"], deviation=number(first["deviation"]), df=first["df"], margin=margin, tests=len(found)
    )
    return Sheet(f"{name}: {len(found)} claims", HEADER, rows, found, note, align="lrrrrrlrrrl")


def _ends(low: float, high: float) -> str:
    return MISSING if math.isnan(low) else f"[{number(low, sign='+')}, {number(high, sign='+')}]"


def _sides(before: float, after: float) -> str:
    if math.isnan(before) or math.isnan(after):
        return MISSING
    same = quantity(before) == quantity(after)
    return quantity(before) if same else f"{quantity(before)} to {quantity(after)}"
