"""What a search over recipes ends with: its winners on the screen, tuning.csv and the maps beside the sweep's files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import judges
from analysis.compare import tuning
from analysis.compare.sweeps import Sweep
from analysis.figures import draw
from engine.cli.flags import show
from engine.errors import Refusal
from engine.folder import store


def tell(
    sweep: Sweep,
    rows: Sequence[dict[str, Any]],
    models: Sequence[str],
    axes: Sequence[str],
    ranges: Mapping[str, tuple[float, float]],
) -> list[tuning.Winner]:
    """Print the winner of each model, and write the files. Raises Refusal where no run has finished.

    Args:
        rows: of slurm.define.tune.outcomes.
        ranges: ends of those axes that are ranges.
    """
    table = tuning.cells(rows, axes)
    found = tuning.winners(table, axes, ranges)
    if not found:
        raise Refusal(f"no run has finished; look: python scripts/sweep.py status {sweep.name}", 1)
    kind = judges.kind(pd.Series([run.holdout for run in sweep.runs]))
    show(tuning.sheet(found, kind).rich())
    for win in found:
        print(*(f"{win.model}: {edge}" for edge in win.edges), sep="\n", end="\n" if win.edges else "")
    (sweep.folder / "figures").mkdir(parents=True, exist_ok=True)
    store.write_bytes(sweep.folder / "tuning.csv", table.to_csv(index=False).encode())
    for model in models:
        if svg := tuning.heat_map(table, model, axes, kind):
            path = sweep.folder / "figures" / f"tuning-{model.replace('/', '-')}.svg"
            store.write_bytes(path, draw.standalone(svg).encode())
            print(f"map: {_shown(path)}")
    return found


def _shown(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
