"""A sweep as two tables for pandas or a spreadsheet: one row per run, and one per epoch of a run."""

import json
from pathlib import Path
from typing import Any

from engine import store
from engine.run import Run
from slurm.progress import Watch
from slurm.sweep import Sweep

# From status.json: where the run stands, what came of it (percent), how fast it was, and why it failed.
STATUS = ("state", "epoch", "acc1", "best_acc1", "best_epoch", "images_per_s", "data_wait", "seconds", "attempt")
STATUS += ("host", "error_class", "error")
PROFILE = ("params", "macs", "flops")


def collect(sweep: Sweep) -> list[Path]:
    """Write runs.csv and epochs.csv into the sweep's folder; also for one half done, whose missing cells are empty."""
    rows, epochs = [], []
    for run, folder, status in zip(sweep.runs, sweep.folders, Watch(sweep).look(), strict=True):
        identity = {"signature": run.signature, "folder": run.name, "rung": run.rung}
        profile = store.read_json(folder / "profile.json")
        measured = {key: status.get(key) for key in STATUS} | {key: profile.get(key) for key in PROFILE}
        rows.append({**identity, **_fields(run), **measured})
        for row in store.read_summary(folder):
            epochs.append({**identity, "seed": run.seed, **row, "epoch": int(row["epoch"])})
    sweep.make_folder()
    written = []
    for name, table in (("runs.csv", rows), ("epochs.csv", epochs)):
        if table:
            store.write_bytes(sweep.folder / name, store.csv_text(table).encode())
            written.append(sweep.folder / name)
    return written


def _fields(run: Run) -> dict[str, Any]:
    return {key: json.dumps(value) if isinstance(value, (dict, list)) else value for key, value in run.record().items()}
