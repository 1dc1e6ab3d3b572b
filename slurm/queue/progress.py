"""How far a sweep is, read from its folders alone: on a terminal a live table, in a log plain lines."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from engine.errors import CANCELLED, CLASSES
from engine.fields.rungs import names
from engine.folder import store
from engine.run import Run
from slurm.define.sweep import Sweep
from slurm.queue.worker import look

HEARTBEAT_SECONDS = 10.0
TICK_SECONDS = 0.5
ENDED = (store.DONE, store.FAILED, CLASSES[CANCELLED])

Status = dict[str, Any]


class Watch:
    """The statuses of a sweep's runs; those of finished runs are read once."""

    def __init__(self, sweep: Sweep) -> None:
        self.folders = sweep.folders
        self._done: dict[int, Status] = {}

    def look(self) -> list[Status]:
        """One status per run, in order, with `owner` (slurm.queue.worker.look)."""
        statuses = [self._done.get(index) or look(folder) for index, folder in enumerate(self.folders)]
        self._done = {index: status for index, status in enumerate(statuses) if status["state"] == store.DONE}
        return statuses


class View:
    """Tells what changed: permanent lines for runs that ended, and how the others stand."""

    def __init__(self, sweep: Sweep, slots: int) -> None:
        self.sweep, self.slots = sweep, slots
        self.names = names(sweep.runs)
        self._live: Any = None
        self._told: set[int] | None = None
        self._next_line = 0.0

    def show(self, statuses: list[Status]) -> None:
        ended = {index for index, status in enumerate(statuses) if status["state"] in ENDED}
        fresh = ended - self._told if self._told is not None else set()
        count = len(ended) - len(fresh)
        for index in sorted(fresh, key=lambda index: statuses[index].get("heartbeat") or 0):
            count += 1
            self.say(f"{count}/{len(statuses)}  {told(self._name(self.sweep.runs[index]), statuses[index])}")
        self._told = ended
        if self._live:
            self._live.update(self._table(statuses), refresh=True)
        elif time.monotonic() >= self._next_line and len(ended) < len(statuses):
            self._next_line = time.monotonic() + HEARTBEAT_SECONDS
            running = [
                f"{self._name(run)} {step_of(status)}"
                for run, status in zip(self.sweep.runs, statuses, strict=True)
                if status["state"] == store.RUNNING
            ]
            self.say(" | ".join([self._overall(statuses), *running]))

    def _name(self, run: Run) -> str:
        return f"{self.names[run.signature]} s{run.seed}"

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
                table.add_row(
                    Text(self.names[run.signature]), str(run.seed), epoch, bar, number(status.get("acc1")), rate, left
                )
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


def told(name: str, status: Status) -> str:
    """A run that ended, in one line."""
    if status["state"] == store.FAILED:
        return f"{name} failed ({status.get('error_class')}): {status.get('error')}"
    if status["state"] == CLASSES[CANCELLED]:
        return f"{name} cancelled after step {status.get('step', 0)}"
    accuracy = f"acc1 {number(status.get('acc1'))} (best {number(status.get('best_acc1'))})"
    return f"{name} done: {accuracy}, {number(status.get('images_per_s'), 0)} images/s"


def step_of(status: Status) -> str:
    """Where a running run stands: epochs done and how far the next one is, accuracy, time left."""
    parts = [f"{status.get('epoch', 0)}/{status.get('epochs', '?')}{within_epoch(status)}"]
    if status.get("acc1") is not None:
        parts.append(f"acc1 {number(status['acc1'])}")
    if status.get("eta_s") is not None:
        parts.append(f"{duration(status['eta_s'])} left")
    return " ".join(parts)


def within_epoch(status: Status) -> str:
    """+ 45 %, of the epoch that is being trained; "" where that is not known, or between two."""
    steps, epochs = status.get("steps"), status.get("epochs")
    if not steps or not epochs:
        return ""
    share = (status.get("step") or 0) / (steps / epochs) - (status.get("epoch") or 0)
    return f" + {100 * share:.0f} %" if 0.005 < share < 0.995 else ""


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
