"""Pictures of a shape filled with a texture, twelve of each: a data set in which both cues are known.

An image is (S, S) from 0 to 1: a silhouette at a random place, size and tilt, in it a texture of random phase and
contrast, around it one random grey. Class k of a set is shape k, texture k or both (`CUES`); the other cue is drawn
anew for each image. After Geirhos et al., arXiv 1811.12231, whose conflicts need a style network and photographs.
"""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.random import Generator, Philox

from engine.rng import derive

CUES = ("both", "shape", "texture")
FINER = 4  # points per pixel and axis, of which a pixel is the mean
Where = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _polar(u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.hypot(u, v), np.arctan2(u, -v)


def _star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    r, angle = _polar(u, v)
    turn = np.abs((angle + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
    return r * np.cos(turn) + r * np.sin(turn) * 2.1 <= 1


def _box(u: np.ndarray, v: np.ndarray, left: float, top: float, right: float, bottom: float) -> np.ndarray:
    return (left <= u) & (u <= right) & (top <= v) & (v <= bottom)


# Where a silhouette is, u to the right and v down from -1 to 1.
SHAPES: dict[str, Where] = {
    "disc": lambda u, v: np.hypot(u, v) <= 0.9,
    "ring": lambda u, v: np.abs(np.hypot(u, v) - 0.75) <= 0.25,
    "square": lambda u, v: np.maximum(abs(u), abs(v)) <= 0.8,
    "triangle": lambda u, v: (v <= 0.75) & (2 * abs(u) <= v + 1),
    "star": _star,
    "plus": lambda u, v: (np.minimum(abs(u), abs(v)) <= 0.3) & (np.maximum(abs(u), abs(v)) <= 1),
    "bar": lambda u, v: _box(u, v, -1, -0.35, 1, 0.35),
    "ell": lambda u, v: _box(u, v, -0.8, -1, -0.15, 1) | _box(u, v, -0.8, 0.35, 0.8, 1),
    "tee": lambda u, v: _box(u, v, -0.9, -0.9, 0.9, -0.3) | _box(u, v, -0.3, -0.9, 0.3, 0.9),
    "you": lambda u, v: _box(u, v, -0.9, -0.9, 0.9, 0.9) & ~_box(u, v, -0.35, -1, 0.35, 0.3),
    "arrow": lambda u, v: _box(u, v, -1, -0.25, 0.1, 0.25) | ((u >= 0) & (abs(v) <= 1 - u)),
    "crescent": lambda u, v: (np.hypot(u, v) <= 0.95) & (np.hypot(u - 0.45, v) > 0.75),
}


def _grating(degrees: float, length: float) -> Callable[..., np.ndarray]:
    def texture(x: np.ndarray, y: np.ndarray, rng: Generator) -> np.ndarray:
        angle = np.radians(degrees)
        along = (x * np.cos(angle) + y * np.sin(angle)) / length
        return 0.5 + 0.5 * np.sin(2 * np.pi * (along + rng.random()))

    return texture


def _checks(x: np.ndarray, y: np.ndarray, rng: Generator) -> np.ndarray:
    a, b = rng.random(2) * 6
    return ((np.floor((x + a) / 3) + np.floor((y + b) / 3)) % 2).astype(float)


def _dots(x: np.ndarray, y: np.ndarray, rng: Generator) -> np.ndarray:
    a, b = rng.random(2) * 5
    return (np.hypot((x + a) % 5 - 2.5, (y + b) % 5 - 2.5) <= 1.5).astype(float)


def _cells(x: np.ndarray, y: np.ndarray, rng: Generator) -> np.ndarray:
    """Voronoi cells of random grey, some 5 pixels wide."""
    from scipy.spatial import cKDTree  # not at the top: a command that only prints help reads CUES

    low, high = min(x.min(), y.min()), max(x.max(), y.max())
    count = max(int(((high - low) / 5) ** 2), 4)
    tree = cKDTree(rng.uniform(low, high, (count, 2)))
    return rng.random(count)[tree.query(np.stack([x, y], -1))[1]]


def _clouds(x: np.ndarray, y: np.ndarray, rng: Generator) -> np.ndarray:
    """Waves of random direction and phase, their amplitude in proportion to their length (fractal noise)."""
    total = np.zeros_like(x)
    for length in np.geomspace(3, 24, 24):
        angle, phase = rng.random(2) * 2 * np.pi
        total += length * np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / length + phase)
    return (total - total.min()) / np.ptp(total)


TEXTURES: dict[str, Callable[..., np.ndarray]] = {
    f"{name}_{degrees}": _grating(degrees, length)
    for name, length in (("fine", 3.0), ("coarse", 7.0))
    for degrees in (0, 45, 90, 135)
} | {"checks": _checks, "dots": _dots, "cells": _cells, "clouds": _clouds}


def picture(shape: int, texture: int, size: int, rng: Generator) -> np.ndarray:
    """(size, size): lengths of textures are pixels of an image of 32, shapes are 0.5 to 0.75 of the image wide."""
    grid = (np.arange(size * FINER) + 0.5) / FINER * 32 / size
    x, y = np.meshgrid(grid, grid)
    radius = rng.uniform(8, 12)
    (right, down), tilt = rng.uniform(radius, 32 - radius, 2), np.radians(rng.uniform(-15, 15))
    u, v = (x - right) / radius, (y - down) / radius
    inside = list(SHAPES.values())[shape](u * np.cos(tilt) + v * np.sin(tilt), v * np.cos(tilt) - u * np.sin(tilt))
    dark = rng.uniform(0, 0.4)
    fill = dark + rng.uniform(0.5, 1 - dark) * list(TEXTURES.values())[texture](x, y, rng)
    around = rng.uniform(0.2, 0.8)
    return np.where(inside, fill, around).reshape(size, FINER, size, FINER).mean((1, 3))


def pictures(
    cue: str, part: str, per_class: int, size: int, seed: int = 0
) -> Iterator[tuple[int, int, int, np.ndarray]]:
    """Class, shape, texture and image (size, size) of every picture of a set, class by class; "both": all three equal.

    Args:
        part: any word; each has pictures of its own.
    """
    for label in range(len(SHAPES)):
        for number in range(per_class):
            rng = Generator(Philox(derive(seed, f"shapes {cue} {part}", label, number)))
            other = int(rng.integers(len(SHAPES)))
            shape, texture = {"both": (label, label), "shape": (label, other), "texture": (other, label)}[cue]
            yield label, shape, texture, picture(shape, texture, size, rng)


def conflicts(per_pair: int, size: int, seed: int = 0) -> Iterator[tuple[int, int, np.ndarray]]:
    """Shape, texture and image of every pair of classes that differ."""
    for shape, texture in np.argwhere(~np.eye(len(SHAPES), dtype=bool)).tolist():
        for number in range(per_pair):
            rng = Generator(Philox(derive(seed, "shapes conflict", shape, texture, number)))
            yield shape, texture, picture(shape, texture, size, rng)
