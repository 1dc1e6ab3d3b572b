"""Frequencies: filters against a full transform, and models that read one wave."""

import numpy as np
import pytest
import torch
from torch import nn

from analysis.bias.probe import Subject
from analysis.probes import frequencies

SIZE = 16
GRID = torch.arange(SIZE, dtype=torch.float64) / SIZE


def wave(k, axis=1):
    line = torch.cos(2 * torch.pi * k * GRID)
    return line[None] * torch.ones(SIZE, 1) if axis else line[:, None] * torch.ones(1, SIZE)


class Reads(nn.Module):
    """Two classes: is more than a tenth of one wave in the image?"""

    def __init__(self, k):
        super().__init__()
        self.wave = wave(k)

    def forward(self, x_BCHW):
        share = (x_BCHW * self.wave).sum((1, 2, 3)) / SIZE**2 - 0.05
        return torch.stack([-share, share], 1)


def subject(k, count=60):
    generator = torch.Generator().manual_seed(0)
    x = 0.1 * torch.randn(count, 1, SIZE, SIZE, dtype=torch.float64, generator=generator)
    sign = torch.arange(count) % 2 * 2 - 1
    x = x + sign[:, None, None, None] * wave(k)
    return Subject(Reads(k), list(zip(x.split(7), ((sign + 1) // 2).split(7), strict=True)), SIZE, 2)


@pytest.mark.parametrize("size", [7, 16])
def test_a_filter_is_the_full_transforms(size):
    x = torch.randn(2, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    k = np.hypot(*np.meshgrid(np.fft.fftfreq(size, 1 / size), np.fft.fftfreq(size, 1 / size)))
    low = np.fft.ifft2(np.fft.fft2(x.numpy()) * (k <= 3))
    assert np.allclose(frequencies.keep(x, 0, 3), low.real) and np.abs(low.imag).max() < 1e-12
    both = frequencies.keep(x, 0, 2.5) + frequencies.keep(x, 2.5, float("inf"))
    assert torch.allclose(both, x) and torch.allclose(
        frequencies.keep(x, 0, 0), x.mean((2, 3), keepdim=True).expand_as(x)
    )


@pytest.mark.parametrize("k", [1, 3, 6])
def test_a_model_of_one_wave_needs_that_wave(k):
    found = frequencies.measure(subject(k))
    assert set(found) == {"acc", "half", "centroid"} | {
        f"{way}_{r}" for way in ("low", "high") for r in (1, 2, 3, 4, 6, 8)
    }
    for r in (1, 2, 3, 4, 6, 8):
        assert found[f"low_{r}"].value == (100 if r >= k else 50)
        assert found[f"high_{r}"].value == (100 if r <= k else 50)
    before = max(r for r in (0, 1, 2, 3, 4, 6, 8) if r < k)
    assert found["half"].value == pytest.approx((k + before) / 2)
    # The gradient of the cross-entropy is a multiple of the wave, whose |k| is one number.
    assert found["centroid"][:3] == pytest.approx((k, k, k))
    assert found["half"].null == pytest.approx(SIZE / 2**0.5 / 2) and 5 < found["centroid"].null < 7


def test_a_white_gradient_has_the_null_as_its_centroid():
    class White(nn.Module):
        def forward(self, x_BCHW):
            point = x_BCHW[:, 0, 3, 5]
            return torch.stack([-point, point], 1)

    x = torch.randn(9, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    share, white = frequencies.centroids(Subject(White(), [(x, torch.arange(9) % 2)], SIZE, 2))
    assert share == pytest.approx(white), "a point has all waves alike"


def test_the_half_radius_is_linear_between_and_nan_at_chance():
    acc = np.array([[50, 60, 90, 90], [50, 50, 50, 50], [100, 100, 100, 90]])
    half = frequencies.half_radius(acc, [1, 2, 4, 8], 50)
    assert half[0] == pytest.approx(2 + 2 * (20 - 10) / 30) and np.isnan(half[1]) and half[2] == pytest.approx(0.4)


def test_the_map_is_bright_at_the_wave_that_is_read(monkeypatch):
    from io import BytesIO

    from PIL import Image

    monkeypatch.setattr(frequencies, "NORM", 100 / SIZE)  # as strong as the signal
    monkeypatch.setattr(torch.Tensor, "clamp", lambda x, low, high: x)
    picture = np.asarray(Image.open(BytesIO(frequencies.draw(subject(3)))))
    cells = picture[4::8, 4::8][:SIZE, :SIZE].copy()
    bright = {tuple(place) for place in np.argwhere(cells > 60) - SIZE // 2}
    assert bright == {(0, 3), (0, -3)}
