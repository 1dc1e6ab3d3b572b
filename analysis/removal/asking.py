"""All criteria asked of one model, and what that will take."""

import importlib
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from analysis import choosing
from analysis.removal import ranks
from analysis.removal.passes import Passes
from analysis.removal.ranks import Ranking
from analysis.removal.subject import Subject
from engine.cost.measure import peak_bytes

WAYS = {"both": (True, False), "greedy": (True,), "once": (False,)}  # greedy?


def rankings(
    subject: Subject,
    names: Sequence[str],
    k: int,
    *,
    estimate: str = "both",
    skip: Sequence[str] = ("x",),
    resamples: int = 100,
) -> list[Ranking]:
    """By every criterion, greedy first.

    Args:
        estimate: greedy, once or both, for criteria that judge sets.
        skip: of x and 2x, for criteria that leave it open; each gives rankings of its own.
    """
    passes = [Passes(subject, asked, each, resamples) for each, asked in _asked(names, skip).items()]
    found = []
    for name in names:
        form = choosing.read(name)["form"]
        if form == "orders":
            order = importlib.import_module(f"analysis.choosing.{name}").order
            found.append(ranks.by_rule(name, subject.layers, order(np.array(subject.layers), ranks.DRAWS)))
            continue
        for each in passes:
            for greedy in WAYS[estimate] if form == "sets" else (False,):
                if name in each.modules:
                    ranking = ranks.rank(each, name, k, greedy=greedy)
                    told = len(passes) > 1 and choosing.read(name).get("SKIP") == "given"
                    found.append(replace(ranking, way=f"{ranking.way}, {each.skip}") if told else ranking)
    return found


def takes(
    subject: Subject,
    names: Sequence[str],
    k: int,
    *,
    estimate: str = "both",
    skip: Sequence[str] = ("x",),
    resamples: int = 100,
) -> str:
    """Passes, time and memory that `rankings` of the same arguments will take, in words, from one batch."""
    asked = _asked(names, skip)
    if not any(asked.values()):
        return "no images are looked at"
    batches = subject.images()
    x_BCHW, _ = next(batches)
    x_BCHW = x_BCHW.clone()
    batches.close()
    peak = peak_bytes(subject.model, x_BCHW, lambda x: _forward(subject, x))
    began = time.perf_counter()
    _forward(subject, x_BCHW)
    seconds = (time.perf_counter() - began) * subject.num_images / len(x_BCHW)
    greedy = True in WAYS[estimate]
    counted = [ranks.num_passes(each, len(subject.layers), k, greedy) for each in asked.values()]
    least, most = (sum(numbers) for numbers in zip(*counted, strict=True))
    words = f"{subject.num_images} images, {least} passes of {_duration(seconds)}, {_duration(least * seconds)} in all"
    if most > least and resamples:
        words += f", at most {most} ({_duration(most * seconds)}) where bootstraps choose other layers"
    # The counts of a batch are float64 for a moment.
    counts = len(asked) * (1 + resamples) * (subject.num_images + 8 * len(x_BCHW))
    return f"{words}; memory {(peak + counts) / 1e9:.2g} GB and what Python and PyTorch take"


def _asked(names: Sequence[str], skip: Sequence[str]) -> dict[str, list[str]]:
    """The criteria that ask the model, by how an attention is skipped; those that do not leave it open only once."""
    looking = [name for name in names if choosing.read(name)["form"] != "orders"]
    return {
        each: [name for name in looking if i == 0 or choosing.read(name).get("SKIP") == "given"]
        for i, each in enumerate(skip)
    }


@torch.inference_mode()
def _forward(subject: Subject, x_BCHW: Tensor) -> Tensor:
    return subject.model(x_BCHW)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
