"""Exciting inputs: which image excites a unit most, and is it local, smooth, and beyond what images do?

A unit is a channel of what a module puts out, in the middle of its map. x is the image that excites it most among those
as far from the mean image m as images are (root mean square, pixels from 0 to 1, which it may leave), found by ascent
on that sphere from the test image that excites the unit most, and from noise. Over units of the first, the middle and
the last block (of timm's models: stages) and of the logits:

    gain_l       (a(x) - mean a) / (max a - mean a), a the activation, mean and max over test images
    frequency_l  cycles per image: mean |k| over the squared spectrum of x - m
    radius_l     pixels: R50 of the squares of x - m about their centroid, of all channels

Source: Erhan et al., technical report 1341, Montreal 2009 (the norm as the only constraint); pictures of units:
Olah et al., Distill 2017. There is no prior for smooth images here, as it would decide the frequency.
Null: the same of random weights: those at the start of training or, where that is not known or a unit then does nothing
(a classifier that starts at zero), the model's own matrices in random order. The interval is over units.
Expect: random weights of flat MLPs and patches want white noise (radius that of a uniform map, frequency that of white
noise), trained ones low frequencies, most in the first block; convolution a window about the middle at any time,
growing with depth. A gain of 1 is what an image does; random weights have more, as no image is noise.
Cost: a pass over at most `images` test images per layer, and `steps` forward and back of two images per unit; twice.
"""

import numpy as np
import torch
from torch import Tensor, nn

from analysis.bias.probe import Estimate, Subject, over_images
from analysis.measures import exciting, fields, pixels
from engine.rng import derive

PROTOCOL = {"images": 1000, "units": 16, "steps": 40, "seed": 0}
UNITS = {"gain_first": "ratio", "gain_middle": "ratio", "gain_last": "ratio", "gain_logits": "ratio"}
UNITS |= {"frequency_first": "cycles per image", "frequency_middle": "cycles per image"}
UNITS |= {"frequency_last": "cycles per image", "frequency_logits": "cycles per image"}
UNITS |= {"radius_first": "px", "radius_middle": "px", "radius_last": "px", "radius_logits": "px"}
HEADLINE = ("gain_logits", "frequency_first", "frequency_last", "frequency_logits", "radius_first", "radius_last")
TITLE = "Exciting inputs: what excites a unit most, against images and random weights"
WORDS = {r"gain_(\w+)": r"gain, \1", r"frequency_(\w+)": r"frequency, \1", r"radius_(\w+)": r"R50, \1"}
COST = (6, 2)
OVER_TRAINING = True


def measure(subject: Subject) -> dict[str, Estimate]:
    """Of the layers that the model has; a model of one block has no middle and no last one, and a layer whose units no
    image moves is left out."""
    images, _, _ = pixels.sample(subject, PROTOCOL["images"])
    random, result = _random(subject), {}
    for label, module in exciting.layers(subject.model).items():
        now, null = (numbers(subject, model, module, images) for model in (subject.model, random))
        if not len(null["gain"]):  # a classifier that starts at zero
            null = numbers(subject, exciting.shuffled(subject.model), module, images)
        for key, values in now.items() if len(now["gain"]) and len(null["gain"]) else ():
            result[f"{key}_{label}"] = over_images(values[:, None], _mean, float(np.nanmean(null[key])))
    return result


def numbers(subject: Subject, model: nn.Module, module: str, images_NCHW: Tensor) -> dict[str, np.ndarray]:
    """gain, frequency and radius of some units of a module, (units,) each; units that no image moves are left out."""
    found, value, seen_NU = excited(subject, model, module, images_NCHW)
    mean, most = seen_NU.mean(0), seen_NU.max(0)
    moved = most > mean
    away = (found - images_NCHW.mean(0)).double().cpu().numpy()[moved]
    return {
        "gain": ((value - mean) / np.where(moved, most - mean, 1))[moved],
        "frequency": frequency(away),
        "radius": fields.half_radius((away**2).sum(1)),
    }


def excited(
    subject: Subject, model: nn.Module, module: str, images_NCHW: Tensor, units: list[int] | None = None
) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Units of a module, by its name in the model: the images (U, C, H, W) that excite them most, what these give (U,),
    and what the test images give, (N, U).

    Args:
        units: of the module's channels; by default some of all.
    """
    read = exciting.reader(subject, model, module)
    seen = exciting.responses(read, images_NCHW)
    units = list(exciting.some(seen.shape[1], PROTOCOL["units"])) if units is None else units
    centre = images_NCHW.mean(0)
    radius = (images_NCHW - centre).flatten(1).square().sum(1).mean().sqrt().item()
    best = images_NCHW[torch.from_numpy(seen[:, units].argmax(0)).to(images_NCHW.device)]
    generator = torch.Generator().manual_seed(derive(PROTOCOL["seed"], "exciting") >> 1)
    noise = centre + torch.randn(best.shape, generator=generator).to(best)
    starts = torch.stack([best, noise])
    found, value = exciting.most_exciting(read, torch.tensor(units), starts, centre, radius, PROTOCOL["steps"])
    return found, value.cpu().numpy().astype(float), seen[:, units].astype(float)


def frequency(x_UCHW: np.ndarray) -> np.ndarray:
    """Mean |k| over the squared spectrum, without the mean of the image, in cycles per image, (U,)."""
    power = (np.abs(np.fft.fft2(x_UCHW)) ** 2).sum(1)
    power[:, 0, 0] = 0
    rows, columns = (np.fft.fftfreq(side) * side for side in power.shape[1:])
    return (power * np.hypot(rows[:, None], columns)).sum((1, 2)) / power.sum((1, 2))


def draw(subject: Subject) -> bytes:
    """Two rows per layer: what excites units of the trained weights, and of random ones; each at full contrast."""
    images, _, _ = pixels.sample(subject, PROTOCOL["images"])
    rows, most = [], PROTOCOL["units"] // 2
    for module in exciting.layers(subject.model).values():
        for model in (subject.model, _random(subject)):
            away = excited(subject, model, module, images)[0][:most] - images.mean(0)
            tiles = 0.5 + away / (2 * away.abs().flatten(1).amax(1).clamp(min=1e-12).view(-1, 1, 1, 1))
            rows.append(np.full((most, *tiles.shape[2:], tiles.shape[1]), 1.0))
            rows[-1][: len(tiles)] = tiles.permute(0, 2, 3, 1).cpu().numpy()
    return pixels.png(np.stack(rows), scale=max(1, 64 // subject.img_size))


def _random(subject: Subject) -> nn.Module:
    return subject.start if subject.start is not None else exciting.shuffled(subject.model)


def _mean(means: np.ndarray) -> np.ndarray:
    return means[..., 0]
