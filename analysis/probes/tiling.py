"""Tiling: do hidden units of a flat net repeat each other's weights at other places, as a convolution would?

For two hidden units, whose weights are images w_u and w_v, and S the shift by d pixels with zeros moving in:

    s(u, v) = max over d, not (0, 0), of <w_u, S w_v> / (|w_u| |w_v|)
    tiling     mean over u of its five largest s(u, v), v another unit
    coverage   entropy of the units' centroids over 4 x 4 cells of the image, 1 where all cells have as many

`_start` and `_change` as of `first_layer`, whose words also say where the weights lie.

Source: Ingrosso and Goldt, PNAS 119 (2022), see such fields tile the image; the score is ours.
Null: of tiling the same with the phases of each unit's transform drawn at random, one draw for all its channels, which
keeps its power spectrum: smooth weights look alike somewhere whatever they show. Of coverage the mean of as many places
drawn evenly. The interval is over units.
Expect: both far above their nulls in a net that has become convolutional; coverage far below where units are not local,
as their centroids are all in the middle. Nothing for models with patches.
Cost: no pass; the products of 64 units.
"""

import numpy as np

from analysis.bias.probe import Estimate, Subject, over_images
from analysis.measures import fields
from analysis.probes.first_layer import weights

PROTOCOL = {"units": 64, "largest": 5, "cells": 4, "draws": 2, "seed": 0}
UNITS = {
    "tiling": "ratio", "coverage": "ratio", "tiling_start": "ratio", "coverage_start": "ratio",
    "tiling_change": "ratio", "coverage_change": "ratio",
}  # fmt: skip
HEADLINE = ("tiling", "tiling_change", "coverage_change")
TITLE = "Tiling: hidden units of flat nets that repeat each other elsewhere"
COST = (0, 3)
OVER_TRAINING = True


def measure(subject: Subject) -> dict[str, Estimate]:
    """{} for a model whose first layer does not read all pixels at once."""
    if (now := weights(subject.model, subject.img_size)) is None:
        return {}
    sets = {"": now}
    if subject.start is not None:
        sets |= {"_start": (before := weights(subject.start, subject.img_size)), "_change": now - before}
    result = {}
    for suffix, w in sets.items():
        w = w[(w != 0).any((1, 2, 3))]
        w = w[np.linspace(0, len(w) - 1, min(len(w), PROTOCOL["units"])).astype(int)]
        if len(w) > PROTOCOL["largest"]:
            result |= {f"tiling{suffix}": tiling(w), f"coverage{suffix}": coverage(w)}
    return result


def tiling(w_UCHW: np.ndarray) -> Estimate:
    rng = np.random.default_rng(PROTOCOL["seed"])
    nulls = [nearest(randomised(w_UCHW, rng)).mean() for _ in range(PROTOCOL["draws"])]
    return over_images(nearest(w_UCHW)[:, None], lambda means: means[..., 0], float(np.mean(nulls)))


def nearest(w_UCHW: np.ndarray) -> np.ndarray:
    """Of each unit the mean of its largest s(u, v), (U,)."""
    alike = similarities(w_UCHW)
    np.fill_diagonal(alike, -np.inf)
    return np.sort(alike, 1)[:, -PROTOCOL["largest"] :].mean(1)


def similarities(w_UCHW: np.ndarray) -> np.ndarray:
    """s(u, v), (U, U)."""
    U, _, H, W = w_UCHW.shape
    unit = w_UCHW / np.sqrt((w_UCHW**2).sum((1, 2, 3), keepdims=True))
    spectra = np.fft.rfft2(unit, (2 * H, 2 * W))
    found = np.empty((U, U))
    for u in range(U):
        products = np.fft.irfft2((spectra[u] * spectra.conj()).sum(1), (2 * H, 2 * W))
        products[:, 0, 0] = -np.inf
        found[u] = products.max((1, 2))
    return found


def randomised(w_UCHW: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Every unit with the phases of white noise added to its own, the same for all its channels."""
    noise = np.fft.fft2(rng.normal(size=(len(w_UCHW), 1, *w_UCHW.shape[2:])))
    return np.fft.ifft2(np.fft.fft2(w_UCHW) * noise / np.abs(noise)).real


def coverage(w_UCHW: np.ndarray) -> Estimate:
    """The interval is of a plug-in entropy, which draws with replacement lower: it may lie below the value."""
    cells, shape, U = PROTOCOL["cells"], w_UCHW.shape[2:], len(w_UCHW)
    rows, columns = fields.centroid((w_UCHW**2).sum(1)).T
    cell = (rows + 0.5) * cells // shape[0] * cells + (columns + 0.5) * cells // shape[1]
    inside = cell.astype(int)[:, None] == np.arange(cells**2)
    drawn = np.random.default_rng(PROTOCOL["seed"]).multinomial(U, np.full(cells**2, cells**-2.0), 1000) / U
    return over_images(inside.astype(float), spread, float(spread(drawn).mean()))


def spread(shares: np.ndarray) -> np.ndarray:
    """Entropy of shares (..., cells), over that of equal ones."""
    return -(shares * np.log(np.where(shares > 0, shares, 1.0))).sum(-1) / np.log(shares.shape[-1])
