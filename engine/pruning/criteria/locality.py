"""Is it enough to read the neighbourhood? Minus the distance of the place that a weight reads, within each unit.

Of a first layer from the centroid of the unit's own mass, sum over channels of w^2; of one that makes tokens from the
middle of the token's patch, of a matrix over the tokens from the token that reads. All channels of a place are equally
far; of equal distances the larger weights stay. Against `magnitude` at the same share: what locality costs, or is
worth. Ours.
"""

from torch import Tensor

from engine.pruning.targets import Target


def score(target: Target, generator: object) -> Tensor:
    return -target.distances()[:, :, None].expand_as(target.weight)
