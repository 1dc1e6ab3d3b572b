"""Shift: is a moved image still recognised, and as the same thing?

For each step d, over the four directions of T_d (by d pixels along one axis, borders reflected):

    acc_d = mean 1[argmax f(T_d x) = y]                      consistency_d = mean 1[argmax f(T_d x) = argmax f(x)]
    consistency_pair = mean 1[argmax f(T_u x) = argmax f(T_v x)]      u, v random within 1/8 of the image on both axes
    alignment = consistency_p - consistency_(p/2)                     p the patch size
    peak = consistency_p - (consistency_(p-1) + consistency_(p+1)) / 2

d is 1, 2 and 4, and p/2, p - 1, p and p + 1, up to half of the image; acc is without a shift.
Percent; points for alignment and peak. kept_d, which tables of results derive, is the percentage of the accuracy above
chance that is left. Consistency falls with d whatever the patches are, which alignment mixes with what it is after;
peak does not.

Source: pairwise consistency is Zhang, arXiv 1904.11486, section 3; alignment and peak are ours.
Null: chance, see `by_chance`; for alignment what it would be if step p were as its two neighbours are; for peak 0.
Expect: convolution and shift mixers above attention, token MLPs, patchified and flat MLPs, at equal accuracy; shared
patches make a peak, augmentation closes most of it. Smooth and inaccurate models are consistent, too: read acc_d beside
it. On 8 x 8 digits two pixels are another digit to most token models, and only those with shifts or a mean see a peak.
Cost: 4 passes per step and 2.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from analysis.bias.probe import Estimate, Subject, View, agreement, hits, over_images
from engine.data.augment.pipeline import uniform_numpy
from engine.rng import derive

PROTOCOL = {"pixels": [1, 2, 4], "directions": 4, "padding": "reflect", "pair": "1/8", "seed": 0}
UNITS = {"acc": "%", "acc_#": "%", "consistency_#": "%", "consistency_pair": "%", "alignment": "points"}
UNITS |= {"peak": "points", "kept_#": "%"}
COST = (26, 0)
HEADLINE = ("acc", "acc_1", "acc_2", "acc_4", "consistency_1", "peak")
COLUMN = "kept_#"
TITLE = "Shift: accuracy and agreement when images are moved by so many pixels"
WORDS = {
    "acc": "accuracy",
    r"acc_(\d+)": r"accuracy at \1 px",
    r"consistency_(\d+)": r"agreement at \1 px",
    "peak": "patch peak",
    r"kept_(\d+)": r"moved by \1 px",
}
DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1))


def measure(subject: Subject) -> dict[str, Estimate]:
    """All keys of UNITS that the image's size and the model's patches allow."""
    steps = steps_of(subject.img_size, subject.patch_size)
    predicted, labels = subject.classify(lambda x_BCHW, index: _views(x_BCHW, index, steps))
    plain, classes = predicted["plain"], subject.num_classes
    moved = {d: np.stack([predicted[d * y, d * x] for y, x in DIRECTIONS]) for d in steps}
    result = {"acc": agreement(plain[None], labels, classes)}
    result |= {f"acc_{d}": agreement(moved[d], labels, classes) for d in steps}
    result |= {f"consistency_{d}": agreement(moved[d], plain, classes) for d in steps}
    if "u" in predicted:
        result["consistency_pair"] = agreement(predicted["u"][None], predicted["v"], classes)
    if (p := subject.patch_size) in moved and p > 1:
        near_N = (hits(moved[p - 1], plain) + hits(moved[p + 1], plain)) / 2
        if p % 2 == 0:
            half_N = hits(moved[p // 2], plain)
            result["alignment"] = _difference(hits(moved[p], plain), half_N, float((near_N - half_N).mean()))
        result["peak"] = _difference(hits(moved[p], plain), near_N, 0.0)
    return result


def steps_of(img_size: int, patch_size: int | None) -> list[int]:
    """Steps in pixels, ascending, up to half of the image."""
    p, half = patch_size or 0, img_size // 2
    steps = {d for d in PROTOCOL["pixels"] if d <= half}
    if 1 < p <= half:
        steps |= {p - 1, p, p + 1, *([p // 2] if p % 2 == 0 else [])}
    return sorted(steps)


def shift(x_BCHW: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Image i moved by down[i] and right[i] pixels, (B,) each, less than the image's size; borders are reflected."""
    H, W = x_BCHW.shape[-2:]
    rows_BH, columns_BW = _source(H, down.to(x_BCHW.device)), _source(W, right.to(x_BCHW.device))
    each = torch.arange(len(x_BCHW), device=x_BCHW.device)[:, None, None]
    return x_BCHW.permute(0, 2, 3, 1)[each, rows_BH[:, :, None], columns_BW[:, None]].permute(0, 3, 1, 2)


def _source(length: int, shift_B: Tensor) -> Tensor:
    """Which place of an axis comes to each place, (B, length): reflected without repeating the border."""
    place = (torch.arange(length, device=shift_B.device) - shift_B[:, None]).abs()
    return torch.where(place < length, place, 2 * (length - 1) - place)


def _difference(a_N: np.ndarray, b_N: np.ndarray, null: float) -> Estimate:
    return over_images(np.stack([a_N, b_N], 1), lambda means: means[..., 0] - means[..., 1], null)


def _views(x_BCHW: Tensor, index: np.ndarray, steps: list[int]) -> Iterator[View]:
    yield "plain", x_BCHW
    for d in steps:
        for y, x in DIRECTIONS:
            yield (d * y, d * x), shift(x_BCHW, *(torch.full((len(index),), d * each) for each in (y, x)))
    if furthest := x_BCHW.shape[-1] // 8:
        for number, key in enumerate("uv"):
            drawn = [uniform_numpy(derive(PROTOCOL["seed"], "shift", number), index, axis) for axis in (0, 1)]
            down, right = (torch.from_numpy((each * (2 * furthest + 1)).astype(np.int64)) - furthest for each in drawn)
            yield key, shift(x_BCHW, down, right)
