"""Universal perturbation: how often does one change, the same for all images, fool a model that has not seen them?

One image d with every pixel within e/255 of zero is added to all images, whose pixels stay between 0 and 1. It is found
on one half of them and judged on the other, where nothing was fitted:

    fooled_e: how often the model says another class than without it, percent

e is 4, 8 and 10. d is found by `steps` steps of signs up the cross-entropy to what the model said without it, mean over
`batch` images, none of which counts more than `cap` nats; each radius starts from the perturbation of the one before.
Flags, 1 if so, up to 1 % of the images:

    sane_radius: a larger e fools no less        sane_random: d fools no less than noise of the same size

Source: Moosavi-Dezfooli et al., arXiv 1610.08401 (what is asked, and fooling by a change of class); stochastic ascent
of a capped loss: Shafahi et al., arXiv 1811.11304. An ascent that fails may say more of itself than of the model:
values are lower bounds.
Null: the same by one image of random signs times e, mean over `trials` of them. The interval is over the images that
judge.
Expect: Mixers are reported as extremely vulnerable (Benz et al., arXiv 2110.02797); flat MLPs, which read low
frequencies, least by random signs.
Cost: `steps` times `batch` images forward and back for each radius.
"""

import weakref
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from analysis.bias.probe import Estimate, Subject, over_images
from analysis.measures import pixels
from engine.rng import derive, permutation

PROTOCOL = {"images": 10_000, "radii": [4, 8, 10], "steps": 200, "batch": 125, "cap": 9.0, "trials": 5, "seed": 0}
UNITS = {"fooled_#": "%", "sane_radius": "flag", "sane_random": "flag"}
HEADLINE = ("fooled_4", "fooled_8", "fooled_10", "sane_radius", "sane_random")
TITLE = "Universal perturbation: share of images that one change of all pixels fools"
WORDS = {r"fooled_(\d+)": r"fooled, \1/255", "sane_radius": "larger, no weaker", "sane_random": "beyond noise"}
COST = (24, 3)
SLACK = 1.0  # percent of the images that a flag forgives
_FOUND: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # what `measure` found of a model, for its picture


def measure(subject: Subject) -> dict[str, Estimate]:
    """All keys of UNITS."""
    fit, judge = halves(subject)
    said = pixels.predict(subject, judge)
    result, found = {}, perturbations(subject, fit)
    _FOUND[subject.model] = found
    for e, change in found.items():
        noise = [
            fooled(subject, judge, said, e / 255 * _signs(change, e, trial)) for trial in range(PROTOCOL["trials"])
        ]
        hit = fooled(subject, judge, said, change)
        result[f"fooled_{e}"] = over_images(hit[:, None], lambda means: means[..., 0], float(np.mean(noise)))
    rates = [result[f"fooled_{e}"] for e in found]
    flags = {
        "radius": all(b.value >= a.value - SLACK for a, b in pairwise(rates)),
        "random": all(each.value >= each.null - SLACK for each in rates),
    }
    return result | {f"sane_{name}": Estimate(*3 * (float(flag),), 1.0) for name, flag in flags.items()}


def halves(subject: Subject) -> tuple[Tensor, Tensor]:
    """Pixels of the images to fit on, and of those that judge."""
    images, _, _ = pixels.sample(subject, PROTOCOL["images"])
    order = torch.from_numpy(permutation(len(images), PROTOCOL["seed"], "universal halves")).to(images.device)
    return images[order[: len(images) // 2]], images[order[len(images) // 2 :]]


def perturbations(subject: Subject, fit_NCHW: Tensor) -> dict[int, Tensor]:
    """The perturbation (1, C, H, W) of each radius, in 255ths, from the smallest to the largest."""
    change, before, found = torch.zeros_like(fit_NCHW[:1]), 1, {}
    said = torch.from_numpy(pixels.predict(subject, fit_NCHW)).to(fit_NCHW.device)
    for e in PROTOCOL["radii"]:
        change = ascend(subject, fit_NCHW, said, change * (e / before), e / 255)
        found[e], before = change, e
    return found


def ascend(subject: Subject, x_NCHW: Tensor, y_N: Tensor, change: Tensor, radius: float) -> Tensor:
    """Steps of signs up the capped loss over batches, from a quarter of the radius to nothing, clipped to it."""
    model, steps, size = pixels.on_pixels(subject), PROTOCOL["steps"], min(PROTOCOL["batch"], len(x_NCHW))
    order: list[int] = []
    for step in range(steps):
        if len(order) < size:
            order = list(permutation(len(x_NCHW), PROTOCOL["seed"], "universal order", step))
        batch, order = torch.tensor(order[:size], device=x_NCHW.device), order[size:]
        with torch.enable_grad():
            at = change.clone().requires_grad_()
            losses = cross_entropy(model((x_NCHW[batch] + at).clamp(0, 1)), y_N[batch], reduction="none")
            (up,) = torch.autograd.grad(losses.clamp(max=PROTOCOL["cap"]).mean(), at)
        change = (change + radius / 4 * (1 - step / steps) * up.sign()).clamp(-radius, radius)
    return change


def fooled(subject: Subject, x_NCHW: Tensor, said_N: np.ndarray, change: Tensor) -> np.ndarray:
    """Whether each image is said to be another class with the change, in percent, (N,)."""
    parts = [pixels.predict(subject, (part + change).clamp(0, 1)) for part in x_NCHW.split(pixels.BATCH)]
    return 100.0 * (np.concatenate(parts) != said_N)


def draw(subject: Subject) -> bytes:
    """The perturbations at full contrast, small to large, and below four images with the largest one added."""
    fit, judge = halves(subject)
    found = _FOUND.pop(subject.model, None) or perturbations(subject, fit)
    columns = max(len(found), 4)
    tiles = np.ones((2, columns, *judge.shape[2:], judge.shape[1]))
    for place, (e, change) in enumerate(found.items()):
        tiles[0, place] = (0.5 + change[0] * 255 / (2 * e)).permute(1, 2, 0).cpu().numpy()
    shown = (judge[:columns] + list(found.values())[-1]).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
    tiles[1, : len(shown)] = shown
    return pixels.png(tiles, scale=max(2, 64 // subject.img_size))


def _signs(like: Tensor, *position: int) -> Tensor:
    """Random signs, the same for every model."""
    generator = torch.Generator().manual_seed(derive(PROTOCOL["seed"], "universal signs", *position) >> 1)
    return (torch.randint(0, 2, like.shape, generator=generator) * 2 - 1).to(like)
