"""What the page says in words: sentences that are computed, and what the runs do not show.

What an ingredient is worth is said only of the contrasts that the sweep was made for (sections/asked.py). The order of
a file is no claim: which rung stands before which says nothing of cause.
"""

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from analysis import judges
from analysis.compare import frames
from analysis.compare.frames import REFERENCE
from analysis.typeset import accuracy, plus_minus, quantity

UNSTEADY = 5  # points between the best and the worst seed of a rung beyond which its mean says little
EASY_DATA = ("digits",)
EASY = (
    "Digits are too easy to rank architectures: trained to the end, the flat MLP ties with nearly every other one, so "
    "ranks must not be over-read."
)
NAMED = 4  # rungs that a sentence names; of more it says how many

Label = Callable[[str], str]
"""Of a rung, what it is called."""


def unasked(frame: pd.DataFrame, ranked: pd.DataFrame, table: pd.DataFrame, label: Label) -> list[tuple[str, str, str]]:
    """Where no contrast was named: which rung is best, between what accuracies range, what is not decided.

    Each as verdict (a colour), label and text.
    """
    notes = ("undecided", "Not decided", " ".join(undecided(frame, table, label)))
    if ranked.empty:
        return [("undecided", "No result", "No run of this sweep has finished."), notes]
    spread = _range(ranked, label)
    return [
        ("equal", "Best rung", lead(frame, ranked, label)),
        *([("equal", "Range", spread)] if spread else []),
        notes,
    ]


def is_easy(frame: pd.DataFrame) -> bool:
    """Whether accuracy on these data ranks nothing."""
    return bool(len(frame)) and set(frame["dataset"].dropna()) <= set(EASY_DATA)


def symmetry_sentence(symmetries: Sequence[dict[str, Any]]) -> str:
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


def probe_sentence(probed: pd.DataFrame, label: Label) -> str:
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
        parts.append(f"{what} {ends[0]}{unit} (`{label(most['rung'])}`) to {ends[1]} % (`{label(least['rung'])}`)")
    text = "; ".join(parts)
    return text[:1].upper() + text[1:] + "." if text else ""


def _range(ranked: pd.DataFrame, label: Label) -> str:
    """From which rung to which accuracies range; what lies between them is not said, as nobody asked beforehand."""
    if len(ranked) < 2:
        return ""
    low, high = ranked.iloc[-1], ranked.iloc[0]
    return (
        f"Accuracies on the same data range from {low.acc1:.2f} % (`{label(low.rung)}`) to {high.acc1:.2f} % "
        f"(`{label(high.rung)}`). No contrast was named beforehand (CONTRASTS of the sweep’s file), so no ingredient "
        "is said to buy anything."
    )


def lead(frame: pd.DataFrame, ranked: pd.DataFrame, label: Label) -> str:
    """The most accurate rung, and whether its lead over the next may be chance.

    Args:
        ranked: finished rungs, best first; only those on the data of the best are compared with it.
    """
    data = frame.drop_duplicates("rung").set_index("rung")["data"]
    ranked = ranked[ranked["rung"].map(data) == data[ranked["rung"].iloc[0]]]
    best, own = ranked.iloc[0], ranked[ranked["family"] != REFERENCE]
    text = f"The most accurate rung is `{label(best.rung)}` with {_level(best)} ({_seeds(best)})"
    if len(ranked) < 2:
        return f"{text}; no other rung on the same data has finished."
    second = ranked.iloc[1]
    ahead = frames.paired(frame, best.rung, second.rung)
    margin, name = plus_minus(ahead.mean, ahead.half, ahead.n), label(second.rung)
    if ahead.n < 2:
        text += f"; next is `{name}`, but they share too few seeds to tell the two apart."
    elif ahead.clear:
        text += f", ahead of `{name}` by {margin} points over the same seeds (not corrected for choosing the two)."
    elif ahead.half == 0:
        text += f"; its lead over `{name}` is {ahead.mean:.2f} points with each seed, too coarse for an interval."
    else:
        text += f", but its lead over `{name}`, {margin} points over the same seeds, may be chance."
    if best.family == REFERENCE and len(own):
        text += (
            f" It is a reference; of the testbed’s own, `{label(own.iloc[0].rung)}` is best with {_level(own.iloc[0])}."
        )
    return text


def _seeds(row: Any) -> str:
    """What its mean and what stands behind it are."""
    if row.n < 2:
        return "one seed, so no interval"
    what = "" if row.acc1_half == 0 else "; both in brackets" if row.n == 2 else ", 95 % interval"
    return f"mean of {row.n} seeds{what}"


def _level(row: Any) -> str:
    return accuracy(row.acc1, row.acc1_half, row.n).replace(" (n=1)", "") + " %"


def undecided(frame: pd.DataFrame, table: pd.DataFrame, label: Label = str) -> list[str]:
    """What these runs do not show, most important first."""
    notes = []
    missing, few = int(frame["acc1"].isna().sum()), table.loc[table["n"] > 0, "n"]
    if missing:
        notes.append(f"{missing} of {len(frame)} runs have no result yet or failed; they are listed under Health.")
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
            f"The seeds of {_several([label(rung) for rung in unsteady])} lie more than {UNSTEADY} points apart: what "
            "is measured there may be "
            "how well the recipe suits the model, and not its bias."
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
