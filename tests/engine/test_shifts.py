"""Shifts: those that training draws are those averaged over afterwards, and over a group the average is invariant."""

import numpy as np
import pytest
import torch

import archs
from engine import evaluate
from engine.cli.validate import cost
from engine.data import loaders
from engine.data.augment import pipeline
from engine.data.augment.shifts import Shifted, shifted, shifts
from engine.errors import Refusal
from engine.run import make_how, make_run

CROPS = [(2, 1, "zeros", 25), (6, 3, "zeros", 25), (4, 1, "wrap", 64), (4, 2, "wrap", 16), (4, 4, "wrap", 4)]
CROPS += [(3, 1, "wrap", 49), (7, 1, "zeros", 225)]


@pytest.mark.parametrize("crop_pad, crop_step, fill, count", CROPS)
def test_training_draws_each_shift_that_is_averaged_over_equally_often(crop_pad, crop_step, fill, count):
    """Of one image of 8 x 8 different pixels, 20,000 crops by the compiled kernel."""
    image = np.arange(1, 65, dtype=np.uint8).reshape(1, 8, 8, 1)
    views = shifts(8, crop_pad, crop_step, fill)
    wanted = {shifted(torch.from_numpy(image), view, fill).numpy().tobytes(): view for view in views}
    assert len(views) == len(wanted) == count
    samples, out = np.arange(20_000), np.empty((20_000, 8, 8, 1), np.uint8)
    stored = image.repeat(3, -1).reshape(-1)
    wrap = fill == "wrap"
    pipeline.read(stored, np.zeros(20_000, np.uint64), samples, out, np.uint64(7), crop_pad, crop_step, wrap, 0.0)
    drawn = [wanted[each.tobytes()] for each in out]  # KeyError: training sees what no view is
    counts = np.array([drawn.count(view) for view in views])
    assert abs(counts - 20_000 / count).max() < 6 * (20_000 / count) ** 0.5


def averaged(model, x_BCHW, step, fill="wrap"):
    x_BHWC, p = x_BCHW.permute(0, 2, 3, 1), 0
    for shift in shifts(8, 4, step, fill):
        p = p + model(shifted(x_BHWC, shift, fill).permute(0, 3, 1, 2)).softmax(1)
    return p


@torch.no_grad()
def test_the_average_over_a_group_is_invariant_and_a_kernel_around_the_border_needs_none():
    """In float64: any model averaged over all shifts by whole patches, and the kernel with wrap without averaging."""
    torch.manual_seed(0)
    x_BCHW = torch.randn(3, 1, 8, 8, dtype=torch.float64)
    moved = x_BCHW.roll((2, -4), (2, 3))
    dense = archs.create("lattice_nano").double().eval()
    for model in (dense, archs.create("mlp_nano").double().eval()):
        assert (model(moved) - model(x_BCHW)).abs().max() > 1e-4
        assert (averaged(model, moved, 2) - averaged(model, x_BCHW, 2)).abs().max() < 1e-13
        assert (averaged(model, moved, 2, "zeros") - averaged(model, x_BCHW, 2, "zeros")).abs().max() > 1e-6
    kernel = archs.create("lattice_nano", mixer="depthwise", wrap=True).double().eval()
    assert (kernel(moved) - kernel(x_BCHW)).abs().max() < 1e-13
    assert (averaged(kernel, x_BCHW, 2) / 16 - kernel(x_BCHW).softmax(1)).abs().max() < 1e-13


def test_all_shifts_of_a_run_are_its_views(digits):
    how = make_how({"data_dir": digits, "threads": 1})
    run = make_run({"crop_pad": 4, "crop_fill": "wrap", "crop_step": 2})
    _, val, _ = loaders.make_loaders(run, how)
    views = evaluate.make_shifts(run, val)
    assert isinstance(views, Shifted) and len(views.views) == 16 and views.num_samples == 500
    plain, _ = next(val.epoch(0))
    plain = plain.clone()
    some, _ = next(views.epoch(views.views.index((2, -4))))
    assert torch.equal(some, plain.roll((-2, 4), (1, 2)))
    assert cost(run, "all", 10) == {"tta": 16, "macs": 16 * cost(run, 1, 10)["macs"]}
    assert cost(run, 1, 10)["macs"] > 0 and cost(run, None, 10) == {}
    with pytest.raises(Refusal, match=r"also has hflip; give --hflip 0\.0, or --tta N"):
        evaluate.make_shifts(run.but(hflip=0.5), val)
    with pytest.raises(Refusal, match="over the shifts of --crop-pad"):
        evaluate.make_shifts(make_run({}), val)
