"""The rows of the bench: every start, what it was before and after healing, and what it costs."""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

import archs
from analysis.removal import before, bench, speed
from engine.data.sets import lookup
from engine.errors import CHECKPOINT, Refusal
from engine.fields.choices import Choice
from engine.folder import store
from engine.run import How, Run


def rows(
    starts: Sequence[tuple[Run, str, bool]], known: Sequence[Choice], folder: Path, how: How
) -> list[dict[str, Any]]:
    """A row per start and criterion that chose its layers, `by hand` where none did.

    Args:
        starts: runs that start without mixing, what their way is called, and whether they are trained.
        folder: of the study, where measurements are kept.

    Raises:
        Refusal: a source is not finished (CHECKPOINT), or the data are not there (DATA).
    """
    found, whole = [], {}
    for number, (run, way, healed) in enumerate(starts, 1):
        source, path = run.initial_identity.removeprefix("run:"), Path(run.initial_checkpoint)
        if source not in whole:
            if not store.is_done(path):
                raise Refusal(f"{path} is not finished: it comes first", CHECKPOINT)
            whole[source] = before.of_folder(path, how)
        print(f"{number}/{len(starts)} {run.rung} seed {run.seed}", file=sys.stderr)
        first = before.of_start(run, folder / before.FILE, how)
        own = store.folder_of(run)
        after = before.of_folder(own, how) if healed and store.is_done(own) else {}
        row = _row(run, way, healed) | {
            "acc_whole": before.rate_of(whole[source]),
            "acc_before": before.rate_of(first),
            "acc_after": before.rate_of(after) if after else None,
        }
        for when, numbers in (("whole", whole[source]), ("before", first), ("after", after)):
            row |= {f"{key} {when}": numbers.get(key) for key in before.headlines() if not key.endswith(" acc")}
        criteria = bench.labels(known, source, run.final_kwargs["mlp_layers"]) or ["by hand"]
        found += [{"criterion": criterion, **row} for criterion in criteria]
    return found


def _row(run: Run, way: str, healed: bool) -> dict[str, Any]:
    """What a start is, and costs."""
    layers, entry = run.final_kwargs["mlp_layers"], lookup(run.dataset)
    depth = {**archs.defaults(run.model), **run.model_kwargs}["depth"]
    return {
        **{"source": run.initial_identity.removeprefix("run:"), "seed": run.seed, "model": run.model, "way": way},
        **{"share": round(100 * len(layers) / depth, 2), "layers": ",".join(map(str, layers))},
        **{"signature": run.signature if healed else None, "epochs": run.epochs if healed else 0},
        **speed.costs(run, entry.num_classes, entry.in_chans),
    }


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
