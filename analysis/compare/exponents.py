"""Scaling exponents family by family, and whether they differ: does another bias learn faster from compute?

Each family has a frontier and a fit of its own (`analysis/compare/scaling.py`), all with one law, the one whose AICc
is least in sum, as exponents of different laws are no comparison. The interval of a difference is a percentile
interval over pairs of the two families' bootstrap fits, drawn apart; its p is the share of such pairs on the far side
of 0, twice, after Holm over the pairs of families. Families of few points are not fitted, and the table says so.
"""

import itertools
import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd

from analysis import stats
from analysis.compare import scaling
from analysis.compare.scaling import KINDS, RESAMPLES, Fit
from analysis.typeset import MISSING, Sheet, number, probability, quantity
from engine.errors import Refusal

REFERENCE = "timm"  # whose models share no architecture


class Difference(NamedTuple):
    """Exponent of `family` less that of `over`, with its 95 % interval and two-sided p, plain and after Holm."""

    family: str
    over: str
    value: float
    low: float
    high: float
    p: float
    p_holm: float = math.nan


def sheets(frame: pd.DataFrame) -> list[Sheet]:
    """Per data set the exponents by family and their differences, then the frontier of all families: laws, allocation.

    Raises Refusal where runs differ in what judges them, or neither a family nor all together can be fitted.
    """
    found: list[Sheet] = []
    for dataset, part in frame[frame["acc1"].notna()].groupby("dataset", sort=False):
        if part[["holdout", "permute"]].astype(str).nunique().max() > 1:
            raise Refusal(f"these runs on {dataset} differ in holdout or permute; compare them apart")
        table = scaling.points(part)
        own, why = [], ""
        try:
            own = of_families(str(dataset), table)
        except Refusal as error:
            why = str(error)
        try:
            laws, front = scaling.fits(table)
            slopes = scaling.allocation(table)
            own += [scaling.laws_sheet(str(dataset), laws, front), scaling.allocation_sheet(str(dataset), slopes)]
        except Refusal:
            if not own:
                raise
        if why:
            own[0] = replace(own[0], note=f"{own[0].note}; by family nothing is fitted: {why}")
        found += own
    return found


def by_family(
    table: pd.DataFrame, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[dict[str, tuple[Fit, pd.DataFrame]], dict[str, str]]:
    """Per family the fit of the common law and its frontier; and per family that has none, why.

    Args:
        table: of `scaling.points`, of one data set.
    """
    laws: dict[str, dict[str, Fit]] = {}
    fronts, refused = {}, {}
    for place, (family, part) in enumerate(table.groupby("family", sort=False)):
        if family == REFERENCE:
            refused[family] = "references of many architectures are no family"
            continue
        try:
            found, front = scaling.fits(part, resamples, seed + place)
        except Refusal as error:
            refused[str(family)] = str(error)
            continue
        laws[str(family)], fronts[str(family)] = {fit.kind: fit for fit in found}, front
    if not laws:
        return {}, refused
    kind = min(KINDS, key=lambda kind: sum(own[kind].aicc for own in laws.values()))
    return {family: (own[kind], fronts[family]) for family, own in laws.items()}, refused


def differences(found: dict[str, tuple[Fit, pd.DataFrame]]) -> list[Difference]:
    """Each pair of families, in their order, the later less the earlier; none without a bootstrap."""
    pairs = []
    for over, family in itertools.combinations(found, 2):
        one, other = found[family][0], found[over][0]
        if not (len(one.draws) and len(other.draws)):
            continue
        # The families' draws are independent, so each of one pairs with each of the other.
        gaps = (one.draws[:, None] - other.draws[None]).ravel()
        tail = min((gaps <= 0).mean(), (gaps >= 0).mean())
        p = min(1.0, 2 * max(float(tail), 1 / (1 + min(len(one.draws), len(other.draws)))))
        low, high = np.quantile(gaps, (0.025, 0.975))
        pairs.append(Difference(family, over, one.alpha - other.alpha, float(low), float(high), p))
    adjusted = stats.holm(pd.Series([pair.p for pair in pairs], dtype=float))
    return [pair._replace(p_holm=float(p)) for pair, p in zip(pairs, adjusted, strict=True)]


def of_families(dataset: str, table: pd.DataFrame) -> list[Sheet]:
    """The exponents by family, and their differences. Raises Refusal where no family can be fitted."""
    found, refused = by_family(table)
    if not found:
        raise Refusal("; ".join(f"{family}: {why}" for family, why in refused.items()) or "no run has an accuracy")
    rows, data = [], []
    for family, (fit, front) in found.items():
        low, high = front["compute"].min(), front["compute"].max()
        bounds = f"[{number(fit.alpha_bounds[0], 3)}, {number(fit.alpha_bounds[1], 3)}]"
        rows.append([family, number(fit.alpha, 3), bounds, number(100 * fit.e_inf, 1), str(len(front))])
        rows[-1] += [f"{quantity(low)} to {quantity(high)}"]
        data.append({"family": family, "law": fit.kind, "alpha": fit.alpha, "e_inf": fit.e_inf, "points": len(front)})
        data[-1] |= dict(zip(("low", "high"), fit.alpha_bounds, strict=True))
    rows += [[family, *[MISSING] * 5] for family in refused]
    law = next(iter(found.values()))[0].kind
    note = f"law: {law}, the one of least AICc in sum; 95 % by bootstrap over configurations and seeds"
    note += "".join(f"; {family} is not fitted: {why}" for family, why in refused.items())
    header = ("family", "alpha", "95 %", "E_inf, %", "points", "MACs")
    made = [Sheet(f"Scaling exponents on {dataset} by family", header, rows, pd.DataFrame(data), note)]
    if pairs := differences(found):
        cells = [
            [
                *(f"{pair.family} − {pair.over}", number(pair.value, 3, "+")),
                *(f"[{number(pair.low, 3, '+')}, {number(pair.high, 3, '+')}]", probability(pair.p_holm)),
            ]
            for pair in pairs
        ]
        note = "alpha of the first less that of the second; p: two-sided, bootstrap, after Holm over these pairs"
        header = ("families", "difference", "95 %", "p")
        made.append(Sheet(f"Differences of exponents on {dataset}", header, cells, pd.DataFrame(pairs), note))
    return made
