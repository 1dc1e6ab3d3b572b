"""Local equivariance: how fast do the logits change when the image begins to move?

With T_t the translation by t pixels along an axis and f the logits less their mean over classes:

    lee = mean over images and axes of  |d/dt f(T_t x) at t = 0|^2 / classes
    relative = lee over the same for a white random direction r in place of dT_t x/dt, r of the same norm
    to_others = lee over the same for how another image would move, scaled to the same norm

The derivative is exact, a Jacobian-vector product; dT_t x/dt multiplies the image's Fourier transform by -2 pi i k, so
that the probe adds no aliasing: the border is taken to be periodic, and the wave of half the sampling rate to rest.
lee is logits^2 per pixel^2; the other two are ratios, the first after Gruver et al., the second ours: what moves an
image is smooth, and models answer smooth directions differently whatever they mean.

Source: Gruver et al., arXiv 2210.02984; layers are not told apart here. Null: of lee that of the white direction; 1.
Expect: smaller with accuracy and augmentation in every family; before training depthwise convolution lowest and flat
MLPs highest. 0 for what a shift cannot change, such as the image's mean.
Cost: 6 Jacobian-vector products of two or three passes each, over at most `images` test images.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from analysis.bias.probe import Estimate, Subject, over_images
from analysis.measures import pixels
from engine.rng import derive

PROTOCOL = {"images": 2000, "axes": 2, "seed": 0}
UNITS = {"lee": "logits²/px²", "relative": "ratio", "to_others": "ratio"}
COST = (5, 5)
HEADLINE = ("lee", "relative", "to_others")
TITLE = "Local equivariance: how fast logits change when the image moves"
WORDS = {"lee": "change", "relative": "against noise", "to_others": "against other images"}


def measure(subject: Subject) -> dict[str, Estimate]:
    """All keys of UNITS."""
    clean, _, _ = pixels.sample(subject, PROTOCOL["images"])
    generator = torch.Generator().manual_seed(derive(PROTOCOL["seed"], "lie_derivative") >> 1)
    model, parts = pixels.on_pixels(subject), []
    for x_BCHW in clean.split(pixels.BATCH):
        for own in (tangent(x_BCHW, axis) for axis in (2, 3)):
            white = torch.randn(own.shape, generator=generator).to(own)
            along = [own, as_long(white, own), as_long(own.roll(1, 0), own)]
            parts.append(torch.stack([change(model, x_BCHW, each) for each in along], 1).cpu().numpy())
    scores_N3 = np.concatenate([(down + right) / 2 for down, right in zip(parts[::2], parts[1::2], strict=True)])
    white = float(scores_N3[:, 1].mean())
    return {
        "lee": over_images(scores_N3[:, :1], lambda means: means[..., 0], white),
        "relative": over_images(scores_N3[:, :2], _ratio, 1.0),
        "to_others": over_images(scores_N3[:, ::2], _ratio, 1.0),
    }


def tangent(x_BCHW: Tensor, axis: int) -> Tensor:
    """dT_t x/dt at t = 0, T_t by t pixels along axis 2 or 3, from the Fourier transform."""
    size = x_BCHW.shape[axis]
    k = torch.fft.fftfreq(size).to(x_BCHW)
    if size % 2 == 0:
        k[size // 2] = 0
    shape = [-1 if each == axis else 1 for each in range(4)]
    spectrum = torch.fft.fft(x_BCHW, dim=axis) * (-2j * torch.pi * k).view(shape)
    return torch.fft.ifft(spectrum, dim=axis).real


def as_long(direction: Tensor, like: Tensor) -> Tensor:
    """The direction of each image in the norm of that of `like`."""
    lengths, wanted = (each.flatten(1).norm(dim=1).view(-1, 1, 1, 1) for each in (direction, like))
    return direction * wanted / torch.where(lengths > 0, lengths, 1)


@torch.no_grad()
def change(model: Callable[[Tensor], Tensor], x_BCHW: Tensor, along_BCHW: Tensor) -> Tensor:
    """Mean square over classes of the change of the centred logits of each image (B,), a pixel along a direction."""
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no forward derivative
        _, moved = torch.func.jvp(model, (x_BCHW,), (along_BCHW,))
    return (moved - moved.mean(1, keepdim=True)).square().mean(1).double()


def _ratio(means: np.ndarray) -> np.ndarray:
    return means[..., 0] / np.where(means[..., 1] > 0, means[..., 1], np.nan)
