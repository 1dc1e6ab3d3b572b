"""Weights that a run keeps on its way (How.keep_epochs), for what is measured over training."""

import logging
from pathlib import Path
from typing import Any

from engine.errors import Refusal
from engine.fields import softness
from engine.run import How, Run

KEPT = "keep_epochs"  # in env.json, where a run keeps any
log = logging.getLogger("softmlp")


def path_of(folder: Path, epoch: int) -> Path:
    """The weights after so many epochs; 0 is the initialisation, or what the run started from."""
    return folder / f"weights-epoch-{epoch}.pth.tar"


def kept(run: Run, how: How, before: dict[str, Any]) -> tuple[int, ...]:
    """After which epochs the run keeps its weights: as it began, its env.json says; those asked for, if it begins now.

    Args:
        before: env.json; {} for a run that begins.

    Raises Refusal for an epoch of a run that dilutes attention and has some left then, or whose dial still moves: its
    weights fit no model that the run stands for.
    """
    asked = tuple(sorted(set(how.keep_epochs)))
    found = tuple(before.get(KEPT, ())) if before else asked
    if asked and found != asked:
        words = " ".join(map(str, found)) or "none"
        log.warning("%s began with --keep-epochs %s and goes on so: what is past cannot be kept", run.name, words)
    if found and found[0] < (first := softness.settled_from(run)):
        what = "there is attention left that" if run.dilute_layers is not None else "the dial still moves that"
        how = "dilutes" if run.dilute_layers is not None else "anneals"
        raise Refusal(f"keep_epochs {found[0]}: {what} {run.name} {how}; give {first} or more")
    if found and found[-1] > run.epochs:
        log.warning("%s ends after %d epochs: --keep-epochs %d is never reached", run.name, run.epochs, found[-1])
    return found
