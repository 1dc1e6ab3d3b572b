"""Muon is timm's: matrices step by the published formula, vectors as torch's AdamW; it resumes bit for bit."""

import copy
import functools

import numpy as np
import pytest
import torch
from timm.optim import muon

import archs
from engine.errors import STOPPED, Refusal
from engine.optim import make_optimizer
from engine.run import Run, make_how
from engine.train import train

# Of modded-nanogpt (train_gpt_medium.py), by Cesista et al. 2025, "Squeezing 1-2% efficiency gains out of Muon".
QUINTIC = [(4.0848, -6.8946, 2.9270), (3.9505, -6.3029, 2.6377), (3.7418, -5.5913, 2.3037)]
QUINTIC += [(2.8769, -3.1427, 1.2046), (2.8366, -3.0525, 1.2012)]


def step_of(buffer, gradient, lr, momentum=0.95):
    """Five Newton-Schulz steps from the momentum (Jordan et al. 2024), as large as those of AdamW (Liu et al. 2025,
    arXiv 2502.16982: 0.2 sqrt of the longer side). Returns the step, in float64, and the new momentum."""
    buffer = momentum * buffer + (1 - momentum) * gradient
    matrix = buffer.reshape(len(buffer), -1)
    x = matrix / np.linalg.norm(matrix)
    for a, b, c in QUINTIC:
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return -lr * 0.2 * max(matrix.shape) ** 0.5 * x.reshape(buffer.shape), buffer


def test_matrices_step_by_the_published_formula_and_the_rest_as_adamw(monkeypatch):
    """Also a convolution, as the matrix of its outputs. timm orthogonalises in bfloat16, here in float64."""
    exact = functools.partial(muon.zeropower_via_newtonschulz, dtype=torch.float64)
    monkeypatch.setattr(muon, "zeropower_via_newtonschulz", exact)
    torch.manual_seed(0)
    model = archs.create("convmixer_nano").double()
    other = copy.deepcopy(model)
    optimizer = make_optimizer(Run(opt="muon", lr=0.01, momentum=0.95, weight_decay=0.1), model)
    depthwise = {name for name, w in model.named_parameters() if w.ndim == 4 and w.shape[1] == 1}
    names = {name for name, w in model.named_parameters() if w.ndim > 1} - depthwise
    assert depthwise and {model.get_parameter(name).ndim for name in names} == {2, 4}
    wanted = {name: weight.detach().numpy().copy() for name, weight in model.named_parameters()}
    buffers = {name: np.zeros_like(wanted[name]) for name in names}
    spared = [weight for weight in other.parameters() if weight.ndim == 1]
    reference = torch.optim.AdamW(spared, lr=0.01, betas=(0.9, 0.95), eps=1e-7, weight_decay=0.0)
    for _ in range(3):
        for (name, ours), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
            ours.grad = torch.randn_like(ours)
            theirs.grad = ours.grad.clone()
            if name in names:
                step, buffers[name] = step_of(buffers[name], ours.grad.numpy(), 0.01)
                wanted[name] = wanted[name] * (1 - 0.01 * 0.1) + step
        optimizer.step()
        reference.step()
    for (name, ours), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        if name in names:
            np.testing.assert_allclose(ours.detach().numpy(), wanted[name], rtol=1e-9, atol=1e-11, err_msg=name)
        if theirs.ndim == 1:
            assert torch.allclose(ours, theirs, rtol=0, atol=1e-12), name


def test_a_muon_run_goes_on_bit_for_bit(tiny, how, tmp_path):
    run = tiny.but(opt="muon", momentum=0.95, amp=False)
    steps = iter([0] * 6)
    given = make_how({**how.model_dump(), "checkpoint_interval": 1})
    with pytest.raises(Refusal, match="stopped at step 7"):
        train(run, tmp_path / "cut", given, lambda: next(steps, STOPPED))
    train(run, tmp_path / "cut", given)
    train(run, tmp_path / "whole", how)
    cut, whole = (torch.load(tmp_path / name / "last.pth.tar")["state_dict"] for name in ("cut", "whole"))
    assert all(torch.equal(cut[key], whole[key]) for key in whole)
    assert (tmp_path / "cut/summary.csv").read_text() == (tmp_path / "whole/summary.csv").read_text()
