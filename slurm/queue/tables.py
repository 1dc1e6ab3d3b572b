"""A study outlives its machine: a run that a published table has as done is done, although it has no folder here.

A folder wins where the run is done in it, or is being trained. A table holds no weights (engine/folder/published.py): a
run that others are still to start from is not done by it.
"""

from pathlib import Path

from engine.cli.tables import read
from engine.folder import published, store
from engine.folder.published import TABLE
from engine.run import SCHEME
from slurm.define.sweep import MANIFEST, Sweep
from slurm.queue.progress import Status
from slurm.queue.worker import look


def standing(sweep: Sweep) -> list[Status]:
    """One status per run, in order: of slurm.queue.worker.look, or of a table."""
    return overlaid(sweep, [look(folder) for folder in sweep.folders])


def overlaid(sweep: Sweep, statuses: list[Status]) -> list[Status]:
    """These statuses, told by folders alone, and instead of those that are not done what the tables say.

    Raises Refusal (DATA) for a table that cannot be read.
    """
    if all(status["state"] in (store.DONE, store.RUNNING) for status in statuses):
        return statuses
    there = published.done(places(sweep))
    pairs = list(zip(sweep.runs, statuses, strict=True))
    for run in (run for run, status in reversed(pairs) if status["state"] != store.DONE):
        if run.signature not in there and run.initial_identity:
            there.pop(run.initial_identity.removeprefix("run:"), None)
    return [
        {**there[run.signature], "here": status["state"]}
        if status["state"] not in (store.DONE, store.RUNNING) and run.signature in there
        else status
        for run, status in pairs
    ]


def told(statuses: list[Status]) -> str:
    """How many of them are done by table alone, to stand behind the number of those done: ` (4 by table)`."""
    count = sum(TABLE in status for status in statuses)
    return f" ({count} by table)" if count else ""


def older(sweep: Sweep) -> str:
    """One line about what another scheme left of this sweep, which counts for nothing here; "" where it left nothing.

    Its runs are those of the last launch's manifest; its rows, those of the sweep's own table, which `collect` would
    not mix with new ones.
    """
    told = sum(not published.is_ours(row) for row in published.read(sweep.folder / published.RUNS))
    if told:
        kept = f"{sweep.folder}_older"
        return (
            f"{sweep.folder / published.RUNS}: {told} rows of another version (not scheme {SCHEME}), counted for "
            f"nothing here; mv {sweep.folder} {kept} keeps them readable: python scripts/compare.py {Path(kept).name}"
        )
    manifest = sweep.folder / MANIFEST
    listed = read(manifest, ("folder",)) if manifest.exists() else ()
    return store.older(sweep.folder.parent / "runs" / row["folder"] for row in listed)


def places(sweep: Sweep) -> list[Path]:
    """The folders that may hold a table which tells of runs of this sweep, its own first."""
    return published.all_places_of([sweep])
