"""Adversarial: the closed-form worst case of linear models, and flags that tell a hidden gradient."""

import numpy as np
import pytest
import torch
from torch import nn

from analysis.bias.probe import Subject
from analysis.probes import adversarial

MEAN, STD = (100.0, 140.0), (50.0, 80.0)


class Linear(nn.Module):
    """Two classes by w.x + b on standardised images, through `bend`, which keeps the sign."""

    def __init__(self, weight, bend=lambda z: z):
        super().__init__()
        self.weight, self.bend = weight, bend

    def forward(self, x_BCHW):
        z = self.bend((x_BCHW * self.weight).sum((1, 2, 3)))
        return torch.stack([-z, z], 1)


def images(count=200, size=6, low=0.0, high=1.0):
    generator = torch.Generator().manual_seed(0)
    x = low + (high - low) * torch.rand(count, 2, size, size, dtype=torch.float64, generator=generator)
    weight = 0.02 * torch.randn(2, size, size, dtype=torch.float64, generator=generator)
    return x, weight


def subject(x, weight, bend=lambda z: z):
    """Labels are the model's own answers; the images as the model takes them."""
    model = Linear(weight, bend)
    mean, std = (torch.tensor(each, dtype=x.dtype).view(1, 2, 1, 1) for each in (MEAN, STD))
    standard = (x * 255 - mean) / std
    y = model(standard).argmax(1)
    return Subject(model, list(zip(standard.split(64), y.split(64), strict=True)), x.shape[-1], 2, mean=MEAN, std=STD)


def left(x, weight, radius):
    """Whether a linear model stands at each image: the worst case moves each pixel as far as it may go."""
    mean, std = (np.array(each).reshape(1, 2, 1, 1) for each in (MEAN, STD))
    w = weight.numpy() * 255 / std
    z = ((x.numpy() - mean / 255) * w).sum((1, 2, 3))
    sign = np.sign(z)[:, None, None, None] * np.sign(w)
    room = np.where(sign > 0, np.minimum(radius, x.numpy()), np.minimum(radius, 1 - x.numpy()))
    return np.abs(z) - (np.abs(w) * room).sum((1, 2, 3)) > 0


@pytest.mark.parametrize(("low", "high"), [(0.3, 0.7), (0.0, 1.0)])
def test_a_linear_model_has_its_closed_form(low, high):
    x, weight = images(low=low, high=high)
    found = adversarial.measure(subject(x, weight))
    shares = []
    for e in (1, 2, 4, 8):
        shares.append(100 * left(x, weight, e / 255).mean())
        assert found[f"pgd_{e}"].value == found[f"fgsm_{e}"].value == pytest.approx(shares[-1])
        assert found[f"R_{e}"].value == pytest.approx(shares[-1] / 100)
        assert found[f"pgd_{e}"].null >= found[f"pgd_{e}"].value
    assert 97 > shares[0] > shares[1] > shares[3] and found["pgd_4"].null > shares[2] + 10
    assert all(found[f"sane_{name}"][:2] == (1, 1) for name in ("steps", "radius", "large", "random", "smooth"))


def test_more_steps_and_a_larger_radius_are_never_weaker(monkeypatch):
    x, _ = images()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(72, 30), nn.Tanh(), nn.Linear(30, 3)).double().requires_grad_(False)
    y = net((x - 0.5) * 6).argmax(1)
    mine = Subject(net, [((x - 0.5) * 6, y)], 6, 3, mean=(127.5,) * 2, std=(255 / 6,) * 2)
    by_radius = [adversarial.stands(mine, x, y, e / 255).mean() for e in (1, 2, 4, 8, 16, 128)]
    assert by_radius == sorted(by_radius, reverse=True) and by_radius[0] > 0.8 and by_radius[-1] == 0
    by_steps = []
    for steps in (1, 5, 40):
        monkeypatch.setitem(adversarial.PROTOCOL, "steps", steps)
        by_steps.append(adversarial.stands(mine, x, y, 8 / 255, restarts=1).mean())
    assert by_steps == sorted(by_steps, reverse=True) and by_steps[0] > by_steps[-1]


def test_no_step_leaves_the_cube_or_the_range():
    x, weight = images()
    mine = subject(x, weight)
    y = torch.cat([labels for _, labels in mine.images])
    up, moved = adversarial.gradient(mine, adversarial.margin), x
    for _ in range(6):
        moved = adversarial.step(moved, x, y, up, 0.02, 0.05)
    change = (moved - x).abs()
    assert moved.min() >= 0 and moved.max() <= 1 and change.max() == pytest.approx(0.05)
    inside = (x > 0.05) & (x < 0.95)
    assert torch.allclose(change[inside], torch.tensor(0.05, dtype=x.dtype)), "a linear model takes all there is"


def test_a_hidden_gradient_raises_the_flags():
    x, weight = images(low=0.3, high=0.7)
    stairs = adversarial.measure(subject(x, weight, lambda z: torch.sign(z)))
    assert stairs["pgd_8"].value > 90, "no gradient, no attack"
    assert stairs["sane_large"].value == stairs["sane_random"].value == 0
    # A ripple, far finer than the radius, decides the gradient's sign and not the answer.
    ripple = adversarial.measure(
        subject(x, weight, lambda z: z + 0.9 * torch.sign(z) * z.abs().clamp(max=0.05) * torch.sin(400 * z))
    )
    assert ripple["sane_smooth"].value == 0 and ripple["pgd_8"].value > 100 * left(x, weight, 8 / 255).mean() + 2


def test_losses_are_their_formulas():
    logits, y = torch.tensor([[1.0, 3.0, 2.0], [4.0, 0.0, 1.0]]), torch.tensor([1, 2])
    assert adversarial.margin(logits, y).item() == (2 - 3) + (4 - 1)
    assert adversarial.entropy(logits, y).item() == pytest.approx(-logits.log_softmax(1)[[0, 1], y].sum().item())
