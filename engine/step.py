"""Where a run stands, and one optimizer step from there: forward, backward, clip, step, moving average.

`State` is all that changes while a run trains, and what its checkpoints hold. `Step` advances it. What compiles the
step, captures it in a graph or trains several models at once is another `Step` over the same `State`.
"""

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from engine import distributed, optim, rng
from engine.data.loaders import Batch
from engine.errors import DIVERGED, Refusal
from engine.folder import checkpoint
from engine.folder.lease import Lease
from engine.run import Run


class State:
    """The model, what is learned beside it, and the numbers so far; it saves and loads itself."""

    def __init__(self, run: Run, model: nn.Module, device: torch.device) -> None:
        self.run, self.model = run, model
        self.optimizer = optim.make_optimizer(run, model)
        self.ema = None
        if run.model_ema:
            self.ema = ModelEmaV3(model, decay=run.model_ema_decay, use_warmup=run.model_ema_warmup)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision(run) == torch.float16)
        self.step = 0
        """Optimizer steps taken."""
        self.history: list[dict[str, Any]] = []
        """A row of summary.csv per epoch."""
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        """Of the steps since the last row, as far as `settle` has added them up."""
        self._losses: list[Tensor] = []
        self._loss = self.loss_sum
        self._saved = time.monotonic()

    @property
    def judged(self) -> nn.Module:
        """The model that is evaluated and exported: the moving average where there is one."""
        return self.ema.module if self.ema else self.model

    @property
    def lr(self) -> float:
        """Learning rate of the last step taken."""
        return self.optimizer.param_groups[0]["lr"]

    def finite(self, loss: float) -> float:
        """The same loss. Raises Refusal (DIVERGED) where it is no number."""
        if not math.isfinite(loss):
            where = f"at epoch {len(self.history) + 1} step {self.step} of {self.run.name} (lr {self.lr:.3g})"
            raise Refusal(f"loss became {loss} {where}; try --clip-grad 1 or a lower --lr", DIVERGED)
        return loss

    def note(self, loss: Tensor) -> None:
        """The loss of one more batch of this process, over `grad_accum_steps`; adding it up can wait."""
        self._losses.append(loss)

    def settle(self) -> Tensor:
        """Bring `loss_sum` up to date, by the means of all processes. Returns the last of them.

        All processes call this, when they need the number: it is one exchange, of however many losses, and on a GPU
        looking at the result waits for it.
        """
        if self._losses:
            means, self._losses = distributed.mean_(torch.stack(self._losses)), []
            for mean in means:
                self.loss_sum += mean
            self._loss = means[-1]
        return self._loss

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds: tensors and plain values; all processes call this, see `settle`.

        Raises Refusal (DIVERGED) where a loss was no number.
        """
        self.settle()
        return {
            "step": self.step,
            "loss_sum": self.finite(self.loss_sum.item()),
            "history": self.history,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema else None,
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on from a checkpoint of the same run."""
        self.model.load_state_dict(saved["model"])
        optim.load_optimizer(self.optimizer, saved["optimizer"])
        if self.ema:
            self.ema.module.load_state_dict(saved["ema"])
        self.scaler.load_state_dict(saved["scaler"])
        self.step, self.history = saved["step"], saved["history"]
        self.loss_sum.fill_(saved["loss_sum"])

    def age(self) -> float:
        """Seconds since the last checkpoint of this attempt, or since it began."""
        return time.monotonic() - self._saved

    def save(self, folder: Path, lease: Lease | None) -> None:
        """Write a checkpoint: all processes call this, the one with the lease writes, and the others wait for it."""
        distributed.first_only(functools.partial(_publish, folder, lease, self.state_dict()))
        self._saved = time.monotonic()


def _publish(folder: Path, lease: Lease, saved: dict[str, Any]) -> None:
    lease.check()
    checkpoint.save(folder, saved)


class Step:
    """One optimizer step over `grad_accum_steps` batches.

    What is drawn in it depends on (seed, step, batch) alone, so that nothing random has to be saved.

    Args:
        prepare: uint8 BHWC images -> the model's input.
        compiled: by torch.compile; changes the last bits.
    """

    def __init__(
        self,
        run: Run,
        state: State,
        schedule: Scheduler,
        prepare: Callable[[Tensor], Tensor],
        num_classes: int,
        *,
        compiled: bool = False,
    ) -> None:
        self.run, self.state, self.schedule, self.prepare = run, state, schedule, prepare
        self.device, self.world = state.loss_sum.device, distributed.world()
        self.loss_of, self.mix = optim.make_loss(run), optim.make_mix(run, num_classes)
        self.autocast = make_autocast(run, self.device)
        self.forward = state.model
        if self.world > 1:  # attention that is gone gets no gradient
            diluted = run.dilute_layers is not None
            self.forward = nn.parallel.DistributedDataParallel(state.model, find_unused_parameters=diluted)
        if compiled:
            self.forward = torch.compile(self.forward)

    def __call__(self, batches: Iterator[Batch]) -> None:
        """Take the step; the state has its loss.

        Raises Refusal (DIVERGED) on a CPU for a loss that is no number, before it reaches the weights.
        """
        run, state = self.run, self.state
        self.schedule.step_update(state.step)
        for part in range(run.grad_accum_steps):
            self._gradients(*next(batches), part)
        if self.device.type == "cpu":  # on a GPU looking at the loss would wait for it
            state.finite(state.settle().item())
        if run.clip_grad:
            state.scaler.unscale_(state.optimizer)
            nn.utils.clip_grad_norm_(state.model.parameters(), run.clip_grad)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.step += 1
        if state.ema:
            state.ema.update(state.model, state.step)

    def _gradients(self, images: Tensor, labels: Tensor, part: int) -> None:
        """Add the gradients of one batch of the step, images (B, H, W, C) uint8, and note its share of the loss."""
        run, state = self.run, self.state
        rng.seed_everything(run.seed, "step", state.step, part)
        x_BCHW, labels = self.prepare(images), labels.to(self.device, non_blocking=True, copy=True)
        if self.mix:
            x_BCHW, labels = self.mix(x_BCHW, labels)
        if self.world > 1:  # mixing is the same everywhere; what the model draws is not
            rng.seed_everything(run.seed, "rank", state.step, part, distributed.rank())
        last = part + 1 == run.grad_accum_steps
        with contextlib.nullcontext() if last or self.world == 1 else self.forward.no_sync():
            with self.autocast():
                logits = self.forward(x_BCHW)
            # Outside autocast: under it a CPU takes the logarithm and the mean in bfloat16.
            loss = self.loss_of(logits.float(), labels) / run.grad_accum_steps
            if part == 0:  # not before the forward pass, which would take the memory that the gradients want again
                state.optimizer.zero_grad()
            state.scaler.scale(loss).backward()
        state.note(loss.detach())


def precision(run: Run) -> torch.dtype:
    """What the run's matrix products are computed in."""
    return getattr(torch, run.amp_dtype) if run.amp else torch.float32


def make_autocast(run: Run, device: torch.device) -> Callable[[], torch.autocast]:
    """The context of the run's forward passes, while training and after."""
    return functools.partial(torch.autocast, device.type, precision(run), enabled=run.amp)
