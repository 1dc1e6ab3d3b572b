"""What the report says of a study that removes mixing: accuracy before and after, and what criteria and ways are worth.

From RESULTS/NAME/removal.csv, which scripts/bench/removal.py writes; nothing without it.
"""

from pathlib import Path

from analysis.removal import bench
from analysis.report.tables import Shown, shown
from engine.cli import tables as files

MARGIN = 0.5  # points, of the study's claims


def tables(results: Path, name: str) -> list[Shown]:
    """Two tables, or none where nothing was measured."""
    path = results / name / "removal.csv"
    rows = files.read(path, ("criterion", "source", "seed", "share", "way", "acc_before")) if path.is_file() else []
    if not rows:
        return []
    frame = bench.table(rows)
    sheets = [bench.sheet(frame), bench.effect_sheet(frame, MARGIN)]
    return [shown(f"removal-{place}", sheet) for place, sheet in enumerate(sheets) if sheet.rows]
