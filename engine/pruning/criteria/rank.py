"""Which hidden units matter by the graph of the net? PageRank: its edges are weights, its damping is activation.

    s_l = gamma (theta W + (1 - theta) A) s_{l-1} + (1 - gamma) a_l / sum a_l,   gamma 0.9, theta 0.5

W is |w| with each column (what one unit gives) divided by its sum, A likewise of 1 where w is not 0, a_l the norm of
relu(w x) over calibration images, s_0 the norm of the pixels; every s sums to one.

Source: arXiv 2410.12652; amazon-science/mlp-rank-pruning, mlprank/pruning/scoring.py, weighted_page_rank. Other than
there the classes are no units, so that none is pruned; a skip is an edge of weight 1 from a unit to itself, and the
units that it ties live and die together, by the sum of their scores; what a unit that is gone gave is taken from those
who read it, its bias with it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.pruning.units import Layer

GAMMA, THETA = 0.9, 0.5


def score(layers: Sequence[Layer], generator: object) -> list[Tensor]:
    before, found = layers[0].before / layers[0].before.sum(), []
    for layer in layers:
        edges = layer.weight.abs()
        if layer.skip:
            edges = edges + torch.eye(len(edges), dtype=edges.dtype)
        there = (edges != 0).to(edges.dtype)
        mixed = THETA * _columns(edges) + (1 - THETA) * _columns(there)
        own = GAMMA * mixed @ before + (1 - GAMMA) * _shares(layer.after)
        before = _shares(own)
        found.append(before)
    return found


def _columns(edges: Tensor) -> Tensor:
    """Each column over its sum; one without an edge stays zero."""
    sums = edges.sum(0, keepdim=True)
    return edges / torch.where(sums > 0, sums, 1.0)


def _shares(scores: Tensor) -> Tensor:
    total = scores.sum()
    return scores / total if total > 0 else scores
