"""Fused optimizers take the steps of torch's loop over plain operations, up to rounding, and skip what it skips."""

import copy
import math

import pytest
import torch
from torch import nn

from engine import optim
from engine.fields.effects import OPTIMIZERS
from engine.run import make_run


def loop_of(run, model):
    """The run's optimizer as torch's loop over plain operations, that differs from the fused kernel in rounding."""
    optimizer = optim.make_optimizer(run, model)
    for group in optimizer.param_groups:
        group.update(fused=False, foreach=False)
    return optimizer


def advance(optimizer, weights, steps, dtype):
    """So many steps on noise of many sizes."""
    draws = torch.Generator().manual_seed(3)
    for step in range(steps):
        for weight in weights:
            noise = torch.randn(weight.shape, generator=draws, dtype=torch.float64) * 10 ** (step % 5 - 3)
            weight.grad = noise.to(dtype)
        optimizer.step()


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 2e-5)], ids=str)
@pytest.mark.parametrize("opt", OPTIMIZERS)
def test_the_fused_kernel_takes_the_steps_of_the_loop(opt, dtype, rtol):
    """All of torch's optimizers that have one are fused; 30 steps of decayed and spared weights differ in rounding."""
    run = make_run({"opt": opt, "lr": 1e-2, "weight_decay": 0.1})
    models = [nn.Sequential(nn.Linear(7, 33), nn.Linear(33, 5)).to(dtype) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    before = [weight.detach().clone() for weight in models[0].parameters()]
    fused, loop = optim.make_optimizer(run, models[0]), loop_of(run, models[1])
    assert all((group.get("fused") or False) == (opt in optim.FUSED) for group in fused.param_groups)
    for optimizer, model in zip((fused, loop), models, strict=True):
        advance(optimizer, list(model.parameters()), 30, dtype)
    for old, one, other in zip(before, *(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(one, other, rtol=rtol, atol=rtol)
        assert (one - old).abs().max() > 1e-3


@pytest.mark.parametrize("opt", optim.FUSED)
def test_a_first_step_that_overflows_leaves_no_trace(opt):
    """Fused and left to itself, torch's SGD would take garbage as its momentum from there on."""
    run, ends = make_run({"opt": opt, "lr": 0.5, "weight_decay": 0.0}), []
    for overflow in (True, False):
        model = nn.Linear(300, 300, bias=False)
        nn.init.zeros_(model.weight)
        junk = [torch.full((300, 300), 7e3) for _ in range(9)]
        del junk  # what fresh memory then holds
        optimizer, scaler = optim.make_optimizer(run, model), torch.amp.GradScaler("cpu")
        for size in (*([math.inf] if overflow else []), 2.0, 3.0):
            optimizer.zero_grad()
            scaler.scale((model.weight * size).sum()).backward()
            scaler.step(optimizer)
            scaler.update()
        ends.append(model.weight.detach())
    assert torch.equal(*ends) and ends[0].max() < -0.1


def test_the_state_of_an_older_optimizer_goes_on_fused():
    """Checkpoints of earlier versions say that the loop is to be taken; kernels are a choice of the process."""
    run, model = make_run({}), nn.Linear(5, 5)
    loop = loop_of(run, model)
    advance(loop, list(model.parameters()), 3, torch.float32)
    other = nn.Linear(5, 5)
    other.load_state_dict(model.state_dict())
    fused = optim.make_optimizer(run, other)
    optim.load_optimizer(fused, copy.deepcopy(loop.state_dict()))
    assert all(group["fused"] for group in fused.param_groups)
    for optimizer, weights in ((loop, model.parameters()), (fused, other.parameters())):
        advance(optimizer, list(weights), 3, torch.float32)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=2e-5, atol=2e-5)
    assert {int(state["step"]) for state in fused.state.values()} == {6}
