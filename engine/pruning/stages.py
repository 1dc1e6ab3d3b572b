"""Runs that prune a finished run: at once, or in rounds, each from the weights of the one before."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.folder import store
from engine.run import Run

KEPT = ("model", "model_kwargs", "dataset", "img_size", "stored_size", "train_samples", "seed", "holdout", "permute")
ORIGIN = ("scheme", "initial_checkpoint", "initial_identity", "prune_by", "prune_share", "prune_rewind")


def recipe(source: Run, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The fields by which the source trained, for a budget that differs in a few; a warm-up and a cool-down fit in."""
    fields = {key: value for key, value in source.record().items() if key not in (*KEPT, *ORIGIN)}
    fields |= changes
    for key in ("warmup_epochs", "cooldown_epochs"):
        if fields[key] > fields["epochs"] / 2:
            fields[key] = 0
    return fields


def rounds(
    source: Run,
    by: str,
    share: float,
    number: int,
    budget: Mapping[str, Any],
    *,
    rewind: bool = False,
    folder: Path | None = None,
) -> list[Run]:
    """The runs, in order; each round leaves the same share of what the one before left.

    Args:
        share: that is gone after the last round.
        budget: fields of `Run` that every round trains with, its seed too where that is not the source's.
        rewind: train each round from the seed's own weights (Frankle and Carbin, arXiv 1803.03635).
        folder: of the source, where it is not the usual one.
    """
    found, before, place = [], source, folder or store.folder_of(source)
    kept = {key: getattr(source, key) for key in KEPT}
    for i in range(1, number + 1):
        own = {"prune_by": by, "prune_share": share if i == number else round(1 - (1 - share) ** (i / number), 6)}
        own |= {"initial_checkpoint": str(place), "initial_identity": f"run:{before.signature}"}
        own |= {"prune_rewind": rewind}
        before = Run(**kept | dict(budget) | own)
        place = store.folder_of(before)
        found.append(before)
    return found
