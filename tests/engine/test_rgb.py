"""What the pixels of every kind of image file are as 8-bit RGB, by values computed here, or why they are refused."""

import struct
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from engine.data.rgb import read_rgb8, to_rgb8

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (7, 9), dtype=np.uint8)
RGB = RNG.integers(0, 256, (7, 9, 3), dtype=np.uint8)
ALPHA = RNG.integers(0, 256, (7, 9), dtype=np.uint8)
ALPHA[0], ALPHA[1] = 0, 255
DEEP = RNG.integers(0, 65536, (7, 9), dtype=np.uint16)
DEEP[0, :5] = 0, 128, 129, 65406, 65535  # on both sides of a rounding


def grey(pixels):
    return np.repeat(pixels[..., None], 3, axis=2)


def on_white(colour):
    """colour * a + 255 * (1 - a), rounded."""
    share = ALPHA[..., None] / 255
    return np.floor(colour * share + 255 * (1 - share) + 0.5)


def saved(tmp_path, image, suffix, **how):
    path = tmp_path / f"image.{suffix}"
    image.save(path, **how)
    return read_rgb8(path)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bits_of_grey_are_scaled_exactly(tmp_path, suffix):
    found = saved(tmp_path, Image.fromarray(DEEP), suffix)
    wanted = np.array([[round(int(value) * 255 / 65535) for value in row] for row in DEEP])
    assert (found == grey(wanted)).all() and found[0, :5, 0].tolist() == [0, 0, 1, 254, 255]


def test_sixteen_bits_of_the_other_byte_order(tmp_path):
    width, height, data = 9, 7, DEEP.astype(">u2").tobytes()
    tags = [(256, 3, width), (257, 3, height), (258, 3, 16), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1)]
    tags += [(278, 3, height), (279, 4, len(data))]
    rows = b"".join(
        struct.pack(">HHI", tag, kind, 1) + (struct.pack(">HH", value, 0) if kind == 3 else struct.pack(">I", value))
        for tag, kind, value in tags
    )
    whole = b"MM\0*" + struct.pack(">I", 8 + len(data)) + data + struct.pack(">H", len(tags)) + rows + bytes(4)
    (tmp_path / "x.tif").write_bytes(whole)
    assert (read_rgb8(tmp_path / "x.tif") == grey((DEEP.astype(int) + 128) // 257)).all()


@pytest.mark.parametrize(
    "pixels, words",
    [(GREY.astype(np.float32) / 255, "floating-point"), (GREY.astype(np.int32) * 257, "32-bit integers")],
)
def test_pixels_without_a_known_white_are_refused(tmp_path, pixels, words):
    with pytest.raises(ValueError, match=words) as caught:
        saved(tmp_path, Image.fromarray(pixels), "tif")
    assert "\n" not in str(caught.value) and "save it with 8 or 16 bits" in str(caught.value)


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "ppm"])
def test_eight_bits_are_as_they_are(tmp_path, suffix):
    assert (saved(tmp_path, Image.fromarray(RGB), suffix) == RGB).all()
    if suffix != "ppm":
        assert (saved(tmp_path, Image.fromarray(GREY), suffix) == grey(GREY)).all()
        assert (saved(tmp_path, Image.fromarray(GREY > 99), suffix) == grey((GREY > 99) * 255)).all()


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_transparent_parts_are_white(tmp_path, suffix):
    image = Image.fromarray(np.dstack([RGB, ALPHA]))
    found = saved(tmp_path, image, suffix, **({"lossless": True, "exact": True} if suffix == "webp" else {}))
    assert (found == on_white(RGB)).all() and (found[0] == 255).all() and (found[1] == RGB[1]).all()


def test_grey_with_transparency(tmp_path):
    image = Image.merge("LA", (Image.fromarray(GREY), Image.fromarray(ALPHA)))
    assert (saved(tmp_path, image, "png") == on_white(grey(GREY))).all()


@pytest.mark.parametrize("transparency", [None, 3, bytes([0, 255, 128, 7])])
def test_palettes(tmp_path, transparency):
    """None; one index; an opacity per index."""
    colours = RNG.integers(0, 256, (4, 3), dtype=np.uint8)
    index = RNG.integers(0, 4, (7, 9), dtype=np.uint8)
    image = Image.fromarray(index).convert("P")
    image.putpalette(colours.tobytes())
    opacity = np.full(4, 255)
    if transparency is not None:
        opacity = np.array(list(transparency)) if isinstance(transparency, bytes) else np.array([255, 255, 255, 0])
    share = opacity[:, None] / 255
    wanted = np.floor(colours * share + 255 * (1 - share) + 0.5)[index]
    how = {} if transparency is None else {"transparency": transparency}
    assert (saved(tmp_path, image, "png", **how) == wanted).all()


@pytest.mark.parametrize("pixels, value", [(GREY, int(GREY[2, 2])), (RGB, tuple(map(int, RGB[2, 2])))])
def test_one_colour_that_means_transparent(tmp_path, pixels, value):
    found = saved(tmp_path, Image.fromarray(pixels), "png", transparency=value)
    colour = pixels if pixels.ndim == 3 else grey(pixels)
    clear = (colour == np.array(value)).all(2)
    assert clear[2, 2] and (found[clear] == 255).all() and (found[~clear] == colour[~clear]).all()


def test_cmyk_is_light_that_ink_leaves(tmp_path):
    ink = np.dstack([RGB, np.zeros_like(GREY)])
    ink[0, 0] = 0, 0, 0, 255
    found = saved(tmp_path, Image.fromarray(ink, "CMYK"), "tif")
    assert (found[0, 0] == 0).all()
    assert abs(found[1:].astype(int) - (255 - RGB[1:].astype(int))).max() <= 1
    with_black = saved(tmp_path, Image.new("CMYK", (8, 8), (0, 255, 255, 128)), "jpg", quality=100)
    assert abs(with_black.astype(int) - [127, 0, 0]).max() <= 3


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize(
    "orientation, turned",
    [
        (1, lambda x: x),
        (2, lambda x: x[:, ::-1]),
        (3, lambda x: x[::-1, ::-1]),
        (4, lambda x: x[::-1]),
        (5, lambda x: x.transpose(1, 0, 2)),
        (6, lambda x: np.rot90(x, -1)),
        (7, lambda x: np.rot90(x, 2).transpose(1, 0, 2)),
        (8, lambda x: np.rot90(x)),
    ],
)
def test_images_are_turned_as_their_tag_says(tmp_path, suffix, orientation, turned):
    """EXIF 2.3, table of tag 274: where row 0 and column 0 of the stored pixels are in the picture."""
    blocks = np.kron(RNG.integers(0, 2, (2, 3), dtype=np.uint8) * 200, np.ones((16, 16), np.uint8))
    blocks[:16, :16] = 100
    exif = Image.Exif()
    exif[274] = orientation
    found = saved(tmp_path, Image.fromarray(grey(blocks)), suffix, exif=exif)
    wanted = turned(grey(blocks)).astype(int)
    assert found.shape == wanted.shape and abs(found - wanted).max() <= 12


def test_several_frames_are_refused_and_the_second_view_of_a_photograph_is_not(tmp_path):
    first, second = Image.fromarray(RGB), Image.fromarray(255 - RGB)
    for suffix in ("png", "webp", "tif"):
        with pytest.raises(ValueError, match="2 frames or pages; keep one"):
            saved(tmp_path, first, suffix, save_all=True, append_images=[second])
    with Image.open(tmp_path / "image.png") as image:
        assert image.n_frames == 2
    flat = Image.new("RGB", (16, 16), (200, 100, 50))
    flat.save(tmp_path / "image.jpg", format="MPO", save_all=True, append_images=[Image.new("RGB", (16, 16))])
    assert abs(read_rgb8(tmp_path / "image.jpg").astype(int) - [200, 100, 50]).max() <= 3


def test_other_kinds_are_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="pixels of the kind LAB"):
        saved(tmp_path, Image.new("LAB", (4, 4)), "tif")


def test_a_huge_image_is_read_without_a_word_and_a_bomb_is_not(tmp_path):
    """Pillow warns above a limit, lowered here for speed, and refuses above twice that."""
    Image.fromarray(RGB).save(tmp_path / "huge.png")
    Image.new("RGB", (90, 1)).save(tmp_path / "bomb.png")
    code = (
        "import sys; from engine.data import rgb; rgb.Image.MAX_IMAGE_PIXELS = 40; "
        "print(rgb.read_rgb8(sys.argv[1]).sum())"
    )
    command = [sys.executable, "-W", "always", "-c", code]
    huge, bomb = (
        subprocess.run([*command, str(tmp_path / name)], capture_output=True, text=True, timeout=120)
        for name in ("huge.png", "bomb.png")
    )
    assert (huge.returncode, huge.stdout, huge.stderr) == (0, f"{RGB.sum()}\n", "")
    assert bomb.returncode == 1 and "exceeds limit" in bomb.stderr.splitlines()[-1]


def test_what_is_cut_short_is_refused(tmp_path):
    Image.fromarray(np.kron(RGB, np.ones((9, 9, 1), np.uint8))).save(tmp_path / "x.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "x.jpg").read_bytes()[:-200])
    with pytest.raises(OSError, match="truncated"):
        read_rgb8(tmp_path / "cut.jpg")


def test_arrays_are_taken_as_they_are_or_not_at_all():
    assert to_rgb8(RGB) is RGB
    for wrong in (GREY, RGB.astype(np.float32), np.dstack([RGB, ALPHA])):
        with pytest.raises(ValueError, match="is not"):
            to_rgb8(wrong)
