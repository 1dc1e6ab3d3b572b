"""Optimizer, schedule, loss and label mixing of a run, all through timm's own factories."""

from collections.abc import Callable

import torch
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn

from engine.run import Run

Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def make_optimizer(run: Run, model: nn.Module) -> torch.optim.Optimizer:
    """timm's optimizer; weight decay spares biases, norms and other vectors."""
    given = {"betas": run.opt_betas} if run.opt_betas is not None else {}
    return create_optimizer_v2(
        model, opt=run.opt, lr=run.lr, weight_decay=run.weight_decay, momentum=run.momentum, **given
    )


def make_schedule(run: Run, optimizer: torch.optim.Optimizer, steps_per_epoch: int) -> Scheduler:
    """Learning rate as a function of the step alone (`step_update(step)`), so that it needs no state to resume."""
    warmup = {
        "warmup_t": round(run.warmup_epochs * steps_per_epoch),
        "warmup_lr_init": run.warmup_lr,
        "warmup_prefix": True,
        "t_in_epochs": False,
    }
    if run.sched == "constant":
        return MultiStepLRScheduler(optimizer, decay_t=[], **warmup)
    steps = run.epochs * steps_per_epoch - warmup["warmup_t"]
    return CosineLRScheduler(optimizer, t_initial=max(steps, 1), lr_min=run.min_lr, **warmup)


def make_loss(run: Run) -> nn.Module:
    """Cross-entropy on hard labels, smoothed labels, or the soft ones that mixup and cutmix make."""
    if run.mixup or run.cutmix:
        return SoftTargetCrossEntropy()
    return LabelSmoothingCrossEntropy(run.smoothing) if run.smoothing else nn.CrossEntropyLoss()


def make_mix(run: Run, num_classes: int) -> Mix | None:
    """timm's mixup and cutmix over a batch. It draws from NumPy's global generator, which the engine seeds per step."""
    if not (run.mixup or run.cutmix):
        return None
    return Mixup(mixup_alpha=run.mixup, cutmix_alpha=run.cutmix, label_smoothing=run.smoothing, num_classes=num_classes)
