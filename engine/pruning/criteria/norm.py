"""Do hidden units with large weights matter? The sum of |w| over what a unit reads.

Source: Li et al., arXiv 1608.08710; amazon-science/mlp-rank-pruning, channel_norm.
"""

from collections.abc import Sequence

from torch import Tensor

from engine.pruning.units import Layer


def score(layers: Sequence[Layer], generator: object) -> list[Tensor]:
    return [layer.weight.abs().sum(1) for layer in layers]
