"""Where a run stands, and one optimizer step from there: forward, backward, clip, step, moving average.

`State` is all that changes while a run trains, and what its checkpoints hold. `Step` advances it. What compiles the
step, captures it in a graph or trains several models at once is another `Step` over the same `State`.
"""

import contextlib
import functools
import logging
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from timm.layers import DropPath, PatchDropout
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from archs.attention.distilled import Distilled
from engine import distributed, optim, rng
from engine.data.loaders import Batch
from engine.errors import DIVERGED, Refusal
from engine.folder import checkpoint
from engine.folder.lease import Lease
from engine.pruning.masks import Held, Masks
from engine.run import Run

log = logging.getLogger("softmlp")


class State:
    """The model, what is learned beside it, and the numbers so far; it saves and loads itself."""

    def __init__(self, run: Run, model: nn.Module, device: torch.device, masks: Masks | None = None) -> None:
        self.run, self.model = run, model
        self.held = Held(model, masks)
        self.held.weights()
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
            **({"masks": self.held.masks} if self.held.masks else {}),
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

    def save(self, folder: Path, lease: Lease | None, keep: int = 2) -> None:
        """Write a checkpoint, keep the newest: all processes call this, one writes, and the others wait for it."""
        distributed.first_only(functools.partial(_publish, folder, lease, self.state_dict(), keep))
        self._saved = time.monotonic()


def _publish(folder: Path, lease: Lease, saved: dict[str, Any], keep: int) -> None:
    lease.check()
    checkpoint.save(folder, saved, keep)


class Step:
    """One optimizer step over `grad_accum_steps` batches.

    What is drawn in it depends on (seed, step, batch) alone, so that nothing random has to be saved.

    Args:
        prepare: uint8 BHWC images -> the model's input.
        compiled: by torch.compile; changes the last bits.
        taught: of a run that begins by distilling its teacher, and the layers that learn from it.
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
        taught: tuple[nn.Module, list[int]] | None = None,
    ) -> None:
        self.run, self.state, self.schedule, self.prepare = run, state, schedule, prepare
        self.device, self.world = state.loss_sum.device, distributed.world()
        self.loss_of, self.mix = optim.make_loss(run), optim.make_mix(run, num_classes)
        self.autocast = make_autocast(run, self.device)
        self.penalty = optim.make_penalty(run, state.model)
        self.micro_batches = 1
        """Parts that each batch is trained in, one after another: more than one once the memory was too little."""
        self.distilled = Distilled(state.model, taught[0].to(self.device), taught[1]) if taught else None
        self.distil_steps = 0
        """Steps, the first ones, in which layers learn from the teacher's instead of all from the labels."""
        self.forward = self.distilled or state.model
        if self.world > 1:  # attention that is gone gets no gradient, nor do layers that have no teacher
            some = run.dilute_layers is not None or taught is not None
            self.forward = nn.parallel.DistributedDataParallel(self.forward, find_unused_parameters=some)
        if compiled:
            self.forward = torch.compile(self.forward)

    def __call__(self, batches: Iterator[Batch]) -> None:
        """Take the step; the state has its loss.

        Raises Refusal (DIVERGED) on a CPU for a loss that is no number, before it reaches the weights.
        """
        run, state = self.run, self.state
        self.schedule.step_update(state.step)
        if self.distilled:
            self.distilled.learning = state.step < self.distil_steps
        for part in range(run.grad_accum_steps):
            self._gradients(*next(batches), part)
        if self.device.type == "cpu":  # on a GPU looking at the loss would wait for it
            state.finite(state.settle().item())
        if run.clip_grad or self.penalty:
            state.scaler.unscale_(state.optimizer)
        if self.penalty:
            self.penalty.gradients()
        state.held.gradients()
        if run.clip_grad:
            nn.utils.clip_grad_norm_(state.model.parameters(), run.clip_grad)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        if self.penalty:
            self.penalty.threshold()
        state.held.weights()
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
        while True:
            try:
                loss = self._backward(x_BCHW, labels, part)
                break
            except torch.OutOfMemoryError as error:
                self._halve(len(labels), part, error)
            if self.device.type == "cuda":  # here, where the error holds no tensor of the failed pass any more
                torch.cuda.empty_cache()
        state.note(loss)

    def _backward(self, x_BCHW: Tensor, labels: Tensor, part: int) -> Tensor:
        """Add the gradients of a batch, in `micro_batches` parts; its share of the loss."""
        run, state, losses = self.run, self.state, []
        last = part + 1 == run.grad_accum_steps
        with contextlib.nullcontext() if last or self.world == 1 else self.forward.no_sync():
            for index, (some_BCHW, theirs) in enumerate(self._parts(x_BCHW, labels)):
                with self.autocast():
                    out = self.forward(some_BCHW).float()
                # Outside autocast: under it a CPU takes the logarithm and the mean in bfloat16.
                loss = out.mean() if self.distilled and self.distilled.learning else self.loss_of(out, theirs)
                loss = loss / run.grad_accum_steps
                if len(theirs) < len(labels):
                    loss = loss * (len(theirs) / len(labels))
                if part == index == 0:  # not before the forward pass: it takes the memory that gradients want again
                    state.optimizer.zero_grad()
                state.scaler.scale(loss).backward()
                losses.append(loss.detach())
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum()

    def _parts(self, x_BCHW: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        if self.micro_batches == 1:
            return iter([(x_BCHW, labels)])
        split = self.micro_batches
        return zip(x_BCHW.tensor_split(split), labels.tensor_split(split), strict=True)

    def _halve(self, images: int, part: int, error: torch.OutOfMemoryError) -> None:
        """Train each batch in twice as many parts from here on, where that gives the same gradients but for rounding.

        Raises Refusal where it would not: then less memory is another run.
        """
        run, more = self.run, 2 * self.micro_batches
        why = None
        if more > images:
            why = "one image at a time does not fit"
        elif self.world > 1:
            why = "several processes train it together, and one alone cannot change its parts"
        elif part:  # what the pass had added to the gradients of the batches before cannot be taken off again
            why = "it was in a later batch of the step"
        elif random := drawing(self.state.model):
            why = f"its layer {random} takes statistics of the batch, or draws at random for it"
        if why:
            smaller = f"--batch-size {max(images // 2, 1)} --grad-accum-steps {2 * run.grad_accum_steps}"
            line = f"{run.name}: out of memory on {images} images, which are not split: {why}; another run needs less"
            raise Refusal(f"{line}: {smaller}") from error
        self.micro_batches = more
        log.warning("%s: out of memory; each batch is trained in %d parts from here on", run.name, more)


def drawing(model: nn.Module) -> str | None:
    """The first layer whose output for an image depends on those beside it, or on chance; None if there is none."""
    for name, module in model.named_modules():
        batch = isinstance(module, nn.modules.batchnorm._BatchNorm)
        chance = isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
        chance |= isinstance(module, DropPath) and module.drop_prob > 0
        chance |= isinstance(module, PatchDropout) and module.prob > 0
        if module.training and (batch or chance):
            return name
    return None


def precision(run: Run) -> torch.dtype:
    """What the run's matrix products are computed in."""
    return getattr(torch, run.amp_dtype) if run.amp else torch.float32


def make_autocast(run: Run, device: torch.device) -> Callable[[], torch.autocast]:
    """The context of the run's forward passes, while training and after."""
    return functools.partial(torch.autocast, device.type, precision(run), enabled=run.amp)
