"""Linear probes by depth: ridge against scikit-learn and brute force, and models whose depth is known."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import nn

import archs
from analysis.bias.probe import Subject
from analysis.bias.probe_runs import Rearranged
from analysis.measures import depth
from analysis.probes import linear_probe


@pytest.mark.parametrize("dims", [5, 80])
def test_ridge_is_scikit_learns_at_the_penalty_of_the_least_leave_one_out_error(dims):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, dims)) * rng.uniform(0.1, 3, dims), np.eye(3)[rng.integers(0, 3, 40)]
    x = x - x.mean(0)
    weights, offset = linear_probe.ridge(torch.from_numpy(x), torch.from_numpy(y))
    power = np.linalg.svd(x, compute_uv=False) ** 2
    unit, errors = power[power > 1e-9 * power.max()].mean(), {}
    for penalty in linear_probe.PROTOCOL["penalties"]:
        model, total = Ridge(penalty * unit), 0
        for i in range(40):
            rest = np.arange(40) != i
            total += ((model.fit(x[rest], y[rest]).predict(x[[i]]) - y[i]) ** 2).sum()
        errors[penalty] = total
    reference = Ridge(min(errors, key=errors.get) * unit).fit(x, y)
    assert np.allclose(weights.numpy().T, reference.coef_, atol=1e-6) and np.allclose(offset, reference.intercept_)


def test_components_are_the_principal_ones(monkeypatch):
    monkeypatch.setitem(linear_probe.PROTOCOL, "components", 2)
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(60, 6)) * [5, 4, 1, 1, 1, 1], np.eye(2)[rng.integers(0, 2, 60)]
    x = x - x.mean(0)
    weights, _ = linear_probe.ridge(torch.from_numpy(x), torch.from_numpy(y))
    v = np.linalg.svd(x)[2][:2]
    assert np.allclose(v.T @ (v @ weights.numpy()), weights.numpy()), "the weights lie in their span"


class Blocks(nn.Module):
    """Blocks that show nothing of the class, until one that shows it; images are BCHW, the class is in their place."""

    def __init__(self, shown_at, blocks=5):
        super().__init__()
        self.shown_at, self.blocks = shown_at, blocks

    def forward_intermediates(self, x, intermediates_only):
        which = (x[:, 0] * torch.arange(x[0, 0].numel()).view(x.shape[2:])).sum((1, 2)).long() % 4
        clear = torch.eye(4)[which][:, :, None, None].expand(-1, -1, 2, 2)
        noise = torch.randn(clear.shape, generator=torch.Generator().manual_seed(0))
        return [clear if b >= self.shown_at else noise for b in range(self.blocks)]

    def forward(self, x):
        return self.forward_intermediates(x, True)[-1].mean((2, 3))


def points(count=400, size=4):
    places = torch.randint(0, size * size, (count,), generator=torch.Generator().manual_seed(2))
    return torch.eye(size * size)[places].view(count, 1, size, size), places % 4


@pytest.mark.parametrize("shown_at", [0, 2, 4])
def test_the_depth_is_that_of_the_block_which_shows_the_class(shown_at):
    x, y = points()
    found = linear_probe.measure(Subject(Blocks(shown_at), [(x, y)], 4, 4))
    assert found["avg_last"].value == found[f"all_{shown_at + 1}"].value == 100
    assert found["all_0"].value == 100, "the image itself shows it, to whom reads all of it"
    assert found["depth90_all"].value == 0 and found["avg_0"].value == pytest.approx(25, abs=8)
    below = found[f"avg_{shown_at}"].value
    assert below == pytest.approx(25, abs=9) and found[f"avg_{shown_at}"].null == pytest.approx(25, abs=2)
    assert found["depth90_avg"].value == pytest.approx((shown_at + (90 - below) / (100 - below)) / 5)
    assert found["depth90_avg"].null == pytest.approx(
        (90 - found["avg_0"].value) / (100 - found["avg_0"].value), abs=0.01
    )


def test_no_image_is_judged_by_itself():
    rng = np.random.default_rng(0)
    x, labels = torch.from_numpy(rng.normal(size=(400, 300))), rng.integers(0, 4, 400)
    assert (linear_probe.held_out(x, labels, 4) == labels).mean() < 0.35, "noise tells nothing, however wide"


@pytest.mark.parametrize("name", ["bmlp_nano", "mixer_nano", "deit_nano", "timm/test_resnet"])
def test_every_block_of_real_models_is_seen(name):
    model = archs.create(name, img_size=8, in_chans=1, num_classes=10).eval()
    x = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    mine = Subject(model, [(x, torch.arange(6))], 8, 10)
    assert depth.count(mine) == len(model.forward_intermediates(x, intermediates_only=True)) > 1
    last = depth.block(mine, x, -1)
    with torch.no_grad():
        assert torch.allclose(last, model.forward_intermediates(x, intermediates_only=True)[-1], atol=1e-4)
    places = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    shuffled = x.flatten(2)[..., places].view(x.shape)
    behind = Subject(Rearranged(model, places.numpy()), [(x, torch.arange(6))], 8, 10)
    assert torch.allclose(depth.block(behind, x, 0), depth.block(mine, shuffled, 0), atol=1e-4)
    assert depth.count(Subject(nn.Flatten(), [(x, torch.arange(6))], 8, 64)) == 0
    assert linear_probe.measure(Subject(nn.Flatten(), [(x, torch.arange(6))], 8, 64)) == {}
