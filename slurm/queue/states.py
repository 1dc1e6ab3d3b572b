"""How every run of a sweep stands: what its folder says, and, where SLURM answers, whether somebody is coming for it.

Folders are the truth, and published tables where a run is not done in its folder; squeue is asked to tell queued from
planned, and whether the very job that owns a run is gone; sacct only explains a death. Neither is needed.
"""

import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine import errors
from engine.cli import flags
from engine.errors import CLASSES, Refusal
from engine.fields.rungs import conditions, names
from engine.folder import lease, published, store
from engine.folder.published import Study
from engine.run import Run
from slurm.cluster import scheduler, submit
from slurm.define.sweep import Sweep
from slurm.queue import tables, worker
from slurm.queue.progress import Status, duration, number

QUEUED, STALLED = "queued", "stalled"
PREEMPTED, TIMEOUT, CANCELLED = (CLASSES[code] for code in (errors.PREEMPTED, errors.TIMED_OUT, errors.CANCELLED))
# By who needs you most.
STATES = (store.FAILED, TIMEOUT, STALLED, store.RUNNING, PREEMPTED, store.STOPPED, QUEUED, store.PLANNED)
STATES += (CANCELLED, store.DONE)
UNFINISHED = tuple(state for state in STATES if state not in (store.FAILED, CANCELLED, store.DONE))
SORTS = ("run", "epoch", "acc1", "best_acc1", "images_per_s", "attempt", "seconds")
HEADINGS = ("folder", "run", "state", "epoch", "acc1", "best", "images/s", "attempt", "note")
LEFT = ("folder", "run", "note")
MANY = 500  # rows; rich takes over a millisecond for each
STALLED_SECONDS = 60.0
SECOND_LOOK_SECONDS = 3.0
EXPLAINED = 200  # deaths that accounting is asked about
SILENT = {"", "None"}  # reasons of SLURM's that say nothing


def standing(sweep: Sweep) -> list[Status]:
    """One status per run, in order: that of slurm.queue.worker.look with the states above, and a `note`."""
    statuses = tables.standing(sweep)
    elements = _elements(sweep) if any(not worker.ended(status) for status in statuses) else None
    coming = _coming(sweep, elements or [])
    gone = scheduler.gone([status["owner"] for status in statuses if status["owner"]])
    speaks = _speaks_again(
        [folder for folder, status in zip(sweep.folders, statuses, strict=True) if _silence(status) > STALLED_SECONDS]
    )
    silent = []
    for folder, status in zip(sweep.folders, statuses, strict=True):
        owner = status["owner"]
        if owner and owner.get("job") in gone:
            owner = status["owner"] = None
            cancelled = (folder / worker.CANCEL).exists()
            status |= {"state": CANCELLED} if cancelled else {"state": store.STOPPED, "silent": True}
        status["note"] = _judge(status, owner, coming.get(str(folder)), folder in speaks)
        if status["state"] == store.STOPPED and status.get("silent"):
            silent.append((folder, status))
    _explain(silent)
    return statuses


def _silence(status: Status) -> float:
    """Seconds since the owner of a run, if it has one, spoke, by the two machines' clocks."""
    if not (owner := status["owner"]):
        return 0.0
    return store.now() - max(status.get("heartbeat") or 0.0, owner.get("time") or 0.0)


def _speaks_again(folders: Sequence[Path]) -> set[Path]:
    """Of runs on other nodes whose last word looks old, those that say something new: a clock is wrong, not the run."""
    away = [folder for folder in folders if (lease.last(folder) or {}).get("node") != lease.node()]
    before = [lease.heartbeat(folder) for folder in away]
    if away:
        time.sleep(SECOND_LOOK_SECONDS)
    return {folder for folder, said in zip(away, before, strict=True) if lease.heartbeat(folder) != said}


def _judge(status: Status, owner: dict[str, Any] | None, coming: str | None, speaks: bool) -> str:
    """Set the state that is shown; what there is to add.

    Args:
        coming: what the live elements that have it on their list wait for, empty for nothing; None: none has.
    """
    why = f" ({coming})" if coming else ""
    later = "resume goes on" if coming is None else f"in the queue again{why}"
    if tables.TABLE in status:
        here = "" if status["here"] == store.PLANNED else f"; here {status['here']}"
        return f"by {status[tables.TABLE]}{here}"
    if status["state"] == store.FAILED:
        return f"{status.get('error_class')}: {status.get('error')}"
    if status["state"] == store.RUNNING and owner:
        note = f"{duration(status.get('eta_s'))} left" if status.get("pid") == owner.get("pid") else "starting"
        if (silence := _silence(status)) > STALLED_SECONDS and not speaks:
            status["state"] = STALLED
            where = f"process {owner.get('pid', '?')} on {owner.get('node', '?')}"
            return f"not heard of for {duration(silence)}: {where}{_of_job(owner)}"
        return note + _of_job(owner)
    if status["state"] == store.STOPPED and (status.get("error_class") in (PREEMPTED, TIMEOUT)):
        status["state"] = status["error_class"]
        return f"saved at step {status.get('step', 0)}; {later}"
    if status["state"] == store.STOPPED and status.get("error_class") in worker.FAULTS:
        return f"{status['error_class']}: {status.get('error')}; {later}"
    if coming is not None and status["state"] in (store.STOPPED, store.PLANNED):
        step = status.get("step") if status["state"] == store.STOPPED else None
        status["state"] = QUEUED
        return (f"goes on after step {step}" if step else "waits" if coming else "") + why
    if status["state"] == store.STOPPED:
        word = "its process died without a word; " if status.get("silent") else ""
        return f"{word}resume goes on"
    return ""


def _elements(sweep: Sweep) -> list[scheduler.Element] | None:
    """What waits or runs on SLURM; None where this sweep never went there, or squeue does not answer."""
    if next(sweep.jobs_folder.glob("*/launch.json"), None) is None:
        return None
    return submit.live(sweep)


def waits_for(elements: Sequence[scheduler.Element]) -> str:
    """The reasons that SLURM gives, where all that will take runs wait; empty where one is at work."""
    come = [element for element in elements if element.comes]
    if not all(element.waits for element in come):
        return ""
    return ", ".join(sorted({element.reason for element in come} - SILENT))


def _coming(sweep: Sweep, elements: Sequence[scheduler.Element]) -> dict[str, str]:
    """Folders that live elements have on their list, and what these wait for."""
    told: dict[str, str] = {}
    come = [element for element in elements if element.comes]
    for comment in {element.comment for element in come}:
        why = waits_for([element for element in come if element.comment == comment])
        for folder in submit.read_spec(sweep.jobs_folder, comment).get("folders", ()):
            told[folder] = why if folder not in told or not why else told[folder]
    return told


def _explain(silent: list[tuple[Path, Status]]) -> None:
    """Add what accounting knows of processes that died without a word."""
    records = [(lease.last(folder) or {}, status) for folder, status in silent[:EXPLAINED]]
    jobs = {record["job"] for record, _ in records if record.get("job")}
    ends = scheduler.deaths(sorted(jobs)) if jobs else {}
    for record, status in records:
        if end := ends.get(record.get("job", "")):
            status["note"] = f"job {record['job']}: {end}; resume goes on"


def _of_job(owner: dict[str, Any]) -> str:
    return f" (job {owner['job']})" if owner.get("job") else ""


def table(sweep: Sweep, statuses: list[Status], state: str | None = None, sort: str | None = None) -> Any:
    """Every run, or those in one state, with who needs you most on top, or by a column.

    A rich table; a plain one, as text, where there are so many runs that rich would take long to draw it.
    """
    called = names(sweep.runs)
    rows = [row for row in zip(sweep.runs, statuses, strict=True) if state in (None, row[1]["state"])]
    rows.sort(key=lambda row: STATES.index(row[1]["state"]))
    if sort == "run":
        rows.sort(key=lambda row: (called[row[0].signature], row[0].seed))
    elif sort:
        rows.sort(key=lambda row: -(row[1].get(sort) if row[1].get(sort) is not None else float("-inf")))
    title, cells = (
        f"{sweep.name}: {summary(statuses)}",
        [_cells(run, called[run.signature], status) for run, status in rows],
    )
    return _plain(title, cells) if len(cells) > MANY else _rich(title, cells)


def _cells(run: Run, name: str, status: Status) -> list[str]:
    epoch = f"{status.get('epoch', 0)}/{run.epochs}"
    numbers = [number(status.get("acc1")), number(status.get("best_acc1")), number(status.get("images_per_s"), 0)]
    who = [run.signature, f"{name} s{run.seed}", status["state"], epoch]
    return [*who, *numbers, str(status.get("attempt", 0)), str(status["note"])]


def _rich(title: str, rows: list[list[str]]) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    shown = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for heading in HEADINGS:
        shown.add_column(heading, overflow="fold", justify="left" if heading in LEFT else "right")
    for row in rows:
        shown.add_row(*map(Text, row))
    return shown


def _plain(title: str, rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(HEADINGS, *rows, strict=True)]
    form = "  ".join(
        f"{{:{'<' if head in LEFT else '>'}{width}}}" for head, width in zip(HEADINGS, widths, strict=True)
    )
    return "\n".join([title, *(form.format(*row).rstrip() for row in [HEADINGS, *rows])])


def summary(statuses: list[Status]) -> str:
    """3 failed, 2 running, 22 done (4 by table)."""
    counts = Counter(status["state"] for status in statuses)
    return ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state]) + tables.told(statuses)


def find(sweep: Sweep, prefix: str) -> tuple[Run, Path]:
    """The run whose signature, or folder's name, begins so. Raises Refusal: none does, or several do."""
    found = [pair for pair in zip(sweep.runs, sweep.folders, strict=True) if prefix and pair[0].name.startswith(prefix)]
    if len(found) == 1:
        return found[0]
    look = f"python scripts/sweep.py status {sweep.name} lists them"
    if not found:
        raise Refusal(f"no run of {sweep.name} has a signature that begins with '{prefix}'; {look}")
    raise Refusal(f"{len(found)} runs of {sweep.name} begin with '{prefix}'; give more of the signature; {look}")


def show_tables(study: Study, state: str | None = None, sort: str | None = None) -> None:
    """Print how the runs of a study stand, of which there are tables alone."""
    rows = [row for row in published.records(study.table) if state in (None, row["state"])]
    rows.sort(key=lambda row: STATES.index(row["state"]) if row["state"] in STATES else -1)
    if sort == "run":
        rows.sort(key=lambda row: (row["rung"], row["seed"]))
    elif sort:
        rows.sort(key=lambda row: -(row.get(sort) if isinstance(row.get(sort), int | float) else float("-inf")))
    ways = dict(zip([row["signature"] for row in rows], conditions(rows), strict=True))
    title = f"{study.name}: {len(rows)} runs, by {study.table} alone; no sweep of this version has them"
    cells = [
        [
            *(row["signature"], f"{row['rung']} {ways[row['signature']]}".strip() + f" s{row['seed']}", row["state"]),
            *(f"{row['epoch'] or 0}/{row['epochs']}", number(row["acc1"]), number(row["best_acc1"])),
            *(number(row["images_per_s"], 0), str(row["attempt"] or 0), str(row.get("error") or "")),
        ]
        for row in rows
    ]
    made = _plain(title, cells) if len(cells) > MANY else _rich(title, cells)
    print(made) if isinstance(made, str) else flags.show(made)


def show(sweep: Sweep, state: str | None = None, sort: str | None = None, every: float | None = None) -> list[Status]:
    """Print the table; the statuses. With `every`, again after so many seconds, until all runs have ended."""
    from rich.console import Console

    while True:
        statuses = standing(sweep)
        if every and sys.stdout.isatty():
            Console().clear()
        made = table(sweep, statuses, state, sort)
        print(made) if isinstance(made, str) else flags.show(made)
        if not every or all(status["state"] not in UNFINISHED for status in statuses):
            return statuses
        time.sleep(every)
