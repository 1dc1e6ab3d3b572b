"""What a sweep was made to compare, in one table, and what these contrasts do to other measures than accuracy.

Accuracy is as in `contrasts.registered` (CONTRASTS, paired by seed) and `families.table` (FAMILIES, one model of all
runs). Of a gap or a probe there are two or three seeds, whose own intervals say next to nothing: its contrasts are from
value ~ rung + seed over all rungs, as `effects` fits it. That supposes one variance for all rungs, which a gap meets
badly.
"""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from analysis import stats
from analysis.compare import contrasts
from analysis.factorial import effects, families
from engine.fields import claims
from engine.fields.claims import Contrast, Family

GAIN, LOSS, EQUAL, UNDECIDED = "gain", "loss", "equal", stats.UNDECIDED
WIDTHS = ("dim", "expansion", "mlp_ratio")  # which budgets are met by
NEAR = 0.011  # a width within a hundredth is the same one
COLUMNS = ["family", "contrast", "weights", "of", "others", "differs", "diff", "low", "high", "n", "p", "p_equal"]
COLUMNS += ["verdict", "margin", "said"]


def table(frame: pd.DataFrame, wanted: Mapping[str, Mapping[str, float]], asked: Mapping[str, Family]) -> pd.DataFrame:
    """One row per contrast, by family ("" for CONTRASTS) and then by size, the largest gain first.

    Columns: `family`, `contrast`, `weights` (by rung with its condition), `of` (the ingredients whose effect it is; ()
    where other things differ too), `others` (then all that differs, by name; the tuned rate and a width within a
    hundredth do not count), `differs` (the same with values), `diff`, `low`, `high` (points; NaN for two seeds of
    CONTRASTS), `n` (seeds), `p`, `p_equal` (both after Holm), `verdict` (gain, loss, equal, undecided), `margin`
    (points), `said` (why it is undecided, where that is not for want of evidence).

    Args:
        frame: of `frames.load`, of the runs of this sweep alone. Contrasts of CONTRASTS that are between rungs on
            shuffled images alone are left to the gap, where there are whole ones.
    """
    first = frame.drop_duplicates("rung").set_index("rung")
    fields = dict(zip(first.index, first.to_dict("records"), strict=True))
    counts = frame[frame["acc1"].notna()].groupby("rung").size()
    whole = set(first.index[first["permute"] == "none"])
    rows = []
    if wanted:
        plain = contrasts.registered(frame, wanted)
        kept = [bool(whole & set(weights)) or not whole for weights in plain["weights"]]
        plain = plain[kept]
        several = plain["condition"].nunique() > 1
        for row in plain.itertuples():
            name = row.contrast if several else row.contrast.removesuffix(f" ({row.condition})")
            made = _row(name, Contrast(row.weights), fields) | {"family": "", "n": row.diff_n, "said": ""}
            # The interval of two seeds is 13 times as wide as they are apart.
            half = row.diff_half if row.diff_n > 2 else math.nan
            made |= {"diff": row.diff, "low": row.diff - half, "high": row.diff + half}
            made |= {"p": row.diff_p_holm, "p_equal": row.equal_p_holm, "margin": stats.MARGIN}
            rows.append(made)
    for family, group in asked.items():
        for row in families.table(frame, group).itertuples():
            contrast = group.contrasts[row.contrast]
            made = _row(row.contrast, contrast, fields) | {"family": family, "margin": group.margin}
            made |= {"n": int(min(counts.get(rung, 0) for rung in contrast.weights))}
            made |= {"diff": row.diff, "low": row.low, "high": row.high, "p": row.p_holm, "p_equal": row.equal_p_holm}
            rows.append(made | {"said": f"{', '.join(row.diverged)} diverged" if row.diverged else ""})
    made = pd.DataFrame(rows, columns=COLUMNS)
    made["verdict"] = [UNDECIDED if row.said else _verdict(row) for row in made.itertuples()]
    order = {family: place for place, family in enumerate(["", *asked])}
    made["place"] = made["family"].map(order)
    made = made.sort_values(["place", "diff"], ascending=[True, False], kind="stable", na_position="last")
    return made.drop(columns="place").reset_index(drop=True)


def _row(name: str, contrast: Contrast, fields: Mapping[str, claims.Fields]) -> dict[str, Any]:
    of = claims.proven(contrast, fields)
    bare = Contrast(contrast.weights, of if contrast.of else ())
    others = [] if of else [what for what, ways in claims.sides(bare, fields).items() if _counts(what, ways)]
    row = {"contrast": name, "weights": dict(contrast.weights), "of": of, "others": others}
    return row | {"differs": claims.told(bare, fields)}


def is_interaction(asked: pd.DataFrame) -> pd.Series:
    """Which rows of `table` say how the effect of one ingredient depends on another."""
    return (asked["weights"].map(len) > 2) & (asked["of"].map(len) > 1)


def is_mixed(asked: pd.DataFrame) -> pd.Series:
    """Which rows of `table` are means over cells that a decided interaction of their family says to be unlike."""
    clear = asked[is_interaction(asked) & asked["verdict"].isin((GAIN, LOSS))]
    unlike = [
        len(row.weights) > 2
        and len(row.of) == 1
        and any(row.of[0] in other for other in clear.loc[clear["family"] == row.family, "of"])
        for row in asked.itertuples()
    ]
    return pd.Series(unlike, index=asked.index, dtype=bool)


def ingredient(row: Any) -> str:
    """What a row of `table` is the effect of; "" where more differs and where the contrast's name says it."""
    if not row.of or not row.family or set(row.of) <= set(row.contrast.split()):
        return ""
    return " × ".join(map(plain, row.of))


def plain(word: str) -> str:
    """A field as a reader calls it."""
    return {"dim": "width", "lr": "rate"}.get(word, word.replace("_", " "))


def _counts(what: str, ways: list[tuple[str, str]]) -> bool:
    """Whether a difference, from - to +, is one that a reader must know of."""
    if what in claims.FREE:
        return False
    try:
        pairs = [(float(before.strip("[]")), float(now.strip("[]"))) for before, now in ways]
    except ValueError:
        return True
    return what not in WIDTHS or any(abs(now / before - 1) > NEAR for before, now in pairs if before)


def _verdict(row: Any) -> str:
    return stats.verdict(row.diff, row.p, row.p_equal, (GAIN, LOSS, EQUAL))


def measure(asked: pd.DataFrame, values: pd.DataFrame) -> pd.DataFrame:
    """What each contrast of `table` does to a measure: `value`, `low`, `high`, `p` (Holm, within its family).

    Args:
        values: per run `rung`, `seed` and `value`; one row each.
    """
    known = values.dropna(subset="value")
    model = effects.fit(known["value"].to_numpy(), list(known["rung"]), list(known["seed"])) if len(known) else None
    found = [effects.effect(model, weights, 1.0) if model else None for weights in asked["weights"]]
    rows = [(one.value, one.low, one.high, one.p) if one else (math.nan,) * 4 for one in found]
    made = pd.DataFrame(rows, columns=["value", "low", "high", "p"], index=asked.index)
    made["p"] = stats.holm_by(made["p"], asked["family"])
    return made
