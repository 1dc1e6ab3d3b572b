"""What a run's criterion keeps of the weights that it starts from; masks that hold while it trains.

Within each unit of a target (of each layer, for criteria of units) all but a share `prune_share` goes, the lowest
scores first, so that criteria are compared at the same sparsity in every unit. What is zero already goes before all
others: a chain of runs, each from the last one's weights, prunes in rounds. Only the first start looks at weights and
images; afterwards the masks are part of the run's checkpoints.
"""

import contextlib
import importlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from engine import rng
from engine.errors import Refusal
from engine.pruning import criteria, targets, units
from engine.pruning.targets import Target

Masks = dict[str, Tensor]


def check(run: Any, model: nn.Module) -> None:
    """Raises Refusal where the run's criterion finds nothing in its model; the model may be without memory."""
    if run.prune_by is None:
        return
    try:
        _ = units.chain(model) if criteria.form(run.prune_by) == "units" else targets.find(model)
    except Refusal as refusal:
        raise Refusal(f"prune_by {run.prune_by}: {run.model}: {refusal}") from None


def calibrated(run: Any) -> bool:
    """Whether the run's criterion wants to see images."""
    return run.prune_by is not None and criteria.form(run.prune_by) == "units"


def make(run: Any, model: nn.Module, x_BCHW: Tensor | None = None) -> Masks:
    """True where a parameter stays, by its name; on the CPU.

    Args:
        x_BCHW: calibration images, for a criterion of units.
    """
    check(run, model)
    score = importlib.import_module(f"engine.pruning.criteria.{run.prune_by}").score
    generator = torch.Generator().manual_seed(rng.derive(run.seed, "prune") >> 1)
    if calibrated(run):
        scores = score(units.layers(model, x_BCHW), generator)
        return units.masks(model, units.kept(model, scores, run.prune_share))
    held = dict(model.named_parameters())
    return {
        target.name: target.stored(chosen(target, score(target, generator), run.prune_share), held[target.name])
        for target in targets.find(model)
    }


def chosen(target: Target, scores_UPC: Tensor, share: float) -> Tensor:
    """(U, P, C) bool, as many true in each unit: its highest scores; of equal ones the larger weights."""
    weight_UK = target.weight.flatten(1)
    scores_UK = scores_UPC.flatten(1).double().masked_fill(weight_UK == 0, -torch.inf)
    by_size = weight_UK.abs().argsort(dim=1, descending=True, stable=True)
    order = by_size.gather(1, scores_UK.gather(1, by_size).argsort(dim=1, descending=True, stable=True))
    stays = max(1, round((1 - share) * order.shape[1]))
    mask_UK = torch.zeros(weight_UK.shape, dtype=torch.bool)
    return mask_UK.scatter_(1, order[:, :stays], True).unflatten(1, target.weight.shape[1:])


class Held:
    """The masks of a model that trains; none: nothing is held.

    Args:
        masks: by the name of each parameter.
    """

    def __init__(self, model: nn.Module, masks: Mapping[str, Tensor] | None) -> None:
        held = dict(model.named_parameters())
        self.masks = {name: mask.to(held[name].device) for name, mask in (masks or {}).items()}
        self._gone = [(held[name], ~mask) for name, mask in self.masks.items()]

    @torch.no_grad()
    def gradients(self) -> None:
        """Take from the gradients what belongs to weights that are gone, so that it counts in no norm of them."""
        for parameter, gone in self._gone:
            if parameter.grad is not None:
                parameter.grad.masked_fill_(gone, 0.0)

    @torch.no_grad()
    def weights(self) -> None:
        """Set to zero what is gone."""
        for parameter, gone in self._gone:
            parameter.masked_fill_(gone, 0.0)


def start(run: Any, model: nn.Module, batches: Callable[[], Any], prepare: Callable[[Tensor], Tensor]) -> Masks | None:
    """The masks of a run that begins; None for one that prunes nothing.

    Args:
        batches: a call that gives the iterator of the first epoch's batches.
        prepare: uint8 BHWC images -> the model's input.
    """
    if run.prune_by is None:
        return None
    x_BCHW = None
    if calibrated(run):
        with contextlib.closing(batches()) as iterator:
            taken, count = [], 0
            for images, _ in iterator:
                taken.append(prepare(images).clone())
                count += len(images)
                if count >= units.CALIBRATION:
                    break
        x_BCHW = torch.cat(taken)[: units.CALIBRATION]
    return make(run, model, x_BCHW)
