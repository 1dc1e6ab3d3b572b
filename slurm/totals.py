"""What a sweep will take beside time: GPU-hours or core-hours, memory, disk. From what was measured, never guessed.

Hours are those of the runs that the time was learned from: of as many GPUs, or threads, as those had. Memory is the
highest that a run of the same rung had, its GPU's where it had one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.fields.effects import OPTIMIZERS
from engine.folder import store
from engine.run import Run
from slurm.define import cost
from slurm.define.sweep import Sweep

BYTES = 4  # of a weight: training keeps them in float32, under amp too
LOOKED = 200  # finished runs of a sweep, at most, that are asked for their machine and memory


@dataclass(frozen=True)
class Measured:
    """A finished run of the sweep: where it was trained, and its peak of memory in GB."""

    rung: str
    device: str
    units: int
    """GPUs, or threads."""
    memory_gb: float | None


def measured(sweep: Sweep, statuses: Sequence[Mapping[str, Any]]) -> list[Measured]:
    """What finished runs with a folder here say of their machine."""
    found = []
    for run, folder, status in zip(sweep.runs, sweep.folders, statuses, strict=True):
        if status["state"] == store.DONE and len(found) < LOOKED and (env := store.read_or_warn(folder / "env.json")):
            device = str(env.get("device", "cpu")).partition(":")[0]
            units = env.get("world_size", 1) * (1 if device == "cuda" else env.get("threads", 1))
            found.append(Measured(run.rung, device, units, status.get("memory_gb")))
    return found


def told(
    sweep: Sweep,
    statuses: Sequence[Mapping[str, Any]],
    left: Mapping[Run, cost.Guess | None],
    known: Mapping[cost.Shape, cost.Cost],
    slots: int,
) -> str:
    """`about 3.2 core-hours (2 threads each), up to 0.9 GB of memory a run; 12 MB of disk when done, ...`, of what is
    left; "" where nothing is."""
    there, parts = measured(sweep, statuses), []
    seconds = sum(guess.seconds for guess in left.values() if guess)
    if there and seconds:
        # Machines of different kinds are not added up: the usual one of the sweep speaks for all.
        device, units = _usual([(one.device, one.units) for one in there])
        kind = "GPU" if device == "cuda" else "thread"
        hours = "GPU-hours" if device == "cuda" else "core-hours"
        parts.append(f"about {seconds * units / 3600:.3g} {hours} ({units} {kind}{'s' * (units > 1)} each)")
    rungs = {run.rung for run in left}
    if peaks := [one.memory_gb for one in there if one.memory_gb and one.rung in rungs]:
        parts.append(f"up to {max(peaks):.2g} GB of {'GPU ' if there[0].device == 'cuda' else ''}memory a run")
    sizes = [_bytes(run, known[cost.shape_of(run)].params) for run in left]
    if sizes and None not in sizes:
        working = sorted((during for _, during in sizes), reverse=True)[:slots]
        disk = (
            f"{_mega(sum(after for after, _ in sizes))} of disk for weights, {_mega(sum(working))} more while training"
        )
        parts.append(disk)
    return "; ".join(parts)


def _bytes(run: Run, params: int | None) -> tuple[int, int] | None:
    """Of the weights that a run leaves, last and best; and of its checkpoints, one of them in the making."""
    if params is None:
        return None
    states = OPTIMIZERS[run.opt].states if run.mode == "full" else 0
    checkpoint = params * BYTES * (1 + states + run.model_ema)
    return 2 * params * BYTES, 3 * checkpoint


def _usual(found: Sequence[tuple[str, int]]) -> tuple[str, int]:
    return max(dict.fromkeys(found), key=found.count)


def _mega(size: int) -> str:
    return f"{size / 1e9:.2g} GB" if size >= 1e9 else f"{size / 1e6:.2g} MB" if size >= 1e4 else f"{size / 1e3:.2g} kB"
