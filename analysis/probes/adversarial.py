"""Adversarial: how small a change of the pixels, chosen against the model, makes it wrong?

Every pixel may move by e/255 and stays between 0 and 1; the standardisation is part of the model.

    fgsm_e: accuracy after one step of e along sign(grad loss), loss the cross-entropy
    pgd_e: accuracy under the worst of `restarts` times `steps` steps of e/4, clipped back after each: from the image
           with the cross-entropy, then from random points with the margin; an image is lost once it was wrong at a step
    R_e = pgd_e / acc

e is 1, 2, 4 and 8; accuracies in percent, R a ratio. An attack that fails may say more of itself than of the model, so
flags tell whether it did its work, 1 if so, each up to 1 % of the images:

    sane_steps: pgd_e is not above fgsm_e             sane_radius: a larger e leaves no more than a smaller one
    sane_large: at e = 128, where every image can be made grey, nothing is left
    sane_random: of what pgd_8 left, no random corner of the cube, of `trials`, fools the model
    sane_smooth: neither do steps along gradients averaged over noise

A model that hides its gradient fails the last three (Athalye et al., arXiv 1802.00420).

Source: Goodfellow et al., arXiv 1412.6572; Madry et al., arXiv 1706.06083; R: Benz et al., arXiv 2110.02797. This is no
AutoAttack (arXiv 2003.01690): accuracies are upper bounds.
Null: accuracy after a random step of the same size, as if the direction did not matter; of R that over acc.
Expect: at equal accuracy flat and patchified MLPs are the most robust at e = 1, depthwise convolution the least; at
e = 8 little is left of a model that was not trained for it.
Cost: up to 500 passes forward and back over at most `images` test images, fewer where these are lost early.
"""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from analysis.bias.probe import Estimate, Subject, agreement, hits, over_images
from analysis.measures import pixels
from engine.rng import derive

PROTOCOL = {"images": 1000, "radii": [1, 2, 4, 8], "steps": 40, "restarts": 2, "trials": 20, "noise": 4, "seed": 0}
UNITS = {"acc": "%", "fgsm_#": "%", "pgd_#": "%", "R_#": "ratio", "sane_steps": "flag", "sane_radius": "flag"}
UNITS |= {"sane_large": "flag", "sane_random": "flag", "sane_smooth": "flag"}
COST = (100, 5)
HEADLINE = ("acc", "fgsm_1", "pgd_1", "pgd_4", "R_1", "R_4", "sane_large", "sane_smooth")
TITLE = "Adversarial: accuracy when each pixel may move by so many steps of 255"
WORDS = {"acc": "accuracy", r"fgsm_(\d+)": r"FGSM \1", r"pgd_(\d+)": r"PGD \1", r"R_(\d+)": r"kept, PGD \1"}
LARGE, SLACK = 128, 1.0  # of 255; percent of the images that a flag forgives

Loss = Callable[[Tensor, Tensor], Tensor]
Gradient = Callable[[Tensor, Tensor], Tensor]


def measure(subject: Subject) -> dict[str, Estimate]:
    """All keys of UNITS."""
    clean, labels, _ = pixels.sample(subject, PROTOCOL["images"])
    y, classes, draw = torch.from_numpy(labels).to(clean.device), subject.num_classes, _draws(clean)
    plain = pixels.predict(subject, clean)
    right, radii = plain == labels, PROTOCOL["radii"]
    result = {"acc": agreement(plain[None], labels, classes)}
    acc, up, pgd = result["acc"].value, gradient(subject, entropy), {}
    for e in radii:
        radius = e / 255
        moved = pixels.predict(subject, (clean + radius * draw().sign()).clamp(0, 1))
        null = hits(moved[None], labels).mean()
        stepped = pixels.predict(subject, step(clean, clean, y, up, radius, radius))
        pgd[e] = right & stands(subject, clean, y, radius)
        result[f"fgsm_{e}"] = agreement(stepped[None], labels, classes)._replace(null=null)
        result[f"pgd_{e}"] = _share(100.0 * pgd[e])._replace(null=null)
        scores_N2 = np.stack([100.0 * right, 100.0 * pgd[e]], 1)
        result[f"R_{e}"] = over_images(scores_N2, _ratio, null / acc if acc else float("nan"))
    left = [pgd[e].mean() for e in radii]
    last = radii[-1] / 255
    fooled = np.zeros(len(y), bool)
    for _ in range(PROTOCOL["trials"]):
        fooled |= pixels.predict(subject, (clean + last * draw().sign()).clamp(0, 1)) != labels
    smooth = ~stands(subject, clean, y, last, restarts=1, noise=PROTOCOL["noise"])
    flags = {
        "steps": all(result[f"pgd_{e}"].value <= result[f"fgsm_{e}"].value + SLACK for e in radii),
        "radius": all(100 * (b - a) <= SLACK for a, b in pairwise(left)),
        "large": 100 * (right & stands(subject, clean, y, LARGE / 255)).mean() <= SLACK,
        "random": 100 * (pgd[radii[-1]] & fooled).mean() <= SLACK,
        "smooth": 100 * (pgd[radii[-1]] & smooth).mean() <= SLACK,
    }
    return result | {f"sane_{name}": Estimate(*3 * (float(flag),), 1.0) for name, flag in flags.items()}


def stands(
    subject: Subject, clean: Tensor, y: Tensor, radius: float, restarts: int = PROTOCOL["restarts"], noise: int = 0
) -> np.ndarray:
    """Whether each image (N,) is classified rightly at all steps of projected gradient ascent.

    Args:
        noise: average the gradient over so many noisy copies, whose deviation is half of the radius; 0: as it is.
    """
    stood = torch.ones(len(y), dtype=torch.bool, device=y.device)
    for restart in range(restarts):
        up = gradient(subject, margin if restart else entropy, noise, radius / 2)
        away = 2 * torch.rand(clean.shape, generator=_generator(restart)).to(clean) - 1
        start = clean + radius * away if restart else clean
        for part in torch.arange(len(y), device=y.device).split(pixels.BATCH):
            left = part[stood[part]]
            x = start[left].clamp(0, 1)
            for _ in range(PROTOCOL["steps"]):
                if not len(left):
                    break
                x = step(x, clean[left], y[left], up, radius / 4, radius)
                right = torch.from_numpy(pixels.predict(subject, x)).to(y.device) == y[left]
                stood[left[~right]] = False
                x, left = x[right], left[right]
    return stood.cpu().numpy()


def step(x: Tensor, clean: Tensor, y: Tensor, up: Gradient, size: float, radius: float) -> Tensor:
    """Pixels moved by `size` along the gradient's signs, at most `radius` from the clean ones and within 0..1."""
    moved = torch.cat(
        [a + size * up(a, b).sign() for a, b in zip(x.split(pixels.BATCH), y.split(pixels.BATCH), strict=True)]
    )
    return torch.minimum(torch.maximum(moved, clean - radius), clean + radius).clamp(0, 1)


def gradient(subject: Subject, loss: Loss, noise: int = 0, deviation: float = 0.0) -> Gradient:
    """Of the loss of (pixels, labels) by the pixels, the mean over `noise` noisy copies of them where asked for."""
    model, generator = pixels.on_pixels(subject), _generator(100)

    def up(x: Tensor, y: Tensor) -> Tensor:
        total = torch.zeros_like(x)
        for _ in range(noise or 1):
            more = deviation * torch.randn(x.shape, generator=generator).to(x) if noise else 0
            at = (x + more).detach().requires_grad_()
            total += torch.autograd.grad(loss(model(at), y), at)[0]
        return total

    return up


def entropy(logits: Tensor, y: Tensor) -> Tensor:
    """The cross-entropy, summed over images."""
    return cross_entropy(logits, y, reduction="sum")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """The best wrong logit less the right one, summed: a gradient also where the softmax is flat."""
    own = one_hot(y, logits.shape[1]).bool()
    return (logits.masked_fill(own, -torch.inf).amax(1) - logits[own]).sum()


def _ratio(means: np.ndarray) -> np.ndarray:
    return means[..., 1] / np.where(means[..., 0] > 0, means[..., 0], np.nan)


def _share(scores_N: np.ndarray) -> Estimate:
    return over_images(scores_N[:, None], lambda means: means[..., 0], float("nan"))


def _draws(like: Tensor) -> Callable[[], Tensor]:
    """Standard normal numbers of one shape, the same for every model."""
    generator = _generator(99)
    return lambda: torch.randn(like.shape, generator=generator).to(like)


def _generator(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(derive(PROTOCOL["seed"], "adversarial", number) >> 1)
