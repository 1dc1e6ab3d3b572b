"""Contrasts of rungs, the families in which they are tested, and whether one may bear an ingredient's name.

A contrast is a weighted sum of accuracies. It may be called the effect of an ingredient only where nothing else
differs: its rungs pair off, one of each sign and of equal weight, and each pair differs in that ingredient alone, in
one direction. It is the interaction of several where they pair off so along each, so that its rungs are the whole
product. An ingredient is an axis of the mixers (archs.difference), an argument of the model or a field of the recipe;
what can only change together is written with a plus (`frame+dim`). The learning rate, which each rung has tuned for
itself, may differ, and is shown. Needs neither pandas nor torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import combinations
from typing import Any, NamedTuple

import archs
from archs.parts.bias import Bias
from engine.errors import Refusal
from engine.fields.rungs import RECIPE, text

FREE = ("lr",)
BY_DATA = ("img_size", "in_chans", "num_classes", "drop_path")  # a variant's own values, which the run's fields replace
CLAIMS = {field.name for field in fields(Bias)}

Fields = Mapping[str, Any]
"""Of a run, as of Run.record()."""


@dataclass(frozen=True)
class Contrast:
    """Weights by rung, whose sum is 0, and what it claims to be the effect of.

    One ingredient: a main or simple effect; several: their interaction; none: it claims nothing.
    """

    weights: Mapping[str, float]
    of: tuple[str, ...] = ()


@dataclass(frozen=True)
class Family:
    """Contrasts by name that are corrected among themselves, and the points within which each counts as no effect."""

    contrasts: Mapping[str, Contrast]
    margin: float


class Item(NamedTuple):
    """One thing that differs, and its values on both sides."""

    what: str
    a: str
    b: str


def difference(a: Fields, b: Fields) -> list[Item]:
    """All that differs between two runs, of the model first; seeds are not looked at."""
    return [
        *_of_models(a, b),
        *(Item(key, text(a[key]), text(b[key])) for key in RECIPE if text(a[key]) != text(b[key])),
    ]


def check(contrast: Contrast, runs: Mapping[str, Fields]) -> None:
    """Raises Refusal, with what differs, for a contrast that is not the effect of what it claims.

    Args:
        runs: by rung as the weights name them, the fields of one of its runs.
    """
    levels = {axis: _levels(axis, contrast, runs) for axis in contrast.of}
    for axis, found in levels.items():
        if len(set(found.values())) != 2:
            listed = ", ".join(sorted({" ".join(level) for level in found.values()}))
            raise Refusal(f"it claims {axis}, which has more than two values in it: {listed}")
    if not levels:
        return
    high = {axis: next(iter(found.values())) for axis, found in levels.items()}
    signs = set()
    for rung, weight in contrast.weights.items():
        sign = 1 if weight > 0 else -1
        for axis, found in levels.items():
            sign *= 1 if found[rung] == high[axis] else -1
        signs.add(sign)
    if len(signs) > 1:
        raise Refusal(f"it claims {' x '.join(contrast.of)}, but its pairs go in both directions and partly cancel")


def proven(contrast: Contrast, runs: Mapping[str, Fields]) -> tuple[str, ...]:
    """The ingredients whose effect a contrast is, whatever it claims; () where other things differ as well."""
    if contrast.of:
        return contrast.of
    differ = [what for what in sides(contrast, runs) if what not in FREE]
    if len({runs[rung]["model"].partition("_")[0] for rung in contrast.weights}) == 1:
        differ = [what for what in differ if what not in CLAIMS] or differ  # what a family declares of its arguments
        if len(contrast.weights) == 2 and len(differ) == 1:
            return (differ[0],)
    for size in range(1, min(len(differ), len(contrast.weights).bit_length() - 1) + 1):
        for axes in combinations(differ, size):
            try:
                check(Contrast(contrast.weights, axes), runs)
            except Refusal:
                continue
            return axes
    return ()


def sides(contrast: Contrast, runs: Mapping[str, Fields]) -> dict[str, list[tuple[str, str]]]:
    """What differs between its two sides: by name, the values from - to + of each pair of rungs that differs in it.

    Pairs are those of the ingredients that it claims; of one that claims none, all of a rung of + and a rung of -.
    """
    found: dict[str, list[tuple[str, str]]] = {axis: [] for axis in contrast.of if "+" not in axis}  # in this order
    for one, other in _compared(contrast, runs):
        for what, now, before in difference(runs[one], runs[other]):
            found.setdefault(what, []).append((before, now))
    return found


def told(contrast: Contrast, runs: Mapping[str, Fields]) -> str:
    """`sides` in words: `reach all to window, lr 0.01 to 0.03 in 1 of 4 pairs`; of several ways the name alone."""
    count, words = len(_compared(contrast, runs)), []
    for what, ways in sides(contrast, runs).items():
        way = f" {' to '.join(ways[0])}" if len(set(ways)) == 1 else ""
        share = f" in {len(ways)} of {count} pairs" if what in FREE and len(ways) < count else ""
        words.append(f"{what}{way}{share}")
    return ", ".join(words)


def _compared(contrast: Contrast, runs: Mapping[str, Fields]) -> list[tuple[str, str]]:
    if contrast.of:
        return [pair for axis in contrast.of for pair in _pairs(axis, contrast, runs)]
    plus, minus = ([rung for rung, weight in contrast.weights.items() if weight * side > 0] for side in (1, -1))
    return [(one, other) for one in plus for other in minus]


def _levels(axis: str, contrast: Contrast, runs: Mapping[str, Fields]) -> dict[str, tuple[str, ...]]:
    """The value of each rung on the axis."""
    found = {}
    for one, other in _pairs(axis, contrast, runs):
        items = sorted(item for item in difference(runs[one], runs[other]) if item.what not in FREE)
        found[one], found[other] = tuple(item.a for item in items), tuple(item.b for item in items)
    return found


def _pairs(axis: str, contrast: Contrast, runs: Mapping[str, Fields]) -> list[tuple[str, str]]:
    """The rungs, one of weight + and one of -, that differ in this axis alone.

    Raises Refusal, with what differs at the least, for a rung that has no other.
    """
    wanted = sorted(word.strip() for word in axis.split("+"))
    free = {rung: weight for rung, weight in contrast.weights.items() if weight < 0}
    pairs = []
    for one, weight in contrast.weights.items():
        if weight < 0:
            continue
        differs = {other: _what(runs[one], runs[other]) for other in free}
        mate = next(
            (other for other, what in differs.items() if what == wanted and abs(free[other] + weight) < 1e-9), ""
        )
        if not mate:
            raise Refusal(f"it claims {axis}, but {_nearest(one, weight, free, runs, wanted)}")
        pairs.append((one, mate))
        del free[mate]
    if free:
        raise Refusal(f"it claims {axis}, but {next(iter(free))} has no rung of equal weight on the other side")
    return pairs


def _nearest(
    one: str, weight: float, others: Mapping[str, float], runs: Mapping[str, Fields], wanted: list[str]
) -> str:
    """Why a rung has no mate: what it differs in from the one that comes nearest."""
    alike = [other for other in others if abs(others[other] + weight) < 1e-9]
    if not alike:
        return f"{one} has no rung of equal weight on the other side"
    other = min(alike, key=lambda name: len({*_what(runs[one], runs[name])} ^ {*wanted}))
    items = [item for item in difference(runs[one], runs[other]) if item.what not in FREE]
    listed = ", ".join(f"{what} ({before} to {now})" for what, now, before in items)
    return f"{other} to {one} differs in {listed or 'nothing'}"


def _what(a: Fields, b: Fields) -> list[str]:
    return sorted(item.what for item in difference(a, b) if item.what not in FREE)


def _of_models(a: Fields, b: Fields) -> list[Item]:
    """Of models that the zoo has no more, by what they are now; where that is not known, their names differ."""
    for first, second in ((a, b), (a.get("equivalent") or a, b.get("equivalent") or b)):
        pair = [(run["model"], dict(run["model_kwargs"])) for run in (first, second)]
        if all(name.startswith("timm/") or name.partition("_")[0] in archs.families() for name, _ in pair):
            items = (Item(item.what, text(item.a), text(item.b)) for item in archs.difference(*pair))
            return [item for item in items if item.what not in BY_DATA and _one(item.a) != _one(item.b)]
    return [Item("model", a["model"], b["model"])] if a["model"] != b["model"] else []


def _one(value: str) -> str:
    """A list of one stage is that stage."""
    return value[1:-1] if value.startswith("[") and "," not in value else value
