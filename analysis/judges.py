"""The images that judge a run: what they are and how many, as far as its fields tell.

Without a holdout they are the test (validation) images of the data set; with one, the training images that a hash of
their index holds out.
"""

from functools import cache

import numpy as np
import pandas as pd

from engine.data.sets import DATASETS

TEST, HELD_OUT = "test images", "held-out training images"


def kind(holdouts: pd.Series) -> str:
    """In words, of runs with these holdouts; of unknown ones neither is claimed."""
    known = holdouts.dropna().astype(float)
    if len(known) == len(holdouts) and len(known) and (known > 0).all():
        return HELD_OUT
    return TEST if len(known) == len(holdouts) and (known == 0).all() else "images of different kinds"


@cache
def count(dataset: str, holdout: float) -> int | None:
    """How many, of a data set whose size the table in engine/data/sets.py tells; None of another."""
    entry = DATASETS.get(dataset)
    if entry is None:
        return None
    if not holdout:
        return entry.val_size
    from engine.data.augment.pipeline import uniform_numpy  # which takes a second, and only a holdout needs it
    from engine.rng import derive

    return int((uniform_numpy(derive(0, "holdout"), np.arange(entry.train_size), 0) < holdout).sum())
