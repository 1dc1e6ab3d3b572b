"""Weights and what they read at once: the sum over inputs of |w| times the norm of the input over calibration images.

Source: Sun et al., arXiv 2306.11695, of weights; by unit as in amazon-science/mlp-rank-pruning, channel_wanda.
"""

from collections.abc import Sequence

from torch import Tensor

from engine.pruning.units import Layer


def score(layers: Sequence[Layer], generator: object) -> list[Tensor]:
    return [layer.weight.abs() @ layer.before for layer in layers]
