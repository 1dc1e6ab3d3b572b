"""How to do it again: commands, versions and machine, and the signature of every run."""

from markupsafe import Markup

from analysis.report.page import Page, Section
from analysis.report.parts import join
from analysis.report.sentences import recorded
from analysis.report.tables import ROWS, commands, environment, runs, shown

PLACE, TITLE, SHORT = 90, "Reproduce", "Reproduce"


def draw(page: Page) -> Section:
    lines = [f"python scripts/report.py {page.name}"]
    facts = environment(page.frame)
    if page.alone:
        commit = ", ".join(recorded(page.frame, "commit"))
        said = "These runs are known from their tables alone; their sweep is not one of this version"
        said += f", it is of commit `{commit}`." if commit else "."
        figure = _pre(lines)
    else:
        said = "What is done already is not trained again."
        launch, collect = (f"python scripts/sweep.py {verb} {page.name}" for verb in ("launch", "collect"))
        per_rung = commands(page.frame)
        figure = _pre([launch, collect, *lines])
        if per_rung:
            fold = Markup("<details><summary>Rung by rung</summary>{}{}</details>")
            more = max(page.frame["rung"].nunique() - ROWS, 0)
            note = Markup(
                '<p class="note">{:,} more rungs: <code>python scripts/sweep.py repro {} SIGNATURE</code> prints the '
                "command of a run.</p>"
            )
            figure += fold.format(_pre(per_rung), note.format(more, page.name) if more else Markup())
    rows = join(Markup("<dt>{}</dt><dd>{}</dd>").format(key, value) for key, value in facts.items())
    figure += Markup("<dl>{}</dl>").format(rows)
    return Section(said, figure, tables=[shown("runs", runs(page.frame))])


def _pre(lines: list[str]) -> Markup:
    return Markup("<pre>{}</pre>").format("\n".join(lines))
