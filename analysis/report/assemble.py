"""The report of a sweep: one page in one file that loads nothing, the same bytes for the same runs.

It opens with the result in three sentences, which are computed, and goes on from what is exact (symmetry) over what was
measured (probes, accuracy, cost) to how it went and how to do it again. What it says is in sentences.py, its parts are
in sections/, its tables in tables.py, its looks in page.html.j2, .css and .js.
Of very large sweeps it shows a part, and says which.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup, escape

from analysis.bias import symmetry
from analysis.compare import fairness, frames, ladder
from analysis.compare.frames import gain_text, quantity
from analysis.figures import draw
from analysis.report import sentences
from analysis.report.sections import bias, claimed, cost, removal
from analysis.report.tables import DRAWN, ROWS, Cell, Shown, commands, environment, health, limited, runs, shown
from analysis.report.tables import unfinished as without_result
from analysis.typeset import accuracy
from engine.errors import Refusal
from engine.fields.claims import Family
from engine.folder.published import places
from engine.folder.store import write_bytes
from engine.run import Run

BEST = 40  # rungs in the figures of a sweep that has more: the most accurate


def write_report(
    name: str,
    folders: Sequence[Path],
    results: Path,
    question: str = "",
    runs: Sequence[Run] | None = None,
    speeds: Path | None = None,
    planned: Mapping[str, Mapping[str, float]] | None = None,
    families: Mapping[str, Family] | None = None,
    baseline: Sequence[str] = (),
) -> Path:
    """Write RESULTS/NAME/report.html from the runs' folders, its figures beside it, and return its path.

    Args:
        name: of the sweep.
        folders: of its runs, in the order of the ladder.
        question: what the sweep asks; the page's title.
        runs: the runs of these folders, where known; see `frames.load`.
        speeds: latencies, of scripts/profile_model.py; without, RESULTS/NAME/speeds.csv if it is there.
        planned: the contrasts that the sweep was made for (`contrasts.registered`).
        families: its contrasts in families (analysis/factorial/families.py).
        baseline: the rungs that it compares others with, of which a table takes the first that it holds.

    Raises:
        Refusal: there are no runs, or the page cannot be written.
    """
    if not folders:
        raise Refusal(f"sweep {name} has no runs")
    path = results / name / "report.html"
    try:
        (path.parent / "figures").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refusal(f"cannot create {path.parent}: {error.strerror}; set SOFTMLP_RESULTS") from None
    speeds = fairness.speeds_file([path.parent], speeds)
    frame = frames.load(folders, runs, places(results, name))
    page = _page(frame, ladder.table(frames.rungs(frame)), results, name, speeds, planned or {}, baseline)
    page["families"] = claimed.tables(frame, families) if families else []
    page["removed"] = removal.tables(results, name)
    drawn = page.pop("drawn")
    text = _template().render(name=name, question=question, figures=_marked(drawn), **page)
    for old in (path.parent / "figures").glob("*.svg") if drawn else ():  # or they are what somebody published
        old.unlink()
    for key, svg in drawn.items():
        write_bytes(path.parent / "figures" / f"{key}.svg", draw.standalone(svg).encode())
    write_bytes(path, text.encode())
    return path


def _page(
    frame: pd.DataFrame,
    table: pd.DataFrame,
    results: Path,
    name: str,
    speeds: Path | None,
    planned: Mapping[str, Mapping[str, float]],
    baseline: Sequence[str],
) -> dict[str, Any]:
    """All that the template shows; `drawn` has the figures by name."""
    finished = bool((table["n"] > 0).any())
    best = _best(frame, table)
    signature, source = bias.symmetries(limited(frame, "rung", ROWS), results, name)
    probed, probes = bias.probes(frame)
    gaps = bias.permutation(frame) if finished else None
    against, power, compared_out = cost.differences(frame, table, baseline) if finished else (None, "", 0)
    budgets, unfair = cost.fair(frame, speeds, name, baseline)
    costs, uncosted = cost.cost_figures(frame, best, speeds) if finished else ({}, [])
    tuned = cost.tuned(frame)
    drawn = {f"probe-{probe}": svg for probe, _, svg, _ in probes} | ({"gaps": gaps[0]} if gaps else {})
    if finished:
        drawn |= {"ladder": draw.ladder(best, frame)} | costs
        curves = frames.curves(frame[frame["rung"].isin(best["rung"])])
        if len(curves):  # published tables may hold none
            drawn["curves"] = draw.learning_curves(curves, table["family"])
    drawn |= {f"tuning-{i}": svg for i, svg in enumerate(tuned[1])} if tuned else {}
    passed, verdict = sentences.self_test_sentence(bias.self_test(results))
    unfinished = without_result(frame)
    return {
        "drawn": drawn,
        "result": sentences.result(frame, table, signature, probed, planned),
        "easy": sentences.is_easy(frame),
        "self_test": {"passed": passed, "text": verdict},
        "total": len(frame),
        "states": ", ".join(f"{count} {state}" for state, count in frame["state"].value_counts(sort=False).items()),
        "symmetry": bias.symmetry_table(signature),
        "source": source,
        "groups": symmetry.GROUPS,
        "claims": _claims(table),
        "probes": [(probe, title, each) for probe, title, _, each in probes],
        "gaps": gaps[1] if gaps else None,
        "rungs": shown("rungs", frames.sheet(table)),
        "drawn_of": (len(best), len(table)),
        "planned": cost.planned(frame, planned) if finished and planned else None,
        "differences": against,
        "power": power,
        "compared_out": compared_out,
        "fair": budgets,
        "unfair": unfair,
        "costs": list(costs),
        "uncosted": uncosted,
        "tuned": {"table": tuned[0], "maps": len(tuned[1]), "warnings": tuned[2]} if tuned else None,
        "published": cost.reported(frame),
        "health": health(frame),
        "unfinished": shown("unfinished", unfinished) if unfinished else None,
        "runs": shown("runs", runs(frame)),
        "commands": commands(frame),
        "more_commands": max(frame["rung"].nunique() - ROWS, 0),
        "environment": environment(frame),
        "palette": [draw.css(dark) for dark in (False, True)],
        "dots": _dots(frame),
        "DRAWN": DRAWN,
    }


def _best(frame: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """The rungs that are drawn, in their order: those on the data of the most accurate, and of very many the best."""
    table = sentences.comparable(frame, table)
    chosen = table.sort_values("acc1", ascending=False, kind="stable")["rung"][:BEST]
    return table[table["rung"].isin(chosen)]


def _claims(table: pd.DataFrame) -> Shown:
    """What the families declare, with what differs from the rung before as tooltips and marks."""
    cells, tips = [], []
    table = table[:ROWS]
    for row in table.itertuples():
        cells.append([row.rung, *(getattr(row, claim) for claim in ladder.CLAIMS), quantity(row.params)])
        cells[-1] += [accuracy(row.acc1, row.acc1_half, row.n), gain_text(row)]
        told = {claim: f"differs from {row.before}" for claim in row.changed}
        tips.append(["", *(told.get(claim, "") for claim in ladder.CLAIMS), "", "", ""])
    words = tuple(ladder.WORDS[claim] for claim in ladder.CLAIMS)
    header = ("rung", *words, "parameters", "accuracy, %", "gain")
    columns = ["rung", *ladder.CLAIMS, "params", "acc1", "acc1_half", "gain", "gain_half"]
    sheet = frames.Sheet("The softness ladder", header, cells, table[columns], align="l" * (1 + len(words)))
    return shown("ladder", sheet, tips=tips)


def _dots(frame: pd.DataFrame) -> dict[str, str]:
    """The colour of each rung, by all names that a table may give it."""
    colours = draw.colours(frame["family"])
    known = {row.rung: colours[row.family] for row in frame.drop_duplicates("rung").itertuples()}
    return known | {row.name_: known[row.rung] for row in frame.rename(columns={"name": "name_"}).itertuples()}


def _marked(drawn: dict[str, str]) -> dict[str, Markup]:
    return {key: Markup(svg) for key, svg in drawn.items()}


def _prose(text: str) -> Markup:
    """Text with `code`; a number stays in one line with its sign and unit."""
    escaped = re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text)))
    return Markup(re.sub(" (?=[±%])|(?<=±) ", "\u00a0", escaped))


def _hang(cell: Cell) -> Markup:
    """A number whose star hangs into the margin, so that columns stay aligned."""
    text = str(escape(cell.text))
    return Markup(text[:-1] + '<span class="star">*</span>') if cell.starred else Markup(text)


def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    options = {"autoescape": True, "undefined": jinja2.StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    environment = jinja2.Environment(loader=loader, **options)
    environment.filters |= {"prose": _prose, "hang": _hang}
    return environment.get_template("page.html.j2")
