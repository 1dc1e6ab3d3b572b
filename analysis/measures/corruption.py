"""Fifteen ways to spoil an image, in five severities, drawn from the image's number alone.

Kinds and constants are those with which CIFAR-10-C was made (Hendrycks and Dietterich, arXiv 1903.12261, their
make_cifar_c.py), lengths being pixels of an image of 32. The generators are ours, and what they give is CIFAR-10-C-like
and never CIFAR-10-C: motion and snow use a one-sided Gaussian along a line for ImageMagick's filter, fog is a sum of
octaves for the diamond-square algorithm, frost is drawn and no photograph, and all are rounded to 8 bits where the
original cuts off.

An image is (H, W, C) float64 from 0 to 1, square, C 1 or 3; each function gives one of the same shape, not clipped.
"""

from collections.abc import Callable
from functools import cache
from io import BytesIO

import numpy as np
from numpy.random import Generator, Philox
from PIL import Image
from scipy import ndimage

from engine.rng import derive

Levels = tuple[float | tuple[float, ...], ...]
LEVELS: dict[str, Levels] = {
    "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10),
    "shot_noise": (500, 250, 100, 75, 50),
    "impulse_noise": (0.01, 0.02, 0.03, 0.05, 0.07),
    "defocus_blur": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    "glass_blur": ((0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2)),
    "motion_blur": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    "zoom_blur": (6, 11, 16, 21, 26),
    "snow": (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
    "frost": ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
    "fog": ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
    "elastic": ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    "pixelate": (0.95, 0.9, 0.85, 0.75, 0.65),
    "jpeg": (80, 65, 58, 50, 40),
}
ICE = np.array([0.78, 0.88, 1.0])  # the colour of drawn frost


def corrupt(x_HWC: np.ndarray, name: str, severity: int, number: int, seed: int = 0) -> np.ndarray:
    """The spoilt image, in steps of 1/255. Severity is 1 to 5; `number` is the image's among the test images."""
    rng = Generator(Philox(key=[derive(seed, "corruption", severity, *name.encode()), number]))
    spoil: Callable[..., np.ndarray] = globals()[f"_{name}"]
    return np.round(255 * spoil(x_HWC, LEVELS[name][severity - 1], rng).clip(0, 1)) / 255


def _gaussian_noise(x: np.ndarray, deviation: float, rng: Generator) -> np.ndarray:
    return x + rng.normal(0, deviation, x.shape)


def _shot_noise(x: np.ndarray, photons: float, rng: Generator) -> np.ndarray:
    return rng.poisson(x * photons) / photons


def _impulse_noise(x: np.ndarray, share: float, rng: Generator) -> np.ndarray:
    return np.where(rng.random(x.shape) < share, rng.integers(0, 2, x.shape), x)


def _defocus_blur(x: np.ndarray, level: tuple[float, float], rng: Generator) -> np.ndarray:
    return ndimage.convolve(x, disk(*level)[:, :, None], mode="mirror")


def _glass_blur(x: np.ndarray, level: tuple[float, int], rng: Generator) -> np.ndarray:
    """Each pixel is read from itself or a neighbour above or to the left: the original means to swap, and copies."""
    (deviation, times), size = level, len(x)
    x = _soft(x, deviation)
    place, moves = np.indices((size, size)), np.arange(size) > 1
    for _ in range(times):
        step = rng.integers(-1, 1, (2, size, size)) * (moves[:, None] & moves)
        x = x[tuple(place + step)]
    return _soft(x, deviation)


def _motion_blur(x: np.ndarray, level: tuple[float, float], rng: Generator) -> np.ndarray:
    return _along(x, *level, angle=rng.uniform(-45, 45))


def _zoom_blur(x: np.ndarray, count: int, rng: Generator) -> np.ndarray:
    """The mean of the image and of `count` zooms of it, 1, 1.01, 1.02, ..."""
    each_ZSS = np.stack([_zoom(len(x), 1 + k / 100) for k in range(count)])
    zoomed = each_ZSS[:, None] @ x.transpose(2, 0, 1) @ each_ZSS.transpose(0, 2, 1)[:, None]
    return (x + zoomed.sum(0).transpose(1, 2, 0)) / (count + 1)


def _snow(x: np.ndarray, level: tuple[float, ...], rng: Generator) -> np.ndarray:
    mean, deviation, factor, threshold, radius, blur, kept = level
    zoom = _zoom(len(x), factor)
    flakes = zoom @ rng.normal(mean, deviation, x.shape[:2]) @ zoom.T
    flakes = np.where(flakes < threshold, 0, flakes).clip(0, 1)[:, :, None]
    flakes = _along(flakes, radius, blur, angle=rng.uniform(-135, -45))
    grey = x @ [[0.299], [0.587], [0.114]] if x.shape[2] == 3 else x
    return kept * x + (1 - kept) * np.maximum(x, 1.5 * grey + 0.5) + flakes + flakes[::-1, ::-1]


def _frost(x: np.ndarray, level: tuple[float, float], rng: Generator) -> np.ndarray:
    """Needles of ice: where octaves of noise cross their middle, in a patchy cover."""
    size = len(x)
    needles = 1 - np.abs(2 * plasma(size, 1.5, rng) - 1)
    ice = (0.35 + 0.65 * needles**4) * (0.4 + 0.6 * plasma(size, 2.5, rng))
    return level[0] * x + level[1] * ice[:, :, None] * (ICE if x.shape[2] == 3 else ICE.mean())


def _fog(x: np.ndarray, level: tuple[float, float], rng: Generator) -> np.ndarray:
    amount, decay = level
    top = x.max()
    return (x + amount * plasma(len(x), decay, rng)[:, :, None]) * top / (top + amount)


def _brightness(x: np.ndarray, more: float, rng: Generator) -> np.ndarray:
    """More of V in HSV: the largest channel gets that much more, the others in proportion; black turns grey."""
    top = x.max(2, keepdims=True)
    brighter = np.minimum(top + more, 1)
    return np.where(top > 0, x * brighter / np.where(top > 0, top, 1), brighter)


def _contrast(x: np.ndarray, share: float, rng: Generator) -> np.ndarray:
    mean = x.mean((0, 1), keepdims=True)
    return (x - mean) * share + mean


def _elastic(x: np.ndarray, level: tuple[float, float, float], rng: Generator) -> np.ndarray:
    """A random affine map, then random displacements; all three lengths are shares of the image's side."""
    size, (most, soft, jitter) = len(x), level
    middle, far = size // 2, size // 3
    corners_32 = middle + far * np.array([[1, 1], [1, -1], [-1, -1]])
    moved_33 = np.column_stack([corners_32 + rng.uniform(-jitter, jitter, (3, 2)) * size, np.ones(3)])
    back_32 = np.linalg.solve(moved_33, corners_32)  # moved point -> where its pixel comes from
    fields = [ndimage.gaussian_filter(rng.uniform(-1, 1, (size, size)), soft * size, truncate=3) for _ in "yx"]
    places_2HW = np.indices((size, size)) + most * size * np.stack(fields)
    source_2HW = np.einsum("ki,khw->ihw", back_32, np.concatenate([places_2HW, np.ones((1, size, size))]))
    read = (ndimage.map_coordinates(x[..., c], source_2HW, order=1, mode="mirror") for c in range(x.shape[2]))
    return np.stack(list(read), -1)


def _pixelate(x: np.ndarray, share: float, rng: Generator) -> np.ndarray:
    size = len(x)
    small = _image(x).resize((int(size * share),) * 2, Image.Resampling.BOX)
    return _array(small.resize((size, size), Image.Resampling.BOX))


def _jpeg(x: np.ndarray, quality: int, rng: Generator) -> np.ndarray:
    file = BytesIO()
    _image(x).save(file, "JPEG", quality=quality)
    return _array(Image.open(file))


# --- what they are made of


@cache
def disk(radius: float, soft: float) -> np.ndarray:
    """A disk of equal weights that sum to 1, its edge softened by a Gaussian of three pixels' width."""
    grid = np.arange(-int(radius) - 2, int(radius) + 3)
    inside = (grid[:, None] ** 2 + grid**2 <= radius**2).astype(float)
    edge = np.exp(-(np.array([-1, 0, 1]) ** 2) / (2 * soft**2))
    edge /= edge.sum()
    return ndimage.convolve(inside / inside.sum(), np.outer(edge, edge), mode="constant")


def plasma(size: int, decay: float, rng: Generator) -> np.ndarray:
    """Clouds from 0 to 1, (size, size): noise on ever finer grids, each octave `decay` times weaker, interpolated."""
    total, cells, weight = np.zeros((size, size)), 1, 1.0
    while cells <= size:
        read = _interpolation(np.linspace(0, cells, size), cells + 1)
        total += weight * (read @ rng.uniform(-1, 1, (cells + 1,) * 2) @ read.T)
        cells, weight = 2 * cells, weight / decay
    total -= total.min()
    return total / total.max()


def _along(x: np.ndarray, radius: float, deviation: float, angle: float) -> np.ndarray:
    """The mean over a line of 2 radius + 1 pixels to one side, in Gaussian weights; the border pixel goes on."""
    taps = np.arange(2 * int(radius) + 1)
    weights = np.exp(-(taps**2) / (2 * deviation**2))
    weights /= weights.sum()
    steps_T2 = np.round(np.outer(taps, [np.sin(np.radians(angle)), np.cos(np.radians(angle))])).astype(int)
    size, total = len(x), np.zeros_like(x)
    for weight, (down, right) in zip(weights, steps_T2, strict=True):
        rows, columns = ((np.arange(size) + step).clip(0, size - 1) for step in (down, right))
        total += weight * x[rows[:, None], columns]
    return total


def _soft(x: np.ndarray, deviation: float) -> np.ndarray:
    return ndimage.gaussian_filter(x, (deviation, deviation, 0), mode="nearest")


@cache
def _zoom(size: int, factor: float) -> np.ndarray:
    """(size, size): an axis magnified about its middle."""
    middle = (size - 1) / 2
    return _interpolation(middle + (np.arange(size) - middle) / factor, size)


def _interpolation(places: np.ndarray, length: int) -> np.ndarray:
    """(len(places), length): linear interpolation of an axis at these places."""
    return np.maximum(1 - np.abs(places[:, None] - np.arange(length)), 0)


def _image(x: np.ndarray) -> Image.Image:
    pixels = np.round(255 * x).astype(np.uint8)
    return Image.fromarray(pixels if x.shape[2] == 3 else pixels[..., 0])


def _array(image: Image.Image) -> np.ndarray:
    pixels = np.asarray(image, np.float64) / 255
    return pixels if pixels.ndim == 3 else pixels[..., None]
