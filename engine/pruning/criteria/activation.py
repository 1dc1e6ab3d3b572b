"""Do active hidden units matter? The norm of relu(w x) over calibration images.

Source: amazon-science/mlp-rank-pruning, channel_activation.
"""

from collections.abc import Sequence

from torch import Tensor

from engine.pruning.units import Layer


def score(layers: Sequence[Layer], generator: object) -> list[Tensor]:
    return [layer.after for layer in layers]
