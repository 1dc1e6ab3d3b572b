"""The null of every criterion of units: which ones go is drawn, by the run's seed."""

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.pruning.units import Layer


def score(layers: Sequence[Layer], generator: torch.Generator) -> list[Tensor]:
    return [torch.rand(len(layer.weight), generator=generator) for layer in layers]
