"""Optimizer, schedule, loss and label mixing of a run, all through timm's own factories."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from timm.data import Mixup
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.models import group_parameters
from timm.optim import auto_group_layers, create_optimizer_v2, param_groups_weight_decay
from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler, PolyLRScheduler, StepLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn

from archs.ingredients import penalised, penalties
from archs.ingredients.lift import Geometry
from engine.errors import Refusal
from engine.fields.softness import WINDOWED
from engine.run import Run

Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

# timm's names of those torch has as one kernel over all of a parameter, for CPUs and GPUs. A loop over operations of
# which each reads all weights again takes up to 1.4 times as long for a step; it differs from the kernel in rounding.
FUSED = ("adamw", "adam", "sgd", "momentum")


def head_of(model: nn.Module) -> nn.Module:
    """The classifier, of our models and of timm's; of a model that has two for distillation, both."""
    head = model.get_classifier() if hasattr(model, "get_classifier") else model.head
    return nn.ModuleList(head) if isinstance(head, tuple | list) else head


def freeze_body(model: nn.Module) -> None:
    """Leave gradients to the head alone, for a linear probe."""
    model.requires_grad_(False)
    head_of(model).requires_grad_(True)


def make_optimizer(run: Run, model: nn.Module) -> torch.optim.Optimizer:
    """timm's optimizer; weight decay spares biases, norms, other vectors and what the model names itself.

    With `mode` linear only the head is in it. With `body_lr_scale` everything else learns at that share of the rate,
    as in the fine-tuning of Scaling MLPs (its code, finetune.py); with `layer_decay` at that share per layer from the
    head downwards. What is decayed is the same with and without either. `penalty` beta_lasso stands in place of the
    decay of its matrices; other penalties are added to it. The model is on its device already.
    """
    # torch's fused SGD cannot begin a momentum for some weights when others have one, as where a distillation ends.
    fused = run.opt in FUSED and (run.distil_epochs is None or run.opt.startswith("adam"))
    given: dict[str, Any] = {"betas": run.opt_betas, "eps": run.opt_eps, "fused": True if fused else None}
    given = {key: value for key, value in given.items() if value is not None}
    if run.body_lr_scale != 1.0 or run.layer_decay is not None or run.penalty == "beta_lasso":
        given["param_group_fn"] = functools.partial(_scaled_groups, run)
    optimizer = create_optimizer_v2(
        model, opt=run.opt, lr=run.lr, weight_decay=run.weight_decay, momentum=run.momentum, **given
    )
    # The gradient scaler of float16 skips a step that overflows. Left to do so itself, torch's fused SGD takes whatever
    # lies in fresh memory as its momentum if that is the first step.
    optimizer._step_supports_amp_scaling = False
    return optimizer


def load_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Go on from the state of the same optimizer, whichever kernels it used: those are this process's own choice."""
    own = [{key: group[key] for key in ("fused", "foreach") if key in group} for group in optimizer.param_groups]
    groups = [group | kernels for group, kernels in zip(saved["param_groups"], own, strict=True)]
    optimizer.load_state_dict({**saved, "param_groups": groups})


def _scaled_groups(run: Run, model: nn.Module) -> list[dict[str, Any]]:
    """timm's groups by weight decay, each divided by learning rate.

    Not timm's own groups for layer decay: those decay a bias of more than one axis, such as that of an unshared stem.
    """
    scales = _lr_scales(run, model)
    spared = {*(model.no_weight_decay() if hasattr(model, "no_weight_decay") else ())}
    if run.penalty == "beta_lasso":
        spared |= {matrix.name for matrix in make_penalty(run, model).matrices}
    groups = []
    for group in param_groups_weight_decay(model, weight_decay=run.weight_decay, no_weight_decay_list=spared):
        for scale in sorted({scales[weight] for weight in group["params"]}):
            chosen = [weight for weight in group["params"] if scales[weight] == scale]
            groups.append({**group, "params": chosen, "lr_scale": scale})
    return groups


def _lr_scales(run: Run, model: nn.Module) -> dict[nn.Parameter, float]:
    """The share of the learning rate that each parameter has."""
    if run.layer_decay is None:
        head = {id(weight) for weight in head_of(model).parameters()}
        return {weight: 1.0 if id(weight) in head else run.body_lr_scale for weight in model.parameters()}
    if hasattr(model, "group_matcher"):
        depth = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    else:
        depth = auto_group_layers(model)
    last = max(depth.values())
    return {weight: run.layer_decay ** (last - depth[name]) for name, weight in model.named_parameters()}


class TriangularLRScheduler(Scheduler):
    """0 -> lr at 2/5 of the steps -> lr/20 at 4/5 -> 0, piecewise linear: ConvMixer's (its code, train.py).

    A step has the rate of its end, as there: the first one trains, the last one does not. The authors round the two
    corners down to whole epochs, which is the same where five divides the number of epochs.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, t_initial: int) -> None:
        super().__init__(optimizer, param_group_field="lr", t_in_epochs=False)
        self.t_initial = t_initial

    def _get_lr(self, t: int) -> list[float]:
        share = float(np.interp((t + 1) / self.t_initial, [0, 0.4, 0.8, 1], [0, 1, 0.05, 0]))
        return [share * value for value in self.base_values]


def make_schedule(run: Run, optimizer: torch.optim.Optimizer, steps_per_epoch: int) -> Scheduler:
    """Learning rate as a function of the step alone (`step_update(step)`), so that it needs no state to resume."""
    warmup = {
        "warmup_t": round(run.warmup_epochs * steps_per_epoch),
        "warmup_lr_init": run.warmup_lr,
        "warmup_prefix": True,
        "t_in_epochs": False,
    }
    steps = max((run.epochs - run.cooldown_epochs) * steps_per_epoch - warmup["warmup_t"], 1)
    if run.sched == "triangular":
        return TriangularLRScheduler(optimizer, run.epochs * steps_per_epoch)
    if run.sched == "constant":
        return MultiStepLRScheduler(optimizer, decay_t=[], **warmup)
    if run.sched == "step":
        decay = {"decay_t": run.decay_epochs * steps_per_epoch, "decay_rate": run.decay_rate}
        return StepLRScheduler(optimizer, **decay, **warmup)
    if run.sched == "linear":
        return PolyLRScheduler(optimizer, t_initial=steps, power=1.0, lr_min=run.min_lr, **warmup)
    return CosineLRScheduler(optimizer, t_initial=steps, lr_min=run.min_lr, **warmup)


def make_loss(run: Run) -> nn.Module:
    """Cross-entropy on hard labels, smoothed labels, or the soft ones that mixup and cutmix make; or binary."""
    if run.bce_loss:
        # Mixup has smoothed the labels already.
        return BinaryCrossEntropy(smoothing=0.0 if run.mixup or run.cutmix else run.smoothing)
    if run.mixup or run.cutmix:
        return SoftTargetCrossEntropy()
    return LabelSmoothingCrossEntropy(run.smoothing) if run.smoothing else nn.CrossEntropyLoss()


class Penalty:
    """A run's penalty on its model, part of the loss as in the papers: it adds its gradient to that of the batches.

    Raises Refusal for a model without such weights, and for a geometry that does not fit them.
    """

    def __init__(self, run: Run, model: nn.Module) -> None:
        self.run, self.matrices = run, penalised.find(model)
        begin = f"penalty {run.penalty}: {run.model}"
        if not self.matrices:
            raise Refusal(
                f"{begin} has no weights that read places; a flat net's first layer (mlp_*, bmlp_*), resmlp_*, gmlp_*, "
                "mixer_* and lattice_* with mixer=dense, dial, banded or two have"
            )
        if run.penalty_stride > 1 and all(matrix.placed for matrix in self.matrices):
            raise Refusal(f"{begin}: its units stand where the tokens are; leave out penalty_stride")
        try:
            self.geometries = [self._geometry(matrix) for matrix in self.matrices]
        except ValueError as error:
            raise Refusal(f"{begin}: {error}") from None

    def _geometry(self, matrix: penalised.Matrix) -> Geometry:
        """Raises ValueError where units do not stand on the places, or no weight is outside the window."""
        if self.run.penalty not in WINDOWED or matrix.placed:
            geometry = matrix.geometry
        else:
            geometry = dataclasses.replace(matrix.geometry, stride=self.run.penalty_stride)
            geometry.view(matrix.stored)
        if self.run.penalty == "toeplitz" and geometry.out_places == 1:
            raise ValueError("its units stand on one place, so that nothing is shared; give a smaller penalty_stride")
        side = self.run.penalty_kernel_size
        if self.run.penalty in WINDOWED and side is not None and bool(geometry.inside(side).all()):
            raise ValueError(f"a window of {side} holds all of {geometry.grid[0]} x {geometry.grid[1]} places")
        return geometry

    def value(self) -> Tensor:
        """What is added to the loss."""
        run, parts = self.run, []
        for matrix, geometry in zip(self.matrices, self.geometries, strict=True):
            if run.penalty == "beta_lasso":
                parts.append(matrix.constant * penalties.lasso(matrix.stored))
            elif run.penalty == "distance":
                parts.append(penalties.distance(matrix.dense(), geometry, matrix.placed))
            else:
                of = penalties.toeplitz if run.penalty == "toeplitz" else penalties.mask
                parts.append(of(matrix.dense(), geometry, run.penalty_kernel_size))
        return run.penalty_weight * torch.stack(parts).sum()

    def gradients(self) -> None:
        """Add its own to those of the batches, which are there and unscaled.

        Not by `backward`: of several processes each has the same penalty, and the reducer counts its gradients.
        """
        weights = [matrix.stored for matrix in self.matrices]
        for weight, gradient in zip(weights, torch.autograd.grad(self.value(), weights), strict=True):
            weight.grad = gradient if weight.grad is None else weight.grad.add_(gradient)

    def threshold(self) -> None:
        """After a step: beta-lasso's zeros."""
        if self.run.penalty == "beta_lasso":
            for matrix in self.matrices:
                penalties.threshold_(matrix.stored, self.run.penalty_beta * self.run.penalty_weight / matrix.constant)


def make_penalty(run: Run, model: nn.Module) -> Penalty | None:
    """The run's; None for one that has none. The model may be without memory."""
    return None if run.penalty is None else Penalty(run, model)


def make_mix(run: Run, num_classes: int) -> Mix | None:
    """timm's mixup and cutmix over an even batch. It draws from NumPy's global generator, which the engine seeds."""
    if not (run.mixup or run.cutmix):
        return None
    return Mixup(mixup_alpha=run.mixup, cutmix_alpha=run.cutmix, label_smoothing=run.smoothing, num_classes=num_classes)
