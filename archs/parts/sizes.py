"""What the arguments of every family's `build` may be, by its annotations, read from the source without importing it.

    int                  a count: a whole number from 1; num_classes from 0, no classifier, and merge_r, merge_start
    int | Grid           a count, or two, for height and width
    Sequence[int]        counts, one or more; where the default is empty, places counted from 0
    float                a number above 0; drop_path from 0 to below 1, those of _FROM_ZERO from 0

A lone number is a sequence of one where only a sequence will do. Other annotations are left to the family.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any

from archs.parts.family import read

_FROM_ZERO = (
    "drop_path",
    "init_values",
    "num_classes",
    "merge_r",
    "merge_start",
    "storage_exponent",
    "strictness",
    "correlation_floor",
    "correlation_length",
)


def fit(family: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments, each as `build` wants it. Raises ValueError for one that makes no sense; names are not checked."""
    kinds = _kinds(family)
    return {key: _fit(key, value, *kinds.get(key, ((), False))) for key, value in given.items()}


def _fit(key: str, value: Any, kinds: tuple[str, ...], empty: bool) -> Any:
    if kinds == ("bool",) and not isinstance(value, bool):
        raise ValueError(f"{key} {value!r} is neither true nor false")
    element = next((kind for kind in ("int", "float") if kind in kinds or f"Sequence[{kind}]" in kinds), None)
    if element is None:
        return value
    lowest = 0 if empty or key in _FROM_ZERO else 1 if element == "int" else None
    if not isinstance(value, list | tuple):
        one = _number(key, value, value, element, lowest)
        return one if element in kinds else [one]
    sequence = f"Sequence[{element}]" in kinds
    if not sequence and "Grid" not in kinds:
        raise ValueError(f"{key} {value!r} is not {_told(element, lowest)}")
    if (not value and not empty) or (not sequence and len(value) != 2):
        raise ValueError(f"{key} {value!r} has {len(value)} numbers and needs {'one or more' if sequence else 'two'}")
    fitted = [_number(key, value, each, element, lowest) for each in value]
    return type(value)(fitted)


def _number(key: str, whole: Any, value: Any, element: str, lowest: int | None) -> Any:
    """The value as a number of the kind `element`, from `lowest` or, without one, above 0."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if element == "int" and number and value == int(value):
        value = int(value)
    elif element == "int":
        number = False
    if not number or (value <= 0 if lowest is None else value < lowest) or (key == "drop_path" and value >= 1):
        raise ValueError(f"{key} {whole!r} is not {_told(element, lowest)}" + " and below 1" * (key == "drop_path"))
    return value


def _told(element: str, lowest: int | None) -> str:
    kind = "a whole number" if element == "int" else "a number"
    return f"{kind} above 0" if lowest is None else f"{kind} from {lowest}"


@functools.cache
def _kinds(family: str) -> dict[str, tuple[tuple[str, ...], bool]]:
    """Per argument of `build` what its annotation allows, and whether its default is an empty sequence."""
    source = read(family)
    return {
        key: (tuple(kind.strip() for kind in annotation.split("|")), source.defaults.get(key) == ())
        for key, annotation in source.arguments.items()
    }
