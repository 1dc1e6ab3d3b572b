"""A study that removes mixing: accuracy before and after healing, and what criteria and ways are worth.

From RESULTS/NAME/removal.csv, which scripts/bench/removal.py writes; nothing without it.
"""

from pathlib import Path

import pandas as pd
from markupsafe import Markup

from analysis.figures import removal_figures
from analysis.figures.draw import standalone
from analysis.removal import bench
from analysis.report.page import Page, Section
from analysis.report.tables import Shown, shown
from engine.cli import tables as files

PLACE, TITLE, SHORT = 45, "Mixing removed", "Removed"
SAID = "Layers that lost their mixing, chosen by each criterion and removed in each way, before healing and after it."
MARGIN = 0.5  # points, of the study's claims


CAPTION = (
    "Accuracy by share of the layers without their mixing, a panel per way, mean of seeds with its 95 % interval. "
    "Hollow: before healing; filled: after it; dashed: the whole model."
)


def draw(page: Page) -> Section | None:
    frame = measured(page.results, page.name)
    if frame is None:
        return None
    svg = removal_figures.bench(frame)
    return Section(SAID, Markup(svg), CAPTION, tables(frame), {"removal": standalone(svg)})


def measured(results: Path, name: str) -> pd.DataFrame | None:
    """What the bench measured; None where nothing was."""
    path = results / name / "removal.csv"
    rows = files.read(path, ("criterion", "source", "seed", "share", "way", "acc_before")) if path.is_file() else []
    return bench.table(rows) if rows else None


def tables(frame: pd.DataFrame) -> list[Shown]:
    """Of the accuracies, and of what differs."""
    sheets = [bench.sheet(frame), bench.effect_sheet(frame, MARGIN)]
    return [shown(f"removal-{place}", sheet) for place, sheet in enumerate(sheets) if sheet.rows]
