"""Accuracy at equal cost: every rung, its seeds, its mean and interval, and what it costs."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from markupsafe import Markup

from analysis.compare import contrasts, fairness
from analysis.report import parts
from analysis.report.page import Page, Section
from analysis.report.parts import div, join
from analysis.report.sentences import EASY, is_easy, lead
from analysis.report.tables import DRAWN, Shown, limited, shown
from analysis.stats import within
from analysis.typeset import number, plus_minus, quantity
from engine.errors import Refusal

PLACE, TITLE, SHORT = 10, "Accuracy at equal cost", "Equal cost"
STEP = 22
APART = 1.5  # times as many MACs: two rungs of one family stand on one line, the cheaper one hollow
BUDGETS = 6  # tables per kind of fairness


def draw(page: Page) -> Section | None:
    if not page.finished:
        return None
    tables, notes = _fair(page.frame, page.speeds, page.name, page.baseline)
    against, power, left_out = _differences(page.frame, page.table, page.baseline)
    said = lead(page.frame, page.ranked, page.label) + (f" {EASY}" if is_easy(page.frame) else "")
    more = f" The {DRAWN} most accurate; {left_out:,} rungs more are not compared." if left_out else ""
    caption = "Accuracy (%) on the images that judge, after the last epoch. Ticks: seeds; mark: mean; bar: its 95 % "
    caption += f"interval, {page.seeds(page.ranked['n'])}. "
    caption += ("Hollow and joined: the same family at fewer MACs. " if _small(page.ranked) else "") + page.budget
    if page.other_datasets:
        caption += (
            f" Runs on {', '.join(page.other_datasets)} are judged by other images and stand in the tables alone."
        )
    caption += more + "".join(f" {note}" for note in (power, *notes) if note)
    return Section(said, _legend(page) + _rows(page), caption, [against, *tables])


def _small(ranked: pd.DataFrame) -> dict[str, str]:
    """The cheaper of two rungs of one family that cost so differently, by the dearer one."""
    found = {}
    for (_, _), kin in ranked.groupby(["family", "condition"], sort=False):
        for _, pair in kin.groupby(kin["model"], sort=False):
            ordered = pair.sort_values("macs", ascending=False)
            if len(pair) == 2 and ordered["macs"].iloc[0] > APART * ordered["macs"].iloc[1]:
                found[ordered["rung"].iloc[0]] = ordered["rung"].iloc[1]
    return found


def _legend(page: Page) -> Markup:
    """Every family once, before its first use, by the kind of its mixing."""
    from analysis.figures.looks import KINDS

    groups = []
    for kind, (_, _, words) in KINDS.items():
        here = {name: look for name, look in page.families_drawn.items() if look.kind == kind}
        spans = join(Markup("<span>{}{}</span>").format(parts.icon(look), name) for name, look in here.items())
        groups += [Markup("<div><em>{}</em>{}</div>").format(words, spans)] if here else []
    return div("legend", *groups)


def _rows(page: Page) -> Markup:
    table, small = page.ranked.set_index("rung"), _small(page.ranked)
    order = [rung for rung in page.order if rung not in small.values()]
    ends = [end for rung in page.order for end in (*page.values[rung], *_interval(table.loc[rung]))]
    at, height, marks = parts.scale(ends, 7, (), 1.5), STEP * len(order), []
    for place, rung in enumerate(order):
        y, body, told = STEP * (place + 0.5), Markup(), []
        if rung in small:
            line = Markup('<line class="link" x1="{}" x2="{}" y1="{y:g}" y2="{y:g}"/>')
            body += line.format(at(table["acc1"][small[rung]]), at(table["acc1"][rung]), y=y)
        for own in (rung, *([small[rung]] if rung in small else [])):
            row = table.loc[own]
            body += parts.seeds(at, page.values[own], y) + parts.bar(at, *_interval(row), y)
            body += parts.mark(at(row["acc1"]), y, page.look(own), "" if own == rung else "hollow")
            told.append(f"{page.label(own)}: {_level(row)} %, {page.seeds([row['n']])}")
        marks.append(parts.row(page.key(rung), page.look(rung).kind, "; ".join(told), y, STEP, body))
    drawn = parts.panel(height, "Accuracy of each rung", parts.grid(at, height) + join(marks)) + parts.axis(at)
    return div(
        "rows cost", page.names(order), div("", drawn), _numbers(page, table, order, small), style=f"--step:{STEP}px"
    )


def _numbers(page: Page, table: pd.DataFrame, order: Sequence[str], small: dict[str, str]) -> Markup:
    line = Markup(
        '<li data-r="{}"><span>{}</span><span class="soft">{}</span>'
        '<span class="soft">{}</span><span class="soft">{}</span></li>'
    )
    lines = []
    for rung in order:
        row, other = table.loc[rung], table.loc[small[rung]] if rung in small else None
        told = "" if other is None else number(other["acc1"], 1)
        lines.append(line.format(page.key(rung), _level(row, 1), told, quantity(row["params"]), quantity(row["macs"])))
    heads = ("accuracy, %", "hollow" if small else "", "params", "MACs")
    head = div("numhead", *(Markup("<span>{}</span>").format(text) for text in heads))
    return div("nums", head, Markup("<ul>{}</ul>").format(join(lines)))


def _interval(row: pd.Series) -> tuple[float, float]:
    """Of two seeds none, as it would say next to nothing; the ticks are these."""
    if row["n"] < 3:
        return row["acc1"], row["acc1"]
    return within(row["acc1"], row["acc1_half"])


def _level(row: pd.Series, digits: int = 2) -> str:
    if row["n"] < 3 or digits == 2:
        return plus_minus(row["acc1"], row["acc1_half"], row["n"]) if row["n"] > 2 else number(row["acc1"], digits)
    if row["acc1_half"] < 0.05:
        return number(row["acc1"], digits)
    return f"{number(row['acc1'], digits)} ± {number(row['acc1_half'], digits)}"


def _differences(frame: pd.DataFrame, table: pd.DataFrame, baseline: Sequence[str]) -> tuple[Shown, str, int]:
    """All rungs, against the baseline where the sweep names one: table, what so many seeds can show, and how many are
    left out where there are very many."""
    part = frame
    if (over := len(table) - DRAWN) > 0:
        ranked = table.sort_values("acc1", ascending=False, kind="stable")["rung"]
        part = frame[frame["rung"].isin(ranked[:DRAWN]) | frame["rung"].isin(baseline) | frame["name"].isin(baseline)]
    here = [name for name in baseline if name in {*part["name"], *part["rung"]}]
    against = contrasts.against(part, here)
    chosen = dict.fromkeys(part.loc[part["rung"].isin(set(against["baseline"]) - {""}), "name"])
    title = f"all rungs, and their differences to {', '.join(chosen)}" if chosen else "all rungs, with their ranks"
    power = contrasts.power_note(part, against) if chosen else ""
    return shown("rungs", contrasts.sheet(against, title)), power, max(over, 0)


def _fair(
    frame: pd.DataFrame, speeds: Path | None, name: str, baseline: Sequence[str]
) -> tuple[list[Shown], list[str]]:
    """A table for each budget that rungs share, of each kind of fairness; and what could not be compared, and why.

    A budget that holds no baseline of the sweep's has accuracies and ranks, and no differences.
    """
    found, notes = [], []
    frame = limited(frame, "rung", 2 * DRAWN)
    for kind in fairness.KINDS if speeds else ("macs", "params"):
        try:
            budgets, missed = fairness.fair(frame, kind, speeds=speeds, sweep=name)
        except Refusal as error:
            notes.append(f"Not at equal {fairness.WORDS[kind]}: {error}.")
            continue
        budgets = [(title, part) for title, part in budgets if part["acc1"].notna().any()][-BUDGETS:]
        if not budgets:
            notes.append(f"No two rungs are of equal {fairness.WORDS[kind]}, to {fairness.TOLERANCE:.0%}.")
            continue
        here = {name for _, part in budgets for name in (*part["name"], *part["rung"])}
        tables = contrasts.tables([part for _, part in budgets], [name for name in baseline if name in here])
        for table, (title, _) in zip(tables, budgets, strict=True):
            found.append(shown(f"fair-{kind}-{len(found)}", contrasts.sheet(table, title[0].lower() + title[1:])))
        if missed:
            found.append(shown(f"missed-{kind}", missed))
    return found, notes
