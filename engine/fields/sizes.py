"""Sizes of images in pixels: a whole number is a square, `HEIGHTxWIDTH` or a pair of them an oblong.

An oblong is written `32x64`, height first, wherever a size is text: flags, YAML, tables and names of files. Needs
neither NumPy nor torch.
"""

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer

Size = int | tuple[int, int]


def read(given: Any) -> Size:
    """The size that a user means, a square always as one number. Raises ValueError for what is none."""
    parts = given
    if isinstance(given, str):
        parts = re.split(r"\s*[x×]\s*", given.strip())
    parts = list(parts) if isinstance(parts, (list, tuple)) else [parts]
    try:
        whole = [int(part) for part in parts if not isinstance(part, bool) and float(part) == int(float(part))]
    except (TypeError, ValueError, OverflowError):
        whole = []
    if len(whole) != len(parts) or len(parts) not in (1, 2) or min(whole) < 1:
        raise ValueError(f"'{given}' is no size in pixels; write 32, or 32x64 (height x width)")
    return whole[0] if len({*whole}) == 1 else (whole[0], whole[1])


def pair(size: Any) -> tuple[int, int]:
    """Height and width of any spelling of a size."""
    size = size if isinstance(size, int) else read(size)
    return (size, size) if isinstance(size, int) else size


def text(size: Any) -> str:
    """`32` or `32x64`."""
    height, width = pair(size)
    return str(height) if height == width else f"{height}x{width}"


def plain(size: Any) -> int | str:
    """A size as files keep it: a number, or the text of an oblong."""
    height, width = pair(size)
    return height if height == width else text(size)


def holds(stored: Size, size: Size) -> bool:
    """Whether an image of one size can be shrunk to the other."""
    return all(large >= small for large, small in zip(pair(stored), pair(size), strict=True))


# A field of a record: read in any spelling, kept as files keep it.
Pixels = Annotated[Size, BeforeValidator(read), PlainSerializer(plain, when_used="json")]
