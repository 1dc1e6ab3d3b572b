"""What a run says of itself while it runs: status.json with a heartbeat, metrics.jsonl, log.txt."""

import contextlib
import json
import logging
import os
import platform
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from engine import distributed
from engine.data.loaders import Batch
from engine.errors import OUTPUT, Refusal
from engine.folder import store
from engine.folder.lease import Lease

INTERVAL_SECONDS = 1.0
log = logging.getLogger("softmlp")


class Status:
    """status.json of one attempt; nothing here is read back by the training. Rates leave out the attempt's first step.

    Args:
        lease: the right to write; None for a process that helps the one which has it, and is silent.
    """

    def __init__(
        self, folder: Path, lease: Lease | None, tell: Callable[[dict[str, Any]], None] = lambda fields: None
    ) -> None:
        previous = store.read_json(folder / "status.json")
        self.folder, self.lease, self._tell = folder, lease, tell
        self.first_step = self.steps = self.epochs = 0  # where the attempt began, and what there is to do
        self.best_from = 0  # the first epoch that may be the best one
        self.train_flops_per_image = 0.0
        self.peak_flops = 0.0
        self.done = previous.get("state") == store.DONE
        self.fields: dict[str, Any] = {
            "state": store.RUNNING,
            "attempt": lease.number if lease else 0,
            "pid": os.getpid(),
            "host": platform.node(),
            "started": store.now(),
        }
        self._before = previous.get("seconds", 0.0)
        self._began = self._mark = time.monotonic()
        self._said = float("-inf")
        self._images, self._training, self._waiting = 0, 0.0, 0.0
        self._cold = True

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches; counts images, and the time spent on them and waiting for them."""
        self._mark = time.monotonic()
        with contextlib.closing(batches):
            while True:
                asked = time.monotonic()
                batch = next(batches, None)
                got = time.monotonic()
                self._waiting += got - asked
                self._training += got - self._mark
                self._mark = got
                if batch is None:
                    return
                yield batch
                self._images += len(batch[1]) * distributed.world()
                if self._cold and self._images:  # the first step of a process makes what the others find
                    self._cold, self._images, self._training, self._waiting = False, 0, 0.0, 0.0
                    self._mark = time.monotonic()

    def update(self, step: int, history: list[dict[str, Any]]) -> None:
        """Take note of where the run is; written at most once per INTERVAL_SECONDS."""
        now = time.monotonic()
        if now - self._said < INTERVAL_SECONDS:
            return
        rate = self._images / self._training if self._training else None
        done = step - self.first_step
        evaluated = [row for row in history if row["eval_top1"] is not None]
        best = best_of(history, self.best_from)
        self.fields |= {
            "epoch": len(history),
            "epochs": self.epochs,
            "step": step,
            "steps": self.steps,
            "acc1": evaluated[-1]["eval_top1"] if evaluated else None,
            "best_acc1": best["eval_top1"] if best else None,
            "best_epoch": best["epoch"] if best else None,
            "images_per_s": round(rate, 1) if rate else None,
            "mfu": round(rate * self.train_flops_per_image / self.peak_flops, 4) if rate and self.peak_flops else None,
            "memory_gb": round(memory_gb(), 3),
            "data_wait": round(self._waiting / self._training, 4) if self._training else None,
            "eta_s": round((self.steps - step) * (now - self._began) / done, 1) if done else None,
            "seconds": round(self._before + now - self._began, 3),
        }
        self._said = now
        self._write(durable=False)
        self._tell(self.fields)

    def end(self, state: str, **fields: Any) -> None:
        """The last word of the attempt."""
        self.fields |= {"state": state, "seconds": round(self._before + time.monotonic() - self._began, 3), **fields}
        self._write(durable=True)

    def final(self, step: int, history: list[dict[str, Any]]) -> None:
        self._said = float("-inf")
        self.update(step, history)
        self.end(store.DONE)

    def _write(self, durable: bool) -> None:
        if not self.lease:
            return
        self.lease.check()
        self.fields["heartbeat"] = store.now()
        store.write_json(self.folder / "status.json", self.fields, durable=durable)


def best_of(history: list[dict[str, Any]], first: int = 0) -> dict[str, Any] | None:
    """The first row of the highest accuracy on all validation images; None where no epoch was evaluated on them yet.

    Args:
        first: epoch from which on one may be the best, counted from 0.
    """
    evaluated = [row for row in history[first:] if row["eval_top1"] is not None]
    return max(evaluated, key=lambda row: row["eval_top1"], default=None)


def memory_gb() -> float:
    """Peak memory: of the GPU's allocator where one is used, else of the process."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


class Metrics:
    """metrics.jsonl, one line per log interval, and per epoch that was scored on a part of the validation images, or
    whose penalty or strictness is told.

    What lies beyond the step that a run resumes from, and beyond the `epochs` that are behind it then, is cut off.
    """

    def __init__(self, folder: Path, step: int, epochs: int, lease: Lease | None) -> None:
        self.path, self.lease = folder / "metrics.jsonl", lease
        if lease and self.path.exists():
            lines = self.path.read_text().splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("}\n") and _is_behind(json.loads(line), step, epochs)]
            lease.check()  # an attempt that is slow to start finds no checkpoint where another has finished the run
            store.write_bytes(self.path, "".join(kept).encode(), named=False)

    def append(self, **fields: Any) -> None:
        if not self.lease:
            return
        self.lease.check()
        try:
            with self.path.open("a") as file:
                file.write(json.dumps(fields) + "\n")
        except OSError as error:
            raise Refusal(f"cannot write {self.path}: {error.strerror}; free space and repeat", OUTPUT) from None


def _is_behind(line: dict[str, Any], step: int, epochs: int) -> bool:
    """Whether a run that goes on after this step, and so many whole epochs, will not write this line again."""
    return line["step"] <= step and ("loss" in line or line["epoch"] < epochs)


@contextlib.contextmanager
def log_to(folder: Path) -> Iterator[None]:
    """Also write the log to log.txt of the run, as far as there is room: what cannot be saved is said elsewhere."""
    handler = logging.FileHandler(folder / "log.txt", delay=True, encoding="utf-8", errors="backslashreplace")
    handler.handleError = lambda record: None
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    if log.level == logging.NOTSET:
        log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        with contextlib.suppress(OSError):
            handler.close()
