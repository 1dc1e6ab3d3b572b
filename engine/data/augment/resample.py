"""Crop and resize of RGB images: area weights along an axis that shrinks, bilinear weights along one that grows.

The one rule of this project, compiled for the loaders (`resize`) and by OpenCV for what is stored (`resized`), equal
within one level. It is OpenCV's INTER_AREA where an axis shrinks and its INTER_LINEAR where it grows; timm's and
torchvision's bilinear is the same where it grows, and where it shrinks up to how Pillow widens its triangle. FFCV has
INTER_AREA for both, which repeats pixels where it grows: a crop of 20 pixels shown at 32 would be a mosaic.

Like photometric.py, this file imports no compiled function.
"""

import math

import numpy as np
from numba import njit

from engine.data.augment.kernels import kernel


@kernel
def resize(file, addresses, widths, boxes, out):
    """Cut boxes out of images in the bytes of a file and resize them.

    Args:
        file: uint8.
        addresses: byte address of each image, stored row by row as (H, W, 3), (B,) int64.
        widths: W of each image, (B,) int64.
        boxes: top, left, height, width within each image, (B, 4) int64.
        out: (B, H, W, 3) uint8.
    """
    size_y, size_x = out.shape[1:3]
    for i in range(len(boxes)):
        top, left, height, width = boxes[i]
        stride = widths[i] * 3
        first = addresses[i] + top * stride + left * 3
        if height == size_y and width == size_x:
            for y in range(size_y):
                start = first + y * stride
                out[i, y].reshape(-1)[:] = file[start : start + size_x * 3]
            continue
        starts_y, counts_y, weights_y = _weights(height, size_y)
        starts_x, counts_x, weights_x = _weights(width, size_x)
        row = np.empty(width * 3, np.float32)
        for y in range(size_y):
            row[:] = 0
            for tap in range(counts_y[y]):
                weight = weights_y[y, tap]
                start = first + (starts_y[y] + tap) * stride
                source = file[start : start + width * 3]
                for x in range(width * 3):
                    row[x] += weight * np.float32(source[x])
            for x in range(size_x):
                red = green = blue = np.float32(0.5)
                place = np.uint64(starts_x[x] * 3)  # unsigned, as numba then leaves out what negative indices need
                for tap in range(counts_x[x]):
                    weight = weights_x[x, tap]
                    red += weight * row[place]
                    green += weight * row[place + np.uint64(1)]
                    blue += weight * row[place + np.uint64(2)]
                    place += np.uint64(3)
                out[i, y, x, 0] = np.uint8(min(red, np.float32(255)))
                out[i, y, x, 1] = np.uint8(min(green, np.float32(255)))
                out[i, y, x, 2] = np.uint8(min(blue, np.float32(255)))


def centre_box(height, width, tall, wide):
    """The largest part of an image in its centre with the shape of (tall, wide): top, left, height, width.

    The same rule as in `pipeline.boxes`, which is compiled and so cannot ask another file.
    """
    box_height, box_width = height, width
    if width * tall >= height * wide:
        box_width = max(1, (2 * height * wide + tall) // (2 * tall))
    else:
        box_height = max(1, (2 * width * tall + wide) // (2 * wide))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def resized(image, height, width):
    """An image (H, W, 3) uint8 as (height, width, 3): what `resize` makes of it, by OpenCV."""
    import cv2

    smaller = min(height, image.shape[0]), min(width, image.shape[1])
    if smaller != image.shape[:2]:
        image = cv2.resize(image, smaller[::-1], interpolation=cv2.INTER_AREA)
    if smaller != (height, width):
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    return image


@njit(nogil=True)
def _weights(source, target):
    """For each target place the first source place, (T,), how many there are, (T,), and their weights, (T, taps)."""
    scale = source / target
    starts, counts = np.empty(target, np.int64), np.empty(target, np.int64)
    weights = np.zeros((target, 2 if scale <= 1 else math.ceil(scale) + 1), np.float32)
    for place in range(target):
        if scale <= 1:
            centre = max(0.0, (place + 0.5) * scale - 0.5)
            starts[place] = min(int(centre), source - 1)
            counts[place] = 2 if starts[place] + 1 < source else 1
            weights[place, 1] = centre - starts[place] if counts[place] == 2 else 0.0
            weights[place, 0] = 1 - weights[place, 1]
        else:
            begin, end = place * scale, min((place + 1) * scale, float(source))
            starts[place], counts[place] = int(begin), 0
            for tap in range(weights.shape[1]):
                covered = min(end, starts[place] + tap + 1.0) - max(begin, starts[place] + float(tap))
                if covered > 1e-6:  # what rounding of the borders leaves is no cover
                    weights[place, tap] = covered / (end - begin)
                    counts[place] = tap + 1
    return starts, counts, weights
