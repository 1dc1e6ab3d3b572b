"""One rule for what the pixels of an image file are as 8-bit RGB, and what is refused because nobody could say."""

import contextlib
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

# Pillow warns from 89 million pixels on, and refuses from 179 million; the refusal is enough.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", message="Corrupt EXIF data")
# Where grey of 16 bits comes as 32-bit numbers: Pillow reads these files so, scaled to 0..65535.
SIXTEEN_BITS_AS_32 = ("PNG", "PPM")
DIRECT = ("RGB", "L", "1", "P", "CMYK", "YCbCr", "HSV")
WITH_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")


def read_rgb8(path: str | Path) -> np.ndarray:
    """`to_rgb8` of an image file. Raises OSError where it is none, or is cut short."""
    with Image.open(path) as image:
        return to_rgb8(image)


def to_rgb8(image: Any) -> np.ndarray:
    """(H, W, 3) uint8, as a viewer would show it on a white page.

    Turned as its EXIF tag says; transparent parts white, half transparent ones mixed with white; grey of 16 bits
    scaled, value * 255 / 65535 rounded; palettes, two levels and CMYK by Pillow. (Of 16 bits per colour, Pillow reads
    the high byte: at most one level below.) An array is taken as it is. Raises ValueError for several frames or pages,
    and for pixels whose white is not known: floating point and 32-bit integers.
    """
    if not isinstance(image, Image.Image):
        pixels = np.asarray(image)
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise ValueError(f"an array of {pixels.dtype} {pixels.shape} is not (H, W, 3) of uint8")
        return pixels
    # A photograph may carry a preview or a second view beside the picture (MPO); its first frame is the picture.
    if (frames := getattr(image, "n_frames", 1)) > 1 and image.format != "MPO":
        raise ValueError(f"it has {frames} frames or pages; keep one of them")
    with contextlib.suppress(SyntaxError, ValueError, TypeError, struct.error):  # a damaged tag turns nothing
        ImageOps.exif_transpose(image, in_place=True)
    mode = image.mode
    if mode.startswith("I;16") or (mode == "I" and image.format in SIXTEEN_BITS_AS_32):
        grey = (np.asarray(image).astype(np.int64) + 128) // 257  # 65535 / 255 = 257
        return grey.astype(np.uint8)[..., None].repeat(3, axis=2)
    if mode in WITH_ALPHA or (mode in DIRECT and "transparency" in image.info):
        pixels = np.asarray(image.convert("RGBA")).astype(np.int64)
        colour, alpha = pixels[..., :3], pixels[..., 3:]
        return ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    if mode in DIRECT:
        return np.asarray(image.convert("RGB"))
    kind = {"F": "floating-point pixels", "I": "pixels of 32-bit integers"}.get(mode, f"pixels of the kind {mode}")
    raise ValueError(f"it has {kind}, and nothing says which value is white; save it with 8 or 16 bits")
