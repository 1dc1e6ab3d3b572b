"""What a sweep ends with on this machine: the table of rungs, its probes, and the report."""

import sys
from pathlib import Path

from analysis.bias import probe_table
from analysis.compare import frames
from analysis.compare.sweeps import Sweep
from engine.errors import Refusal
from engine.folder.published import RUNS, all_places_of
from engine.run import How

SHARED = ("speeds.csv", "symmetry.csv", "dsd.json")  # beside the runs or of the sweep; the report shows them


def finish(sweep: Sweep, how: How) -> Path:
    """Print the table of rungs, measure the sweep's probes, write the report unless it is newer than all it shows.

    The path of the report.
    """
    frames.show(frames.rungs(frames.of_sweep(sweep)))
    _probe(sweep, how)
    report = sweep.folder / "report.html"
    sources = [sweep.folder / "manifest.csv", *(folder / "status.json" for folder in sweep.folders)]
    sources += [probe_table.path_of(folder, name) for folder in sweep.folders for name in sweep.probes]
    sources += [folder / name for folder in (sweep.folder, sweep.folder.parent) for name in SHARED]
    sources += [folder / RUNS for folder in all_places_of([sweep])]
    changed = max(path.stat().st_mtime for path in sources if path.exists())
    if report.exists() and report.stat().st_mtime > changed:
        return report
    from analysis.report.assemble import write_report  # which takes a second

    told = {"planned": sweep.contrasts, "families": sweep.families, "baseline": sweep.baseline}
    told["labels"] = sweep.labels
    return write_report(sweep.name, sweep.folders, sweep.folder.parent, sweep.question, sweep.runs, **told)


def _probe(sweep: Sweep, how: How) -> None:
    """Measure the probes that the sweep's file asks for, on the finished runs that lack them."""
    lacking = [folder for folder in sweep.folders if probe_table.is_lacking(folder, sweep.probes)]
    if not lacking:
        return
    from analysis.bias import probe_runs  # which imports torch

    print(f"probes: {', '.join(sweep.probes)} of {len(lacking)} runs", flush=True)
    for folder in lacking:
        try:
            probe_runs.probe(folder, sweep.probes, how)
        except Refusal as error:  # weights that were thrown away, say: the report says what it has
            print(f"probes: {folder.name}: {error}", file=sys.stderr)
