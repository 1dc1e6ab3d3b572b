"""Which rows no other row beats: cheaper or as cheap, better or as good, and one of the two strictly."""

import numpy as np
import pandas as pd


def front(frame: pd.DataFrame, cost: str, value: str) -> pd.Series:
    """Mask of the Pareto front for low `cost` and high `value`.

    Rows that tie in both are on the front together. A row where either is missing or infinite is neither on the front
    nor beats another.
    """
    costs, values = frame[cost].to_numpy(float), frame[value].to_numpy(float)
    valid = np.isfinite(costs) & np.isfinite(values)
    with np.errstate(invalid="ignore"):
        no_worse = (costs[None] <= costs[:, None]) & (values[None] >= values[:, None])  # [i, j]: j against i
        better = (costs[None] < costs[:, None]) | (values[None] > values[:, None])
    beaten = (no_worse & better & valid[None]).any(axis=1)
    return pd.Series(valid & ~beaten, index=frame.index)
