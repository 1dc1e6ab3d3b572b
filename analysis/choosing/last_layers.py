"""The last layers: a control that asks no model. Cost: the number of the layer, negative."""

import numpy as np

COST = "number of the layer, negative"


def order(layers: np.ndarray, draws: int) -> np.ndarray:
    return -layers[None].astype(float)
