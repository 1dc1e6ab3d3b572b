"""How far a sweep is, read from its folders alone: on a terminal a live table, in a log plain lines."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from engine import store
from engine.run import Run
from slurm.sweep import Sweep
from slurm.worker import look

HEARTBEAT_SECONDS = 10.0
TICK_SECONDS = 0.5
ENDED = (store.DONE, store.FAILED)
ORDER = (store.FAILED, store.RUNNING, store.STOPPED, store.PLANNED, store.DONE)  # by who needs you most

Status = dict[str, Any]


class Watch:
    """The statuses of a sweep's runs; those of finished runs are read once."""

    def __init__(self, sweep: Sweep) -> None:
        self.folders = sweep.folders
        self._done: dict[int, Status] = {}

    def look(self) -> list[Status]:
        """One status per run, in order, with `owner` (slurm.worker.look)."""
        statuses = [self._done.get(index) or look(folder) for index, folder in enumerate(self.folders)]
        self._done = {index: status for index, status in enumerate(statuses) if status["state"] == store.DONE}
        return statuses


class View:
    """Tells what changed: permanent lines for runs that ended, and how the others stand."""

    def __init__(self, sweep: Sweep, slots: int) -> None:
        self.sweep, self.slots = sweep, slots
        self._live: Any = None
        self._told: set[int] | None = None
        self._next_line = 0.0

    def show(self, statuses: list[Status]) -> None:
        ended = {index for index, status in enumerate(statuses) if status["state"] in ENDED}
        fresh = ended - self._told if self._told is not None else set()
        count = len(ended) - len(fresh)
        for index in sorted(fresh, key=lambda index: statuses[index].get("heartbeat") or 0):
            count += 1
            self.say(f"{count}/{len(statuses)}  {told(self.sweep.runs[index], statuses[index])}")
        self._told = ended
        if self._live:
            self._live.update(self._table(statuses), refresh=True)
        elif time.monotonic() >= self._next_line and len(ended) < len(statuses):
            self._next_line = time.monotonic() + HEARTBEAT_SECONDS
            running = [
                f"{name(run)} {step_of(status)}"
                for run, status in zip(self.sweep.runs, statuses, strict=True)
                if status["state"] == store.RUNNING
            ]
            self.say(" | ".join([self._overall(statuses), *running]))

    def say(self, line: str) -> None:
        """A line that stays."""
        print(f"{datetime.now():%H:%M:%S}  {line}", flush=True)

    def _overall(self, statuses: list[Status]) -> str:
        states = Counter(status["state"] for status in statuses)
        parts = [f"{states[store.DONE]}/{len(statuses)} done"]
        parts += [f"{states[state]} {state}" for state in (store.FAILED, store.RUNNING) if states[state]]
        if (left := seconds_left(statuses, self.slots)) is not None:
            parts.append(f"about {duration(left)} left")
        return ", ".join(parts)

    def _table(self, statuses: list[Status]) -> Any:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        table = Table("run", "seed", "epoch", "", "acc1", "images/s", "left", box=None, padding=(0, 2, 0, 0))
        for run, status in zip(self.sweep.runs, statuses, strict=True):
            if status["state"] == store.RUNNING:
                bar = ProgressBar(total=status.get("steps") or 1, completed=status.get("step") or 0, width=20)
                epoch = f"{status.get('epoch', 0)}/{run.epochs}"
                rate = number(status.get("images_per_s"), 0)
                left = duration(status.get("eta_s"))
                table.add_row(Text(run.rung), str(run.seed), epoch, bar, number(status.get("acc1")), rate, left)
        ended = sum(status["state"] in ENDED for status in statuses)
        bar = ProgressBar(total=len(statuses), completed=ended, width=40)
        overall = Text(f"{self.sweep.name}: {self._overall(statuses)}")
        return Group(*([table] if table.row_count else []), bar, overall)


@contextmanager
def view(sweep: Sweep, slots: int) -> Iterator[View]:
    """A View for this output; the terminal is left as it was, however the block ends."""
    from rich.console import Console

    shown, console = View(sweep, slots), Console(highlight=False)
    if not console.is_terminal:
        yield shown
        return
    from rich.live import Live

    with Live(console=console, auto_refresh=False, transient=True) as shown._live:
        yield shown


def name(run: Run) -> str:
    return f"{run.rung} s{run.seed}"


def told(run: Run, status: Status) -> str:
    """A run that ended, in one line."""
    if status["state"] == store.FAILED:
        return f"{name(run)} failed ({status.get('error_class')}): {status.get('error')}"
    accuracy = f"acc1 {number(status.get('acc1'))} (best {number(status.get('best_acc1'))})"
    return f"{name(run)} done: {accuracy}, {number(status.get('images_per_s'), 0)} images/s"


def step_of(status: Status) -> str:
    """Where a running run stands: epochs done, accuracy, time left."""
    parts = [f"{status.get('epoch', 0)}/{status.get('epochs', '?')}"]
    if status.get("acc1") is not None:
        parts.append(f"acc1 {number(status['acc1'])}")
    if status.get("eta_s") is not None:
        parts.append(f"{duration(status['eta_s'])} left")
    return " ".join(parts)


def seconds_left(statuses: list[Status], slots: int) -> float | None:
    """Guess from the time left of the running runs and the mean time of those that ended; None while unknown."""
    running = [status for status in statuses if status["state"] == store.RUNNING and status.get("eta_s") is not None]
    whole = [status["seconds"] for status in statuses if status["state"] == store.DONE and status.get("seconds")]
    whole = whole or [status["eta_s"] + status["seconds"] for status in running]
    waiting = sum(status["state"] not in ENDED for status in statuses) - len(running)
    if not whole or not (running or waiting):
        return None
    left = [status["eta_s"] for status in running]
    return max([(sum(left) + waiting * sum(whole) / len(whole)) / slots, *left])


def status_table(sweep: Sweep, state: str | None = None) -> Any:
    """Every run, or those in one state, with who needs you most on top; a rich table."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    statuses = Watch(sweep).look()
    rows = [row for row in zip(sweep.runs, statuses, strict=True) if state in (None, row[1]["state"])]
    rows.sort(key=lambda row: ORDER.index(row[1]["state"]))
    counts = Counter(status["state"] for status in statuses)
    title = ", ".join(f"{counts[name]} {name}" for name in ORDER if counts[name])
    table = Table(title=f"{sweep.name}: {title}", title_justify="left", box=SIMPLE_HEAD)
    for heading in ("folder", "run", "state", "epoch", "acc1", "best", "images/s", "attempt", "note"):
        table.add_column(heading, overflow="fold", justify="left" if heading in ("folder", "run", "note") else "right")
    for run, status in rows:
        epoch = f"{status.get('epoch', 0)}/{run.epochs}"
        numbers = [number(status.get("acc1")), number(status.get("best_acc1")), number(status.get("images_per_s"), 0)]
        attempt, note = str(status.get("attempt", 0)), Text(_note(status))
        table.add_row(run.signature, Text(name(run)), status["state"], epoch, *numbers, attempt, note)
    return table


def plan_table(sweep: Sweep) -> Any:
    """One row per rung: how many of its runs are done and what is left to train; a rich table."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    rows: dict[tuple, Counter[str]] = {}
    for run, status in zip(sweep.runs, Watch(sweep).look(), strict=True):
        recipe = (run.rung, run.dataset, run.img_size, run.epochs, run.batch_size, f"{run.lr:g}")
        rows.setdefault(recipe, Counter())[status["state"]] += 1
    counts = sum(rows.values(), Counter())
    left = counts.total() - sum(counts[state] for state in ENDED)
    repeats = f" ({sweep.dropped} repeats left out)" if sweep.dropped else ""
    failed = f", {counts[store.FAILED]} failed" if counts[store.FAILED] else ""
    summary = f"{counts.total()} runs{repeats}: {counts[store.DONE]} done{failed}, {left} to train"
    table = Table(title=f"{sweep.name}: {sweep.question}", title_justify="left", box=SIMPLE_HEAD)
    table.caption, table.caption_justify = summary, "left"
    for heading in ("rung", "dataset", "img_size", "epochs", "batch_size", "lr", "runs", "done"):
        table.add_column(heading, justify="left" if heading in ("rung", "dataset") else "right")
    for recipe, states in rows.items():
        cells = [*recipe, states.total(), states[store.DONE]]
        table.add_row(*(Text(str(cell)) for cell in cells))
    return table


def number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def duration(seconds: float | None) -> str:
    """12 s, 3 min 20 s, 2 h 5 min."""
    if seconds is None:
        return "-"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _note(status: Status) -> str:
    if status["state"] == store.FAILED:
        return f"{status.get('error_class')}: {status.get('error')}"
    if status["state"] == store.RUNNING:
        note = f"{duration(status.get('eta_s'))} left"
        silent = store.now() - status.get("heartbeat", store.now())
        return note if silent < 60 else f"{note}; not heard of for {duration(silent)}"
    return ""
