"""What the sweep was made to compare: a row per contrast, its effect on accuracy, on the permutation gap, on probes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd
from markupsafe import Markup, escape

from analysis import probes as known
from analysis.factorial import columns
from analysis.probes import permutation_gap
from analysis.report import alone, parts
from analysis.report.page import Page, Section
from analysis.report.parts import Scale, div, join
from analysis.report.tables import shown
from analysis.typeset import MISSING, Sheet, estimate, number, probability

PLACE, TITLE, SHORT = 0, "", "Answer"
TWO_LINES, ROWS = 14, 29  # contrasts that the first screen holds with their rungs below them, and without
HEIGHTS = (33, 21, 16)
ROOM = 30  # characters of what else differs, in whole words
NAMED = 7  # contrasts that a sentence names
WORDS = {"gain": "gain", "loss": "lose", "equal": "equal", "undecided": "undecided"}


class Column(NamedTuple):
    """A measure beside accuracy: values per contrast (`columns.measure`), and the number of seeds behind them."""

    title: str
    unit: str
    tip: str
    values: pd.DataFrame
    n: list[int]


def draw(page: Page) -> Section | None:
    asked = page.asked
    if asked.empty:
        return None
    beside = _columns(page, asked)
    return Section(
        figure=_cards(asked) + _legend(asked) + _forest(page, asked, beside),
        caption=_caption(page, asked, beside),
        tables=[shown("contrasts", _sheet(page, asked, beside))],
        files={"forest": alone.drawn(page, asked)},
    )


def _columns(page: Page, asked: pd.DataFrame) -> list[Column]:
    """Permutation gap, accuracy in other settings (--beside) and the COLUMN of probes: the first three there are."""
    found = []
    if len(page.gaps):
        kind = page.gaps["permute"].iloc[0]
        what = {"pixels": "the pixels", "patches": "whole patches"}[kind]
        tip = f"change of what shuffling {what} of all images alike costs; above 0, more is owed to the layout"
        values = page.gaps.rename(columns={"gap": "value"})
        found.append(("permutation gap", permutation_gap.UNITS[kind], tip, values[["rung", "seed", "value"]]))
    for other in page.beside:
        if len(other.values):
            found.append((other.setting, "points", f"change of accuracy with {other.setting}", other.values))
    eighth = (
        str(max(1, int(page.frame["img_size"].dropna().min() // 8))) if page.frame["img_size"].notna().any() else "1"
    )
    for name in known.names():
        key = known.read(name).get("COLUMN", "").replace("#", eighth)
        rows = page.probed[(page.probed["probe"] == name) & (page.probed["key"] == key)].dropna(subset="value")
        if len(rows):
            unit, factor = known.unit(name, key), 1
            if unit == "ratio":
                unit, factor = "% kept", 100
            unit = "% kept" if key.startswith("kept") else unit
            tip = f"change of {known.read(name).get('TITLE', name)}"
            values = rows.assign(value=factor * rows["value"])[["rung", "seed", "value"]]
            found.append((known.words(name, key), unit, tip, values))
    made = []
    for title, unit, tip, values in found[:3]:
        measured = columns.measure(asked, values)
        if measured["value"].notna().any():
            counts = values.groupby("rung").size()
            made.append(Column(title, unit, tip, measured, sorted(set(counts))))
    return made


def _cards(asked: pd.DataFrame) -> Markup:
    """A sentence per verdict, with its count; the decided ones with effects and which are clean.

    Interactions are told apart, and where one is clear, no mean over the cells that it says to be unlike.
    """
    crossed, means = asked[columns.is_interaction(asked)], asked[columns.is_mixed(asked)]
    asked = asked.drop(crossed.index.union(means.index))
    if asked.empty:
        return div("cards", _crossed(crossed, means))
    twice = asked["contrast"].duplicated(keep=False)  # of two families
    asked = asked.assign(contrast=asked["contrast"].mask(twice, asked["contrast"] + " (" + asked["family"] + ")"))
    verdicts = asked["verdict"].map(lambda words: words.partition(",")[0])
    gains = asked[verdicts == columns.GAIN].sort_values("diff", ascending=False, kind="stable")
    losses = asked[verdicts == columns.LOSS].sort_values("diff", kind="stable")
    open_, equal = asked[verdicts == columns.UNDECIDED], asked[verdicts == columns.EQUAL]
    cards = [_card("gain", gains, _decided(gains)), _card("loss", losses, _decided(losses, told=False))]
    said = [_listed(open_["contrast"])] if len(open_) else []
    said += [f"{row.contrast}: {row.said}" for row in open_.itertuples() if row.said]
    margin = " or ".join(dict.fromkeys(f"{value:g}" for value in (equal if len(equal) else asked)["margin"]))
    inside = _listed(equal["contrast"]) if len(equal) else Markup("None")
    lies = "are" if len(equal) > 1 else "is"
    said.append(Markup("{} {} shown to lie within ±\u00a0{} points").format(inside, lies, margin))
    cards.append(_card("undecided", open_, Markup(". ").join(said)))
    return div("cards", *cards, *([_crossed(crossed, means)] if len(crossed) else []))


def _crossed(crossed: pd.DataFrame, means: pd.DataFrame) -> Markup:
    """What interactions are there, in one card."""
    clear = crossed[crossed["verdict"].isin((columns.GAIN, columns.LOSS))]
    clear = clear.sort_values("diff", ascending=False, key=abs, kind="stable")
    one = Markup("{} <b>{}</b>")
    named = _listed([one.format(row.contrast, _signed(row.diff)) for row in clear.itertuples()])
    text = Markup("{} of {} shown").format(len(clear) or "None", len(crossed))
    text += Markup(": {}").format(named) if len(clear) else ""
    text += Markup("; so no mean of {}").format(", ".join(means["contrast"])) if len(means) else ""
    head = "Interactions" if len(crossed) > 1 else "Interaction"
    return Markup('<p class="card crossed"><strong>{}.</strong> {}.</p>').format(head, text)


def _card(verdict: str, rows: pd.DataFrame, text: Markup) -> Markup:
    word = {"gain": "gains", "loss": "loses"}.get(verdict, "") if len(rows) == 1 else ""
    text = text[:1].upper() + text[1:] if not text.startswith("<") else text
    card = Markup('<p class="card v-{}"><strong>{} {}.</strong> {}.</p>')
    return card.format(verdict, len(rows) or "None", word or WORDS[verdict], Markup(text))


def _decided(rows: pd.DataFrame, told: bool = True) -> Markup:
    """The contrasts with their effects, and which of them are one ingredient's.

    Args:
        told: whether to say what the largest cannot be told from.
    """
    if rows.empty:
        return Markup("No contrast is shown to do so")
    one = Markup("{} <b>{}</b>")
    said = [_listed([one.format(row.contrast, _signed(row.diff)) for row in rows.itertuples()])]
    clean = [row.contrast for row in rows.itertuples() if row.of]
    if len(clean) == len(rows):
        said.append(Markup("Nothing else changes with " + ("it" if len(rows) == 1 else "them")))
    else:
        said.append(Markup("Clean: {}").format(_listed(clean)) if clean else Markup("None is clean"))
        first = rows.iloc[0]
        if told and first["others"]:
            words = _and([columns.plain(word) for word in first["others"]])
            sentence = Markup("The {} of {} cannot be told from the {} that change{} with it")
            sentence = sentence.format(
                _signed(first["diff"]), first["contrast"], words, "s" * (len(first["others"]) == 1)
            )
            said.append(sentence)
    return Markup(". ").join(said)


def _listed(words: Sequence[str]) -> Markup:
    """Of many the first ones, and how many more: the forest has all."""
    shown = words[: NAMED if len(words) > NAMED + 1 else None]
    more = [f"and {len(words) - len(shown)} more"] if len(words) > len(shown) else []
    return Markup(", ").join([*shown, *more])


def _and(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _legend(asked: pd.DataFrame) -> Markup:
    dot = '<svg class="ic v-{}" viewBox="-7 -7 14 14" aria-hidden="true"><use href="#{}" class="vm{}"/></svg>'
    mixed = sum(1 for of in asked["of"] if not of)
    several = asked["weights"].map(len).gt(2).any()
    entries = [("gain", "circle", "", "gain"), ("loss", "circle", "", "loss"), ("undecided", "circle", "", "undecided")]
    equal = int(asked["verdict"].str.contains(columns.EQUAL).sum())
    entries.append(("equal", "circle", "", f"equal within the margin ({equal or 'none'})"))
    told = f"hollow: changes more than its ingredient ({mixed} of {len(asked)})"
    entries += [("undecided", "circle", " hollow", told)] if mixed else []
    entries += [("undecided", "diamond", "", "of more than two rungs")] if several else []
    spans = (Markup("<span>{}{}</span>").format(Markup(dot).format(v, s, more), text) for v, s, more, text in entries)
    return div("key", *spans)


def _forest(page: Page, asked: pd.DataFrame, beside: Sequence[Column]) -> Markup:
    height = HEIGHTS[(len(asked) > TWO_LINES) + (len(asked) > 22)]
    wide = parts.scale([*asked["low"], *asked["high"], *asked["diff"]], 7, (0,), 1.5)
    scales = [parts.scale(_ends(column.values), 3, (0,), 5) for column in beside]
    titles = (
        Markup('<div class="mini" title="{}"><b>{}</b><span>{}: difference</span></div>').format(c.tip, c.title, c.unit)
        for c in beside
    )
    head = div(
        "fr head",
        Markup('<div class="lab"><b>ingredient</b><span>and what else changes with it</span></div>'),
        Markup('<div class="acc"><b>accuracy</b><span>points: difference</span></div><div class="val"></div>'),
        *titles,
    )
    rows, before = [], ""
    for place, row in enumerate(asked.itertuples()):
        if row.family != before and asked["family"].nunique() > 1:
            rows.append(Markup('<div class="group">{} (margin ± {:g})</div>').format(row.family, row.margin))
        before = row.family
        rows.append(
            _row(page, row, height, wide, [(c, s, c.values.iloc[place]) for c, s in zip(beside, scales, strict=True)])
        )
    minis = (Markup('<div class="mini">{}<span></span></div>').format(parts.axis(s, "+")) for s in scales)
    foot = div(
        "fr foot", Markup("<div></div>"), div("acc", parts.axis(wide, "+")), Markup('<div class="val"></div>'), *minis
    )
    kind = (
        f"forest minis-{len(beside)}"
        + (" dense" if height < HEIGHTS[0] else "")
        + (" tight" if height == HEIGHTS[2] else "")
    )
    return div(kind, head, *rows, foot)


def _ends(values: pd.DataFrame) -> list[float]:
    return [*values["value"], *values["low"], *values["high"]]


def _row(page: Page, row: Any, height: int, wide: Scale, beside: Sequence[tuple[Column, Scale, pd.Series]]) -> Markup:
    middle, shape = height / 2, "diamond" if len(row.weights) > 2 else "circle"
    hollow = "" if row.of else " hollow"
    verdict = row.verdict.partition(",")[0]
    tip = f"{row.contrast}: {_estimate(row.diff, row.low, row.high)} points, {page.seeds([row.n])}"
    tip += f", p {probability(row.p)} after Holm, {row.verdict}; {row.said or 'differs in'} {row.differs}"
    band = Markup('<rect class="band" x="{}" width="{:.2f}%" y="0" height="{}"/>').format(
        wide(-row.margin), wide.share(row.margin) - wide.share(-row.margin), height
    )
    body = band + parts.grid(wide, height, 0.0)
    if not math.isnan(row.diff):
        body += parts.bar(wide, row.low, row.high, middle) + _verdict_mark(wide(row.diff), middle, shape, hollow)
    text = Markup("{}<span> ± {}</span>").format(_signed(row.diff), number((row.high - row.low) / 2, 1))
    value = text if row.high - row.low >= 0.1 else Markup(_signed(row.diff))
    cells = [_mini(row, column, at, own, height, shape, hollow) for column, at, own in beside]
    label = Markup('<div class="lab"><div><b>{}</b> {}</div><small>{}</small></div>')
    where = label.format(row.contrast, _chip(row), _route(page, row.weights))
    keys = " ".join(dict.fromkeys(page.key(rung) for rung in row.weights))
    drawn = Markup(
        '<div class="fr v-{}" data-r="{}" tabindex="0">{}<div class="acc"><svg height="{}" role="img"><title>{}</title>'
        '{}</svg></div><div class="val">{}</div>{}</div>'
    )
    return drawn.format(verdict, keys, where, height, tip, body, value, join(cells))


def _verdict_mark(x: str, y: float, shape: str, more: str) -> Markup:
    drawn = Markup('<svg x="{}" y="{:g}" overflow="visible"><use href="#{}" class="vm{}"/></svg>')
    return drawn.format(x, y, shape, more)


def _mini(row: Any, column: Column, at: Scale, own: pd.Series, height: int, shape: str, hollow: str) -> Markup:
    if math.isnan(own["value"]):
        return Markup('<div class="mini"><i>{}</i><svg height="{}"></svg><span>{}</span></div>').format(
            column.title, height, MISSING
        )
    clear = " clear" if own["p"] < 0.05 else ""
    told = f"{_estimate(own['value'], own['low'], own['high'])} {column.unit}, p {probability(own['p'])} after Holm"
    body = parts.grid(at, height, 0.0) + parts.bar(at, own["low"], own["high"], height / 2)
    body += _verdict_mark(at(own["value"]), height / 2, shape, f" small{hollow}")
    drawn = Markup(
        '<div class="mini{}" title="{}"><i>{}</i><svg height="{}" aria-hidden="true">{}</svg><span>{}</span></div>'
    )
    return drawn.format(
        clear, f"{row.contrast}, {column.title}: {told}", column.title, height, body, _signed(own["value"])
    )


def _chip(row: Any) -> Markup:
    if row.of:
        # A name that a reader may not take for the ingredient, such as "kernel to depthwise", is told by it.
        what = columns.ingredient(row) or "this"
        return Markup('<span class="chip" title="{}">only {}</span>').format(row.differs, what)
    words, fit = [columns.plain(word) for word in row.others], []
    while words and len(", ".join([*fit, words[0]])) <= ROOM:
        fit.append(words.pop(0))
    text = ", ".join(fit) + f" +{len(words)}" * bool(words)
    return Markup('<span class="chip mixed" title="changes: {}">+ {}</span>').format(row.differs, text or "unknown")


def _route(page: Page, weights: Mapping[str, float]) -> str:
    """From which rungs to which."""
    plus, minus = ([page.label(rung) for rung, weight in weights.items() if weight * side > 0] for side in (1, -1))
    if len(weights) == 2:
        return f"{minus[0]} → {plus[0]}"
    return f"({' + '.join(plus)}) − ({' + '.join(minus)})" if len(weights) <= 4 else f"{len(weights)} rungs"


def _signed(value: float) -> str:
    """One digit; what rounds to 0 has no sign."""
    return number(value, 1, "+" if round(value, 1) else "")


def _estimate(value: float, low: float, high: float) -> str:
    return MISSING if math.isnan(value) else estimate(value, low, high, 3, 2, "+")


def _caption(page: Page, asked: pd.DataFrame, beside: Sequence[Column]) -> str:
    tested = "; ".join(
        f"{len(group)}{f' of {family}' if family and asked['family'].nunique() > 1 else ''}"
        for family, group in asked.groupby("family", sort=False)
    )
    margin = " or ".join(dict.fromkeys(f"± {value:g}" for value in asked["margin"]))
    counts = [f"{column.title} {page.seeds(column.n)}" for column in beside]
    told = f"Bars: 95 % intervals; colour and weight: verdicts after Holm over the {tested} of a column; "
    told += f"band: {margin} points. "
    ways = ", paired" * ("" in set(asked["family"])) + ", one model of all runs" * (set(asked["family"]) != {""})
    told += "Of two seeds no interval is drawn. " * bool((asked["low"].isna() & (asked["n"] == 2)).any())
    told += f"Accuracy: {page.seeds(asked['n'])}{ways}" + (
        "; " + ", ".join(counts) + ", seed variance pooled over rungs" if counts else ""
    )
    return f"{told}. {page.budget}"


def _sheet(page: Page, asked: pd.DataFrame, beside: Sequence[Column]) -> Sheet:
    rows = []
    for place, row in enumerate(asked.itertuples()):
        cells = [
            row.contrast,
            row.family or "CONTRASTS",
            _route(page, row.weights),
            _estimate(row.diff, row.low, row.high),
        ]
        cells += [str(row.n), probability(row.p), probability(row.p_equal), f"{row.verdict} {row.said}".strip()]
        own = [column.values.iloc[place] for column in beside]
        cells += [_estimate(one["value"], one["low"], one["high"]) for one in own]
        rows.append([*cells, str(escape(row.differs)) and row.differs])
    header = ("contrast", "family", "from, to", "accuracy, points", "n", "p", "p equal", "verdict")
    header += tuple(f"{column.title}, {column.unit}" for column in beside)
    note = "p: two-sided, p equal: within the margin (TOST), both after Holm within the family; differs in: from − to +"
    align = "lllrrrrl" + "r" * len(beside) + "l"
    data = asked.drop(columns=["weights", "of", "others"])
    return Sheet("The contrasts with p values and all that differs", (*header, "differs in"), rows, data, note, align)
