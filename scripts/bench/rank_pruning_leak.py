"""Do the validation accuracies of the rank-pruning baselines tell of unseen images? A count, and one training.

The published script (amazon-science/mlp-rank-pruning, training/tuning_grid.py, started as eight processes) calls
`random_split` in each process without a seed, so each has its own 40,000 training and 10,000 validation images of
CIFAR-10. In each epoch each process trains on another eighth of its own training images and validates on a fixed eighth
of its own validation images, which are augmented as in training; the figure is the mean over all eight.

--count  the share of validation images that some process has trained on after so many epochs, drawn and in closed form
--train  the recipe rank_pruning_six as these processes train it: batches of 8 x 64 images, BatchNorm over 64, its
         running statistics those of the first process. Twice in turn, with a split per process and with one split for
         all, everything else alike; the difference in validation accuracy is what the leak is worth.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from engine.cli.flags import Parser, run_main
from engine.rng import permutation
from engine.run import DATA_DIR

IMAGES, HELD_OUT = 50_000, 10_000


def main() -> None:
    parser = Parser(prog="scripts/bench/rank_pruning_leak.py", description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--count", action="store_true", help="count the validation images that were trained on")
    what.add_argument("--train", action="store_true", help="train the six-layer MLP in both ways")
    parser.add_argument("--processes", type=int, default=8, help="to emulate, of 64 images each")
    parser.add_argument("--epochs", type=int, default=200, help="stop after so many; the schedule stays that of 200")
    parser.add_argument("--seed", type=int, default=0, help="of splits, order, augmentation and weights")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--data-dir", type=Path, default=DATA_DIR, help="with both .beton files of cifar10")
    given = parser.parse()
    if given.count:
        for epoch in sorted({1, 10, 30, given.epochs}):
            drawn, expected = count(given.processes, epoch, given.seed), trained_on(given.processes, epoch)
            print(f"after {epoch} epochs: {100 * drawn:.3f} % drawn, {100 * expected:.3f} % expected")
        return
    for rows in zip(train(given, "own"), train(given, "common"), strict=True):
        print("\n".join(map(json.dumps, rows)), flush=True)


def splits(processes: int, seed: int, own: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Training (P, 40,000) and validation images (P, 10,000) of each process, int64."""
    orders = np.stack([permutation(IMAGES, seed, "split", process if own else 0) for process in range(processes)])
    return orders[:, HELD_OUT:], orders[:, :HELD_OUT]


def shards(train: np.ndarray, epoch: int, seed: int) -> np.ndarray:
    """What each process trains on in an epoch, (P, 40,000 / P): places are shuffled alike, shared out, then looked up.

    This is DistributedSampler's rule: all processes shuffle the same places, each takes every P-th of them.
    """
    processes, count = train.shape
    places = permutation(count, seed, "order", epoch)[: count // processes * processes].reshape(-1, processes)
    return np.stack([train[process, places[:, process]] for process in range(processes)])


def trained_on(processes: int, epochs: int) -> float:
    """Expected share of a process's validation images that another one has trained on.

    An image is among the training images of another process with probability 0.8, and then in its part of an epoch with
    1 / P. Missed by it for E epochs: m = 0.2 + 0.8 (1 - 1/P)^E. Splits are independent: missed by all others, m^(P-1).
    """
    return 1 - (0.2 + 0.8 * (1 - 1 / processes) ** epochs) ** (processes - 1)


def count(processes: int, epochs: int, seed: int) -> float:
    """The same by drawing: splits, and each epoch's parts; no training."""
    train, held_out = splits(processes, seed)
    seen = np.zeros(IMAGES, bool)
    for epoch in range(epochs):
        seen[shards(train, epoch, seed)] = True
    return float(seen[held_out].mean())


def train(given: argparse.Namespace, split: str) -> Iterator[dict[str, Any]]:
    """Train in bfloat16 (the loss in float32) with a split per process, "own", or one for all, "common".

    Yields the accuracies in percent after each epoch: `batches` of the training images in training mode, `validation`
    as published, and `test` on the 10,000 test images without augmentation, which nothing has seen.
    """
    import torch
    from torch import nn
    from torch.nn import functional as F  # noqa: N812

    import archs
    from engine import optim, rng
    from engine.data import beton
    from engine.data.augment.pipeline import Augmentation
    from engine.data.loaders import FfcvLoader
    from engine.data.normalize import make_prepare
    from engine.run import make_run, read_yaml

    class GhostBatchNorm(nn.BatchNorm2d):
        """BatchNorm over the share of each process in turn; the running statistics are those of the first."""

        def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
            if not self.training:
                return super().forward(x_BCHW)
            parts = x_BCHW.chunk(given.processes)
            rest = [F.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps) for x in parts[1:]]
            return torch.cat([super().forward(parts[0]), *rest])

    class Processes(FfcvLoader):
        """Each batch holds 64 images per process, those of the first one first. Draws of two processes differ."""

        def _order(self, epoch: int, first_batch: int) -> np.ndarray:
            # Sample s + r * count is sample s with draws of its own (engine/data/loaders.py).
            numbers = shards(self.indices, epoch, self.seed) + IMAGES * np.arange(given.processes)[:, None]
            steps = numbers.shape[1] // 64
            return numbers[:, : steps * 64].reshape(-1, steps, 64).swapaxes(0, 1).reshape(-1)

    torch.set_num_threads(given.threads)
    recipe = Path(__file__).resolve().parents[2] / "engine/recipes/rank_pruning_six.yaml"
    run = make_run({**read_yaml(recipe), "seed": given.seed})
    paths = [beton.path_of(run.dataset, split, run.img_size, given.data_dir) for split in ("train", "val")]
    facts = beton.check(paths[0], run.dataset, run.img_size)
    plain = Augmentation(run.img_size, facts["mean"], facts["std"])
    augmented = Augmentation(run.img_size, facts["mean"], facts["std"], aa=run.aa)
    own, held_out = splits(given.processes, given.seed, split == "own")
    batch = 64 * given.processes
    loader = Processes(paths[0], batch, augmented, indices=own, seed=given.seed)
    judged = np.concatenate([images[process :: given.processes] for process, images in enumerate(held_out)])
    validation = FfcvLoader(paths[0], 500, augmented, indices=judged + given.processes * IMAGES, seed=given.seed)
    test = FfcvLoader(paths[1], 500, plain)
    prepare = make_prepare(run, facts, torch.device("cpu"))

    rng.seed_everything(run.seed, "init")
    model = archs.create(run.model, img_size=run.img_size, num_classes=10)
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = GhostBatchNorm
    optimizer = optim.make_optimizer(run, model)
    steps = own.shape[1] // batch
    schedule = optim.make_schedule(run, optimizer, steps)

    def accuracy(loader: FfcvLoader, epoch: int) -> float:
        model.eval()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            hits = [(model(prepare(x)).argmax(1) == labels).float() for x, labels in loader.epoch(epoch)]
        return round(100 * torch.cat(hits).mean().item(), 2)

    for epoch in range(given.epochs):
        start, hits = time.monotonic(), []
        model.train()
        for step, (images, labels) in enumerate(loader.epoch(epoch)):
            schedule.step_update(epoch * steps + step)
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(prepare(images))
            optimizer.zero_grad()
            F.cross_entropy(logits.float(), labels).backward()  # the mean of the processes' gradients: shares are equal
            optimizer.step()
            hits.append((logits.detach().argmax(1) == labels).float())
        row = {"split": split, "epoch": epoch + 1, "batches": round(100 * torch.cat(hits).mean().item(), 2)}
        row |= {"validation": accuracy(validation, epoch), "test": accuracy(test, 0)}
        yield {**row, "seconds": round(time.monotonic() - start, 1)}


if __name__ == "__main__":
    run_main(main)
