"""One optimizer step and the state that it advances: what is saved, what is refused, and in which order."""

import itertools
import math

import numpy as np
import pytest
import torch

from engine import distributed, models, optim
from engine.data.normalize import Normalize
from engine.errors import DIVERGED, Refusal
from engine.folder import checkpoint
from engine.step import State, Step

CPU = torch.device("cpu")
PREPARE = Normalize([77.878], [95.818], CPU)


def batches(seed=0):
    """Endless batches of noise, (8, 8, 8, 1) uint8, and labels."""
    draws = torch.Generator().manual_seed(seed)
    while True:
        images = torch.randint(256, (8, 8, 8, 1), dtype=torch.uint8, generator=draws)
        yield images, torch.randint(10, (8,), generator=draws)


def begin(run, prepare=PREPARE, weights=0):
    torch.manual_seed(weights)
    state = State(run, models.create(run, 10, 1), CPU)
    models.set_train(run, state.model)
    schedule = optim.make_schedule(run, state.optimizer, steps_per_epoch=4)
    return state, Step(run, state, schedule, prepare, 10)


def same(first, second):
    """Whether two values of a checkpoint are equal bit for bit, the order of keys too."""
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return [*first] == [*second] and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


@pytest.fixture(params=[{}, {"amp_dtype": "float16"}, {"model_ema": False}, {"grad_accum_steps": 2}], ids=str)
def run(request, tiny):
    return tiny.but(**({"model_ema_decay": 0.999} if request.param == {"model_ema": False} else {}), **request.param)


def test_a_state_goes_on_where_another_left_off(run, tmp_path):
    """Through a file; the one that goes on begins with other weights and needs but the file and the batches."""
    data = batches()
    state, step = begin(run)
    step(data), step(data)
    state.history.append({"epoch": 0, "eval_top1": 10.0})
    state.loss_sum.zero_()
    step(data)
    checkpoint.save(tmp_path, state.state_dict())
    other, other_step = begin(run, weights=1)
    other.load_state_dict(checkpoint.latest(tmp_path))
    assert (other.step, other.history, other.loss_sum) == (3, state.history, state.loss_sum)
    assert other.loss_sum.dtype == torch.float64 and (other.ema is None) == (not run.model_ema)
    data, data_again = itertools.tee(data)
    step(data), other_step(data_again)
    assert torch.equal(state.settle(), other.settle())
    assert same(state.state_dict(), other.state_dict()) and state.lr == other.lr


def test_the_keys_of_a_checkpoint_are_what_earlier_ones_have(tiny):
    state, step = begin(tiny)
    step(batches())
    saved = state.state_dict()
    assert [*saved] == ["step", "loss_sum", "history", "model", "optimizer", "scaler", "ema"]
    assert (saved["step"], saved["history"], type(saved["loss_sum"])) == (1, [], float)
    assert saved["model"].keys() == saved["ema"].keys() == state.model.state_dict().keys()
    assert begin(tiny.but(model_ema=False, model_ema_decay=0.999))[0].state_dict()["ema"] is None


def test_a_loss_that_is_no_number_reaches_no_weight(run):
    state, step = begin(run)
    step(batches())
    before = {key: value.clone() for key, value in state.model.state_dict().items()}
    step.prepare = lambda images: PREPARE(images) * float("nan")
    with pytest.raises(Refusal, match=r"loss became nan at epoch 1 step 1 of .* \(lr ") as refusal:
        step(batches())
    assert refusal.value.code == DIVERGED and state.step == 1
    assert same(before, dict(state.model.state_dict()))
    with pytest.raises(Refusal, match="loss became nan"):
        state.state_dict()


def test_losses_are_exchanged_at_once_when_their_sum_is_wanted(tiny, monkeypatch):
    """As on GPUs; a step on a CPU asks at once, to stop before a loss that is no number reaches the weights."""
    exchanged = []
    monkeypatch.setattr(distributed, "mean_", lambda losses: exchanged.append(len(losses)) or losses.div_(2))
    state, _ = begin(tiny)
    losses = torch.rand(5, generator=torch.Generator().manual_seed(0))
    for loss in losses[:4]:
        state.note(loss.clone())
    assert state.settle() == losses[3] / 2 and state.settle() == losses[3] / 2
    state.note(losses[4].clone())
    saved = state.state_dict()["loss_sum"]
    assert exchanged == [4, 1] and saved == state.loss_sum.item() == sum((losses / 2).tolist())


def test_a_step_is_gradient_descent_on_the_mean_of_its_batches(tiny):
    """Without momentum and decay it is w - lr * gradient, the gradient shortened to the norm that is asked for."""
    plain = {"warmup_epochs": 0.0, "mixup": 0.0, "cutmix": 0.0, "smoothing": 0.0, "drop_path": 0.0, "amp": False}
    run = tiny.but(**plain, opt="momentum", momentum=0.0, weight_decay=0.0, clip_grad=0.05, grad_accum_steps=2, lr=0.5)
    state, step = begin(run)
    model, before = state.model, [weight.detach().clone() for weight in state.model.parameters()]
    first, second = itertools.islice(batches(), 2)
    losses = [torch.nn.functional.cross_entropy(model(PREPARE(x)), y) for x, y in (first, second)]
    gradient = torch.autograd.grad(sum(losses) / 2, list(model.parameters()))
    norm = torch.sqrt(sum(each.square().sum() for each in gradient))
    assert norm > 2 * run.clip_grad
    step(iter((first, second)))
    for weight, old, each in zip(model.parameters(), before, gradient, strict=True):
        torch.testing.assert_close(weight.detach(), old - 0.5 * each * run.clip_grad / norm, atol=1e-6, rtol=1e-4)
    assert state.settle().item() == pytest.approx(losses[1].item() / 2) and state.lr == 0.5
    assert state.loss_sum.item() == pytest.approx(sum(losses).item() / 2)
    decay, before = run.model_ema_decay, [weight.detach().clone() for weight in model.parameters()]
    assert all(map(torch.equal, state.judged.parameters(), before)), "timm's average begins with the first step"
    step(iter((first, second)))
    for mean, old, new in zip(state.judged.parameters(), before, model.parameters(), strict=True):
        torch.testing.assert_close(mean, decay * old + (1 - decay) * new, atol=1e-6, rtol=1e-4)


def test_what_a_step_draws_and_its_rate_are_of_its_number(tiny):
    """Whatever was drawn before; and the warm-up of half an epoch, two of its four steps, then the cosine."""
    rates, states = [], []
    for disturbed in (False, True):
        state, step = begin(tiny)
        data = batches()
        for number in range(4):
            torch.manual_seed(number + 100 * disturbed)
            np.random.seed(number + 100 * disturbed)
            step(data)
            rates.append(state.lr)
        states.append(state.state_dict())
    assert same(*states)
    cosine = [
        0.5 * tiny.lr * (1 + math.cos(math.pi * number / 10)) for number in (0, 1)
    ]  # of the ten steps that follow
    assert rates[:4] == pytest.approx([0, tiny.lr / 2, *cosine]) and rates[4:] == rates[:4]
    assert not torch.equal(*(draw(tiny, step) for step in (0, 1))), "two steps draw alike"


def draw(run, number):
    """The weights' gradients of a step of that number, on the same batch from the same weights."""
    state, step = begin(run)
    state.step = number
    step._gradients(*next(batches()), 0)
    return torch.cat([weight.grad.flatten() for weight in state.model.parameters()])


@pytest.mark.parametrize("amp", [{"amp": False}, {"amp_dtype": "float16"}], ids=str)
def test_gradients_are_clipped_as_they_are_and_not_as_they_are_scaled(tiny, amp):
    run = tiny.but(**amp, warmup_epochs=0.0, opt="momentum", momentum=0.0, weight_decay=0.0, clip_grad=0.05, lr=0.5)
    state, step = begin(run)
    before = torch.nn.utils.parameters_to_vector(state.model.parameters()).clone()
    step(batches())
    moved = torch.nn.utils.parameters_to_vector(state.model.parameters()) - before
    assert moved.norm().item() == pytest.approx(0.5 * 0.05, rel=1e-3)


class TooSmall(torch.nn.Module):
    """A stand-in for a GPU's memory: the model, on which more than a few images at a time do not fit.

    Args:
        when: forward or backward, where torch then says so.
    """

    def __init__(self, model, images, when):
        super().__init__()
        self.model, self.images, self.when, self.refused = model, images, when, 0

    def forward(self, x):
        if len(x) > self.images and self.when == "forward":
            self._refuse()
        logits = self.model(x)
        if len(x) > self.images and self.training:  # in the middle of it: the head has its gradients already
            logits.grad_fn.next_functions[1][0].register_hook(lambda *_: self._refuse())
        return logits

    def _refuse(self):
        self.refused += 1
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.mark.parametrize("when", ["forward", "backward"])
@pytest.mark.parametrize("images", [4, 3])
def test_a_batch_that_does_not_fit_is_split_and_gives_the_same_weights(tiny, when, images):
    """Eight images in two parts, or in four, as three at a time do not halve them: the same but for rounding."""
    run = tiny.but(drop_path=0.0, amp=False, opt="sgd", lr=0.05)
    whole, step = begin(run)
    data, again = itertools.tee(batches())
    other, small = begin(run)
    small.forward = TooSmall(other.model, images, when)
    for _ in range(3):
        step(data), small(again)
    assert small.micro_batches == {4: 2, 3: 4}[images] and small.forward.refused == {4: 1, 3: 2}[images]
    assert torch.allclose(whole.settle(), other.settle(), rtol=1e-6)
    start, _ = begin(run)
    for mine, theirs, first in zip(
        whole.model.parameters(), other.model.parameters(), start.model.parameters(), strict=True
    ):
        assert (mine - theirs).norm() < 1e-5 * (mine - first).norm() + 1e-7


def test_parts_of_different_sizes_count_by_their_images(tiny):
    run = tiny.but(drop_path=0.0, amp=False, opt="momentum", momentum=0.0, mixup=0.0, cutmix=0.0, model_ema=False,
                   model_ema_decay=0.999)  # fmt: skip
    data, again = itertools.tee(batches())
    whole, step = begin(run)
    parts, split = begin(run)
    split.micro_batches = 3  # 3, 3 and 2
    step(data), split(again)
    for mine, theirs in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("fields", "images", "words"),
    [
        ({"model": "convmixer_nano", "model_kwargs": {}}, 4, "takes statistics of the batch"),
        ({"drop_path": 0.2}, 4, "draws at random for it"),
        ({}, 0, "one image at a time does not fit"),
    ],
)
def test_a_batch_is_not_split_where_that_would_change_more_than_rounding(tiny, fields, images, words):
    run = tiny.but(**{"drop_path": 0.0, **fields})
    state, step = begin(run)
    step.forward = TooSmall(state.model, images, "forward")
    with pytest.raises(Refusal, match=words) as refusal:
        step(batches())
    assert "--batch-size 4 --grad-accum-steps 2" in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_later_batch_of_a_step_is_not_split(tiny):
    """What a backward pass added to the gradients of the first batch before it broke off cannot be taken off again."""
    state, step = begin(tiny.but(drop_path=0.0, grad_accum_steps=2))
    small = TooSmall(state.model, 8, "backward")
    first = iter([8, 4])

    def forward(x):
        small.images = next(first)
        return small(x)

    step.forward = forward
    with pytest.raises(Refusal, match="it was in a later batch of the step"):
        step(batches())
