"""Are there enough seeds? The residual deviation of a study alone, so that asking shows no effect and no accuracy.

A rule on the number of seeds that looks at effects makes false ones; the error of the blocked model is independent of
them, and a rule that looks at it alone leaves the tests of contrasts as they are, but for a small bias of the error
itself (Stein 1945; Wittes and Brittain 1990).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import chdtrc, chdtri

from analysis.factorial import effects
from engine.errors import CLASSES, DIVERGED, Refusal

Rule = Sequence[tuple[float, str]]
"""Deviations in points, ascending, and what follows up to each."""


@dataclass(frozen=True)
class Deviation:
    """Residual deviation in points, degrees of freedom, 95 % interval; p that cells share it; how many diverged."""

    value: float
    df: int
    low: float
    high: float
    bartlett_p: float
    cells: int
    diverged: int


def look(frame: pd.DataFrame, name: str) -> Deviation:
    """Of all runs of a sweep. Raises Refusal unless all have ended: the rule allows one look.

    Args:
        frame: of `frames.load`.
        name: of the sweep.
    """
    fell = frame["error_class"] == CLASSES[DIVERGED]
    if left := int((frame["acc1"].isna() & ~fell).sum()):
        raise Refusal(f"{left} of {len(frame)} runs have no result; first: python scripts/sweep.py resume {name}")
    done = frame[~fell]
    model = effects.fit(done["acc1"], done["rung"], done["pair"] + " " + done["data"])
    if not model.df > 0:
        raise Refusal(f"the {len(done)} runs of {name} leave no degree of freedom: no rung has two seeds")
    # Upper and lower quantiles of chi squared.
    low, high = (model.deviation * math.sqrt(model.df / chdtri(model.df, p)) for p in (0.025, 0.975))
    groups = [group.to_numpy() for _, group in done.groupby("rung", sort=False)["acc1"]]
    return Deviation(model.deviation, model.df, low, high, bartlett(groups), len(groups), int(fell.sum()))


def bartlett(groups: Sequence[np.ndarray]) -> float:
    """p of Bartlett's test that groups of two or more have one variance; NaN for fewer than two such groups."""
    groups = [group for group in groups if len(group) > 1]
    if len(groups) < 2 or any(group.var(ddof=1) == 0 for group in groups):
        return math.nan
    free = np.array([len(group) - 1 for group in groups], float)
    variances = np.array([group.var(ddof=1) for group in groups])
    pooled = (free * variances).sum() / free.sum()
    statistic = free.sum() * math.log(pooled) - (free * np.log(variances)).sum()
    correction = 1 + ((1 / free).sum() - 1 / free.sum()) / (3 * (len(groups) - 1))
    return float(chdtrc(len(groups) - 1, statistic / correction))


def consequence(value: float, rule: Rule) -> str:
    """What the rule says of this deviation."""
    return next(words for limit, words in rule if value <= limit)


def told(found: Deviation, rule: Rule) -> list[str]:
    """The look in lines."""
    lines = [
        f"residual deviation {found.value:.3f} points, {found.df} degrees of freedom, 95 % {found.low:.3f} to "
        f"{found.high:.3f}; Bartlett's p of equal deviations in {found.cells} cells "
        + ("unknown" if math.isnan(found.bartlett_p) else f"{found.bartlett_p:.2f}")
    ]
    if found.diverged:
        lines.append(f"{found.diverged} runs diverged; they are results of their cells and are not repeated")
    if not rule:
        return [*lines, "the sweep's file names no rule (STOPPING), so its seeds stay as they are"]
    lines += [
        f"rule: up to {limit:g}: {words}" if limit < math.inf else f"rule: above: {words}" for limit, words in rule
    ]
    return [*lines, f"so: {consequence(found.value, rule)}"]
