"""CKA by depth: how alike are the representations that the blocks of a model have of the same images?

    CKA(a, b) = HSIC(a, b) / sqrt(HSIC(a, a) HSIC(b, b))      HSIC unbiased, linear kernels, mean over batches of images

neighbours is its mean over blocks that follow each other, ends that of the first and last block, pairs the mean over
all pairs, to_last_b that of block b and the last. Ratios, 1 for what is equal up to rotation and scale; near one on
neighbours and low on ends is a model that changes steadily; high on pairs one whose blocks do much the same.
`scripts/probe.py RUN... --against RUN` compares the blocks of two runs.

Source: Kornblith et al., arXiv 1905.00414; estimator and batches: Nguyen et al., arXiv 2010.15327.
Null: 0, of unrelated features, as the estimator is unbiased. Intervals are over batches of images.
Expect: flat MLPs have blocks of layers that are all alike; attention is the most even. Few directions of large variance
can decide CKA (Ding et al., arXiv 2108.01661): the comparison of runs has shared neighbours beside it.
Cost: 1 pass over at most `images` test images, and some milliseconds per pair of blocks and batch.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from analysis.bias.probe import Estimate, Subject, over_images
from analysis.measures import depth, pixels
from analysis.measures.alike import cka, products
from engine.rng import permutation

PROTOCOL = {"images": 2000, "batch": 100, "kernel": "linear"}
UNITS = {"neighbours": "ratio", "ends": "ratio", "pairs": "ratio", "to_last_#": "ratio"}
COST = (0.2, 10)
HEADLINE = ("neighbours", "ends", "pairs")
TITLE = "CKA: how alike the blocks of a model are"
WORDS = {"neighbours": "next to each other", "ends": "first and last", "pairs": "all pairs"}


def measure(subject: Subject) -> dict[str, Estimate]:
    """All keys of UNITS; none for a model of fewer than two blocks, or that does not show them."""
    if (blocks := depth.count(subject)) < 2:
        return {}
    hsic_ULL = by_batch(subject)
    upper = np.triu_indices(blocks, 1)
    wanted = {
        "neighbours": lambda each: np.diagonal(each, 1, -2, -1).mean(-1),
        "ends": lambda each: each[..., 0, -1],
        "pairs": lambda each: each[..., *upper].mean(-1),
    }
    wanted |= {f"to_last_{b + 1}": lambda each, b=b: each[..., b, -1] for b in range(blocks - 1)}
    return {key: over_batches(hsic_ULL, statistic) for key, statistic in wanted.items()}


def by_batch(subject: Subject) -> np.ndarray:
    """HSIC of all pairs of blocks in every batch, (batches, L, L)."""
    images, size = batches_of(subject)
    return np.stack([products(maps) for maps in depth.batches(subject, images, size)])


def batches_of(subject: Subject) -> tuple[Tensor, int]:
    """Images in an order of their own, as many as whole batches take, and the size of these: at least 20 of them."""
    images, _, _ = pixels.sample(subject, PROTOCOL["images"])
    size = max(min(PROTOCOL["batch"], len(images) // 20), 4)
    mixed = permutation(len(images), 0, "cka")[: len(images) // size * size]
    return images[torch.from_numpy(mixed)], size


def over_batches(hsic_UFF: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray]) -> Estimate:
    """A statistic of the CKA matrix (..., F, F), its interval over batches, null 0."""
    shape = hsic_UFF.shape[1:]
    flat_UK = hsic_UFF.reshape(len(hsic_UFF), -1)
    return over_images(flat_UK, lambda means: statistic(cka(means.reshape(*means.shape[:-1], *shape))), 0.0)


def draw(subject: Subject) -> bytes | None:
    """CKA of all pairs of blocks, from black, 0, to white, 1; the first block at the top and left."""
    if depth.count(subject) < 2:
        return None
    return pixels.png(np.nan_to_num(cka(by_batch(subject).mean(0)))[None, None, :, :, None], scale=16)
