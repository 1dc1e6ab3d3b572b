"""Give up runs: one that nobody has at once, one being trained when its process next looks. Nothing is deleted."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import archs
from engine.errors import BUSY, CANCELLED, CLASSES, Refusal
from engine.fields.values import pairs
from engine.folder import lease, store
from engine.run import Run, unknown
from slurm.cluster import scheduler, submit
from slurm.define.grid import ALIASES, ARGUMENT
from slurm.define.sweep import Sweep
from slurm.queue import states, worker


def matching(runs: Sequence[Run], words: Iterable[str]) -> list[int]:
    """Which runs have all of the given `field=value`. Raises Refusal for what is no field of a Run, or fits no run."""
    words, wanted = list(words), {}
    for given, value in pairs(words, "--where").items():
        key = ALIASES.get(given, given)
        argument = key.removeprefix(ARGUMENT)
        if key not in Run.model_fields and argument == key:
            raise Refusal(f"--where: {unknown('field', key, [*Run.model_fields, *ALIASES])}")
        if key in wanted:
            raise Refusal(f"--where gives {key} twice; leave one out")
        wanted[key] = value
    found = [
        index for index, run in enumerate(runs) if all(_equal(_of(run, key), value) for key, value in wanted.items())
    ]
    if not found:
        raise Refusal(f"no run has {' and '.join(words)}; python scripts/sweep.py status lists the runs")
    return found


def unfinished(sweep: Sweep, words: Iterable[str]) -> tuple[list[int], str]:
    """Which runs that have all of the given `field=value` have not ended, and how many are in which state, in words."""
    statuses = states.standing(sweep)
    chosen = [index for index in matching(sweep.runs, words) if statuses[index]["state"] in states.UNFINISHED]
    return chosen, states.summary([statuses[index] for index in chosen])


def _of(run: Run, key: str) -> Any:
    """What a run has of a field, or of an argument of its model; of one that is not given, the variant's own."""
    if key in Run.model_fields:
        return run.record()[key]
    argument = key.removeprefix(ARGUMENT)
    own = {} if run.model.startswith("timm/") else archs.arguments(run.model)
    return {**own, **run.model_kwargs}.get(argument)


def _equal(has: Any, wanted: Any) -> bool:
    """Equal as values, so that 1e-3 is 0.001 and 1 is 1.0; or as what is typed, so that a word needs no quotes."""
    return (has == wanted and isinstance(has, bool) == isinstance(wanted, bool)) or str(has) == str(wanted)


def cancel(sweep: Sweep, indices: Iterable[int]) -> tuple[int, int]:
    """Cancel runs that have not ended; how many are cancelled now, and how many will be once their process has saved.

    Elements that wait on SLURM and have nothing left to do are taken out of the queue.
    """
    now = later = 0
    for index in indices:
        folder = sweep.folders[index]
        if worker.ended(worker.look(folder)):
            continue
        store.make_folder(sweep.runs[index], folder)
        try:
            with lease.own(folder):
                path = folder / "status.json"
                ended = {"error_class": CLASSES[CANCELLED], "error": "cancelled by the user", "exit_code": CANCELLED}
                store.write_json(path, {**store.read_json(path), "state": store.STOPPED, **ended})
                now += 1
        except Refusal as refusal:
            if refusal.code != BUSY:
                raise
            store.write_bytes(folder / worker.CANCEL, b"")
            later += 1
    scheduler.cancel(_idle(sweep, submit.live(sweep) or []))
    return now, later


def _idle(sweep: Sweep, live: list[scheduler.Element]) -> list[str]:
    """Elements that wait although those before them take all that is left."""
    waiting = {str(folder) for folder in sweep.folders if worker.waits(worker.look(folder))}
    idle = []
    for comment in {element.comment for element in live}:
        spec = submit.read_spec(sweep.jobs_folder, comment)
        theirs = [element.job for element in live if element.waits and element.comment == comment]
        if spec:
            needed = math.ceil(len(waiting & set(spec["folders"])) / spec["pack"])
            idle += theirs[needed:]
    return idle
