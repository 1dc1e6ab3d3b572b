"""When it was learned: probes over training, of runs that kept weights; and whether they tell the permutation gap."""

import pandas as pd
from markupsafe import Markup

from analysis import probes as known
from analysis.bias import emergence
from analysis.report.page import Page, Section
from analysis.report.tables import Shown, shown
from analysis.typeset import MISSING, Sheet, number

PLACE, TITLE, SHORT = 42, "When it was learned, and whether it tells the gap", "Emerged"
PANELS = 4  # of numbers over training, those that most rungs have; the tables have all that tables of a probe show
ONSET_NOTE = (
    "onset: the epoch at which half of what is above the null at the end is there, mean over runs; – where the "
)
ONSET_NOTE += "end is not clear of its null, or the start has half of it"
RANK_NOTE = (
    "Spearman’s rank correlation over runs on whole images that have a shuffled partner, with its 95 % interval "
)
RANK_NOTE += "over rungs, each drawn with all its runs; not corrected for how many numbers there are"


def draw(page: Page) -> Section | None:
    whole = page.frame[page.frame["rung"].isin(page.order)] if page.finished else page.frame[:0]
    over, ranked = emergence.over_training(whole), emergence.against_gap(page.frame, _is_shown)
    over = over[
        pd.Series([_is_shown(*each) for each in zip(over["probe"], over["key"], strict=True)], over.index, bool)
    ]
    if over.empty and ranked.empty:
        return None
    onsets = emergence.onsets(over).sort_values("onset", kind="stable")
    rungs = over.groupby("key")["rung"].nunique()
    keys = sorted((key for key in known.EMERGING if key in rungs), key=lambda key: -rungs[key])[:PANELS]
    figure, caption = Markup(), ""
    if keys:
        figure = Markup(emergence.figure(over, keys, page.look, page.label))
        kept = over.groupby("folder")["epoch"].nunique()
        caption = f"Probes of the weights after {_range(kept)} epochs of {_count(len(kept), 'run')}, one line a run; "
        caption += f"dotted: the null. {page.budget}"
    tables = [_onsets(onsets), _ranked(ranked)]
    said = " ".join(filter(None, (_of_onsets(page, onsets), _of_ranks(ranked))))
    return Section(said, figure, caption, [table for table in tables if table is not None])


def _is_shown(name: str, key: str) -> bool:
    """What tables of a probe show, and what is shown over training."""
    return key in known.read(name)["HEADLINE"] or key in known.EMERGING


def _of_onsets(page: Page, onsets: pd.DataFrame) -> str:
    """The first and the last of the numbers that are shown to come clear of their null."""
    shown_ = onsets[onsets["key"].isin(known.EMERGING)]
    clear = shown_.dropna(subset="onset")
    if shown_.empty:
        return ""
    text = f"Of {_count(len(shown_), 'number')} of weights over training, rung by rung, {len(clear)} came clear of the "
    text += "null after the start"
    if len(clear) < 2:
        return f"{text}."
    ends = [clear.iloc[0], clear.iloc[-1]]
    first, last = (f"`{known.words(one['probe'], one['key'])}` of `{page.label(one['rung'])}`" for one in ends)
    return (
        f"{text}: the first {first}, half there after {number(ends[0]['onset'], 1)} epochs, the last {last}, after "
        + (f"{number(ends[1]['onset'], 1)}.")
    )


def _of_ranks(ranked: pd.DataFrame) -> str:
    """How many numbers rank runs as their gap does, how many would by chance, and the strongest."""
    if ranked.empty:
        return ""
    clear = ranked[(ranked["low"] > 0) | (ranked["high"] < 0)]
    best = ranked.loc[ranked["rho"].abs().idxmax()]
    text = (
        f"Of {_count(len(ranked), 'number')} of the probes {len(clear)} rank runs by their permutation gap, or against "
    )
    text += (
        f"it, with a 95 % interval clear of 0; about {len(ranked) / 20:.0f} would by chance alone. The strongest is "
    )
    text += f"`{known.words(best['probe'], best['key'])}` of `{best['probe']}`, rho {_rho(best)}, over "
    return f"{text}{_count(int(best['runs']), 'run')} of {_count(int(best['rungs']), 'rung')}."


def _onsets(onsets: pd.DataFrame) -> Shown | None:
    if onsets.empty:
        return None
    cells = [
        [row.rung, row.probe, known.words(row.probe, row.key), str(row.n), *_numbers(row)]
        for row in onsets.itertuples()
    ]
    header = ("rung", "probe", "number", "n", "first", "last", "null", "onset, epochs")
    return shown("onsets", Sheet("over training", header, cells, onsets, ONSET_NOTE, "lll"))


def _ranked(ranked: pd.DataFrame) -> Shown | None:
    if ranked.empty:
        return None
    ranked = ranked.sort_values("rho", key=abs, ascending=False, kind="stable")
    cells = [
        [known.words(row.probe, row.key), row.probe, row.gap, _rho(row._asdict()), str(row.runs), str(row.rungs)]
        for row in ranked.itertuples()
    ]
    header = ("number", "probe", "with the gap of", "rho", "runs", "rungs")
    return shown("ranked", Sheet("probes and the permutation gap", header, cells, ranked, RANK_NOTE, "lll"))


def _numbers(row: object) -> list[str]:
    return [MISSING if value != value else number(value, 2) for value in (row.first, row.last, row.null, row.onset)]


def _rho(row: object) -> str:
    return f"{number(row['rho'], 2, '+')} ({number(row['low'], 2, '+')}, {number(row['high'], 2, '+')})"


def _count(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


def _range(counts: pd.Series) -> str:
    low, high = counts.min(), counts.max()
    return f"{low}" if low == high else f"{low} to {high}"
