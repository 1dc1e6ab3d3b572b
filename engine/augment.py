"""Reading and augmenting images: counter-based, so that a pixel depends on (seed, epoch, sample index) alone.

FFCV's own random transforms draw from generators that cannot be seeded. Here each draw is a hash of the epoch's key,
the sample's index and the operation, hence independent of workers, batch size and of where a run was interrupted.
Crop, flip and the read itself are one pass over the pixels, compiled once per machine (numba keeps it on disk).
"""

import numpy as np
from numba import njit

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
CROP_Y, CROP_X, FLIP = 1, 2, 3  # one number per operation: the draws of a sample are independent


@njit(cache=True, nogil=True, inline="always")
def _mix(x):
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@njit(cache=True, nogil=True, inline="always")
def _draw(key, sample, operation):
    """53 random bits."""
    return _mix(key ^ _mix(np.uint64(sample) * GOLDEN + np.uint64(operation))) >> np.uint64(11)


@njit(cache=True, nogil=True)
def read(file, pointers, samples, out, key, crop_pad, hflip):
    """Copy images out of the bytes of a file, with a random crop after zero padding and a random horizontal flip.

    Args:
        file: the whole file, uint8.
        pointers: byte address of each sample's pixels, stored row by row as (H, W, 3).
        samples: which samples, (B,).
        out: (B, H, W, C) uint8; C = 1 takes the first channel of a grey image.
        key: uint64 of the epoch.
        crop_pad: pixels of padding on each side; 0 is no crop.
        hflip: probability of a flip.
    """
    count, height, width, chans = out.shape
    for i in range(count):
        sample = samples[i]
        start = np.int64(pointers[sample])
        top, left, flip = 0, 0, False
        if crop_pad:
            span = np.uint64(2 * crop_pad + 1)
            top = np.int64(_draw(key, sample, CROP_Y) % span) - crop_pad
            left = np.int64(_draw(key, sample, CROP_X) % span) - crop_pad
        if hflip > 0.0:
            flip = np.float64(_draw(key, sample, FLIP)) * 2.0**-53 < hflip
        for y in range(height):
            source_y = y + top
            for x in range(width):
                source_x = (width - 1 - x if flip else x) + left
                if 0 <= source_y < height and 0 <= source_x < width:
                    address = start + (source_y * width + source_x) * 3
                    for c in range(chans):
                        out[i, y, x, c] = file[address + c]
                else:
                    for c in range(chans):
                        out[i, y, x, c] = 0


def read_numpy(images_NHWC, samples, key, crop_pad, hflip):
    """The same as `read`, written independently with NumPy over an array in memory; the oracle of the tests."""
    with np.errstate(over="ignore"):
        mixed = [_numpy_draw(np.uint64(key), samples, operation) for operation in (CROP_Y, CROP_X, FLIP)]
    _, height, width, _ = images_NHWC.shape
    padded = np.pad(images_NHWC[samples], ((0, 0), (crop_pad, crop_pad), (crop_pad, crop_pad), (0, 0)))
    out = np.empty_like(images_NHWC[samples])
    for i in range(len(samples)):
        top, left = (int(draw[i] % np.uint64(2 * crop_pad + 1)) for draw in mixed[:2])
        crop = padded[i, top : top + height, left : left + width]
        out[i] = crop[:, ::-1] if mixed[2][i] / 2**53 < hflip else crop
    return out


def _numpy_draw(key, samples, operation):
    def mix(x):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))

    return mix(key ^ mix(samples.astype(np.uint64) * GOLDEN + np.uint64(operation))) >> np.uint64(11)
