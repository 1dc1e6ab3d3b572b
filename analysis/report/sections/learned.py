"""What was learned: every probe of the trained models, a panel per key, on one list of rungs."""

import math

import pandas as pd
from markupsafe import Markup

from analysis import probes as known
from analysis.bias import probe_table
from analysis.report import parts
from analysis.report.page import Page, Section
from analysis.report.parts import div, join
from analysis.report.sentences import probe_sentence
from analysis.report.tables import Shown, shown
from analysis.typeset import MISSING, Sheet, estimate, number

PLACE, TITLE, SHORT = 40, "What was learned", "Learned"
STEP = 19
PANELS = 6  # beside each other; of more probes each has its first headline, in several such rows
NEAR = 3  # the nulls are drawn where they make a panel at most so many times as wide
LEFT_OUT = ("acc",)  # what another section shows
KEPT = ("R_", "kept_", "area")  # how keys of what is left of the accuracy begin
NOTE = (
    "mean over n seeds ± half its 95 % interval, or [its ends] where it is lopsided; of two seeds both in brackets; of "
    "one [the interval over test images]; null: what it would be without the effect, of an accuracy by guessing"
)


def draw(page: Page) -> Section | None:
    if page.probed.dropna(subset="value").empty:
        return None
    summary = probe_table.summary(page.probed)
    keys = _keys(page)
    scroll, body = Markup('<div class="scroll">{}</div>'), Markup()
    for start in range(0, len(keys), PANELS):
        panels = join(_panel(page, name, key) for name, key in keys[start : start + PANELS])
        style = f"--step:{STEP}px;--panels:{min(len(keys), PANELS)}"
        body += scroll.format(div("probes", page.names(page.order), panels, style=style))
    counts = page.probed.groupby(["rung", "probe", "key"]).size()
    caption = (
        "Probes of the trained models on the images that judge, sorted by accuracy. Line at 100: the change does not "
    )
    caption += f"count. Mark: mean; ticks: seeds, {page.seeds(list(counts))}; dotted: the null, where it is near; each "
    caption += "panel has its own scale. "
    said = probe_sentence(summary, page.label)
    return Section(said, body, caption + page.budget, [_table(page, summary, name) for name in _measured(page)])


def _measured(page: Page) -> list[str]:
    """The probes that these runs have, by name."""
    return [name for name in known.names() if (page.probed["probe"] == name).any()]


def _keys(page: Page) -> list[tuple[str, str]]:
    """Probes and keys that are drawn: what was derived (`kept`) first, then the headlines, in turn of probes."""
    found: list[list[tuple[str, str]]] = []
    for name in _measured(page):
        there = set(page.probed.loc[(page.probed["probe"] == name) & page.probed["value"].notna(), "key"])
        derived = sorted((key for key in there if key.startswith("kept_")), key=lambda key: int(key.partition("_")[2]))
        instead = {key.replace("kept", "acc") for key in derived}
        headline = [key for key in known.read(name)["HEADLINE"] if key in there and key not in instead]
        found.append([(name, key) for key in [*derived[1:3], *headline] if key not in LEFT_OUT])
    rungs = page.probed.dropna(subset="value").groupby("probe")["rung"].nunique()
    found.sort(key=lambda own: -rungs[own[0][0]] if own else 0)  # what most rungs have comes first
    turns = max(map(len, found), default=0)
    most = max(PANELS, sum(map(bool, found)))
    return [own[turn] for turn in range(turns) for own in found if turn < len(own)][:most]


def _panel(page: Page, name: str, key: str) -> Markup:
    rows = page.probed[(page.probed["probe"] == name) & (page.probed["key"] == key)].dropna(subset="value")
    unit = known.unit(name, key)
    kept = key.startswith(KEPT)
    factor = 100 if kept and unit == "ratio" else 1
    unit = "% kept" if kept else unit
    digits = 1 if unit in ("%", "% kept", "points") else 2
    values = {rung: list(factor * group["value"]) for rung, group in rows.groupby("rung", sort=False)}
    nulls = (factor * rows.groupby("rung", sort=False)["null"].mean()).dropna()
    at, height, marks = (
        _scale([v for own in values.values() for v in own], list(nulls)),
        STEP * len(page.order),
        Markup(),
    )
    for place, rung in enumerate(page.order):
        y = STEP * (place + 0.5)
        if own := values.get(rung):
            each = ", ".join(number(value, digits) for value in own)
            told = (
                f"{page.label(rung)}, {known.words(name, key)}: {number(sum(own) / len(own), digits)} {unit} ({each})"
            )
            body = parts.seeds(at, own, y) + parts.mark(at(sum(own) / len(own)), y, page.look(rung))
            if rung in nulls and at.low <= nulls[rung] <= at.high:
                told += f"; null {number(nulls[rung], digits)}"
                body = parts.null(at, nulls[rung], y) + body
            marks += parts.row(page.key(rung), page.look(rung).kind, told, y, STEP, body)
        else:
            marks += Markup('<text class="none" x="50%" y="{:g}" text-anchor="middle">not measured</text>').format(
                y + 4
            )
    body = parts.grid(at, height, 100.0 if unit == "% kept" else 0.0) + marks
    head = Markup("<h4>{}<span>{}</span></h4>").format(known.words(name, key), unit)
    return div("panel", head, parts.panel(height, known.words(name, key), body), parts.axis(at))


def _scale(values: list[float], nulls: list[float]) -> parts.Scale:
    """Of the values, and of the nulls where these are near."""
    whole, reach = [*values, *nulls], max(values) - min(values)
    return parts.scale(whole if max(whole) - min(whole) <= NEAR * reach else values, 3, (), 5)


def _table(page: Page, summary: pd.DataFrame, name: str) -> Shown:
    rows = summary[summary["probe"] == name]
    there = set(rows.loc[rows["value"].notna(), "key"])
    units = {key: known.unit(name, key) for key in known.read(name)["HEADLINE"] if key in there}
    cells = []
    for rung, group in rows.groupby("rung", sort=False):
        by_key = {row.key: row for row in group.itertuples()}
        texts = [_text(by_key[key], unit) if key in by_key else MISSING for key, unit in units.items()]
        cells.append([rung, str(int(group["n"].max())), *texts])
    header = ("rung", "n", *(f"{known.words(name, key)}, {unit}" for key, unit in units.items()))
    title = known.read(name).get("TITLE", name.replace("_", " "))
    return shown(f"probe-{name}", Sheet(title[:1].lower() + title[1:], header, cells, rows, NOTE))


def _text(row: object, unit: str) -> str:
    if math.isnan(row.value):
        return MISSING
    digits = 1 if unit in ("%", "points") else 2
    return f"{estimate(row.value, row.low, row.high, row.n, digits)}, null {number(row.null, digits)}"
