"""Layers by chance: the control that any criterion must beat. Cost: a place in a random order, drawn several times."""

import numpy as np

from engine.rng import permutation

COST = "place in a random order"


def order(layers: np.ndarray, draws: int) -> np.ndarray:
    return np.stack([permutation(len(layers), draw, "random layers") for draw in range(draws)]).astype(float)
