"""Local equivariance: derivatives against finite differences, and models whose error is known."""

import numpy as np
import pytest
import torch
from torch import nn

import archs
from analysis.bias.probe import Subject
from analysis.probes import lie_derivative
from analysis.probes.lie_derivative import tangent
from analysis.probes.receptive_field import randomise

GENERATOR = torch.Generator()


def noise(count=40, chans=1, size=8):
    return torch.randn(count, chans, size, size, dtype=torch.float64, generator=GENERATOR.manual_seed(0))


def subject(model, x):
    return Subject(model, [(part, torch.zeros(len(part), dtype=int)) for part in x.split(16)], x.shape[-1], 3)


class Reads(nn.Module):
    def __init__(self, read):
        super().__init__()
        self.read = read

    def forward(self, x_BCHW):
        return self.read(x_BCHW)


@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize("axis", [2, 3])
def test_the_tangent_of_waves_is_their_derivative(size, axis):
    places = torch.arange(size, dtype=torch.float64)
    for k in range(1, (size + 1) // 2):
        line = torch.sin(2 * torch.pi * k * places / size + 0.3)
        slope = -2 * torch.pi * k / size * torch.cos(2 * torch.pi * k * places / size + 0.3)
        shape = (1, 1, -1, 1) if axis == 2 else (1, 1, 1, -1)
        x, expected = (each.view(shape).expand(1, 1, size, size) for each in (line, slope))
        assert torch.allclose(tangent(x, axis), expected)


def test_it_is_the_finite_difference_of_whole_shifts_of_smooth_images():
    x = noise(3, 2, 64)
    k = torch.fft.fftfreq(64, 1 / 64)
    x = torch.fft.ifft2(torch.fft.fft2(x) * (torch.hypot(k[:, None], k[None]) <= 2)).real
    assert torch.allclose(tangent(x, 3), (x.roll(1, 3) - x.roll(-1, 3)) / 2, atol=0.01 * tangent(x, 3).abs().max())


def test_what_a_shift_cannot_change_has_no_error():
    def invariant(x):
        power = torch.fft.fft2(x).abs()[:, 0]  # a translation turns phases only
        return torch.stack([power[:, 1, 2], power[:, 0, 3], x.mean((1, 2, 3))], 1)

    found = lie_derivative.measure(subject(Reads(invariant), noise()))
    assert found["lee"].value < 1e-25 < found["lee"].null and found["relative"].high < 1e-20


def test_a_linear_model_has_its_closed_form_and_noise_is_the_line():
    x = noise(600)
    weight = torch.randn(3, 64, dtype=torch.float64, generator=GENERATOR.manual_seed(1))
    found = lie_derivative.measure(subject(Reads(lambda x: x.flatten(1) @ weight.T), x))
    centred = weight - weight.mean(0)
    expected = np.mean([(tangent(x, axis).flatten(1) @ centred.T).square().mean() for axis in (2, 3)])
    assert found["lee"].value == pytest.approx(expected)
    # Linear and white: no direction is better than another of the same length, on average over the images.
    assert found["relative"].value == pytest.approx(1, abs=0.15) and found["to_others"].value == pytest.approx(
        1, abs=0.15
    )
    assert found["lee"].low < found["lee"].value < found["lee"].high


@pytest.mark.parametrize("name", ["bmlp_nano", "mixer_nano", "deit_nano", "convmixer_nano", "timm/test_resnet"])
def test_the_derivative_of_real_models_is_the_finite_difference(name):
    x = noise(4)
    model = archs.create(name, img_size=8, in_chans=1, num_classes=3)
    model = (randomise(model) if "/" not in name else model).double().eval().requires_grad_(False)
    along, t = tangent(x, 2), 1e-5
    exact = lie_derivative.change(model, x, along)
    moved = (model(x + t * along) - model(x - t * along)) / (2 * t)
    assert torch.allclose(exact, (moved - moved.mean(1, keepdim=True)).square().mean(1), rtol=1e-4)


def test_a_wide_convolution_has_a_derivative_though_its_kernel_is_ours():
    from archs.kernels.depthwise import DepthwiseConv2d

    layer = DepthwiseConv2d(64, 7).eval()
    model = Reads(lambda x: layer(x).square().mean((2, 3)))
    x = torch.randn(8, 64, 32, 32, generator=GENERATOR.manual_seed(0))
    assert lie_derivative.change(model, x, tangent(x, 3)).shape == (8,)
