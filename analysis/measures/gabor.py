"""The Gabor function nearest to an image, by least squares: an oriented wave under a Gaussian (Daugman 1985).

exp(-(u^2 / 2 s^2 + v^2 / 2 t^2)) (a cos 2 pi f u + b sin 2 pi f u), where u and v are row and column about a centre,
turned by an angle. The two amplitudes, and with them the phase, are solved for; the other six numbers are searched
from where the spectrum has its peak.
"""

import numpy as np
from scipy.optimize import least_squares

from analysis.measures import fields

STARTS = (0.5, 0.25)  # widths of the envelope at the start, in the spread of the image's own mass


def explained(image_HW: np.ndarray) -> float:
    """R^2: the share of the image's squares that the nearest Gabor function explains; of one that is zero, NaN."""
    total = float((image_HW**2).sum())
    if total == 0:
        return float("nan")
    left = min(_search(image_HW / total**0.5, spread) for spread in STARTS)
    return 1 - left


def basis(numbers: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The two waves, in and out of phase, (H W, 2), of row, column, log s, log t, angle and cycles per pixel."""
    row, column, log_s, log_t, angle, frequency = numbers
    rows, columns = fields.places(shape) - np.array([row, column])[:, None, None]
    u, v = np.cos(angle) * rows + np.sin(angle) * columns, np.cos(angle) * columns - np.sin(angle) * rows
    envelope = np.exp(-(u**2) / (2 * np.exp(2 * log_s)) - v**2 / (2 * np.exp(2 * log_t)))
    return (
        (envelope * np.stack([np.cos(2 * np.pi * frequency * u), np.sin(2 * np.pi * frequency * u)])).reshape(2, -1).T
    )


def _search(image_HW: np.ndarray, spread: float) -> float:
    shape, image = image_HW.shape, image_HW.reshape(-1)

    def rest(numbers: np.ndarray) -> np.ndarray:
        waves = basis(numbers, shape)
        # A little ridge keeps the two amplitudes finite where the second wave vanishes, at frequency 0.
        amplitudes = np.linalg.solve(waves.T @ waves + 1e-9 * np.eye(2), waves.T @ image)
        return waves @ amplitudes - image

    wide = np.fft.fft2(image_HW, [2 * side for side in shape])
    peak = np.unravel_index(np.abs(wide).argmax(), wide.shape)
    frequencies = [np.fft.fftfreq(2 * side)[i] for side, i in zip(shape, peak, strict=True)]
    width = np.log(max(spread * float(fields.rms_radius(image_HW**2)), 0.5))
    start = [*fields.centroid(image_HW**2), width, width, np.arctan2(*frequencies[::-1]), np.hypot(*frequencies)]
    longest = np.log(2 * max(shape))
    low = [-1.0, -1.0, -1.2, -1.2, -np.inf, 0.0]
    high = [shape[0], shape[1], longest, longest, np.inf, 0.71]
    found = least_squares(rest, np.clip(start, low, high), bounds=(low, high), max_nfev=60)
    return float(2 * found.cost)
