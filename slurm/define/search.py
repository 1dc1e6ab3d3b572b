"""Spaces of recipes and the sweeps that search them: what a grid, random points and optuna have in common.

A search is an ordinary sweep, `tune_HASH`, and its state is that of its runs' folders: repeating the command goes on.
"""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.errors import Refusal
from engine.run import Run
from slurm.define import grid
from slurm.define.sweep import Sweep
from slurm.queue.progress import Status

SEARCHES = ("grid", "random", "optuna")
# The grids of amazon-science/mlp-rank-pruning, training/README.md, and ranges over the same span.
GRID = ("lr=5e-2,1e-2,5e-3,1e-3,5e-4,1e-4", "weight_decay=1e-5,1e-6,1e-7,1e-8,1e-9,1e-10")
RANGES = ("lr=1e-4:5e-2", "weight_decay=1e-10:1e-5")
DIGITS = 3  # significant, of a drawn value

Train = Callable[[Sweep], list[Status]]
"""Trains what is missing; statuses in order. May return before all runs have ended, as on SLURM."""


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, log-uniform; whole numbers if both ends were written as such."""

    low: float
    high: float
    whole: bool

    def at(self, share: float) -> float | int:
        """The number at a share of the way from low to high, rounded."""
        value = self.low * (self.high / self.low) ** share
        return round(value) if self.whole else round_to(value)


Space = dict[str, list[Any] | Range]


@dataclass(frozen=True)
class Search:
    """What is tuned, and how. `fields` are those of all runs, their epochs the largest budget of a trial."""

    models: tuple[str, ...]
    fields: Mapping[str, Any]
    words: tuple[str, ...]
    kind: str = "grid"
    trials: int = 27
    seed: int = 0

    @property
    def space(self) -> Space:
        """Raises Refusal for what is no list of values or range, or takes no part in a search."""
        found = parse(self.words, self.kind)
        for key in ("model", "epochs", "holdout", "dataset", "train_samples"):
            if key in found:
                raise Refusal(f"{key} cannot be tuned: accuracies would not be comparable; give it as a flag")
        for key in found:
            if key in self.fields:
                raise Refusal(f"{key} is given by --grid and by --{key.replace('_', '-')}; leave one out")
        if self.kind != "grid" and "seed" in found:
            raise Refusal(f"--search {self.kind} draws each point once; give --seed as a flag, or search a grid")
        return found

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        """The ends of those axes that are ranges."""
        return {key: (span.low, span.high) for key, span in self.space.items() if isinstance(span, Range)}

    @property
    def name(self) -> str:
        """The same for any number of trials: more of them go on with the search."""
        fields = {key: str(value) for key, value in self.fields.items()}
        words = [list(self.models), fields, sorted(self.words), self.kind, self.seed if self.kind != "grid" else 0]
        return f"tune_{grid.digest(words)}"

    def sweep(self, cells: Sequence[grid.Cell]) -> Sweep:
        """Raises Refusal for a cell that is no valid run, or one that would be tuned on the test set."""
        question = f"Which {', '.join(self.space)} is best for {', '.join(self.models)}? ({self.kind} search)"
        made = grid.define({"question": question, "fields": dict(self.fields), "cells": list(cells)}, "tune", self.name)
        if not all(run.holdout for run in made.runs):
            raise Refusal("tuning without --holdout would choose by the test images; give --holdout 0.1")
        return made


def points(given: Search) -> list[grid.Cell]:
    """The cells of a grid or of a random search; for each point all models in turn."""
    space = given.space
    if given.kind == "grid":
        drawn = grid.product(space)
    else:
        drawn = [_draw(space, f"{given.seed} {index}") for index in range(given.trials)]
    return [{"model": model, **point} for point in drawn for model in given.models]


def parse(words: Sequence[str], kind: str) -> Space:
    """`lr=1e-4:1e-2` as a Range, `lr=1e-4,1e-3` as a list of values. Raises Refusal for anything else."""
    space: Space = {}
    for word in words:
        key, _, text = word.partition("=")
        if not (match := re.fullmatch(r"([^,:\[\]]+):([^,:\[\]]+)", text)):
            space |= grid.parse([word])
            continue
        if kind == "grid":
            raise Refusal(f"--grid {word}: a grid needs values, as lr=1e-4,1e-3; ranges are for --search random")
        try:
            low, high = map(float, match.groups())
        except ValueError:
            low = high = 0.0
        if not 0 < low < high:
            raise Refusal(
                f"--grid {word}: a range is LOW:HIGH with 0 < LOW < HIGH, as lr=1e-4:1e-2 (it is log-uniform)"
            )
        space[grid.field_of(key)] = Range(low, high, all(end.strip().isdecimal() for end in match.groups()))
    if len(space) < len(words):
        raise Refusal("--grid names a field twice")
    return space


def round_to(value: float) -> float:
    """Few digits, so that a command can be read and typed."""
    return float(f"{value:.{DIGITS}g}")


def value_of(run: Run, key: str) -> Any:
    """What a run has of an axis."""
    return run.model_kwargs.get(key.removeprefix(grid.ARGUMENT)) if "." in key else getattr(run, key)


def _draw(space: Space, seed: str) -> grid.Cell:
    """One point; its coordinates depend on the seed and their name only."""
    point = {}
    for key, values in space.items():
        chance = random.Random(f"{seed} {key}").random()
        point[key] = values.at(chance) if isinstance(values, Range) else values[int(chance * len(values))]
    return point
