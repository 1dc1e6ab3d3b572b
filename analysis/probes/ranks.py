"""Ranks: how many directions do weights and features use, against random matrices and the start?

Of a matrix W (m x n) with singular values s and q = s / sum s:

    stable     |W|_F^2 / s_1^2                 effective   exp(-sum q log q)         r90   fewest s with 90 % of sum s^2
    outliers   share of the singular values above the edge of Marchenko and Pastur's law, whose scale is taken from the
               median of s (Gavish and Donoho, arXiv 1305.5870, section II D)

The first three are ratios to what the law gives for the shape: 1 for independent entries. They are means over the
matrices of `stem` (what reads the image), `tokens` (linear maps of tokens) and `channels` (of channels), without the
head and vectors; `_start` at the start of training, `_change` of the change. `effective_features` is the effective rank
of what the head reads, over the centred first 1024 test images, as a share of its width.

Source: Roy and Vetterli, EUSIPCO 2007 (effective rank); Marchenko and Pastur, Math. USSR Sbornik 1 (1967).
Null: 1, and 0 of outliers; of the features the start of training. The interval is that of the jackknife over ten groups
of rows of each matrix, as if matrices were independent; of features over ten groups of images.
Expect: the first layer of flat nets lowest, as the covariance of images decays; changes of far lower rank than weights.
Cost: a pass for the features, and the decompositions.
"""

import math
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from analysis.bias.probe import Estimate, Rearranged, Subject
from analysis.measures.mixing import READERS
from archs.parts.backbone import Backbone
from archs.parts.layers import TokenLinear

PROTOCOL = {"groups": 10, "least": 8, "most": 1024}
UNITS = {
    "stable_stem": "ratio", "effective_stem": "ratio", "r90_stem": "ratio", "outliers_stem": "ratio",
    "stable_tokens": "ratio", "effective_tokens": "ratio", "r90_tokens": "ratio", "outliers_tokens": "ratio",
    "stable_channels": "ratio", "effective_channels": "ratio", "r90_channels": "ratio", "outliers_channels": "ratio",
    "stable_stem_start": "ratio", "effective_stem_start": "ratio", "r90_stem_start": "ratio",
    "outliers_stem_start": "ratio", "stable_tokens_start": "ratio", "effective_tokens_start": "ratio",
    "r90_tokens_start": "ratio", "outliers_tokens_start": "ratio", "stable_channels_start": "ratio",
    "effective_channels_start": "ratio", "r90_channels_start": "ratio", "outliers_channels_start": "ratio",
    "stable_stem_change": "ratio", "effective_stem_change": "ratio", "r90_stem_change": "ratio",
    "outliers_stem_change": "ratio", "stable_tokens_change": "ratio", "effective_tokens_change": "ratio",
    "r90_tokens_change": "ratio", "outliers_tokens_change": "ratio", "stable_channels_change": "ratio",
    "effective_channels_change": "ratio", "r90_channels_change": "ratio", "outliers_channels_change": "ratio",
    "effective_features": "ratio",
}  # fmt: skip
HEADLINE = ("effective_stem", "effective_tokens", "effective_channels", "effective_stem_change",
            "effective_tokens_change", "effective_channels_change", "effective_features")  # fmt: skip
TITLE = "Ranks: effective rank of weights and of what training changed, of that of random matrices"
COST = (1, 1)
OVER_TRAINING = True


def measure(subject: Subject) -> dict[str, Estimate]:
    """Of a model that is none of ours the features only."""
    now = matrices(subject.model)
    before = matrices(subject.start) if subject.start is not None else {}
    change = {key: (group, W - before[key][1]) for key, (group, W) in now.items() if key in before}
    result = {}
    for suffix, found in (("", now), ("_start", before), ("_change", change)):
        for group in ("stem", "tokens", "channels"):
            if each := [against_random(W) for own, W in found.values() if own == group and W.any()]:
                nulls = {"outliers": 0.0}
                result |= {f"{key}_{group}{suffix}": _mean(each, key, nulls.get(key, 1.0)) for key in each[0]}
    return result | features(subject)


def matrices(model: nn.Module) -> dict[str, tuple[str, np.ndarray]]:
    """By name: the group, and each matrix of at least 8 rows and columns; a stack of matrices is one after another."""
    inner = model.model if isinstance(model, Rearranged) else model
    if not isinstance(inner, Backbone):
        return {}
    mixers = [name for name, module in inner.named_modules() if isinstance(module, tuple(READERS))]
    found = {}
    for name, value in inner.named_parameters():
        owner = inner.get_submodule(name.rpartition(".")[0])
        if value.ndim < 2 or name.startswith("head."):
            continue
        if isinstance(owner, nn.Conv2d):
            value = value.flatten(1)
        on_tokens = isinstance(owner, TokenLinear) or any(name.rpartition(".")[0] == each for each in mixers)
        group = "stem" if name.startswith("stem.") else "tokens" if on_tokens else "channels"
        stack = value.detach().double().cpu().reshape(-1, *value.shape[-2:])[: PROTOCOL["groups"]]
        for number, W in enumerate(stack.numpy()):
            if min(W.shape) >= PROTOCOL["least"] and max(W.shape) * min(W.shape) <= PROTOCOL["most"] * 4096:
                found[f"{name}.{number}"] = (group, W)
    return found


def against_random(W: np.ndarray) -> dict[str, tuple[float, float]]:
    """Each rank over that of independent entries, and outliers; with the jackknife's standard error."""
    value, groups = ratios(W), np.array_split(np.arange(len(W)), PROTOCOL["groups"])
    left_out = [ratios(np.delete(W, group, 0)) for group in groups if len(group) < len(W)]
    n = len(left_out)
    errors = {key: math.sqrt((n - 1) * np.var([each[key] for each in left_out])) for key in value}
    return {key: (value[key], errors[key]) for key in value}


def ratios(W: np.ndarray) -> dict[str, float]:
    """Without errors."""
    s = np.linalg.svd(W, compute_uv=False)
    random = law(*sorted(W.shape))
    scale = np.median(s) / np.median(random)
    edge = math.sqrt(W.shape[0]) + math.sqrt(W.shape[1])
    # The largest of so many stands a little above the edge (Tracy and Widom): 2 % more covers 8 rows and columns, too.
    found = {key: f(s) / f(random) for key, f in RANKS.items()}
    return found | {"outliers": float((s > 1.02 * scale * edge).mean())}


def stable(s: np.ndarray) -> float:
    return float((s**2).sum() / s.max() ** 2)


def effective(s: np.ndarray) -> float:
    q = s / s.sum()
    return float(np.exp(-(q * np.log(np.where(q > 0, q, 1.0))).sum()))


def r90(s: np.ndarray) -> float:
    """Fewest singular values with 90 % of the energy, the last one in proportion."""
    share = np.concatenate([[0.0], np.sort(s**2)[::-1].cumsum() / (s**2).sum()])
    return float(np.interp(0.9, share, np.arange(len(share))))


RANKS = {"stable": stable, "effective": effective, "r90": r90}


@cache
def law(few: int, many: int) -> np.ndarray:
    """Singular values of a few x many matrix of independent entries of deviation 1, as Marchenko and Pastur's law has
    them: its quantiles in equal steps, descending."""
    low, high = math.sqrt(many) - math.sqrt(few), math.sqrt(many) + math.sqrt(few)
    # Of s itself the density is sqrt((high^2 - s^2) (s^2 - low^2)) / s; angles make its ends smooth.
    angle = (np.arange(20_000) + 0.5) / 20_000 * np.pi
    s = (low + high) / 2 - (high - low) / 2 * np.cos(angle)
    density = np.sqrt((high**2 - s**2) * (s**2 - low**2)) / s * np.sin(angle)
    share = density.cumsum() / density.sum()
    return np.interp((np.arange(few) + 0.5) / few, share, s)[::-1]


def features(subject: Subject) -> dict[str, Estimate]:
    """The effective rank of what the head reads, over its width."""
    now = _features(subject.model, subject)
    if now is None:
        return {}
    before = _features(subject.start, subject) if subject.start is not None else None
    value, groups = _spread(now), np.array_split(np.arange(len(now)), PROTOCOL["groups"])
    left_out = [_spread(np.delete(now, group, 0)) for group in groups]
    error = math.sqrt((len(left_out) - 1) * np.var(left_out))
    null = math.nan if before is None else _spread(before)
    return {"effective_features": Estimate(value, value - 1.96 * error, value + 1.96 * error, null)}


def _spread(x_NC: np.ndarray) -> float:
    s = np.linalg.svd(x_NC - x_NC.mean(0), compute_uv=False)
    return effective(s) / x_NC.shape[1] if s.any() else math.nan


@torch.inference_mode()
def _features(model: nn.Module, subject: Subject) -> np.ndarray | None:
    inner = model.model if isinstance(model, Rearranged) else model
    if not hasattr(inner, "forward_head"):
        return None
    found: list[Tensor] = []
    for x_BCHW, _ in subject.images:
        read = model.arrange(x_BCHW) if isinstance(model, Rearranged) else x_BCHW
        found.append(inner.forward_head(inner.forward_features(read), pre_logits=True).double().cpu())
        if sum(map(len, found)) >= PROTOCOL["most"]:
            break
    return torch.cat(found)[: PROTOCOL["most"]].numpy() if found else None


def _mean(each: list[dict[str, tuple[float, float]]], key: str, null: float) -> Estimate:
    value = float(np.mean([one[key][0] for one in each]))
    half = 1.96 * math.sqrt(sum(one[key][1] ** 2 for one in each)) / len(each)
    return Estimate(value, value - half, value + half, null)
