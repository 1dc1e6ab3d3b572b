"""Readers of numbers for flags: what makes no sense is refused in argparse's one line."""

import argparse
import math
from collections.abc import Callable

from engine.fields import sizes
from engine.fields.limits import startable


def whole(least: int, most: int | None = None, what: str = "whole number") -> Callable[[str], int]:
    """Reader of a whole number in a range."""
    wanted = f"from {least}" + (f" to {most}" if most else " on")

    def read(text: str) -> int:
        digits = text.removeprefix("-")
        if not (digits.isascii() and digits.isdecimal() and least <= int(text) <= (most or int(text))):
            raise argparse.ArgumentTypeError(f"'{text}' is not a {what} {wanted}")
        return int(text)

    return read


def processes(text: str) -> int:
    """A number of processes that this machine can start."""
    try:
        return startable(whole(1)(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} is {error}") from None


def percent(text: str) -> float:
    """A number above 0 and below 100."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 100:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number above 0 and below 100")
    return value


def size(most: int) -> Callable[[str], sizes.Size]:
    """Reader of a size in pixels, 32 or 32x64, each side up to `most`."""

    def read(text: str) -> sizes.Size:
        try:
            found = sizes.read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        if max(sizes.pair(found)) > most:
            raise argparse.ArgumentTypeError(f"'{text}' is more than {most} pixels")
        return found

    return read


def share(text: str) -> float:
    """A number above 0 and below 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number above 0 and below 1")
    return value


def views(text: str) -> int | str:
    """A whole number from 1 on, or `all`."""
    return text if text == "all" else whole(1)(text)


def temperature(text: str) -> float | str:
    """A number above 0, or `fit`."""
    try:
        value = text if text == "fit" else float(text)
    except ValueError:
        value = 0.0
    if value != "fit" and not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}' is neither a number above 0 nor 'fit'")
    return value
