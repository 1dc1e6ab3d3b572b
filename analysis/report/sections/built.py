"""What is built in: which relabelings of the pixels training cannot tell apart, and what a shuffle of them costs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
from markupsafe import Markup

from analysis.bias import signatures, symmetry
from analysis.compare import ladder
from analysis.figures import bias_figures
from analysis.figures.draw import standalone
from analysis.probes import permutation_gap
from analysis.report import parts
from analysis.report.page import Page, Section
from analysis.report.parts import div
from analysis.report.sentences import symmetry_sentence
from analysis.report.tables import ROWS, Shown, limited, shown
from analysis.typeset import MISSING, Sheet, count_text, number, plus_minus, probability

PLACE, TITLE, SHORT = 30, "What is built in", "Built in"
STEP = 19
MARKS = {"pass": "●", "fail": "○", "undetermined": "?"}
HEADS = {"patches_own": "patches, own", "rows_columns": "rows, cols"}
GAP_NOTE = "gap: accuracy on whole images less that of the same seed trained and tested on shuffled ones, points; "
GAP_NOTE += "p same: of a gap of half a point or more (TOST); both after Holm over the rungs with the same shuffle"


def draw(page: Page) -> Section | None:
    frame = page.frame if not page.finished else page.frame[page.frame["rung"].isin(page.order)]
    measured, source = signatures.symmetries(limited(frame, "rung", ROWS), page.results, page.name)
    # Of a model that was trained on several data sets the rung that lost its layout, else the first.
    first = frame.assign(gap=frame["rung"].isin(page.gaps["rung"])).sort_values("gap", ascending=False, kind="stable")
    names = dict(first.drop_duplicates("name")[["name", "rung"]].itertuples(index=False))
    rows = [row | {"rung": names[row["rung"]]} for row in measured]
    known = [row for row in rows if row["gaps"]]
    if not known and page.gaps.empty:
        return None
    said = symmetry_sentence([row | {"rung": page.label(row["rung"])} for row in rows]) if known else ""
    optimizers = ", ".join(dict.fromkeys(row["opt"] for row in known))
    caption = (
        f"Left: ● training under {optimizers} cannot tell relabeled images from the original ones, in float64, on the "
    )
    caption += f"smallest member of each family, of the lattice with the same mixer ({source}); ○ it can. "
    table = permutation_gap.table(page.frame)
    tables = [_signatures(rows), _claims(page)]
    files = {}
    if len(page.gaps):
        caption += f"Right: accuracy on whole images less that on images whose {page.gaps['permute'].iloc[0]} are all "
        caption += "shuffled alike, in training and test; mark: mean, ticks: seeds, "
        caption += f"{page.seeds(page.gaps.groupby('rung').size())}. "
        tables.insert(0, _gaps(page, table))
        drawn = table.assign(look=[page.look(rung) for rung in table["rung"]])
        files = {"gaps": standalone(bias_figures.gaps(drawn.assign(label=drawn["rung"].map(page.label))))}
    return Section(said, _figure(page, rows), caption + page.budget, tables, files)


def _figure(page: Page, rows: Sequence[Mapping[str, Any]]) -> Markup:
    """A line per signature, from the strongest to none: its relabelings, its members, and the gap of each."""
    gaps = {rung: list(group["gap"]) for rung, group in page.gaps.groupby("rung", sort=False)}
    means = {rung: sum(values) / len(values) for rung, values in gaps.items()}
    signature, size = {}, {}
    for row in rows:
        verdicts = (row["gaps"].get(group) for group in symmetry.GROUPS)
        signature[row["rung"]] = tuple("" if gap is None else symmetry.verdict(gap) for gap in verdicts)
        size[row["rung"]] = -1.0 if math.isnan(row["log10_size"]) else row["log10_size"]
    classes: dict[tuple[str, ...], list[str]] = {}
    for rung in sorted(signature, key=lambda rung: (-size[rung], -signature[rung].count("pass"), means.get(rung, 0.0))):
        classes.setdefault(signature[rung], []).append(rung)
    at = parts.scale([value for values in gaps.values() for value in values], 5, (0,), 2)
    heads = (Markup('<span title="{}">{}</span>').format(tip, HEADS.get(g, g)) for g, tip in symmetry.GROUPS.items())
    title = "permutation gap, points of accuracy lost" if gaps else ""
    lines = [div("br head", div("dots", *heads), Markup("<div>rung</div>"), div("", title))]
    for passes, members in classes.items():
        height, marks = STEP * len(members) + 6, Markup()
        for place, rung in enumerate(members):
            if rung in gaps:
                marks += _gap(page, rung, gaps[rung], at, STEP * (place + 0.5) + 3)
        must = Markup('<text x="{}" y="{:g}">must be 0</text>').format(at(0.08 * (at.high - at.low)), height / 2 + 4)
        body = (
            (parts.grid(at, height, 0.0) if gaps else Markup())
            + marks
            + (must if gaps and passes[0] == "pass" else Markup())
        )
        panel = parts.panel(height, "permutation gap", body)
        lines.append(div("br", div("dots", *_dots(passes)), page.names(members), panel, style=f"--step:{STEP}px"))
    foot = div("br foot", Markup("<div></div><div></div>"), parts.axis(at)) if gaps else Markup()
    longest = max((len(page.label(rung)) for rung in signature), default=0)
    return div("built", *lines, foot, style=f"--names:{longest}")


def _dots(passes: Sequence[str]) -> list[Markup]:
    words = {"pass": "cannot be told apart", "fail": "matters", "undetermined": "undetermined", "": "not measured"}
    dot = Markup('<span title="{}: {}">{}</span>')
    pairs = zip(passes, symmetry.GROUPS.values(), strict=True)
    return [dot.format(tip, words[verdict], MARKS.get(verdict, MISSING)) for verdict, tip in pairs]


def _gap(page: Page, rung: str, values: Sequence[float], at: parts.Scale, y: float) -> Markup:
    mean = sum(values) / len(values)
    told = f"{page.label(rung)}: {number(mean, 2, '+')} points ({', '.join(number(value, 2, '+') for value in values)})"
    stem = Markup('<line class="stem" x1="{}" x2="{}" y1="{y:g}" y2="{y:g}"/>').format(at(0), at(mean), y=y)
    body = stem + parts.seeds(at, values, y) + parts.mark(at(mean), y, page.look(rung))
    return parts.row(page.key(rung), page.look(rung).kind, told, y, STEP, body)


def _signatures(rows: Sequence[Mapping[str, Any]]) -> Shown:
    """The signature by rung, and what it was measured on; the gap of losses as a tooltip."""
    groups = [group.replace("_", " ") for group in symmetry.GROUPS]
    cells, tips, data = [], [], []
    for row in rows:
        gaps = [row["gaps"].get(group) for group in symmetry.GROUPS]
        marks = [MISSING if gap is None else MARKS[symmetry.verdict(gap)] for gap in gaps]
        size = MISSING if math.isnan(row["log10_size"]) else f"10^{row['log10_size']:.1f}"
        cells.append([row["rung"], row["opt"], *marks, size, row["stand_in"] or MISSING])
        tips.append(["", "", *("" if gap is None else f"gap {gap:.0e}" for gap in gaps), "", ""])
        data.append({"rung": row["rung"], "opt": row["opt"], **row["gaps"], "log10_size": row["log10_size"]})
    note = (
        "● same to rounding, ○ not, – not measured: a reference, or a variant that no nano member of its family stands "
        "for; relabelings: how many orders of the numbers of a small image the permutations among these groups make"
    )
    header = ("rung", "optimizer", *groups, "relabelings", "measured on")
    sheet = Sheet("symmetry signatures", header, cells, pd.DataFrame(data), note)
    return shown("symmetry", sheet, align="ll" + "c" * len(groups) + "rl", tips=tips)


def _claims(page: Page) -> Shown:
    """What the families declare, and the tests measure on random weights."""
    table = ladder.table(page.table)[:ROWS]
    cells = [[row.rung, *(getattr(row, claim) for claim in ladder.CLAIMS)] for row in table.itertuples()]
    note = "as each family declares it; a run’s own arguments, such as depth=6, are not looked at"
    header = ("rung", *(ladder.WORDS[claim] for claim in ladder.CLAIMS))
    title = "what each architecture is forced to be"
    return shown("ladder", Sheet(title, header, cells, table[["rung", *ladder.CLAIMS]], note, "l" * len(header)))


def _gaps(page: Page, table: pd.DataFrame) -> Shown:
    cells = [
        [
            *(row.rung, row.permute, count_text(row)),
            *(number(row.acc1), number(row.acc1_permuted), plus_minus(row.gap, row.gap_half, row.n, "+")),
            plus_minus(row.relative, row.relative_half, row.n, "+"),
            *(probability(row.p_holm), probability(row.p_same_holm)),
        ]
        for row in table.itertuples()
    ]
    header = ("rung", "shuffled", "n", "accuracy, %", "of shuffled, %", "gap, points", "relative gap", "p", "p same")
    return shown("gap", replace(Sheet("permutation gaps", header, cells, table, GAP_NOTE), align="ll"))
