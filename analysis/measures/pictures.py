"""Contact sheets: many small maps in one picture, red above zero, blue below, each map in its own scale."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

PAPER, GAP, LEAST = 255, 3, 48  # grey between maps, in pixels; a map is at least about so wide


def sheet(rows: Sequence[np.ndarray]) -> bytes:
    """A PNG with the maps of each row, (K, H, W), side by side; rows may differ in number and size of maps."""
    strips = [_strip(row) for row in rows]
    wide = max(strip.shape[1] for strip in strips)
    padded = [np.pad(strip, ((0, GAP), (0, wide - strip.shape[1]), (0, 0)), constant_values=PAPER) for strip in strips]
    file = io.BytesIO()
    Image.fromarray(np.concatenate(padded)).save(file, "PNG")
    return file.getvalue()


def tiles(maps_KHW: np.ndarray, columns: int = 16) -> bytes:
    """A PNG of the maps in rows of so many."""
    return sheet([maps_KHW[i : i + columns] for i in range(0, len(maps_KHW), columns)])


def _strip(maps_KHW: np.ndarray) -> np.ndarray:
    times = max(1, round(LEAST / max(maps_KHW.shape[1:])))
    highest = np.abs(maps_KHW).max((1, 2), keepdims=True)
    large = (maps_KHW / np.where(highest > 0, highest, 1)).repeat(times, 1).repeat(times, 2)
    fade = 1 - np.abs(large)
    colour = np.stack([np.where(large < 0, fade, 1), fade, np.where(large > 0, fade, 1)], -1)
    pixels = np.pad((255 * colour).round().astype(np.uint8), ((0, 0), (0, 0), (0, GAP), (0, 0)), constant_values=PAPER)
    return pixels.transpose(1, 0, 2, 3).reshape(pixels.shape[1], -1, 3)
