"""The plain result of a sweep: a few sentences that are computed, and what they do not show.

What an ingredient is worth is said only of the contrasts that the sweep was made for (CONTRASTS of its file). The order
of a file is no claim: which rung stands before which says nothing of cause.
"""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from analysis import judges
from analysis.compare import contrasts, frames
from analysis.compare.frames import REFERENCE
from analysis.typeset import accuracy, plus_minus, quantity

UNSTEADY = 5  # points between the best and the worst seed of a rung beyond which its mean says little
EASY = ("digits",)  # data on which the flat MLP ties with nearly everything: their page opens with what was built in
NAMED = 4  # rungs that a sentence names; of more it says how many


def result(
    frame: pd.DataFrame,
    table: pd.DataFrame,
    symmetries: list[dict[str, Any]] | None = None,
    probed: pd.DataFrame | None = None,
    planned: Mapping[str, Mapping[str, float]] | None = None,
) -> dict[str, str]:
    """The result in statements, under what each is about.

    Args:
        table: of `frames.rungs`.
        symmetries: of `sections.bias.symmetries`; they and the probes come first where accuracy says little.
        probed: of `probe_table.summary`.
        planned: the contrasts that the sweep was made for; without any, no rung is said to owe its accuracy to
            anything.
    """
    undecided = {"Not decided": " ".join(_undecided(frame, table))}
    if not (table["n"] > 0).any():
        return {"No result": "No run of this sweep has finished.", **undecided}
    told = {"Built in": symmetry_sentence(symmetries)} if symmetries else {}
    told |= {"Learned": said} if probed is not None and (said := probe_sentence(probed)) else {}
    asked = {"Asked": asked_sentence(contrasts.registered(frame, planned))} if planned else {}
    if told and is_easy(frame):
        return {**told, "Accuracy": f"{_best(frame, table)} {tie(frame)}".strip(), **asked, **undecided}
    spread = asked or ({"Range": said} if (said := _range(frame, table)) else {})
    return {"Best rung": _best(frame, table), **spread, **undecided}


def is_easy(frame: pd.DataFrame) -> bool:
    """Whether accuracy on these data ranks nothing."""
    return bool(len(frame)) and set(frame["dataset"].dropna()) <= set(EASY)


def comparable(frame: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """The rungs that were trained on the same data as the most accurate one; all where none has finished."""
    if not (table["n"] > 0).any():
        return table
    data = table["rung"].map(frame.drop_duplicates("rung").set_index("rung")["data"])
    return table[data == data[table["acc1"].idxmax()]]


def symmetry_sentence(symmetries: list[dict[str, Any]]) -> str:
    """Which rungs are blind to which order of the pixels, by the largest order that each is blind to."""
    words = {
        "pixels": "{} cannot see the order of the pixels at all",
        "patches_own": "{} cannot see the order of the patches nor, in each, that of its pixels",
        "patches": "{} cannot see the order of the patches",
        "rows_columns": "{} cannot see the order of the rows and columns of patches",
        "within": "{} can see all of the layout but the order of the pixels inside the patches",
        "": "{} can see all of the layout",
    }
    known = [row for row in symmetries if row["gaps"]]
    if not known:
        return "No rung here has a known symmetry."
    opt = known[0]["opt"]
    sets: dict[str, list[str]] = {}
    for row in known:
        if row["opt"] == opt:
            first = next((group for group in words if group in row["passing"]), "")
            sets.setdefault(first, []).append(row["rung"])
    parts = [words[group].format(_several(sets[group])) for group in words if group in sets]
    return f"Trained with {opt}, " + "; ".join(parts) + ". This is exact and holds before any data are seen."


def probe_sentence(probed: pd.DataFrame) -> str:
    """The most and the least tolerant rung of each probe, in words; "" without probes."""
    parts = []
    for name, key, what in (
        ("shift", "acc_1", "moved by one pixel, images are still recognised in"),
        ("patch_shuffle", "R_2", "with their quarters shuffled, models keep"),
    ):
        rows = probed[(probed["probe"] == name) & (probed["key"] == key)].dropna(subset="value")
        if len(rows) < 2:
            continue
        most, least = rows.loc[rows["value"].idxmax()], rows.loc[rows["value"].idxmin()]
        scale, unit = (100, " % of their accuracy above chance") if key.startswith("R") else (1, " %")
        ends = [f"{scale * end['value']:.0f}" for end in (most, least)]
        parts.append(f"{what} {ends[0]}{unit} (`{most['rung']}`) to {ends[1]} % (`{least['rung']}`)")
    text = "; ".join(parts)
    return text[:1].upper() + text[1:] + "." if text else ""


def tie(frame: pd.DataFrame) -> str:
    """How many rungs cannot be told from the flat MLP, the first rung; "" where there is none."""
    if not str(frame["model"].iloc[0]).startswith(("mlp_", "bmlp_")):
        return ""
    table = contrasts.against(frame)
    others = table[table["diff_n"] > 1]
    if others.empty:
        return ""
    better = others[others["verdict"].str.startswith(contrasts.BETTER)]
    who = f": {_several(list(better['rung']))}" if len(better) else ""
    return (
        f"Of {len(others)} others, {len(better) or 'none'} can be shown to be better than the flat MLP "
        f"`{frame['name'].iloc[0]}`{who}: on images this small accuracy says next to nothing of bias."
    )


def asked_sentence(table: pd.DataFrame) -> str:
    """What came of the contrasts that the sweep was made for: how many are decided, and the largest that is.

    Args:
        table: of `contrasts.registered`.
    """
    tested = table[table["diff_n"] > 1]
    if tested.empty:
        return (
            "Of what the sweep was made to compare nothing can be told from chance: no contrast has two common seeds."
        )
    parts = []
    for condition, own in tested.groupby("condition", sort=False):
        clear = own[own["diff_p_holm"] < 0.05]
        where = f" under {condition}" if condition else ""
        what = f"{len(own)} contrast{'s' * (len(own) > 1)} that the sweep was made for{where}"
        if clear.empty:
            parts.append(f"Of {what}, none is shown to differ from zero (Holm).")
            continue
        row = clear.loc[clear["diff"].abs().idxmax()]
        shown = f"{len(clear)} {'is' if len(clear) == 1 else 'are'} shown to differ from zero (Holm)"
        named = row["contrast"].removesuffix(f" ({condition})")
        size = plus_minus(row["diff"], row["diff_half"], row["diff_n"], "+")
        parts.append(f"Of {what}, {shown}; the largest is “{named}”, {size} points, {_between(row['differs_in'])}.")
    return " ".join(parts)


def _between(names: list[str]) -> str:
    """Between what kind of rungs a contrast is; a name says less than what its rungs differ in."""
    rest = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"between rungs that differ in {', '.join(names[:NAMED]) or 'nothing known'}{rest}"


def _range(frame: pd.DataFrame, table: pd.DataFrame) -> str:
    """From which rung to which accuracies range; what lies between them is not said, as nobody asked beforehand."""
    own = comparable(frame, table)
    own = own[own["n"] > 0].sort_values("acc1", kind="stable")
    if len(own) < 2:
        return ""
    low, high = own.iloc[0], own.iloc[-1]
    return (
        f"Accuracies on the same data range from {low.acc1:.2f} % (`{low.rung}`) to {high.acc1:.2f} % (`{high.rung}`). "
        "No contrast was named beforehand (CONTRASTS of the sweep’s file), so no ingredient is said to buy anything."
    )


def _best(frame: pd.DataFrame, table: pd.DataFrame) -> str:
    ranked = comparable(frame, table)
    ranked = ranked[ranked["n"] > 0].sort_values("acc1", ascending=False, kind="stable")
    best, own = ranked.iloc[0], ranked[ranked["family"] != REFERENCE]
    text = f"The most accurate rung is `{best.rung}` with {_level(best)} ({_seeds(best)})"
    if len(ranked) < 2:
        return f"{text}; no other rung on the same data has finished."
    second = ranked.iloc[1]
    lead = frames.paired(frame, best.rung, second.rung)
    margin = plus_minus(lead.mean, lead.half, lead.n)
    if lead.n < 2:
        text += f"; next is `{second.rung}`, but they share too few seeds to tell the two apart."
    elif lead.clear:
        text += (
            f", ahead of `{second.rung}` by {margin} points over the same seeds (not corrected for choosing the two)."
        )
    elif lead.half == 0:
        text += f"; its lead over `{second.rung}` is {lead.mean:.2f} points with each seed, too coarse for an interval."
    else:
        text += f", but its lead over `{second.rung}`, {margin} points over the same seeds, may be chance."
    if best.family == REFERENCE and len(own):
        text += f" It is a reference; of the testbed’s own, `{own.iloc[0].rung}` is best with {_level(own.iloc[0])}."
    return text


def _seeds(row: Any) -> str:
    """What its mean and what stands behind it are."""
    if row.n < 2:
        return "one seed, so no interval"
    what = "" if row.acc1_half == 0 else "; both in brackets" if row.n == 2 else ", 95 % interval"
    return f"mean of {row.n} seeds{what}"


def _level(row: Any) -> str:
    return accuracy(row.acc1, row.acc1_half, row.n).replace(" (n=1)", "") + " %"


def _undecided(frame: pd.DataFrame, table: pd.DataFrame) -> list[str]:
    """What these runs do not show, most important first."""
    notes = []
    missing, few = int(frame["acc1"].isna().sum()), table.loc[table["n"] > 0, "n"]
    if missing:
        notes.append(f"{missing} of {len(frame)} runs have no result yet or failed; they are listed below.")
    if len(few) and few.max() == 1:
        notes.append("With one seed per rung nothing is known of the spread between seeds.")
    elif len(few) and few.min() < 5:
        how_many = f"{few.min()} to {few.max()}" if few.min() < few.max() else f"{few.min()}"
        notes.append(
            f"With {how_many} seeds per rung only differences of several times the spread between seeds can be shown."
        )
    reach = frame.groupby("rung", sort=False)["acc1"].agg(lambda values: values.max() - values.min())
    if unsteady := list(reach.index[reach > UNSTEADY]):
        notes.append(
            f"The seeds of {_several(unsteady)} lie more than {UNSTEADY} points apart: what is measured there may be "
            "how well the recipe suits the model, and not its bias."
        )
    if set(EASY) & set(frame["dataset"]):
        notes.append(
            "Digits are too easy to rank architectures: trained to the end, the flat MLP ties with nearly every other "
            "one, so ranks must not be over-read."
        )
    for (dataset, holdout), group in frame.dropna(subset="acc1").groupby(["dataset", "holdout"], sort=False):
        if size := judges.count(str(dataset), float(holdout)):
            share = group.groupby("rung")["acc1"].mean() / 100
            errors = (100 * (share * (1 - share) / size) ** 0.5).agg(["min", "max"])
            error = " to ".join(dict.fromkeys(f"{value:.1f}" for value in errors))
            notes.append(
                f"The intervals are over seeds only: the {size:,} {judges.kind(group['holdout'])} of {dataset} add a "
                f"standard error of {error} points to an accuracy."
            )
    for key, what in (("commit", "commits"), ("processor", "kinds of processor"), ("threads", "thread counts")):
        values = recorded(frame, key)
        if len(values) > 1:
            effect = "" if key == "commit" else ", so images/s are not comparable"
            notes.append(f"The runs come from {len(values)} {what}{effect}.")
    ways = frame["condition"].nunique()
    tried = f"{ways} conditions were tried" if ways > 1 else "One recipe per rung was tried"
    return notes or [f"{tried}: the intervals are over seeds and say nothing of other recipes or data."]


def recorded(frame: pd.DataFrame, key: str) -> list[str]:
    """All values of an entry of env.json, in order of appearance; what no run recorded is left out."""
    return list(dict.fromkeys(str(env[key]) for env in frame["env"] if env.get(key) not in (None, "")))


def self_test_sentence(verdict: dict[str, Any]) -> tuple[bool | None, str]:
    """Whether the laboratory's self-test passed (None: it was not run), and what is to be said of it."""
    if not verdict:
        return None, "The self-test of this laboratory has not been run here: `python scripts/selftest.py --full`."
    parts = []
    for task in verdict["tasks"]:
        images = {kind: each["value"] for kind, each in task["images"].items()}
        more = {kind: "more than " * bool(each["never"]) for kind, each in task["images"].items()}
        counts = _listed([f"{more[kind]}{quantity(round(value))} ({kind})" for kind, value in images.items()])
        parts.append(f"{task['patches']} patches: {counts} images")
    what = "a task whose answer is known: filters that are shared need fewest images, a dense layer most"
    if verdict["passed"]:
        return True, f"The self-test passed. It is {what}. Measured with {'; with '.join(parts)}."
    return False, (
        f"Do not trust this page: the self-test of this laboratory failed. It is {what}; that order was not recovered. "
        f"Measured with {'; with '.join(parts)}. See `python scripts/selftest.py --full`."
    )


def _several(rungs: list[str]) -> str:
    """`a`, `b` and `c`; of many the first ones and how many more."""
    shown = [f"`{rung}`" for rung in rungs[: NAMED if len(rungs) > NAMED + 1 else None]]
    return _listed([*shown, f"{len(rungs) - NAMED} more"] if len(rungs) > len(shown) else shown)


def _listed(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
