"""Phase against amplitude: of two images in one, does a model go by the layout or by the spectrum?

The phase of an image A and the amplitudes of an image B of another class, channel by channel, in one picture, clipped
to the range of pixels; every image comes once as A and once as B.

    phase, amplitude: accuracy by the class of A, of B          phase_bias = phase / (phase + amplitude)

and acc on whole images. All in percent; phase_bias is NaN where neither is ever said. This is a proxy for shape against
texture and no cue conflict: phase keeps edges and where they are, amplitude the mean colour, contrast and the strength
of every wave, not what makes a texture.

Source: Oppenheim and Lim 1981; Chen et al., arXiv 2108.08487, on networks that read amplitude. Null: chance, see
`by_chance`; of phase_bias that of a model which says neither more often than the other, 50.
Expect: mostly phase in every family that has learned much; more amplitude in a bag of patches and small models.
Cost: 2 passes over at most `images` test images.
"""

import numpy as np
import torch
from torch import Tensor

from analysis.bias.probe import Estimate, Subject, agreement, hits, over_images
from analysis.measures import pixels
from engine.rng import permutation

PROTOCOL = {"images": 4000, "seed": 0}
UNITS = {"acc": "%", "phase": "%", "amplitude": "%", "phase_bias": "%"}
COST = (1, 5)
HEADLINE = ("acc", "phase", "amplitude", "phase_bias")
TITLE = "Phase against amplitude: what a model goes by where they are of two classes"
WORDS = {"acc": "accuracy", "phase": "by phase", "amplitude": "by amplitude", "phase_bias": "phase bias"}


def measure(subject: Subject) -> dict[str, Estimate]:
    """All keys of UNITS; none where all images are of one class."""
    images, labels, _ = pixels.sample(subject, PROTOCOL["images"])
    partner = partners(labels)
    if not len(partner):
        return {}
    own = labels[partner >= 0]
    other = labels[partner[partner >= 0]]
    mixed = mix(images[torch.from_numpy(partner >= 0)], images[torch.from_numpy(partner[partner >= 0])])
    plain, said, classes = pixels.predict(subject, images), pixels.predict(subject, mixed)[None], subject.num_classes
    scores_N2 = np.stack([hits(said, own), hits(said, other)], 1)
    return {
        "acc": agreement(plain[None], labels, classes),
        "phase": agreement(said, own, classes),
        "amplitude": agreement(said, other, classes),
        "phase_bias": over_images(scores_N2, bias, 50.0),
    }


def partners(labels: np.ndarray) -> np.ndarray:
    """For each image one of another class, (N,), each as often as can be: a rotation of the images sorted by class.

    -1 where a class holds more than half of the images, for those left over; empty where there is one class only.
    """
    mixed = permutation(len(labels), PROTOCOL["seed"], "phase_amplitude")
    order = mixed[labels[mixed].argsort(kind="stable")]
    most = np.bincount(labels).max()
    if most == len(labels):
        return np.empty(0, int)
    turned = np.roll(order, -int(most))
    partner = np.empty(len(labels), int)
    partner[order] = np.where(labels[turned] != labels[order], turned, -1)
    return partner


def mix(phase_BCHW: Tensor, amplitude_BCHW: Tensor) -> Tensor:
    """Images with the phases of one and the amplitudes of the other, clipped to 0..1."""
    angle, size = torch.fft.rfft2(phase_BCHW).angle(), torch.fft.rfft2(amplitude_BCHW).abs()
    return torch.fft.irfft2(torch.polar(size, angle), s=phase_BCHW.shape[-2:]).clamp(0, 1)


def bias(means: np.ndarray) -> np.ndarray:
    """Of accuracies (..., 2) by phase and by amplitude."""
    total = means.sum(-1)
    return 100 * means[..., 0] / np.where(total > 0, total, np.nan)


def draw(subject: Subject) -> bytes | None:
    """Eight pictures: the one whose phase it has, the mixture, the one whose amplitudes it has."""
    images, labels, _ = pixels.sample(subject, 100)
    chosen = np.flatnonzero((partner := partners(labels)) >= 0)[:8]
    if not len(chosen):
        return None
    first, second = images[torch.from_numpy(chosen)], images[torch.from_numpy(partner[chosen])]
    rows = torch.stack([first, mix(first, second), second]).permute(0, 1, 3, 4, 2)
    return pixels.png(rows.cpu().numpy())
