"""What a launch would train, and what it would cost; and the command that repeats one run. Nothing is started."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from engine.cli import repro as line
from engine.fields import rungs
from engine.folder import store
from engine.run import Run
from slurm import totals
from slurm.define import cost
from slurm.define.sweep import Sweep
from slurm.queue import tables, worker
from slurm.queue.progress import duration

ROWS = 200  # of the table; a sweep with more rungs shows the first ones
SOURCES = {
    cost.HERE: "by finished runs of the rung here",
    cost.TABLE: "by those in a table",
    cost.MACS: "by MACs at the speed of other rungs",
}
VALUES = 4  # of a field that varies, before they are shown as a range
# What tells the rows of the table apart, beside what the model costs.
ROW = ("rung", "dataset", "img_size", "epochs")
OTHER = ("scheme", "model", "model_kwargs", "dataset", "img_size", "epochs", "initial_checkpoint")
RECIPE = [key for key in Run.model_fields if key not in OTHER]
ALWAYS = ("batch_size", "lr")  # named in the recipe even where they do not vary


def table(sweep: Sweep, slots: int = 1) -> Any:
    """One row per rung: recipe, cost of the model, time; the caption sums up. A rich table.

    The time of a row is that of the runs which are left, one after another, without what was trained of them, and where
    it is known from; that of the caption is until all are done with so many at a time. It supposes that they go as fast
    as those that it was measured on: with as many beside them.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    statuses = tables.standing(sweep)
    known = cost.costs(sweep.runs, sweep.folders)
    speeds = cost.rates(sweep.runs, statuses, known)
    rows: dict[tuple, list[tuple[Run, dict[str, Any]]]] = {}
    for run, status in zip(sweep.runs, statuses, strict=True):
        rows.setdefault(tuple(getattr(run, key) for key in ROW), []).append((run, status))
    varied = _varied(sweep.runs)

    shown = Table(title=f"{sweep.name}: {sweep.question}", title_justify="left", box=SIMPLE_HEAD)
    for heading in ("rung", "dataset", "px", "epochs", "recipe", "runs", "done", "params", "MACs", "time left", "from"):
        left = heading in ("rung", "dataset", "recipe", "from")
        shown.add_column(heading, justify="left" if left else "right", overflow="fold", no_wrap=not left)
    guesses: dict[Run, cost.Guess | None] = {}
    for index, pairs in enumerate(rows.values()):
        run = pairs[0][0]
        price = known[cost.shape_of(run)]
        own = {run: _left(speeds.guess(run, price), status) for run, status in pairs if not worker.ended(status)}
        guesses |= own
        if index < ROWS:
            done = sum(status["state"] == store.DONE for _, status in pairs)
            known_ones = [guess for guess in own.values() if guess]
            whole = len(known_ones) == len(own)
            time = duration(sum(guess.seconds for guess in known_ones)) if whole else "-"
            source = ", ".join(dict.fromkeys(guess.source for guess in known_ones)) if whole else ""
            recipe = _recipe([run for run, _ in pairs], varied)
            head = (run.rung, run.dataset, run.pixels, str(run.epochs), recipe)
            cells = (*head, str(len(pairs)), str(done), _quantity(price.params), _quantity(price.macs), time, source)
            shown.add_row(*map(Text, cells))
    if len(rows) > ROWS:
        shown.add_row(Text(f"... and {len(rows) - ROWS} more"))
    in_order = [guesses[run] for run in sweep.runs if run in guesses]
    told = [_summary(sweep, statuses, in_order, slots), totals.told(sweep, statuses, guesses, known, slots)]
    shown.caption, shown.caption_justify = "\n".join(filter(None, told)), "left"
    return shown


def _left(guess: cost.Guess | None, status: Mapping[str, Any]) -> cost.Guess | None:
    """The same for what is left of a run that was begun."""
    steps = status.get("steps")
    return replace(guess, seconds=guess.seconds * (1 - (status.get("step") or 0) / steps)) if guess and steps else guess


def _summary(sweep: Sweep, statuses: Sequence[dict[str, Any]], guesses: Sequence[cost.Guess | None], slots: int) -> str:
    """27 runs (3 repeats left out): 20 done (8 by table), 1 failed, 6 to train, about 1 h 2 at a time (by ...: 6)."""
    states = Counter(status["state"] for status in statuses)
    parts = [f"{states[store.DONE]} done{tables.told(statuses)}"]
    parts += [f"{states[state]} {state}" for state in (store.FAILED, "cancelled") if states[state]]
    parts.append(f"{len(guesses)} to train")
    if known := [guess for guess in guesses if guess]:
        unknown = len(guesses) - len(known)
        rest = f" and {unknown} of unknown length" if unknown else ""
        spread = "one after another" if slots == 1 else f"{slots} at a time"
        sources = Counter(guess.source for guess in known)
        told = ", ".join(f"{SOURCES[source]}: {sources[source]}" for source in SOURCES if sources[source])
        seconds = cost.makespan((guess.seconds for guess in known), slots)
        parts.append(f"about {duration(seconds)} {spread}{rest} ({told})")
    repeats = f" ({sweep.dropped} repeats left out)" if sweep.dropped else ""
    return f"{len(statuses)} runs{repeats}: {', '.join(parts)}"


def repro(run: Run, how: Mapping[str, Any] | None = None) -> str:
    """The shell command that repeats a run, to be given in the checkout.

    Args:
        how: fields of engine.run.How it was trained with; what the run itself recorded of them (threads, device and
            the number of processes, on which the last bits depend) comes first.
    """
    before = store.read_json(store.folder_of(run) / "env.json")
    device = str(before["device"]).partition(":")[0] if "device" in before else None
    recorded = {key: value for key, value in (("threads", before.get("threads")), ("device", device)) if value}
    words = line.command(run, {**(how or {}), **recorded})
    processes = before.get("world_size", 1)
    return words.replace("python", f"torchrun --nproc-per-node {processes}", 1) if processes > 1 else words


def _varied(runs: Sequence[Run]) -> list[str]:
    """Fields of the recipe that differ between runs of the sweep."""
    return [key for key in RECIPE if len({repr(getattr(run, key)) for run in runs}) > 1]


def _recipe(runs: Sequence[Run], varied: Sequence[str]) -> str:
    """`batch_size 128, lr 1e-3, seed 0 1 2`; many values of one field as a range with their number."""
    parts = []
    for key in dict.fromkeys((*ALWAYS, *varied)):
        values = list(dict.fromkeys(getattr(run, key) for run in runs))
        numbers = all(isinstance(value, (int, float)) for value in values)
        if len(values) > VALUES and numbers:
            parts.append(f"{key} {min(values):g}..{max(values):g} ({len(values)})")
        else:
            more = f" ({len(values)})" if len(values) > VALUES else ""
            parts.append(f"{key} {' '.join(map(_text, values[:VALUES]))}{more}")
    return ", ".join(parts)


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ":".join(map(_text, value))
    return rungs.text(value)


def _quantity(value: int | None) -> str:
    """Three digits and a prefix: 18.5 M."""
    if value is None:
        return "-"
    power = min(max(0, (int(math.log10(max(value, 1) * 1.0005)) // 3)), 4)
    text = f"{value / 1000**power:.3g}" if power else str(value)
    return f"{text} {' kMGT'[power]}".strip()
