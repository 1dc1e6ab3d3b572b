"""Frequencies: which waves of the image does a model need, and to which is its loss sensitive?

With F the Fourier transform of an image and |k| in cycles per image:

    low_r, high_r: accuracy where only |k| <= r, only |k| >= r is left; the mean colour of all images is left always
    half = the radius where low_r, linear between radii, has half of what it has in the end above chance
    centroid = mean over images of  sum_k |k| |F grad loss|^2 / sum_k |F grad loss|^2

r is 1, 2, 3, 4, 6, 8, 12 and 16, up to half of the image; what a filter gives may leave the range of pixels. Accuracy
is percent, half and centroid are cycles per image; half is NaN for a model that is not better than chance.

Source: low- and high-pass curves and the map drawn here, Yin et al., arXiv 1906.08988: the share of errors when a wave
of L2 norm 4 (images of 32 pixels; in proportion to the side) is added, the mean frequency in the middle.
Null: chance, see `by_chance`; for half that accuracy grows evenly up to the last wave; for centroid a white gradient.
Expect: flat MLPs read low waves (96 % of the accuracy at 2 of 8 cycles), patches higher ones, token mixers and
convolution need most of the spectrum (66 to 71 %), a bag of patches most.
Cost: 1 pass per radius and filter, 3 for the gradient; the map 5 on 100 images a wave.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from analysis.bias.probe import Estimate, Subject, View, agreement, crossing, hits, over_images
from analysis.measures import pixels

PROTOCOL = {"cycles": [1, 2, 3, 4, 6, 8, 12, 16]}
UNITS = {"acc": "%", "low_#": "%", "high_#": "%", "half": "cycles per image", "centroid": "cycles per image"}
COST = (20, 5)
HEADLINE = ("acc", "low_2", "low_4", "low_8", "high_4", "half", "centroid")
TITLE = "Frequencies: accuracy on filtered images, and where the loss is sensitive"
WORDS = {
    "acc": "accuracy",
    r"low_(\d+)": r"up to \1 cycles",
    r"high_(\d+)": r"from \1 cycles",
    "half": "half",
    "centroid": "gradient",
}
SHOWN, NORM = 100, 4 / 32  # images of the map, and the norm of a wave per pixel of the side


def measure(subject: Subject) -> dict[str, Estimate]:
    """All keys of UNITS that the image's size allows."""
    cut = [r for r in PROTOCOL["cycles"] if 2 * r <= subject.img_size]
    predicted, labels = subject.classify(lambda x_BCHW, index: _views(x_BCHW, cut))
    classes, plain = subject.num_classes, predicted["plain"]
    result = {"acc": agreement(plain[None], labels, classes)}
    for way in ("low", "high"):
        result |= {f"{way}_{r}": agreement(predicted[way, r][None], labels, classes) for r in cut}
    # All waves are there at the corners of the spectrum.
    radii, lows = [*cut, subject.img_size / 2**0.5], [predicted["low", r] for r in cut] + [plain]
    scores_NR = np.stack([hits(each[None], labels) for each in lows], 1)
    result["half"] = over_images(scores_NR, lambda means: half_radius(means, radii, 100 / classes), radii[-1] / 2)
    share_N, white = centroids(subject)
    result["centroid"] = over_images(share_N[:, None], lambda means: means[..., 0], white)
    return result


def half_radius(acc: np.ndarray, radii: list[float], chance: float) -> np.ndarray:
    """Where accuracies (..., R) at these radii first have half of their last above chance, with chance at radius 0."""
    above = np.concatenate([np.zeros_like(acc[..., :1]), acc - chance], -1)
    end = above[..., -1]
    return np.where(end > 0, crossing(above, [0, *radii], end[..., None] / 2), np.nan)


def keep(x_BCHW: Tensor, low: float, high: float) -> Tensor:
    """The image with the waves of low <= |k| <= high only."""
    spectrum, k = torch.fft.rfft2(x_BCHW), radius(x_BCHW.shape[-1]).to(x_BCHW)
    return torch.fft.irfft2(spectrum * ((k >= low) & (k <= high)), s=x_BCHW.shape[-2:])


def radius(size: int, whole: bool = False) -> Tensor:
    """|k| in cycles per image of every place of rfft2, or of fft2 where `whole`."""
    down = torch.fft.fftfreq(size, 1 / size)
    right = down if whole else torch.fft.rfftfreq(size, 1 / size)
    return torch.hypot(down[:, None], right[None])


def centroids(subject: Subject) -> tuple[np.ndarray, float]:
    """Of the loss's gradient at each image (N,), without its mean, and of a white one."""
    k, found = radius(subject.img_size, whole=True), []
    for x_BCHW, y in subject.images:
        x_BCHW = x_BCHW.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(
            cross_entropy(subject.model(x_BCHW), y.to(x_BCHW.device), reduction="sum"), x_BCHW
        )
        power = torch.fft.fft2(gradient.double()).abs().square().sum(1)
        power[:, 0, 0] = 0
        total = power.sum((1, 2))
        share = (power * k.to(power)).sum((1, 2)) / torch.where(total > 0, total, 1)
        found.append(share.cpu().numpy())
    return np.concatenate(found), float(k.sum() / (k.numel() - 1))


def _views(x_BCHW: Tensor, cut: list[int]) -> Iterator[View]:
    yield "plain", x_BCHW
    for r in cut:
        yield ("low", r), keep(x_BCHW, 0, r)
        yield ("high", r), keep(x_BCHW, r, float("inf"))


def draw(subject: Subject) -> bytes:
    """The map of errors under single waves, of half of the spectrum and by symmetry the other; black is none."""
    clean, labels, _ = pixels.sample(subject, SHOWN)
    size = subject.img_size
    wrong = np.zeros((size, size))
    signs = torch.randint(0, 2, (len(clean), 1, 1, 1), generator=torch.Generator().manual_seed(0)).to(clean) * 2 - 1
    for u, v in np.ndindex(size, size // 2 + 1):
        wave = torch.zeros(size, size // 2 + 1, dtype=torch.cfloat)
        wave[u, v] = 1
        added = torch.fft.irfft2(wave, s=(size, size)).to(clean)
        if not (norm := added.norm()):
            continue  # half of a column: its mirror image in the same column has it
        spoilt = clean + signs * added * (NORM * size / norm)
        share = (pixels.predict(subject, spoilt.clamp(0, 1)) != labels).mean()
        wrong[u, v] = wrong[-u, -v] = share
    return pixels.png(np.fft.fftshift(wrong)[None, None, :, :, None], scale=8)
