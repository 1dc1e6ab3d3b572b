"""A study that removes mixing: accuracy before and after healing, and what criteria and ways are worth.

From RESULTS/NAME/removal.csv, which scripts/bench/removal.py writes; nothing without it.
"""

from pathlib import Path

from analysis.removal import bench
from analysis.report.page import Page, Section
from analysis.report.tables import Shown, shown
from engine.cli import tables as files

PLACE, TITLE, SHORT = 45, "Mixing removed", "Removed"
SAID = "Layers that lost their mixing, chosen by each criterion and removed in each way, before healing and after it."
MARGIN = 0.5  # points, of the study's claims


def draw(page: Page) -> Section | None:
    found = tables(page.results, page.name)
    return Section(SAID, tables=found) if found else None


def tables(results: Path, name: str) -> list[Shown]:
    """Two tables, or none where nothing was measured."""
    path = results / name / "removal.csv"
    rows = files.read(path, ("criterion", "source", "seed", "share", "way", "acc_before")) if path.is_file() else []
    if not rows:
        return []
    frame = bench.table(rows)
    sheets = [bench.sheet(frame), bench.effect_sheet(frame, MARGIN)]
    return [shown(f"removal-{place}", sheet) for place, sheet in enumerate(sheets) if sheet.rows]
