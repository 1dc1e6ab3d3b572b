"""Pillow's image operations on uint8 images in memory, compiled: what RandAugment and its relatives are made of.

Each operation is a pure function of (image, argument), equal to what timm calls in Pillow bit for bit except where a
test says otherwise (tests/engine/test_augment.py). Geometric ones interpolate bilinearly, truncate like Pillow and fill
with a given colour. Images are (H, W, C) with C = 3 or 1; a grey image has no colour to change.

This file imports no compiled function, only how to compile one: numba's cache on disk notices a change of the file
that a function stands in, not of those it calls from elsewhere.
"""

import math

import numpy as np
from numba import njit

from engine.data.augment.kernels import kernel

OPS = (
    "Identity",
    "AutoContrast",
    "Equalize",
    "Invert",
    "Posterize",
    "Solarize",
    "SolarizeAdd",
    "Brightness",
    "Contrast",
    "Color",
    "Sharpness",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Rotate",
)
(
    IDENTITY,
    AUTO_CONTRAST,
    EQUALIZE,
    INVERT,
    POSTERIZE,
    SOLARIZE,
    SOLARIZE_ADD,
    BRIGHTNESS,
    CONTRAST,
    COLOR,
    SHARPNESS,
    SHEAR_X,
    SHEAR_Y,
    TRANSLATE_X,
    TRANSLATE_Y,
    ROTATE,
) = range(len(OPS))


@kernel
def apply(images, ops, args, fill):
    """Change images in place.

    Args:
        images: (B, H, W, C) uint8.
        ops: (B, L) int64, numbers of `OPS`, applied from left to right.
        args: (B, L) float64: bits kept, threshold, amount added, factor, shear, pixels moved, degrees.
        fill: (C,) uint8, colour of what a geometric operation uncovers.
    """
    _, height, width, chans = images.shape
    spare = np.empty((height, width, chans), np.uint8)
    counts, table = np.empty(256, np.int64), np.empty(256, np.uint8)
    for i in range(len(images)):
        image = images[i]
        for layer in range(ops.shape[1]):
            op, arg = ops[i, layer], args[i, layer]
            if op == IDENTITY:
                continue
            if op <= SOLARIZE_ADD:
                _look_up(image, op, arg, counts, table)
            elif op <= SHARPNESS:
                _enhance(image, op, np.float32(arg), spare)
            else:
                _move(image, op, arg, fill, spare)


@njit(nogil=True)
def _look_up(image, op, arg, counts, table):
    """The operations that map each value of a channel by a table."""
    height, width, chans = image.shape
    for c in range(chans):
        if op <= EQUALIZE:
            counts[:] = 0
            for y in range(height):
                for x in range(width):
                    counts[image[y, x, c]] += 1
            if not (_stretch(counts, table) if op == AUTO_CONTRAST else _equalize(counts, table)):
                continue
        else:
            for value in range(256):
                new = value
                if op == INVERT:
                    new = 255 - value
                elif op == POSTERIZE:
                    bits = max(0, min(8, int(arg)))
                    new = value >> (8 - bits) << (8 - bits)
                elif op == SOLARIZE:
                    new = value if value < arg else 255 - value
                elif op == SOLARIZE_ADD:
                    new = min(255, value + int(arg)) if value < 128 else value
                table[value] = new
        for y in range(height):
            for x in range(width):
                image[y, x, c] = table[image[y, x, c]]


@njit(nogil=True)
def _stretch(counts, table):
    """Autocontrast: the darkest value becomes 0, the lightest 255. False for a channel of one value."""
    low, high = 0, 255
    while counts[low] == 0:
        low += 1
    while counts[high] == 0:
        high -= 1
    if high <= low:
        return False
    scale = 255.0 / (high - low)
    offset = -low * scale
    for value in range(256):
        table[value] = max(0, min(255, int(value * scale + offset)))
    return True


@njit(nogil=True)
def _equalize(counts, table):
    """Histogram equalisation. False where the channel stays as it is."""
    last, present, total = 0, 0, 0
    for value in range(256):
        if counts[value]:
            last = counts[value]
            present += 1
            total += counts[value]
    step = (total - last) // 255
    if present <= 1 or step == 0:
        return False
    passed = step // 2
    for value in range(256):
        table[value] = min(255, passed // step)
        passed += counts[value]
    return True


@njit(nogil=True, inline="always")
def _grey(image, y, x):
    """Luma as Pillow's convert("L")."""
    red, green, blue = np.int64(image[y, x, 0]), np.int64(image[y, x, 1]), np.int64(image[y, x, 2])
    return (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16


@njit(nogil=True, inline="always")
def _blend(degenerate, value, factor):
    """degenerate + factor * (value - degenerate), clipped and truncated, in the arithmetic of Pillow."""
    mixed = np.float32(degenerate) + factor * np.float32(np.int64(value) - np.int64(degenerate))
    return np.uint8(max(np.float32(0), min(np.float32(255), mixed)))


@njit(nogil=True)
def _enhance(image, op, factor, spare):
    """Pillow's ImageEnhance: a blend of the image with one that lacks brightness, contrast, colour or sharpness."""
    height, width, chans = image.shape
    if op == BRIGHTNESS:
        for y in range(height):
            for x in range(width):
                for c in range(chans):
                    image[y, x, c] = _blend(0, image[y, x, c], factor)
    elif op == CONTRAST:
        total = 0
        for y in range(height):
            for x in range(width):
                total += _grey(image, y, x) if chans == 3 else image[y, x, 0]
        mean = int(total / (height * width) + 0.5)
        for y in range(height):
            for x in range(width):
                for c in range(chans):
                    image[y, x, c] = _blend(mean, image[y, x, c], factor)
    elif op == COLOR and chans == 3:
        for y in range(height):
            for x in range(width):
                grey = _grey(image, y, x)
                for c in range(3):
                    image[y, x, c] = _blend(grey, image[y, x, c], factor)
    elif op == SHARPNESS:
        spare[:] = image
        side, centre = np.float32(1 / 13), np.float32(5 / 13)
        for y in range(1, height - 1):  # Pillow's filter leaves the border as it is, and so the blend does
            for x in range(1, width - 1):
                for c in range(chans):
                    smooth = np.float32(0.5)
                    for dy in (1, 0, -1):
                        weight = centre if dy == 0 else side
                        smooth += (
                            np.float32(spare[y + dy, x - 1, c]) * side
                            + np.float32(spare[y + dy, x, c]) * weight
                            + np.float32(spare[y + dy, x + 1, c]) * side
                        )
                    image[y, x, c] = _blend(np.int64(smooth), spare[y, x, c], factor)


@njit(nogil=True)
def _move(image, op, arg, fill, spare):
    """Pillow's affine transforms, bilinear; the coefficients map a target pixel to its source."""
    height, width, chans = image.shape
    a, b, c0, d, e, f = 1.0, 0.0, 0.0, 0.0, 1.0, 0.0
    if op == SHEAR_X:
        b = arg
    elif op == SHEAR_Y:
        d = arg
    elif op == TRANSLATE_X:
        c0 = arg
    elif op == TRANSLATE_Y:
        f = arg
    else:
        angle = -math.radians(arg)
        a = e = round(math.cos(angle), 15)
        b = round(math.sin(angle), 15)
        d = -b
        c0 = a * -(width / 2) + b * -(height / 2) + width / 2
        f = d * -(width / 2) + e * -(height / 2) + height / 2
    spare[:] = image
    for y in range(height):
        for x in range(width):
            source_x = a * (x + 0.5) + b * (y + 0.5) + c0
            source_y = d * (x + 0.5) + e * (y + 0.5) + f
            if not (0.0 <= source_x < width and 0.0 <= source_y < height):
                for c in range(chans):
                    image[y, x, c] = fill[c]
                continue
            left, top = math.floor(source_x - 0.5), math.floor(source_y - 0.5)
            dx, dy = source_x - 0.5 - left, source_y - 0.5 - top
            x0, x1 = max(left, 0), min(left + 1, width - 1)
            y0, y1 = max(top, 0), min(top + 1, height - 1)
            for c in range(chans):
                upper = spare[y0, x0, c] + (np.float64(spare[y0, x1, c]) - spare[y0, x0, c]) * dx
                lower = spare[y1, x0, c] + (np.float64(spare[y1, x1, c]) - spare[y1, x0, c]) * dx
                image[y, x, c] = np.uint8(upper + (lower - upper) * dy)
