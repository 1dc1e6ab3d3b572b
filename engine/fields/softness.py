"""Bias as a dial of a run: a strictness that changes over training, and penalties on weights that read places.

A lattice with mixer=dial has a strictness s, fixed (`strictness`) or learned by a gate per layer (`gated`). A run moves
it from there to `strictness_to` over `strictness_epochs`, to the step:

    t = epochs so far over strictness_epochs, from 0 to 1;  s = to + (from - to) share(t),  linear 1 - t, or cosine

which is a function of the step alone, so that it needs no state to resume. A model whose dial ends at 1 is left as the
kernel, or depthwise, that it has become. Imports neither torch nor NumPy.
"""

import math
from collections.abc import Sequence
from typing import Any

from engine.fields import dilution

FIELDS = ("strictness_to", "strictness_epochs", "strictness_sched")
WINDOWED = ("toeplitz", "mask")
DIAL = "dial"


def is_dial(arguments: dict[str, Any]) -> bool:
    """Whether the model's mixer is a dial that no gate moves.

    Args:
        arguments: all that the model's `build` takes, with their values; {} for a model of timm.
    """
    return arguments.get("mixer") == DIAL and not arguments["gated"]


def strictness(run: Any, arguments: dict[str, Any], step: int, steps_per_epoch: int) -> float:
    """s at an optimizer step, counted from 0."""
    begin, end = arguments["strictness"], run.strictness_to
    share = dilution.share(step / steps_per_epoch, run.strictness_epochs, run.strictness_sched)
    return end + (begin - end) * share


def settled_from(run: Any) -> int:
    """The first epoch, counted from 0, that begins with the model that the run ends with."""
    annealed = 0 if run.strictness_to is None else math.ceil(run.strictness_epochs)
    return max(dilution.gone_from(run), annealed)


def best_from(run: Any) -> int:
    """The first epoch whose weights may be the best ones."""
    return settled_from(run) if run.best_from is None else run.best_from


def final_kwargs(run: Any, arguments: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the model that the run ends with, of one with a dial: the kernel that it has become at 1.

    Args:
        defaults: of the arguments, as the variant has them.
    """
    kwargs = dict(run.model_kwargs)
    if not is_dial(arguments):
        return kwargs
    end = arguments["strictness"] if run.strictness_to is None else run.strictness_to
    kwargs["strictness"] = end
    if end == 1:
        del kwargs["strictness"]
        kwargs["mixer"] = "kernel"
        if arguments["groups"] == arguments["dim"]:
            kwargs["mixer"] = "depthwise"
            kwargs.pop("groups", None)
    return dict(sorted((key, value) for key, value in kwargs.items() if defaults.get(key) != value))


def conflict(run: Any, arguments: dict[str, Any]) -> str | None:
    """What is wrong with these fields, in one line; None if nothing is.

    Args:
        arguments: as for `is_dial`.
    """
    return _annealing_fault(run, arguments) or _penalty_fault(run)


def _annealing_fault(run: Any, arguments: dict[str, Any]) -> str | None:
    if run.strictness_to is None:
        return None
    begin = f"strictness_to {run.strictness_to:g}:"
    if arguments.get("mixer") != DIAL:
        return f"{begin} {run.model} has no dial; a lattice_* with mixer=dial has"
    if not is_dial(arguments):
        return f"{begin} a gate learns this dial's strictness; leave out gated=true or strictness_to"
    if arguments["strictness"] == run.strictness_to:
        return f"{begin} the dial stands there already; leave it out, or give the model another strictness"
    if run.strictness_epochs is None:
        return f"{begin} it needs strictness_epochs: over how many of the {run.epochs}"
    first = settled_from(run)
    if first >= run.epochs:
        return (
            f"strictness_epochs {run.strictness_epochs:g} leave no epoch of {run.epochs} at strictness "
            f"{run.strictness_to:g}; give {first + 1} epochs or more, or fewer strictness_epochs"
        )
    if run.best_from is not None and run.best_from < first:
        return f"best_from {run.best_from}: the dial moves up to epoch {first - 1}; give {first} or more"
    return None


def _penalty_fault(run: Any) -> str | None:
    if run.penalty is None:
        return None
    if run.penalty_weight is None:
        return f"penalty {run.penalty} needs a penalty_weight"
    if run.penalty == "mask" and run.penalty_kernel_size is None:
        return "penalty mask needs a penalty_kernel_size: the window outside of which weights are penalised"
    if run.model.startswith("timm/"):
        return f"penalty {run.penalty}: nothing is known of the matrices of {run.model}; take a model of this zoo"
    if not run.body_lr_scale:
        return f"penalty {run.penalty} does nothing with body_lr_scale 0, where its matrices are not trained"
    return None


class Annealing:
    """A schedule that also says to the dials where they stand, at each step.

    Args:
        schedule: of the learning rate.
        dials: mixers of the model, and of its moving average where there is one.
    """

    def __init__(self, run: Any, schedule: Any, steps_per_epoch: int, dials: Sequence[Any], arguments: dict) -> None:
        self.run, self.schedule, self.steps_per_epoch, self.dials = run, schedule, steps_per_epoch, dials
        self.arguments = arguments

    def step_update(self, step: int) -> None:
        """Before step number `step`."""
        self.schedule.step_update(step)
        s = strictness(self.run, self.arguments, step, self.steps_per_epoch)
        for mixer in self.dials:
            mixer.dial(s)


def with_annealing(run: Any, schedule: Any, steps_per_epoch: int, *models: Any) -> Any:
    """The schedule, of a run that moves a dial one which moves it, too; None among the models is left out."""
    if run.strictness_to is None:
        return schedule
    dials = [module for model in models if model is not None for module in model.modules() if hasattr(module, "dial")]
    return Annealing(run, schedule, steps_per_epoch, dials, run.arguments)
