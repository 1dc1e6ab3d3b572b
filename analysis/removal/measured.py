"""The rows of the bench: every start, what it was before and after healing, and what it costs."""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

import archs
from analysis.removal import before, bench, speed
from engine.cli import tables
from engine.data.sets import lookup
from engine.fields import dilution
from engine.fields.choices import Choice
from engine.run import How, Run

SPEEDS = "removal_speeds.csv"


def rows(
    starts: Sequence[tuple[Run, str, bool]], known: Sequence[Choice], folder: Path, how: How
) -> list[dict[str, Any]]:
    """A row per start and criterion that chose its layers, `by hand` where none did; with speeds that are there.

    Args:
        starts: runs that start without mixing, what their way is called, and whether they are trained.
        folder: of the study, where measurements are kept.

    Raises:
        Refusal: a source is neither finished here nor in the table (CHECKPOINT), or the data are not there (DATA).
    """
    found, whole, origin, timed, kept = [], {}, {}, _timed(folder / SPEEDS), folder / before.FILE
    for number, (run, way, healed) in enumerate(starts, 1):
        source, path = run.initial_identity.removeprefix("run:"), Path(run.initial_checkpoint)
        if source not in whole:
            whole[source], origin[source] = before.of_source(source, path, kept, how)
        print(f"{number}/{len(starts)} {run.rung} seed {run.seed}", file=sys.stderr)
        first = before.of_start(run, kept, how, probed=healed, origin=origin[source])
        after = before.of_run(run, kept, how, origin[source]) if healed else {}
        row = _row(run, way, healed) | timed.get(_timing_of(run), {})
        row |= {
            "acc_whole": whole[source][before.ACC],
            "acc_before": first[before.ACC],
            "acc_after": after.get(before.ACC),
        }
        for when, numbers in (("whole", whole[source]), ("before", first), ("after", after)):
            row |= {f"{key} {when}": numbers.get(key) for key in before.headlines()}
        criteria = bench.labels(known, source, run.final_kwargs["mlp_layers"]) or ["by hand"]
        found += [{"criterion": criterion, **row} for criterion in criteria]
    return found


def _row(run: Run, way: str, healed: bool) -> dict[str, Any]:
    """What a start is, and costs."""
    layers, entry = run.final_kwargs["mlp_layers"], lookup(run.dataset)
    depth = dilution.num_layers({**archs.defaults(run.model), **run.model_kwargs})
    return {
        **{"source": run.initial_identity.removeprefix("run:"), "seed": run.seed, "model": run.model, "way": way},
        **{"share": round(100 * len(layers) / depth, 2), "layers": ",".join(map(str, layers))},
        **{"signature": run.signature if healed else None, "epochs": run.epochs if healed else 0},
        "images_seen": _images(run, entry.train_size) if healed else 0,
        **speed.costs(run, entry.num_classes, entry.in_chans),
    }


def _images(run: Run, train_size: int) -> int:
    """Training images that a run sees, those of a dilution or distillation among them."""
    step = run.batch_size * run.grad_accum_steps
    return run.epochs * (min(run.train_samples or train_size, round((1 - run.holdout) * train_size)) // step) * step


def _timing_of(run: Run) -> tuple[str, str, str]:
    """What decides its speed: the model, how many layers are gone and what stands there, as text."""
    return run.model, str(len(run.final_kwargs["mlp_layers"])), run.final_kwargs.get("replacement", "double")


def _timed(path: Path) -> dict[tuple[str, ...], dict[str, Any]]:
    """Images a second by what decides them, a column per batch size, and where tokens are merged another."""
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in tables.read(path) if path.is_file() else ():
        own = found.setdefault((row["model"], row["layers_gone"], row["replacement"]), {})
        merged = " merged" if str(row["merged"]) == "True" else ""
        own[f"images_per_s b{row['batch_size']}{merged}"] = float(row["images_per_s"])
    return found


def speeds(runs: Iterable[Run], batches: Sequence[int], how: How) -> list[dict[str, Any]]:
    """Rows of `speed.measure`, once for each number of layers gone and what stands there."""
    torch.set_num_threads(how.threads or torch.get_num_threads())
    found: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for run in runs:
        gone, instead = len(run.final_kwargs["mlp_layers"]), run.final_kwargs.get("replacement", "double")
        if (gone, instead) not in found:
            head = {"model": run.model, "layers_gone": gone, "replacement": instead, "amp": run.amp}
            head["threads"], entry = torch.get_num_threads(), lookup(run.dataset)
            timed = speed.measure(run, entry.num_classes, entry.in_chans, amp=run.amp, batches=batches)
            found[gone, instead] = [{**head, **row} for row in timed]
    return [row for rows_ in found.values() for row in rows_]
