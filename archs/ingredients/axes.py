"""The axes of token mixing: in y[i, c] = sum over j of M[c](x)[i, j] x[j, c], each is one constraint on M.

Two mixers that stand on the same places of all axes but one differ in one ingredient. Every declaration is measured on
random weights (tests/archs/test_mixing_axes.py); none is believed.
"""

from collections.abc import Mapping

AXES = {
    "reach": ("all", "window", "self"),
    "places": ("own", "displacement", "blind"),
    "channels": ("one", "groups", "each"),
    "border": ("zeros", "wrap"),
    "geometry": ("true", "scrambled"),
    "form": ("full", "two", "kron", "monarch"),
    "act": ("none", "gelu"),
    "gate": ("no", "yes"),
    "projected": ("no", "yes"),
    "rows": ("free", "average"),
    "content": ("no", "yes"),
    "learned": ("yes", "no"),
    "start": ("random", "mean", "impulse", "kernel"),
}
"""Axis -> values, the default first; a value with a number of its own is written with it, as window(3)."""
MEANING = {
    "reach": "which tokens a token reads: all, those in a window around it, itself",
    "places": "weights are each place's own, or one per displacement, or know of no place but the token's own",
    "channels": "one matrix for all channels, one per group, one each",
    "border": "what a displacement across the border meets: zeros, or the other side",
    "geometry": "the grid as it is, or its tokens in one random order",
    "form": "M is any matrix, or a product over two(h) hidden tokens, R kron Q, or a matrix per row and one per column",
    "act": "the activation inside the mixer",
    "gate": "whether the result is multiplied with the mixer's own input",
    "projected": "whether linear maps of the channels stand before and behind M",
    "rows": "rows of M are free, or averages: no weight below 0, their sum 1",
    "content": "whether M depends on the tokens",
    "learned": "whether training changes M",
    "start": "M starts with random numbers, with equal weights, with one weight in a row, or as that of a kernel",
}
DASH = "-"
"""Of an axis that cannot matter beside the others; it equals every value."""


def base(value: str) -> str:
    """The value without its number: window of window(3)."""
    return value.partition("(")[0]


def dashed(axes: Mapping[str, str]) -> dict[str, str]:
    """The axes with a dash where no value could make a difference; an identity proves each (test_mixing_axes.py)."""
    cannot: set[str] = set()
    reach, places, form = base(axes["reach"]), axes["places"], base(axes["form"])
    if reach == "self":
        cannot |= {"places", "channels", "border", "geometry"}
    if axes["learned"] == "no" and axes["start"] == "mean":
        cannot |= {"places", "channels"} | ({"border", "geometry"} if reach == "all" else set())
    if reach == "all" and (places == "blind" or (places == "own" and form in ("full", "two"))):
        cannot |= {"border", "geometry"}
    if reach == "all" and places == "own":
        cannot.add("border")
    return {axis: DASH if axis in cannot else value for axis, value in axes.items()}


def symmetry(axes: Mapping[str, str]) -> tuple[str, ...]:
    """Orders of the patches to which training is blind, words of analysis/bias/symmetry.py.

    A scrambled mixer is blind to all of them: its order, drawn alike from all orders, follows. A full matrix that
    starts as a kernel is not, though every step is: another order makes a start of it that is never drawn.
    """
    if axes["geometry"] == DASH and base(axes["start"]) in ("kernel", "impulse"):
        return ("flip",)
    if axes["geometry"] in (DASH, "scrambled") or axes["places"] == "blind":
        return ("patches",)
    if base(axes["form"]) in ("kron", "monarch"):
        return ("rows_columns",)
    if axes["start"] == "impulse":
        return ("shift",) if axes["border"] == "wrap" else ()
    return ("shift", "flip") if axes["border"] == "wrap" else ("flip",)
