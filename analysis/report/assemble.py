"""The report of a sweep: one page in one file that loads nothing, the same bytes for the same runs.

Its first screen is the question and what the sweep was made to compare; then follow the sections that sections/ holds,
found by file. What they draw from is page.py, what they draw with parts.py; the page's frame and looks are
page.html.j2, .css and .js. Of very large sweeps it shows a part, and says which.
"""

import importlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import pandas as pd
from markupsafe import Markup, escape

from analysis.bias import signatures
from analysis.compare import fairness, frames
from analysis.factorial import beside as cells
from analysis.figures import looks
from analysis.report import sentences
from analysis.report.page import Page, Section
from engine.errors import Refusal
from engine.fields.claims import Family
from engine.folder.published import Study, all_places, places
from engine.folder.store import FAILED, write_bytes
from engine.run import Run

SECTIONS = Path(__file__).parent / "sections"
MUST = ("PLACE", "TITLE", "SHORT", "draw")


class Drawn(NamedTuple):
    """A section with what it drew of these runs."""

    id: str
    title: str
    short: str
    drawn: Section


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
    labels: Mapping[str, str] | None = None,
    study: Study | None = None,
    beside: Mapping[str, pd.DataFrame] | None = None,
) -> Path:
    """Write RESULTS/NAME/report.html from the runs' folders, its figures beside it, and return its path.

    Args:
        name: of the sweep.
        folders: of its runs, in the order of the ladder.
        question: what the sweep asks; the page's title.
        runs: the runs of these folders, where known; see `frames.load`.
        speeds: latencies, of scripts/profile_model.py; without, speeds.csv beside the sweep's tables if it is there.
        planned: the contrasts that the sweep was made for (`contrasts.registered`).
        families: its contrasts in families (analysis/factorial/families.py).
        baseline: the rungs that it compares others with, of which a table takes the first that it holds.
        labels: what its rungs are called (LABELS).
        study: where there are tables alone, and no folders.
        beside: the runs of other sweeps of these rungs, by name, of `frames.load`.

    Raises:
        Refusal: there are no runs, or the page cannot be written.
    """
    if not folders and study is None:
        raise Refusal(f"sweep {name} has no runs")
    path = results / name / "report.html"
    try:
        (path.parent / "figures").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refusal(f"cannot create {path.parent}: {error.strerror}; set SOFTMLP_RESULTS") from None
    frame = frames.load(folders, runs, all_places(results, name), [study] if study else ())
    speeds = fairness.speeds_file(places(results, name), speeds)
    told = {"wanted": planned or {}, "families": families or {}, "baseline": baseline, "given": labels or {}}
    others = [cells.of(frame, other, key) for key, other in (beside or {}).items()]
    page = Page(name, frame, results, speeds=speeds, alone=study is not None, beside=others, **told)
    sections = drawn(page)
    asked = any(not section.title for section in sections)
    cards = [] if asked else sentences.unasked(frame, page.ranked, page.table, page.label)
    passed, verdict = sentences.self_test_sentence(signatures.self_test(results))
    text = _template().render(
        name=name,
        question=question,
        state=_state(page),
        warnings=[*([verdict] if passed is False else []), *_failed(page)],
        cards=cards,
        sections=sections,
        keys=page.keys,
        symbols=Markup(looks.symbols()),
        hues=[looks.css(dark) for dark in (False, True)],
    )
    files = {key: svg for section in sections for key, svg in section.drawn.files.items()}
    for old in (path.parent / "figures").glob("*.svg") if files else ():  # or they are what somebody published
        old.unlink()
    for key, svg in files.items():
        write_bytes(path.parent / "figures" / f"{key}.svg", svg.encode())
    write_bytes(path, text.encode())
    return path


def drawn(page: Page) -> list[Drawn]:
    """All sections that say something of these runs, in their places. Raises Refusal for a file that is none."""
    found = []
    for path in sorted(SECTIONS.glob("[a-z]*.py")):
        module = importlib.import_module(f"analysis.report.sections.{path.stem}")
        if missing := [word for word in MUST if not hasattr(module, word)]:
            raise Refusal(f"{path} has no {missing[0]}; a section has {', '.join(MUST)} (sections/__init__.py)")
        found.append((module.PLACE, path.stem, module))
    made = [(stem, module, module.draw(page)) for _, stem, module in sorted(found, key=lambda one: one[:2])]
    return [Drawn(stem, module.TITLE, module.SHORT, one) for stem, module, one in made if one is not None]


def _state(page: Page) -> str:
    """164 of 164 runs done, and where that is known from."""
    states = page.frame["state"].value_counts(sort=False).items()
    told = ", ".join(f"{count:,} {state}" for state, count in states)
    of_tables = int((page.frame["table"] != "").sum())
    where = " · read from the published tables" if of_tables == len(page.frame) else ""
    where = where or (f" · {of_tables:,} from the published tables" if of_tables else "")
    return f"{len(page.frame):,} run{'s' * (len(page.frame) != 1)}: {told}{where}"


def _failed(page: Page) -> list[str]:
    """What stands above the question: runs that failed."""
    failed = page.frame[page.frame["state"].isin([FAILED, frames.UNREADABLE])]
    if failed.empty:
        return []
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in failed["error_class"].value_counts(sort=False).items())
    rungs = list(dict.fromkeys(page.label(rung) for rung in failed["rung"]))
    named = ", ".join(f"`{rung}`" for rung in rungs[: sentences.NAMED]) + f" and {len(rungs) - 4} more" * (
        len(rungs) > 4
    )
    return [f"{len(failed):,} of {len(page.frame):,} runs failed ({kinds}): {named}. They are listed under Health."]


def prose(text: str) -> Markup:
    """Text with `code`; a number stays in one line with its sign and unit."""
    escaped = re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text)))
    return Markup(re.sub(" (?=[±%])|(?<=±) ", "\u00a0", escaped))


def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    options: dict[str, Any] = {"undefined": jinja2.StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    environment = jinja2.Environment(loader=loader, autoescape=True, **options)
    environment.filters["prose"] = prose
    return environment.get_template("page.html.j2")
