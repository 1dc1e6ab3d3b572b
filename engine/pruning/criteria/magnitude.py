"""Do the large weights matter, wherever they read? |w|, within each unit.

Source: Han et al., arXiv 1506.02626; in rounds, from the first weights, Frankle and Carbin, arXiv 1803.03635. In rounds
the first layer of a flat net turns local by it, at once it does not (Pellegrini and Biroli, arXiv 2207.12911).
"""

from torch import Tensor

from engine.pruning.targets import Target


def score(target: Target, generator: object) -> Tensor:
    return target.weight.abs()
