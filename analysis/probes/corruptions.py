"""Corruptions: how much accuracy is left when images are noisy, blurred, behind weather or badly stored?

Fifteen corruptions in five severities, CIFAR-10-C-like and never CIFAR-10-C (analysis/measures/corruption.py says what
differs); lengths are those for images of 32 pixels, so other sizes compare among themselves alone.

    mca = mean accuracy over the 75 cells      kept = (mca - chance) / (acc - chance)      chance = 100 / classes

and the mean over severities of each corruption and family: noise, blur, weather, digital; over corruptions of each
severity. Percent; kept is a ratio, NaN for a model that is not better than chance.

Source: Hendrycks and Dietterich, arXiv 1903.12261 (their mCE is relative to AlexNet's errors, this is not).
Null: chance, see `by_chance`, hence about 0 for kept.
Expect: flat MLPs, which read low frequencies, keep most under noise and least under motion, zoom and elastic; depthwise
convolution loses under noise; attention is best at scale. Augmentation moves it more than architecture does.
Cost: 76 passes over at most `images` test images, and a minute to spoil those.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from analysis.bias.probe import Estimate, Subject, agreement, by_chance, hits, over_images
from analysis.measures import pixels
from analysis.measures.corruption import LEVELS, corrupt

PROTOCOL = {"images": 1000, "severities": 5, "constants": "CIFAR-10", "seed": 0}
UNITS = {"acc": "%", "mca": "%", "kept": "ratio", "noise": "%", "blur": "%", "weather": "%", "digital": "%"}
UNITS |= {"gaussian_noise": "%", "shot_noise": "%", "impulse_noise": "%", "defocus_blur": "%", "glass_blur": "%"}
UNITS |= {"motion_blur": "%", "zoom_blur": "%", "snow": "%", "frost": "%", "fog": "%", "brightness": "%"}
UNITS |= {"contrast": "%", "elastic": "%", "pixelate": "%", "jpeg": "%", "severity_#": "%"}
COST = (7.6, 60)
HEADLINE = ("acc", "mca", "kept", "noise", "blur", "weather", "digital")
TITLE = "Corruptions: accuracy on spoilt images (CIFAR-10-C-like)"
WORDS = {"acc": "accuracy", "mca": "mean of 75", "kept": "kept"}
FAMILIES = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic", "pixelate", "jpeg"),
}
SEVERITIES = range(1, PROTOCOL["severities"] + 1)


def measure(subject: Subject) -> dict[str, Estimate]:
    """All keys of UNITS."""
    clean, labels, numbers = pixels.sample(subject, PROTOCOL["images"])
    plain, classes = pixels.predict(subject, clean), subject.num_classes
    found = {cell: pixels.predict(subject, spoilt) for cell, spoilt in cells(clean, numbers)}
    groups = {"mca": list(found)}
    groups |= {family: [cell for cell in found if cell[0] in names] for family, names in FAMILIES.items()}
    groups |= {name: [cell for cell in found if cell[0] == name] for name in LEVELS}
    groups |= {f"severity_{k}": [cell for cell in found if cell[1] == k] for k in SEVERITIES}
    views = {key: np.stack([found[cell] for cell in group]) for key, group in groups.items()}
    result = {"acc": agreement(plain[None], labels, classes)}
    result |= {key: agreement(each, labels, classes) for key, each in views.items()}

    def kept(means: np.ndarray) -> np.ndarray:
        """Of accuracies (..., 2): whole, spoilt."""
        above = means - 100 / classes
        return above[..., 1] / np.where(above[..., 0] > 0, above[..., 0], np.nan)

    null = kept(np.array([result["acc"].value, by_chance(views["mca"], labels, classes)]))
    scores_N2 = np.stack([hits(plain[None], labels), hits(views["mca"], labels)], 1)
    return result | {"kept": over_images(scores_N2, kept, float(null))}


def cells(clean: Tensor, numbers: np.ndarray) -> Iterator[tuple[tuple[str, int], Tensor]]:
    """Every corruption and severity, and the images (N, C, H, W) spoilt by it."""
    images = clean.permute(0, 2, 3, 1).cpu().numpy().astype(np.float64)
    for name in LEVELS:
        for severity in SEVERITIES:
            spoilt = [
                corrupt(x, name, severity, int(number), PROTOCOL["seed"])
                for x, number in zip(images, numbers, strict=True)
            ]
            yield (name, severity), torch.from_numpy(np.stack(spoilt)).permute(0, 3, 1, 2).to(clean)


def draw(subject: Subject) -> bytes:
    """One image as it is and in all severities, a corruption a row."""
    clean, _, numbers = pixels.sample(subject, 1)
    whole = clean.permute(0, 2, 3, 1).cpu().numpy()
    shown = {cell: spoilt.permute(0, 2, 3, 1).cpu().numpy()[0] for cell, spoilt in cells(clean, numbers)}
    return pixels.png(np.stack([np.stack([whole[0], *(shown[name, k] for k in SEVERITIES)]) for name in LEVELS]))
