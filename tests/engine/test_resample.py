"""Resizing by one rule: area where an axis shrinks, bilinear where it grows, for what is stored and what is loaded."""

import cv2
import numpy as np
import pytest
from PIL import Image

from engine.data.augment import resample


@pytest.mark.parametrize(
    "shape, box, size",
    [
        ((64, 64), (0, 0, 64, 64), 32),
        ((70, 50), (3, 4, 60, 41), 32),
        ((300, 400), (10, 20, 256, 250), 224),
        ((64, 64), (1, 2, 33, 47), 32),
        ((32, 32), (5, 6, 20, 11), 32),
        ((32, 32), (0, 0, 32, 32), 64),
        ((32, 32), (31, 31, 1, 1), 8),
        ((40, 40), (4, 5, 32, 32), 32),
    ],
)
def test_resizing_is_opencvs(shape, box, size):
    """Area where it shrinks, bilinear where it grows, within one level."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    top, left, height, width = box
    kind = cv2.INTER_AREA if min(height, width) >= size else cv2.INTER_LINEAR
    wanted = cv2.resize(image[top : top + height, left : left + width], (size, size), interpolation=kind)
    assert abs(resized(image, box, size) - wanted.astype(int)).max() <= 1


def resized(image, box, size):
    out = np.empty((1, size, size, 3), np.uint8)
    resample.resize(image.reshape(-1), np.array([0]), np.array([image.shape[1]]), np.array([box]), out)
    return out[0]


@pytest.mark.parametrize("seed", range(12))
def test_what_is_stored_and_what_is_loaded_are_resized_alike(seed):
    """Up, down, one of each, no square: OpenCV for the file and our kernel for the loader, within one level."""
    rng = np.random.default_rng(seed)
    for size in (7, 32, 45):
        height, width = rng.integers(1, 100, 2)
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        stored = resample.resized(image, size, size)
        assert stored.shape == (size, size, 3) and stored.dtype == np.uint8
        assert abs(resized(image, (0, 0, height, width), size) - stored.astype(int)).max() <= 1
    assert (resample.resized(image, height, width) == image).all()


@pytest.mark.parametrize("shape", [(32, 32), (20, 27), (5, 32), (32, 9)])
def test_growing_is_pillows_bilinear(shape):
    """An independent reference of the enlarging half of the rule, for the file and for the loader."""
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    wanted = np.asarray(Image.fromarray(image).resize((64, 64), Image.Resampling.BILINEAR)).astype(int)
    assert abs(resample.resized(image, 64, 64) - wanted).max() <= 1
    assert abs(resized(image, (0, 0, *shape), 64) - wanted).max() <= 1


@pytest.mark.parametrize("height, width, factors", [(64, 96, (4, 6)), (48, 32, (3, 2)), (16, 160, (1, 10))])
def test_shrinking_by_whole_numbers_is_the_mean_of_blocks(height, width, factors):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    rows, columns = factors
    wanted = image.reshape(height // rows, rows, width // columns, columns, 3).mean((1, 3))
    assert abs(resample.resized(image, 16, 16) - wanted).max() <= 0.51
    assert abs(resized(image, (0, 0, height, width), 16) - wanted).max() <= 0.51


def test_resizing_that_shrinks_one_axis_and_grows_the_other():
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    box = image[5:45, 7:27].astype(np.float32)
    wanted = cv2.resize(cv2.resize(box, (20, 32), interpolation=cv2.INTER_AREA), (32, 32))
    assert abs(resized(image, (5, 7, 40, 20), 32) - wanted).max() <= 0.51
