"""The null of every criterion of weights: which ones go is drawn, by the run's seed, within each unit."""

import torch
from torch import Tensor

from engine.pruning.targets import Target


def score(target: Target, generator: torch.Generator) -> Tensor:
    return torch.rand(target.weight.shape, generator=generator)
