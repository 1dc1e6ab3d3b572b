"""A sweep as tables for pandas or a spreadsheet: one row per run, one per epoch of a run, one per number of a probe."""

import csv
import io
import json
from pathlib import Path
from typing import Any

from engine import store
from engine.errors import Refusal
from engine.run import Run
from slurm.progress import Watch
from slurm.sweep import Sweep

# From status.json: where the run stands, what came of it (percent), how fast it was, and why it failed.
STATUS = (
    "state",
    "epoch",
    "acc1",
    "best_acc1",
    "best_epoch",
    "images_per_s",
    "data_wait",
    "seconds",
    "attempt",
)
STATUS += ("host", "error_class", "error")
ESTIMATE = ("value", "low", "high", "null")
PROFILE = ("params", "macs", "flops")


def collect(sweep: Sweep) -> list[Path]:
    """Write runs.csv, epochs.csv and, where runs were probed, probes.csv into the sweep's folder.

    Also for a sweep half done: missing cells are empty. Raises Refusal where tables are there and no run is: they are
    what somebody published.
    """
    if (sweep.folder / "runs.csv").exists() and not any(folder.exists() for folder in sweep.folders):
        raise Refusal(f"no run of {sweep.name} is here, so the tables in {sweep.folder} stay as they are")
    rows = []
    for run, folder, status in zip(sweep.runs, sweep.folders, Watch(sweep).look(), strict=True):
        profile = store.read_json(folder / "profile.json")
        measured = {key: status.get(key) for key in STATUS} | {key: profile.get(key) for key in PROFILE}
        rows.append(
            {
                "signature": run.signature,
                "folder": run.name,
                "rung": run.rung,
                **_fields(run),
                **measured,
            }
        )
    sweep.make_folder()
    written = []
    for name, text in (
        ("runs.csv", store.csv_text(rows)),
        ("epochs.csv", _epochs(sweep)),
        ("probes.csv", _probes(sweep)),
    ):
        if text:
            store.write_bytes(sweep.folder / name, text.encode())
            written.append(sweep.folder / name)
    return written


def _epochs(sweep: Sweep) -> str:
    """The rows of every summary.csv, digit for digit, behind the run that each belongs to; "" where there are none."""
    columns: dict[str, None] = {}
    parts = []
    for run, folder in zip(sweep.runs, sweep.folders, strict=True):
        try:
            with (folder / "summary.csv").open(newline="") as file:
                header, *lines = csv.reader(file)
        except (FileNotFoundError, ValueError):  # no epoch yet
            continue
        columns |= dict.fromkeys(header)
        parts.append(([run.signature, run.name, run.rung, run.seed], header, lines))
    if not parts:
        return ""
    names, text = list(columns), io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["signature", "folder", "rung", "seed", *names])
    for identity, header, lines in parts:
        if header != names:  # of another version of the program
            lines = [[dict(zip(header, line, strict=False)).get(name, "") for name in names] for line in lines]
        writer.writerows(identity + line for line in lines)
    return text.getvalue()


def _probes(sweep: Sweep) -> str:
    """Every number in every probes/NAME.json, with the interval over test images and the null; "" without any."""
    rows = [
        {"signature": run.signature, "folder": run.name, "rung": run.rung, "seed": run.seed, "permute": run.permute}
        | {"probe": path.stem, "key": key, **{name: estimate.get(name) for name in ESTIMATE}}
        for run, folder in zip(sweep.runs, sweep.folders, strict=True)
        for path in sorted((folder / "probes").glob("*.json"))
        for key, estimate in store.read_json(path).get("values", {}).items()
    ]
    return store.csv_text(rows) if rows else ""


def _fields(run: Run) -> dict[str, Any]:
    return {key: json.dumps(value) if isinstance(value, (dict, list)) else value for key, value in run.record().items()}
