"""Speed and memory of models, as measured on one device in one run.

Speed: `torch.utils.benchmark`, which warms up and waits for the device; each number is the median of `rounds` blocks of
forward passes with its quartiles, and the models take turns within a round, so that a load that comes and goes falls on
all of them alike.

Memory: the peak of what PyTorch's allocator holds: weights, input, and whatever a step allocates on top of them. On
CUDA that is `max_memory_allocated`; on a CPU the running sum over the allocator's events as the profiler records them.
Neither sees the libraries' own workspaces (oneDNN's scratch, the CUDA context). A training step is forward, loss and
backward, with the gradients in memory but without the state of an optimizer.
"""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity
from torch.profiler import profile as trace
from torch.utils.benchmark import Timer

BLOCK_SECONDS = 0.05
LARGEST_BATCH = 1024
ONE_VALUE = "Expected more than 1 value per channel"  # how PyTorch refuses to train a BatchNorm on one
GAIN = 1.03  # a doubled batch must give that many more images per second


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model on its device, and the shape of one image."""

    name: str
    model: nn.Module
    image: tuple[int, int, int]
    device: torch.device
    amp: bool = False

    def images(self, batch: int, device: str | None = None) -> Tensor:
        return torch.randn(batch, *self.image, device=device or self.device)

    def infer(self, x_BCHW: Tensor) -> Tensor:
        with torch.inference_mode(), self._autocast():
            return self.model(x_BCHW)

    def train(self, x_BCHW: Tensor) -> None:
        """One step's forward, loss and backward; the gradients stay."""
        with self._autocast():
            logits = self.model(x_BCHW)
        nn.functional.cross_entropy(logits.float(), torch.zeros(len(x_BCHW), dtype=int).to(self.device)).backward()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.amp)


# --- speed


def speeds(subjects: Sequence[Subject], batch_size: int | None = None, rounds: int = 9) -> list[dict[str, Any]]:
    """One row per model: latency at batch 1, images/s at `batch_size`, each a median with its quartiles.

    Without a batch size it is doubled, for each model by itself, until that gains nothing. `images_per_s_with_copy`
    includes bringing the images from the host's pinned memory; on a CPU there is no such copy, and it is None.
    """
    batches = [batch_size or best_batch(subject) for subject in subjects]
    latency = [block(subject, 1) for subject in subjects]
    rate = [block(subject, batch) for subject, batch in zip(subjects, batches, strict=True)]
    copied = [
        block(subject, batch, copy=True) if subject.device.type == "cuda" else None
        for subject, batch in zip(subjects, batches, strict=True)
    ]
    found = in_turn([*latency, *rate, *filter(None, copied)], rounds)
    count = len(subjects)
    per_batch = found[count : 2 * count]
    with_copy = iter(found[2 * count :])
    rows = []
    for i, (subject, batch) in enumerate(zip(subjects, batches, strict=True)):
        images = [batch / seconds for seconds in per_batch[i]]
        rows.append(
            {
                "device": device_name(subject.device),
                **_spread("latency_ms", [1e3 * seconds for seconds in found[i]]),
                "batch_size": batch,
                **_spread("images_per_s", images),
                "images_per_s_with_copy": median(batch / s for s in next(with_copy)) if copied[i] else None,
            }
        )
    return rows


def ratios(ours: Subject, theirs: Subject, step: str, batch: int, rounds: int) -> dict[str, float]:
    """Milliseconds of both, and theirs over ours, for `step` "infer" or "train", timed in turn on the same images.

    The weights must be the same: raises AssertionError unless the logits are.
    """
    x = ours.images(batch)
    logits = [subject.model.eval() and subject.infer(x).float() for subject in (ours, theirs)]
    bound = (0.1 if ours.amp else 1e-3) * max(logits[1].abs().max().item(), 1e-6)
    assert (logits[0] - logits[1]).abs().max() <= bound, f"{ours.name} is not its reference"
    for subject in (ours, theirs):
        subject.model.train(step == "train")
    blocks = [timed(partial(getattr(subject, step), x)) for subject in (ours, theirs)]
    found = in_turn(blocks, rounds)
    for subject in (ours, theirs):
        subject.model.zero_grad(set_to_none=True)
    return {
        "ours_ms": 1e3 * median(found[0]),
        "reference_ms": 1e3 * median(found[1]),
        **_spread("ratio", [b / a for a, b in zip(*found, strict=True)]),
    }


def in_turn(blocks: Sequence[Callable[[], float]], rounds: int) -> list[list[float]]:
    """Seconds of each block, once per round, one block after the other."""
    seconds: list[list[float]] = [[] for _ in blocks]
    for _ in range(rounds):
        for measured, run in zip(seconds, blocks, strict=True):
            measured.append(run())
    return seconds


def block(subject: Subject, batch: int, copy: bool = False) -> Callable[[], float]:
    """A function that times one block of forward passes and returns seconds per pass."""
    subject.model.eval()
    x = subject.images(batch, "cpu" if copy else None)
    if copy:
        x = x.pin_memory()
    run = (lambda: subject.infer(x.to(subject.device, non_blocking=True))) if copy else (lambda: subject.infer(x))
    return timed(run)


def timed(run: Callable[[], Any]) -> Callable[[], float]:
    """A function that times one block of calls, long enough for the clock, and returns seconds per call."""
    timer = Timer("run()", globals={"run": run}, num_threads=torch.get_num_threads())
    run()
    number = max(1, math.ceil(BLOCK_SECONDS / timer.timeit(1).mean))
    return lambda: timer.timeit(number).mean


def best_batch(subject: Subject) -> int:
    """Batch size with the most images per second: doubled until two doublings gain nothing, or memory ends."""
    best = batch = 1
    most, idle = 0.0, 0
    while batch <= LARGEST_BATCH and idle < 2:
        try:
            run = block(subject, batch)
            rate = batch / min(run() for _ in range(3))
        except RuntimeError as error:
            if "memory" not in str(error):
                raise
            break
        idle += 1
        if rate > GAIN * most:
            best, most, idle = batch, rate, 0
        batch *= 2
    return best


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, threads: {torch.get_num_threads()}"


def _spread(name: str, values: Sequence[float]) -> dict[str, float]:
    q1, middle, q3 = quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return {name: middle, f"{name}_q1": q1, f"{name}_q3": q3}


# --- memory


def memory(subject: Subject, batch: int) -> dict[str, float | None]:
    """Peak of allocated memory in MB (10^6 bytes) of one forward pass for inference and of one training step.

    None where there is no such step, because at this batch size a BatchNorm would see one value per channel.
    """
    peaks: dict[str, float | None] = {}
    for name, step in (("infer", subject.infer), ("train", subject.train)):
        subject.model.train(name == "train")
        try:
            peaks[f"{name}_peak_mb"] = peak_bytes(subject.model, subject.images(batch), step) / 1e6
        except ValueError as error:
            if ONE_VALUE not in str(error):
                raise
            peaks[f"{name}_peak_mb"] = None
    subject.model.eval()
    return peaks


def peak_bytes(model: nn.Module, x: Tensor, step: Callable[[Tensor], Any]) -> int:
    """Largest number of bytes held at once during `step(x)`: weights, buffers and input included. Drops gradients."""
    model.zero_grad(set_to_none=True)
    held = {
        t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in [*model.parameters(), *model.buffers(), x]
    }
    above = _cuda_peak if x.device.type == "cuda" else _cpu_peak
    peak = sum(held.values()) + above(lambda: step(x))
    model.zero_grad(set_to_none=True)
    return peak


def _cuda_peak(run: Callable[[], Any]) -> int:
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _cpu_peak(run: Callable[[], Any]) -> int:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it reports on stderr that there is no GPU
    with trace(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as traced:
        run()
    events = [(e.start_ns(), e.nbytes()) for e in traced.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for _, size in sorted(events, key=lambda event: event[0]):
        live += size
        peak = max(peak, live)
    return peak
