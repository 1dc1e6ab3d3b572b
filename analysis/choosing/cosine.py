"""Likeness of input and output: how little does this attention turn the tokens?

    cost = 1 - mean over images and tokens of cos(x, y),   y = x + attention(LN(x))

0 where the tokens only change their length. One pass of the whole model gives all layers.

Source: "What matters in transformers? Not all attention is needed", arXiv 2406.15786, equations 1 and 5.
"""

from torch import Tensor

from analysis.removal.passes import Moments, Seen

COST = "1 - cosine of input and output"
MOMENTS = 1


def observe(seen: Seen) -> Tensor:
    return seen.cosine


def value(moments: Moments) -> Tensor:
    return 1 - moments.mean
