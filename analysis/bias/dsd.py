"""Self-test of the laboratory: a task whose answer is known, so that what trains and compares here can be judged by it.

An image is k patches of d numbers of noise; one patch, anywhere, carries a signal +w or -w, and the label is its sign.
Three networks of one hidden layer see it: one filter shared by all patches (a CNN), a filter per patch (an LCN), and k
units that read everything (an FCN). Theory says in which order they need images: shared, unshared, dense, the ratios
growing with k. Measured is the number of training images at which the test accuracy first reaches `LEVEL` of the way
from chance to the best possible classifier; where a network never does, the largest number tried stands in, which
makes its disadvantage look smaller than it is. The engine's optimizer, schedule and loss and the statistics of
every comparison here are used; its loader and the zoo are not. If the order is not recovered, with intervals over seeds
that exclude none, what those parts say about real images is not to be trusted.

The order of unshared and dense is one of the limit: at low accuracies, which few images reach, both are alike and
trade places, so the level was put where a first look at k = 8 and 16 had them apart.

Seeds are trained side by side, as one batch of networks that share nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from analysis.stats import interval
from engine.optim import make_loss, make_optimizer, make_schedule
from engine.run import Run

SOURCE = "arXiv 2403.15707, section 4 (the task, the networks and their activation) and its theorems (the order)"
KINDS = ("shared", "unshared", "dense")
LEVEL = 0.7


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is tried: numbers of patches, numbers of training images, seeds, steps of training."""

    patches: tuple[int, ...]
    sizes: tuple[int, ...]
    seeds: int
    steps: int
    entries: int = 16
    noise: float = 0.3
    test_images: int = 2000
    batch_size: int = 128


QUICK = Plan(patches=(8,), sizes=(32, 64, 128, 256, 512, 1024, 2048), seeds=5, steps=200)
FULL = Plan(patches=(8, 16), sizes=(16, 32, 64, 128, 256, 512, 1024, 2048, 4096), seeds=10, steps=600)


class Networks(nn.Module):
    """`seeds` networks of one kind, x (S, B, k, d) -> logits (S, B, 2): a sum of soft-thresholded filters, scaled."""

    def __init__(self, kind: str, seeds: int, patches: int, entries: int, generator: torch.Generator) -> None:
        super().__init__()
        units, inputs = 1 if kind == "shared" else patches, patches * entries if kind == "dense" else entries
        self.dense = kind == "dense"
        self.weight = nn.Parameter(torch.randn(seeds, units, inputs, generator=generator) * inputs**-0.5)
        self.threshold, self.offset = nn.Parameter(torch.zeros(seeds)), nn.Parameter(torch.zeros(seeds))
        self.scale = nn.Parameter(torch.ones(seeds))

    def forward(self, x_SBkd: Tensor) -> Tensor:
        if self.dense:
            z_SBu = x_SBkd.flatten(2) @ self.weight.transpose(1, 2)
        else:
            z_SBu = (x_SBkd * self.weight[:, None]).sum(-1)
        threshold = self.threshold[:, None, None]
        active_SBu = (z_SBu - threshold).relu() - (-z_SBu - threshold).relu()
        score_SB = self.scale[:, None] * active_SBu.sum(-1) + self.offset[:, None]
        return torch.stack([-score_SB, score_SB], -1) / 2


def measure(plan: Plan = QUICK) -> dict[str, Any]:
    """`passed` (all orders recovered), the plan, and per number of patches mean accuracies and what `compare` says."""
    tasks = []
    for patches in plan.patches:
        accuracy = {kind: accuracies(kind, patches, plan) for kind in KINDS}
        best = best_accuracy(patches, plan)
        level = 0.5 + LEVEL * (best - 0.5)
        means = {kind: [round(float(value), 4) for value in rows.mean(1)] for kind, rows in accuracy.items()}
        compared = compare({kind: needs(rows, plan.sizes, level) for kind, rows in accuracy.items()}, plan.sizes)
        tasks.append(
            {"patches": patches, "best": round(best, 4), "level": round(level, 4), "accuracy": means, **compared}
        )
    return {"passed": all(task["passed"] for task in tasks), "plan": asdict(plan), "tasks": tasks}


def compare(need: dict[str, np.ndarray], sizes: Sequence[int]) -> dict[str, Any]:
    """Images needed and the two ratios of neighbours in the order, with 95 % intervals over seeds; and `passed`.

    `never` counts the seeds that never reached the level; a ratio to such is a bound, and so says `at_least`.

    Args:
        need: log2 of the images needed, one per seed, as `needs` gives them; kind -> values.
    """
    images, ratios = {}, {}
    for kind, values in need.items():
        images[kind] = {**_powers(values), "never": int((values >= math.log2(max(sizes))).sum())}
    for less, more in (("shared", "unshared"), ("unshared", "dense")):
        difference = need[more] - need[less]
        above = interval(difference)
        ratio = {**_powers(difference), "at_least": images[more]["never"] > 0}
        ratios[f"{more}/{less}"] = {**ratio, "passed": bool(above.clear and above.mean > 0)}
    return {"images": images, "ratios": ratios, "passed": all(ratio["passed"] for ratio in ratios.values())}


def needs(accuracy: np.ndarray, sizes: Sequence[int], level: float) -> np.ndarray:
    """log2 of the images at which each seed first reaches `level`, linear between two sizes.

    Args:
        accuracy: (sizes, seeds). What is never reached counts as the largest size, what always is as the smallest.
    """
    found = np.full(accuracy.shape[1], math.log2(sizes[-1]))
    for seed, curve in enumerate(accuracy.T):
        if not (curve >= level).any():
            continue
        first = int((curve >= level).argmax())
        found[seed] = math.log2(sizes[first])
        if first:
            share = (level - curve[first - 1]) / (curve[first] - curve[first - 1])
            found[seed] = math.log2(sizes[first - 1]) + share * math.log2(sizes[first] / sizes[first - 1])
    return found


def accuracies(kind: str, patches: int, plan: Plan) -> np.ndarray:
    """Test accuracy, (sizes, seeds); the smaller training sets are parts of the larger, all kinds see the same ones."""
    sets = [_images(seed, patches, plan) for seed in range(plan.seeds)]
    x_SNkd, y_SN = (torch.stack([each[part] for each in sets]) for part in (0, 1))
    rows = []
    for size in plan.sizes:
        generator = torch.Generator().manual_seed(size)
        model = Networks(kind, plan.seeds, patches, plan.entries, generator)
        held = slice(max(plan.sizes), None)
        _train(model, x_SNkd[:, :size], y_SN[:, :size], plan, generator)
        with torch.no_grad():
            right = model(x_SNkd[:, held]).argmax(-1) == y_SN[:, held]
        rows.append(right.float().mean(1).numpy())
    return np.stack(rows)


def best_accuracy(patches: int, plan: Plan, images: int = 100_000) -> float:
    """Accuracy of the likelihood ratio, which knows w and reads only projections on it: no classifier is better."""
    generator = torch.Generator().manual_seed(0)
    z_Nk = plan.noise * torch.randn(images, patches, dtype=torch.float64, generator=generator)
    z_Nk[:, 0] += 1  # the place does not matter to the rule, nor the sign
    z_Nk /= plan.noise**2
    return ((z_Nk.logsumexp(1) > (-z_Nk).logsumexp(1)).double().mean()).item()


def _images(seed: int, patches: int, plan: Plan) -> tuple[Tensor, Tensor]:
    """Training images and, behind them, test images (N, k, d), and labels 0 or 1; one signal per seed."""
    generator, count = torch.Generator().manual_seed(seed), max(plan.sizes) + plan.test_images
    signal_d = torch.randn(plan.entries, generator=generator)
    y_N = torch.randint(2, (count,), generator=generator)
    x_Nkd = plan.noise * torch.randn(count, patches, plan.entries, generator=generator)
    place_N = torch.randint(patches, (count,), generator=generator)
    x_Nkd[torch.arange(count), place_N] += (2.0 * y_N - 1)[:, None] * signal_d / signal_d.norm()
    return x_Nkd, y_N


def _train(model: Networks, x_SNkd: Tensor, y_SN: Tensor, plan: Plan, generator: torch.Generator) -> None:
    size = x_SNkd.shape[1]
    run = Run(opt="adamw", lr=1e-2, weight_decay=0.0, epochs=1, batch_size=min(size, plan.batch_size))
    optimizer, loss = make_optimizer(run, model), make_loss(run)
    schedule = make_schedule(run, optimizer, plan.steps)
    for step in range(plan.steps):
        chosen = torch.randperm(size, generator=generator)[: run.batch_size]
        # Times the seeds: each network's gradient is that of its own mean.
        total = plan.seeds * loss(model(x_SNkd[:, chosen]).flatten(0, 1), y_SN[:, chosen].flatten())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        schedule.step_update(step + 1)


def _powers(log2: np.ndarray) -> dict[str, float | None]:
    """Geometric mean and the ends of its 95 % interval."""
    over = interval(log2)
    ends = {"value": over.mean, "low": over.mean - over.half, "high": over.mean + over.half}
    return {key: round(2**end, 3) if math.isfinite(end) else None for key, end in ends.items()}
