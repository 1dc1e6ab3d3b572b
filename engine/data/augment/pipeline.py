"""Augmentation: counter-based, so that a pixel depends on (seed, epoch, sample index) alone.

FFCV's own random transforms draw from generators that cannot be seeded. Here each draw is a hash of the epoch's key,
the sample's index and the operation, hence independent of workers, batch size and of where a run was interrupted.
All kernels are compiled once per machine (engine/data/augment/kernels.py).

The order is timm's: crop (and resize), flip, then a policy or colour jitter, then erasing. timm erases after the
normalisation; here pixels are still uint8: the constant is the mean colour rounded, so within 0.5 / std of timm's 0,
and a random pixel is mean + std * normal, rounded and clipped to 0..255.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numba import njit

from engine.data.augment import photometric
from engine.data.augment.kernels import kernel
from engine.data.augment.policy import parse, table
from engine.fields.sizes import Size

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
# One number per operation: the draws of a sample are independent. Where there are attempts or layers, from there on.
CROP_Y, CROP_X, FLIP, JITTER, ERASE, RESIZED_CROP, POLICY, ERASE_BOX, PIXELS = 1, 2, 3, 10, 20, 100, 200, 900, 1000
_JITTERED = np.array([photometric.BRIGHTNESS, photometric.CONTRAST, photometric.COLOR])


@dataclass(frozen=True)
class Augmentation:
    """What happens to a training image of img_size pixels, in the words of Run. The default is nothing.

    Raises ValueError for two settings that exclude each other, or an unknown policy.
    """

    img_size: Size
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    crop_pad: int = 0
    crop_fill: str = "zeros"
    crop_step: int = 1
    hflip: float = 0.0
    scale: tuple[float, float] | None = None
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    aa: str | None = None
    color_jitter: float = 0.0
    reprob: float = 0.0
    remode: str = "const"
    places: tuple[int, ...] | None = None
    """Before all else pixel `places[i]` of an image comes to place i, (H*W,); None: they stay."""

    def __post_init__(self) -> None:
        if self.scale and self.crop_pad:
            raise ValueError("scale and crop_pad are two ways to crop; leave one out")
        if self.crop_pad % self.crop_step:
            raise ValueError(f"crop_pad {self.crop_pad} is not a multiple of crop_step {self.crop_step}")
        for name, value in (("scale", self.scale), ("ratio", self.ratio)):
            if value and not 0 < value[0] <= value[1]:
                raise ValueError(f"{name} {value[0]:g} {value[1]:g} must be a smaller and a larger number above 0")
        if self.aa and self.color_jitter:
            raise ValueError("timm leaves color_jitter out where there is an aa; so leave it out")
        if self.aa:
            self._policy  # noqa: B018 - raises here and not in a worker, where it would end an epoch

    def finish(self, images: np.ndarray, samples: np.ndarray, key: np.uint64) -> None:
        """Change cropped and flipped images (B, H, W, C) uint8 in place: policy or colour jitter, then erasing."""
        if self.aa:
            policy, (rows, weights) = self._policy
            ops = np.zeros((len(images), policy.layers), np.int64)
            args = np.zeros(ops.shape)
            choose(samples, key, rows, weights, policy.std, policy.magnitude_max, ops, args)
            photometric.apply(images, ops, args, self._fill)
        elif self.color_jitter:
            ops, args = np.empty((len(images), 3), np.int64), np.empty((len(images), 3))
            jitter(samples, key, self.color_jitter, _JITTERED, ops, args)
            photometric.apply(images, ops, args, self._fill)
        if self.reprob:
            erase(images, samples, key, self.reprob, self.remode == "pixel", *self._statistics)

    @cached_property
    def _policy(self) -> tuple:
        policy = parse(self.aa)
        return policy, table(policy, self.img_size)

    @cached_property
    def _statistics(self) -> tuple[np.ndarray, np.ndarray]:
        return np.array(self.mean), np.array(self.std)

    @cached_property
    def _fill(self) -> np.ndarray:
        return np.round(self.mean).astype(np.uint8)


@njit(nogil=True, inline="always")
def _mix(x):
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@njit(nogil=True, inline="always")
def _draw(key, sample, operation):
    """53 random bits."""
    return _mix(key ^ _mix(np.uint64(sample) * GOLDEN + np.uint64(operation))) >> np.uint64(11)


@njit(nogil=True)
def _uniform(key, sample, operation, low, high):
    return low + (high - low) * (np.float64(_draw(key, sample, operation)) * 2.0**-53)


@njit(nogil=True)
def _below(key, sample, operation, count):
    """An integer from 0 to count - 1."""
    return np.int64(_draw(key, sample, operation) % np.uint64(count))


@njit(nogil=True)
def _normal(key, sample, operation):
    """Standard normal (Box and Muller) from the draws `operation` and the next."""
    first = (np.float64(_draw(key, sample, operation)) + 1.0) * 2.0**-53
    return math.sqrt(-2.0 * math.log(first)) * math.cos(_uniform(key, sample, operation + 1, 0.0, 2.0 * math.pi))


@kernel
def read(file, addresses, samples, out, key, crop_pad, crop_step, wrap, hflip):
    """Copy images out of the bytes of a file, with a random crop after padding and a random horizontal flip.

    Args:
        file: the whole file, uint8.
        addresses: byte address of each image's pixels, stored row by row as (H, W, 3), (B,).
        samples: which samples they are, (B,).
        out: (B, H, W, C) uint8; C = 1 takes the first channel of a grey image.
        key: uint64 of the epoch.
        crop_pad: pixels of padding on each side; 0 is no crop.
        crop_step: pixels between two possible crops; crop_pad is a multiple of it.
        wrap: the padding is the other side of the image, else zeros. A crop_pad of half a side then names a shift by
            half of it twice, of which one is left out: all shifts are equally likely.
        hflip: probability of a flip.
    """
    count, height, width, chans = out.shape
    flat = out.reshape(-1)
    for i in range(count):
        sample = samples[i]
        start = np.int64(addresses[i])
        top, left, flip = 0, 0, False
        if crop_pad:
            span = 2 * (crop_pad // crop_step) + 1
            rows = np.uint64(span - (wrap and 2 * crop_pad == height))
            columns = np.uint64(span - (wrap and 2 * crop_pad == width))
            top = np.int64(_draw(key, sample, CROP_Y) % rows) * crop_step - crop_pad
            left = np.int64(_draw(key, sample, CROP_X) % columns) * crop_step - crop_pad
        if hflip > 0.0:
            flip = np.float64(_draw(key, sample, FLIP)) * 2.0**-53 < hflip
        if wrap:
            for y in range(height):
                row = start + (y + top) % height * width * 3
                for x in range(width):
                    address = row + (x + left) % width * 3
                    place = ((i * height + y) * width + (width - 1 - x if flip else x)) * chans
                    for c in range(chans):
                        flat[place + c] = file[address + c]
            continue
        first, last = max(0, -left), max(0, min(width, width - left))  # columns that lie on the image, before the flip
        for y in range(height):
            place = np.uint64((i * height + y) * width * chans)  # unsigned: numba then does not test for negatives
            if not 0 <= y + top < height or first > 0 or last < width:
                for k in range(np.uint64(width * chans)):
                    flat[place + k] = 0
            if not 0 <= y + top < height:
                continue
            address = np.uint64(start + ((y + top) * width + first + left) * 3)
            count_x = np.uint64(max(0, last - first))
            if flip:
                place += np.uint64((width - first) * chans)
                for _ in range(count_x):
                    place -= np.uint64(chans)
                    for c in range(np.uint64(chans)):
                        flat[place + c] = file[address + c]
                    address += np.uint64(3)
            elif chans == 3:
                place += np.uint64(first * 3)
                for k in range(count_x * np.uint64(3)):
                    flat[place + k] = file[address + k]
            else:
                place += np.uint64(first * chans)
                for k in range(count_x):
                    flat[place + k] = file[address + k * np.uint64(3)]


@kernel
def boxes(samples, heights, widths, key, scale, ratio, shape, out):
    """What to cut out of each image: the area and aspect of a random resized crop as timm draws them, or the centre.

    Args:
        heights, widths: of the images, (B,) int64.
        scale: smallest and largest share of the image's area; (0, 0) takes the largest part of `shape` in the centre.
        ratio: smallest and largest width / height.
        shape: height and width of what the boxes are resized to.
        out: top, left, height, width, (B, 4) int64.
    """
    for i in range(len(samples)):
        height, width = heights[i], widths[i]
        box_height, box_width = height, width
        if width * shape[0] >= height * shape[1]:
            box_width = max(1, (2 * height * shape[1] + shape[0]) // (2 * shape[0]))
        else:
            box_height = max(1, (2 * width * shape[0] + shape[1]) // (2 * shape[1]))
        found = scale[1] == 0.0
        if not found:
            for attempt in range(10):
                draw = RESIZED_CROP + 4 * attempt
                area = height * width * _uniform(key, samples[i], draw, scale[0], scale[1])
                log_ratio = _uniform(key, samples[i], draw + 1, math.log(ratio[0]), math.log(ratio[1]))
                aspect = math.exp(log_ratio)
                box_height = np.int64(np.rint(math.sqrt(area / aspect)))
                box_width = np.int64(np.rint(math.sqrt(area * aspect)))
                if 0 < box_height <= height and 0 < box_width <= width:
                    out[i, 0] = _below(key, samples[i], draw + 2, height - box_height + 1)
                    out[i, 1] = _below(key, samples[i], draw + 3, width - box_width + 1)
                    found = True
                    break
            if found:
                out[i, 2], out[i, 3] = box_height, box_width
                continue
            box_height, box_width = height, width
            if width / height < ratio[0]:
                box_height = max(1, np.int64(np.rint(width / ratio[0])))
            elif width / height > ratio[1]:
                box_width = max(1, np.int64(np.rint(height * ratio[1])))
        out[i, 0], out[i, 1] = (height - box_height) // 2, (width - box_width) // 2
        out[i, 2], out[i, 3] = box_height, box_width


@kernel
def choose(samples, key, rows, weights, std, level_max, ops, args):
    """Draw the operations of a policy and their arguments, (B, L) each, from a table as policy.py writes it."""
    shared = rows.shape[1] > 1
    left = np.empty(len(weights))
    for i in range(len(samples)):
        sample, row = samples[i], 0
        left[:] = weights
        for layer in range(ops.shape[1]):
            draw = POLICY + 8 * layer
            if not shared or layer == 0:
                row = _below(key, sample, draw, len(rows))
            if len(weights):
                rest = _uniform(key, sample, draw, 0.0, left.sum())
                row = 0
                while row < len(left) - 1 and (rest >= left[row] or left[row] == 0):
                    rest -= left[row]
                    row += 1
                left[row] = 0
            entry = rows[row, layer if shared else 0]
            if entry[1] < 1.0 and _uniform(key, sample, draw + 1, 0.0, 1.0) >= entry[1]:
                continue
            level = entry[2]
            if std == math.inf:
                level = _uniform(key, sample, draw + 2, 0.0, level)
            elif std > 0:
                level += std * _normal(key, sample, draw + 2)
            elif std < 0:
                level = _below(key, sample, draw + 2, 31) * level / 30.0
            step = entry[4] * (max(0.0, min(level, level_max)) / 10.0)
            if entry[6] == 1:
                step = float(int(step))
            elif entry[6] == 2:
                step = np.rint(step)
            if entry[5] and _below(key, sample, draw + 4, 2):
                step = -step
            ops[i, layer] = np.int64(entry[0])
            args[i, layer] = max(entry[7], min(entry[3] + step, entry[8]))


@kernel
def jitter(samples, key, amount, jittered, ops, args):
    """torchvision's ColorJitter: the three operations in random order, by factors of 1 - amount to 1 + amount."""
    for i in range(len(samples)):
        ops[i] = jittered
        for layer in range(2):
            other = layer + _below(key, samples[i], JITTER + layer, 3 - layer)
            ops[i, layer], ops[i, other] = ops[i, other], ops[i, layer]
        for layer in range(3):
            args[i, layer] = _uniform(key, samples[i], JITTER + 2 + layer, max(0.0, 1.0 - amount), 1.0 + amount)


@kernel
def erase(images, samples, key, probability, pixel, mean, std):
    """timm's RandomErasing in place: 2 % to 33 % of the area, aspect 0.3 to 3.3, ten attempts, uint8 (see the top)."""
    _, height, width, chans = images.shape
    for i in range(len(images)):
        sample = samples[i]
        if _uniform(key, sample, ERASE, 0.0, 1.0) >= probability:
            continue
        for attempt in range(10):
            draw = ERASE_BOX + 4 * attempt
            area = height * width * _uniform(key, sample, draw, 0.02, 1 / 3)
            aspect = math.exp(_uniform(key, sample, draw + 1, math.log(0.3), -math.log(0.3)))
            box_height = np.int64(np.rint(math.sqrt(area * aspect)))
            box_width = np.int64(np.rint(math.sqrt(area / aspect)))
            if box_height >= height or box_width >= width:
                continue
            top = _below(key, sample, draw + 2, height - box_height + 1)
            left = _below(key, sample, draw + 3, width - box_width + 1)
            for y in range(top, top + box_height):
                for x in range(left, left + box_width):
                    for c in range(chans):
                        value = mean[c]
                        if pixel:
                            value += std[c] * _normal(key, sample, PIXELS + 2 * ((y * width + x) * chans + c))
                        images[i, y, x, c] = np.uint8(np.rint(max(0.0, min(255.0, value))))
            break


def uniform_numpy(key, samples, operation):
    """Numbers from 0 to below 1, one per sample."""
    with np.errstate(over="ignore"):
        return _numpy_draw(np.uint64(key), samples, operation) / 2**53


def _numpy_draw(key, samples, operation):
    def mix(x):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))

    return mix(key ^ mix(samples.astype(np.uint64) * GOLDEN + np.uint64(operation))) >> np.uint64(11)
