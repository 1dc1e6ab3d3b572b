"""Layers whose attention a run dilutes into the identity: which, from when to when, and what is left.

`dilute_layers` is text, `0,2,4`; groups that go one after another are parted by a slash, `0,2/4,6`. The share lambda of
a group falls from 1 to 0 over `dilute_epochs`, and is a function of the step alone, so that it needs no state to
resume:

    t = the epochs that the group has had, over dilute_epochs, from 0 to 1;  linear: 1 - t;  cosine: (1 + cos(pi t)) / 2

counted in whole epochs (`dilute_by` epoch) or to the step. The published rule is linear, by the epoch, over 299: lambda
is 1 in epoch 0, then max(0, 1 - epoch/299) (arXiv 2404.05657; sihaoevery/lambda_vit, the same in its files for base,
small and tiny). Its authors train 400 epochs, so that 101 are left without attention.

Instead, layers that have lost their mixing at once may learn in the first `distil_epochs` of a run what they gave with
it in the initial checkpoint (archs/attention/distilled.py). These steps count like all others: rate, weight decay,
clipping and images are those of the run, the schedule goes on, and afterwards all of the model learns the task.

Imports neither torch nor NumPy, so that a plan and --help do not wait.
"""

import math
from collections.abc import Sequence
from typing import Any

from archs.parts import family

FIELDS = ("dilute_layers", "dilute_epochs", "dilute_sched", "dilute_by")
END = "mlp_layers"  # the argument of a family's `build` that says which layers have no attention
GONE = (END, "replacement")  # and what stands there


def canonical(given: Any) -> str | None:
    """One spelling per choice: `0,2/4`, each group ascending, from text, a number, or lists of numbers.

    Raises ValueError for what is none, and for a layer that is named twice.
    """
    if given is None:
        return None
    if isinstance(given, (list, tuple)):
        nested = any(isinstance(each, (list, tuple)) for each in given)
        groups = [list(each) if isinstance(each, (list, tuple)) else [each] for each in given] if nested else [given]
        given = "/".join(",".join(str(layer) for layer in group) for group in groups)
    words = [group.split(",") for group in str(given).replace(" ", "").split("/")]
    if not all(word.isascii() and word.isdigit() for group in words for word in group):
        raise ValueError(f"{given!r} are no layers; name them as 0,2,4, or groups one after another as 0,2/4,6")
    groups = [sorted(int(word) for word in group) for group in words]
    layers = [layer for group in groups for layer in group]
    if twice := sorted({layer for layer in layers if layers.count(layer) > 1}):
        raise ValueError(f"layer {twice[0]} is named twice; leave one out")
    return "/".join(",".join(map(str, group)) for group in groups)


def groups(dilute_layers: str | None) -> list[list[int]]:
    """The groups of layers, in the order in which they go; [] for none."""
    return [[int(word) for word in group.split(",")] for group in (dilute_layers or "").split("/") if group]


def layers(dilute_layers: str | None) -> list[int]:
    """All of them, ascending."""
    return sorted(layer for group in groups(dilute_layers) for layer in group)


def share(elapsed_epochs: float, dilute_epochs: float, sched: str = "linear") -> float:
    """Lambda after so many epochs of a group: 1 up to the first, 0 from `dilute_epochs` on."""
    if elapsed_epochs <= 0:
        return 1.0
    if elapsed_epochs >= dilute_epochs:
        return 0.0
    t = elapsed_epochs / dilute_epochs
    return 1.0 - t if sched == "linear" else 0.5 * (1 + math.cos(math.pi * t))


def shares(run: Any, step: int, steps_per_epoch: int) -> dict[int, float]:
    """Lambda of each diluted layer at an optimizer step, counted from 0."""
    epochs = step // steps_per_epoch if run.dilute_by == "epoch" else step / steps_per_epoch
    return {
        layer: share(epochs - i * run.dilute_epochs, run.dilute_epochs, run.dilute_sched)
        for i, group in enumerate(groups(run.dilute_layers))
        for layer in group
    }


def distil_steps(run: Any, steps_per_epoch: int) -> int:
    """Optimizer steps, the first ones, in which layers learn from the initial checkpoint's; 0 without."""
    return 0 if run.distil_epochs is None else max(1, round(run.distil_epochs * steps_per_epoch))


def gone_from(run: Any) -> int:
    """The first epoch, counted from 0, that begins without any of the diluted attention; 0 without dilution."""
    if run.dilute_layers is None:
        return 0
    first = math.ceil(len(groups(run.dilute_layers)) * run.dilute_epochs)
    return first + any(shares(run, first, 1).values())  # a product may round down


def best_from(run: Any) -> int:
    """The first epoch whose weights may be the best ones."""
    return gone_from(run) if run.best_from is None else run.best_from


def num_layers(arguments: dict[str, Any]) -> int:
    """Of a model with these arguments of `build`, which has a depth, or one for each stage."""
    depth = arguments["depth"]
    return depth if isinstance(depth, int) else sum(depth)


def apart() -> str:
    """What a model must have that is to lose it, and who has: the end of a sentence that begins with "has no"."""
    found = ", ".join(f"{name}_*" for name in family.names() if END in family.read(name).arguments)
    return f"attention or other mixing of tokens in a residual of its own, which could go; known: {found}"


def final_kwargs(run: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the model that the run ends with: without the attention that it dilutes.

    Args:
        arguments: all that the model's `build` takes, with their values.
    """
    return dict(sorted({**run.model_kwargs, END: sorted({*arguments[END], *layers(run.dilute_layers)})}.items()))


def conflict(run: Any, arguments: dict[str, Any]) -> str | None:
    """What is wrong with the fields of a dilution or distillation, in one line; None if nothing is.

    Args:
        arguments: all that the model's `build` takes, with their values; {} for a model of timm.
    """
    if run.best_from is not None and run.best_from >= run.epochs:
        return f"best_from {run.best_from}: the epochs are counted from 0, the last of {run.epochs} is {run.epochs - 1}"
    if run.distil_epochs is not None:
        return _distil_fault(run, arguments)
    if run.dilute_layers is None:
        return None
    return _layers_fault(run, arguments) or _epochs_fault(run)


def _distil_fault(run: Any, arguments: dict[str, Any]) -> str | None:
    begin = f"distil_epochs {run.distil_epochs:g}:"
    if not arguments.get(END):
        return f"{begin} {run.model} has lost no mixing that its layers could learn; name them, model_kwargs {END}=0,2"
    if run.dilute_layers is not None:
        return f"{begin} dilute_layers is another way to lose the mixing of layers; leave one out"
    if run.penalty is not None:
        return f"{begin} penalty {run.penalty} changes weights that are to stand still meanwhile; leave one out"
    if arguments.get("merge_r"):
        return f"{begin} layers that merge tokens see others than the teacher's; leave out merge_r"
    if run.distil_epochs > run.epochs - 1:
        least = math.ceil(run.distil_epochs) + 1
        return (
            f"{begin} no epoch of {run.epochs} is left to learn the task; give {least} epochs or more, or fewer of it"
        )
    return None


def _layers_fault(run: Any, arguments: dict[str, Any]) -> str | None:
    begin = f"dilute_layers {run.dilute_layers}:"
    if END not in arguments:
        return f"{begin} {run.model} has no {apart()}"
    if arguments["replacement"] != "double":
        return f"{begin} what is diluted leaves 2x; leave out replacement {arguments['replacement']}"
    depth = num_layers(arguments)
    for layer in layers(run.dilute_layers):
        if layer >= depth:
            return f"{begin} layer {layer} is not among the layers 0 to {depth - 1} of {run.model}"
        if layer in arguments[END]:
            return f"{begin} layer {layer} of this {run.model} has no attention any more"
    return None


def _epochs_fault(run: Any) -> str | None:
    length = run.dilute_epochs
    if length is None:
        return f"dilute_layers {run.dilute_layers} needs dilute_epochs: over how many (as published: 299 of 400)"
    if run.dilute_by == "epoch" and length < 1:
        return f"dilute_epochs {length:g} by the epoch is 1; give that, or dilute_by step"
    if run.dilute_by == "epoch" and run.dilute_sched == "cosine":
        each = range(math.ceil(length))
        if all(share(epoch, length) == share(epoch, length, "cosine") for epoch in each):
            return f"dilute_sched cosine does nothing over dilute_epochs {length:g} by the epoch; leave it out"
    first = gone_from(run)
    if first >= run.epochs:
        count = len(groups(run.dilute_layers))
        each = f"{count} groups of {length:g}" if count > 1 else f"{length:g}"
        return (
            f"dilute_epochs: after {each} no epoch of {run.epochs} is left without attention; give {first + 1} epochs "
            f"or more, or fewer dilute_epochs"
        )
    if run.best_from is not None and run.best_from < first:
        return f"best_from {run.best_from}: there is attention left up to epoch {first - 1}; give {first} or more"
    return None


class Diluting:
    """A schedule that also says to the diluted layers where they are, at each step.

    Args:
        schedule: of the learning rate.
        halves: layer -> its diluted halves: of the model, and of its moving average where there is one.
    """

    def __init__(self, run: Any, schedule: Any, steps_per_epoch: int, halves: dict[int, Sequence[Any]]) -> None:
        self.run, self.schedule, self.steps_per_epoch, self.halves = run, schedule, steps_per_epoch, halves

    def step_update(self, step: int) -> None:
        """Before step number `step`."""
        self.schedule.step_update(step)
        for layer, lambda_ in shares(self.run, step, self.steps_per_epoch).items():
            for half in self.halves[layer]:
                half.dilute(lambda_)


def with_dilution(run: Any, schedule: Any, steps_per_epoch: int, *models: Any) -> Any:
    """The schedule, of a run that dilutes one which drives its models, too; None among them is left out."""
    if run.dilute_layers is None:
        return schedule
    halves = {
        layer: [model.stages[0][layer][0] for model in models if model is not None]
        for layer in layers(run.dilute_layers)
    }
    return Diluting(run, schedule, steps_per_epoch, halves)
