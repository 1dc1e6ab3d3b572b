"""Which share of a gap each arm closes: (arm - flat) / (whole - flat), a ratio of paired differences with its interval.

The arms are contrasts with two rungs each, weights +1 and -1, that all have the rung with -1 in common, the flat net;
the one called `architecture` is the whole gap. Differences are paired by seed. The interval is Fieller's: all ratios r
for which (arm - flat) - r (whole - flat) has a mean that is not shown to differ from 0 by its t-test,

    (x - r y)^2 <= t^2 (s_xx - 2 r s_xy + r^2 s_yy) / n,

x and y the means of the two differences over n seeds, s their variances and covariance, t of n - 1 degrees (Fieller,
Biometrika 24, 1932; J. R. Stat. Soc. B 16, 1954). Where the gap itself is not shown to be there, that set is no
interval, and none is given.
"""

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from analysis.stats import Bounds

WHOLE = "architecture"


class Share(NamedTuple):
    """Of one arm.

    Args:
        n: seeds that arm, flat net and whole have in common.
        points: mean of arm - flat; `gap`: mean of whole - flat over the same seeds.
        share: their ratio with its interval; ends NaN where there is none.
    """

    name: str
    n: int
    points: float
    gap: float
    share: Bounds


def arms(contrasts: Iterable[tuple[str, Mapping[str, float]]]) -> dict[str, tuple[str, str]]:
    """By name (arm, flat net) of the contrasts that have the flat net of `architecture`; {} where there is none."""
    pairs = {}
    for name, weights in contrasts:
        plus = [rung for rung, weight in weights.items() if weight == 1]
        minus = [rung for rung, weight in weights.items() if weight == -1]
        if len(weights) == 2 and len(plus) == len(minus) == 1:
            pairs[name] = plus[0], minus[0]
    if WHOLE not in pairs:
        return {}
    return {name: pair for name, pair in pairs.items() if pair[1] == pairs[WHOLE][1]}


def fieller(x: np.ndarray, y: np.ndarray) -> Bounds:
    """mean(x) / mean(y) with its 95 % interval, pairs in order; ends NaN where the denominator may be 0."""
    n = len(x)
    if not n or y.mean() == 0:
        return Bounds(math.nan, math.nan, math.nan)
    value = float(x.mean() / y.mean())
    if n < 2:
        return Bounds(value, math.nan, math.nan)
    (s_xx, s_xy), (_, s_yy) = np.cov(x, y) * float(stdtrit(n - 1, 0.975)) ** 2 / n
    # a r^2 - 2 b r + c <= 0; an interval just where a > 0, that is where y's own interval excludes 0
    a, b, c = y.mean() ** 2 - s_yy, x.mean() * y.mean() - s_xy, x.mean() ** 2 - s_xx
    if a <= 0:
        return Bounds(value, math.nan, math.nan)
    root = math.sqrt(max(b * b - a * c, 0.0))
    return Bounds(value, float((b - root) / a), float((b + root) / a))


def table(frame: pd.DataFrame, contrasts: Iterable[tuple[str, Mapping[str, float]]]) -> list[Share]:
    """The share of each arm, as far as runs are done, in the order of the contrasts without the whole itself.

    Args:
        frame: of `frames.load`; rungs as it names them, with their condition or, where they have only one, without.
    """
    found, known = [], arms(contrasts)
    for name, (arm, flat) in known.items():
        if name == WHOLE:
            continue
        columns = [_by_seed(frame, rung) for rung in (arm, flat, known[WHOLE][0])]
        both = pd.concat(columns, axis=1, join="inner").dropna().to_numpy()
        if len(both):
            x, y = both[:, 0] - both[:, 1], both[:, 2] - both[:, 1]
            found.append(Share(name, len(both), float(x.mean()), float(y.mean()), fieller(x, y)))
    return found


def _by_seed(frame: pd.DataFrame, rung: str) -> pd.Series:
    rows = frame[(frame["rung"] == rung) & frame["acc1"].notna()]
    if rows.empty and frame.loc[frame["name"] == rung, "rung"].nunique() == 1:
        rows = frame[(frame["name"] == rung) & frame["acc1"].notna()]
    return rows.set_index("seed")["acc1"]
