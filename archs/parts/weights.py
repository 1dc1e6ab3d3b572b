"""State dicts under this zoo's names: how keys are renamed, and what the shapes of weights say of their model."""

import re
from collections.abc import Callable, Mapping
from math import isqrt
from typing import Any

from torch import Tensor

from archs.parts.backbone import Grid, grid_of, pair

State = dict[str, Tensor]


def rename(state: State, *rules: tuple[str, str | Callable[[re.Match], str]]) -> State:
    """Every key after `re.sub` of each (pattern, replacement) in turn."""
    renamed = {}
    for key, value in state.items():
        for pattern, name in rules:
            key = re.sub(pattern, name, key)
        renamed[key] = value
    return renamed


def flatten(state: State, *keys: str) -> State:
    """A copy in which the tensors of these keys, such as a patch convolution's weight, are matrices."""
    return {**state, **{key: state[key].flatten(1) for key in keys if key in state}}


def frame(state: State, own: Mapping[str, Any], num_tokens: int | None, stem: str | None = None) -> dict[str, Any]:
    """`num_classes`, `in_chans` and `img_size` of weights with a patch stem; what cannot be told is left out.

    Args:
        stem: key of its weight, if it is not the only `stem.*proj.weight`.
        own: arguments of `create`; where the tokens fit its `img_size` that is it, and otherwise the image is square.
        num_tokens: what the weights are bound to, None if nothing.
    """
    implied = classes(state)
    p, q = pair(own["patch_size"])
    stem = stem or next((key for key in state if re.fullmatch(r"stem\.(.*\.)?proj\.weight", key)), None)
    if stem in state and state[stem].ndim == 4 and stem.endswith("proj.weight"):
        implied["in_chans"] = state[stem].shape[1]
    elif stem in state and state[stem].shape[-1] % (p * q) == 0:
        implied["in_chans"] = state[stem].shape[-1] // (p * q)
    if num_tokens:
        h, w = grid_of(own["img_size"], own["patch_size"])
        if h * w == num_tokens:
            implied["img_size"] = own["img_size"]
        elif isqrt(num_tokens) ** 2 == num_tokens:
            implied["img_size"] = _int_or_pair(isqrt(num_tokens) * p, isqrt(num_tokens) * q)
    return implied


def pixels(state: State, own: Mapping[str, Any], stem: str) -> dict[str, Any]:
    """As `frame`, for a stem that reads all pixels at once: channels as in `own` if those fit, else 3 or 1."""
    implied = classes(state)
    if stem in state:
        inputs = state[stem].shape[1]
        for in_chans in (own["in_chans"], 3, 1):
            h, w = pair(own["img_size"])
            if in_chans * h * w != inputs:
                h = w = isqrt(inputs // in_chans)
            if in_chans * h * w == inputs:
                return {**implied, "in_chans": in_chans, "img_size": _int_or_pair(h, w)}
    return implied


def classes(state: State) -> dict[str, Any]:
    """{"num_classes": ...} by the head; {} without one."""
    return {"num_classes": len(state["head.weight"])} if "head.weight" in state else {}


def columns(state: State, key: str) -> int | None:
    """Length of the last axis; None where the key is missing, which the comparison will report."""
    return state[key].shape[-1] if key in state else None


def _int_or_pair(h: int, w: int) -> int | Grid:
    return h if h == w else (h, w)
