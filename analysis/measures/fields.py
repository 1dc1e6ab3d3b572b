"""Maps over the pixels of an image, (..., H, W): where their mass lies, how wide and how smooth it is; the jackknife.

A map of mass is not negative; it need not sum to one. Distances are in pixels.
"""

import math
from collections.abc import Sequence

import numpy as np


def places(shape: tuple[int, int]) -> np.ndarray:
    """Row and column of each pixel, (2, H, W)."""
    return np.stack(np.meshgrid(*(np.arange(side, dtype=float) for side in shape), indexing="ij"))


def centroid(mass: np.ndarray) -> np.ndarray:
    """(..., 2)."""
    share = mass / mass.sum((-2, -1), keepdims=True)
    return np.stack([(share * axis).sum((-2, -1)) for axis in places(mass.shape[-2:])], -1)


def squared_distances(mass: np.ndarray) -> np.ndarray:
    """Of each pixel from the map's own centroid, (..., H, W)."""
    rows, columns = places(mass.shape[-2:])
    middle = centroid(mass)[..., None, None]
    return (rows - middle[..., 0, :, :]) ** 2 + (columns - middle[..., 1, :, :]) ** 2


def rms_radius(mass: np.ndarray) -> np.ndarray:
    """Root mean square distance from the centroid; of a uniform map sqrt((H^2 + W^2 - 2) / 12)."""
    share = mass / mass.sum((-2, -1), keepdims=True)
    return np.sqrt((share * squared_distances(mass)).sum((-2, -1)))


def half_radius(mass: np.ndarray) -> np.ndarray:
    """R50: radius about the centroid of the smallest disc with half of the mass; about sqrt(H W / (2 pi)) if uniform.

    The pixel at which the half is passed counts in proportion, as a step between two radii.
    """
    flat = mass.reshape(*mass.shape[:-2], mass.shape[-2] * mass.shape[-1])  # of no maps at all, too
    d = np.sqrt(squared_distances(mass)).reshape(flat.shape)
    order = d.argsort(-1, kind="stable")
    d, share = np.take_along_axis(d, order, -1), np.take_along_axis(flat, order, -1).cumsum(-1)
    first = (share < share[..., -1:] / 2).sum(-1, keepdims=True)
    return np.take_along_axis(d, first, -1)[..., 0]


def entropy(mass: np.ndarray) -> np.ndarray:
    """In units of that of a uniform map: 0 for one pixel, 1 for all alike."""
    p = (mass / mass.sum((-2, -1), keepdims=True)).reshape(*mass.shape[:-2], -1)
    return -(p * np.log(np.where(p > 0, p, 1.0))).sum(-1) / math.log(p.shape[-1])


def participation(mass: np.ndarray) -> np.ndarray:
    """1 / (H W sum p^2), the share of pixels that take part: 1 for all alike, 1 / (H W) for one."""
    p = mass / mass.sum((-2, -1), keepdims=True)
    return 1 / (p**2).sum((-2, -1)) / (p.shape[-2] * p.shape[-1])


def moran(x: np.ndarray) -> np.ndarray:
    """Moran's I over next neighbours in rows and columns, of maps (..., C, H, W) with their channels pooled.

    Near 1 for what is smooth; -1 / (H W - 1) in the mean over all orders of the pixels (Moran, Biometrika 37, 1950).
    """
    H, W = x.shape[-2:]
    off = x - x.mean((-2, -1), keepdims=True)
    along = (off[..., 1:, :] * off[..., :-1, :]).sum((-3, -2, -1)) + (off[..., 1:] * off[..., :-1]).sum((-3, -2, -1))
    return along * (H * W) / (off**2).sum((-3, -2, -1)) / (H * (W - 1) + W * (H - 1))


def within_frequency(shape: tuple[int, int], radius: float) -> np.ndarray:
    """Which numbers of a two-dimensional transform are within so many cycles per image, (H, W)."""
    rows, columns = (np.fft.fftfreq(side) * side for side in shape)
    return rows[:, None] ** 2 + columns**2 <= radius**2


def low_frequency(x: np.ndarray, radius: float) -> np.ndarray:
    """Share of the energy of maps (..., C, H, W) within so many cycles per image."""
    power = np.abs(np.fft.fft2(x)) ** 2
    return power[..., within_frequency(x.shape[-2:], radius)].sum((-2, -1)) / power.sum((-3, -2, -1))


def jackknife(left_out: Sequence[float], total: int) -> float:
    """Standard error from values without one of `total` each; they may be those of a random part of the total."""
    values = np.asarray(left_out, float)
    return math.sqrt((total - 1) * float(values.var()))
