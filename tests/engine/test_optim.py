"""Schedules and parameter groups against what they claim, accumulation against one big batch."""

import json
import math

import pytest
import torch
from torch import nn

import archs
from engine import optim
from engine.errors import USAGE, Refusal
from engine.folder import store
from engine.models import preflight
from engine.run import make_run
from engine.train import train


def rates(run, steps_per_epoch=10):
    """The learning rate of every step."""
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=run.lr)
    schedule = optim.make_schedule(run, optimizer, steps_per_epoch)
    result = []
    for step in range(run.epochs * steps_per_epoch):
        schedule.step_update(step)
        result.append(optimizer.param_groups[0]["lr"])
    return result


def warm(step, lr, warmup_lr, steps):
    return warmup_lr + (lr - warmup_lr) * step / steps


BASE = {"epochs": 10, "lr": 1.0, "warmup_epochs": 1.5, "warmup_lr": 0.1, "min_lr": 0.05}
CLOSED = {
    "cosine": lambda t: 0.05 + 0.95 * (1 + math.cos(math.pi * (t - 15) / 85)) / 2,
    "linear": lambda t: 0.05 + 0.95 * (1 - (t - 15) / 85),
    "constant": lambda t: 1.0,
    "step": lambda t: 0.1 ** ((t - 15) // 30),
}


@pytest.mark.parametrize("sched", CLOSED)
def test_schedules_equal_their_closed_form(sched):
    end = BASE if sched in ("cosine", "linear") else {key: value for key, value in BASE.items() if key != "min_lr"}
    run = make_run(end | {"sched": sched} | ({"decay_epochs": 3} if sched == "step" else {}))
    expected = [warm(t, 1.0, 0.1, 15) if t < 15 else CLOSED[sched](t) for t in range(100)]
    assert rates(run) == pytest.approx(expected)


def test_triangle_is_convmixers():
    """`lr_schedule(epoch + (i + 1) / len(trainloader))` of their train.py, its three lines written out by hand."""

    def theirs(t, epochs=10, lr_max=0.8):
        if t <= 4:
            return lr_max * t / 4
        if t <= 8:
            return lr_max + (lr_max / 20 - lr_max) * (t - 4) / 4
        return lr_max / 20 * (epochs - t) / (epochs - 8)

    got = rates(make_run({"epochs": 10, "lr": 0.8, "sched": "triangular"}), steps_per_epoch=7)
    assert got == pytest.approx([theirs(epoch + (i + 1) / 7) for epoch in range(10) for i in range(7)], abs=1e-12)
    assert got[0] == pytest.approx(0.8 / 28) and max(got) == got[27] == pytest.approx(0.8)


def test_cooldown_stays_at_min_lr():
    got = rates(make_run(BASE | {"cooldown_epochs": 2}))
    assert got[80:] == pytest.approx([0.05] * 20) and got[79] > 0.05


def test_weight_decay_spares_vectors():
    model = archs.create("deit_nano")
    spared = {name for name, weight in model.named_parameters() if weight.ndim == 1} | {"cls_token", "pos_embed"}
    optimizer = optim.make_optimizer(make_run({"model": "deit_nano"}), model)
    decay = {id(weight): group["weight_decay"] for group in optimizer.param_groups for weight in group["params"]}
    assert {name for name, weight in model.named_parameters() if decay[id(weight)] == 0} == spared


def test_body_lr_scale_spares_the_head():
    model, run = archs.create("mixer_nano"), make_run({"body_lr_scale": 0.1, "lr": 1.0})
    optimizer = optim.make_optimizer(run, model)
    optim.make_schedule(run, optimizer, 10).step_update(0)
    rate = {id(weight): group["lr"] for group in optimizer.param_groups for weight in group["params"]}
    assert {name: rate[id(weight)] for name, weight in model.named_parameters()} == {
        name: pytest.approx(1.0 if name.startswith("head") else 0.1) for name, _ in model.named_parameters()
    }


NANO = [f"{family}_nano" for family in archs.families()] + ["patchmlp_nano_unshared", "mlp_six", "timm/test_vit"]


def decayed(model, **fields):
    """Names of the parameters that weight decay shrinks, of those that are trained."""
    run = make_run({"weight_decay": 0.05, **fields})
    if run.mode == "linear":
        optim.freeze_body(model)
    decay = {
        id(weight): group["weight_decay"]
        for group in optim.make_optimizer(run, model).param_groups
        for weight in group["params"]
    }
    trained = {name: decay[id(weight)] for name, weight in model.named_parameters() if id(weight) in decay}
    assert trained.keys() == {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert set(trained.values()) <= {0, 0.05}
    return {name for name, value in trained.items() if value}


@pytest.mark.proves("weight decay spares vectors and biases")
@pytest.mark.parametrize("name", [*NANO, "gfnet_nano_positions"])
def test_the_same_tensors_decay_whatever_the_rates_are(name):
    """All but what has one axis, is a bias or is named by the model; in a linear probe those of the head."""
    given = {"pos_embed": True} if name.endswith("_positions") else {}
    model = archs.create(name.removesuffix("_positions"), **given)
    spared = model.no_weight_decay() if hasattr(model, "no_weight_decay") else set()
    expected = {
        key
        for key, weight in model.named_parameters()
        if weight.ndim > 1 and not key.endswith("bias") and key not in spared
    }
    assert expected
    for fields in ({}, {"body_lr_scale": 0.1}, {"layer_decay": 0.5}):
        assert decayed(model, **fields) == expected, fields
    head = {key for key, weight in model.named_parameters() if weight is optim.head_of(model).weight}
    assert decayed(model, mode="linear") == head and len(head) == 1


PYRAMIDS = {"vip_nano pyramid": {"dim": [16, 32, 32, 48], "depth": [1, 2, 1, 2], "img_size": 16}}
PYRAMIDS |= {
    f"cyclemlp_nano {skeleton}": {"dim": [8, 16, 24], "depth": [1, 2, 1], "skeleton": skeleton, "img_size": 16}
    for skeleton in ("overlap", "patch", "swin")
}


@pytest.mark.parametrize("name", [*NANO, *PYRAMIDS])
def test_layer_decay_grows_along_the_way_of_an_image(name):
    """By one factor from the stem to each block or transition in turn, and to the norm and head, whose rate is 1."""
    model = archs.create(name.split()[0], **PYRAMIDS.get(name, {})).eval()
    optimizer = optim.make_optimizer(make_run({"layer_decay": 0.5}), model)
    scale = {id(weight): group["lr_scale"] for group in optimizer.param_groups for weight in group["params"]}
    met = []
    for module in model.modules():
        own = [scale[id(weight)] for weight in module.parameters(recurse=False)]
        module.register_forward_pre_hook(lambda module, given, own=own: met.extend(own))
    own = {} if name.startswith("timm/") else archs.arguments(name.split()[0]) | PYRAMIDS.get(name, {})
    size = own.get("img_size", 160)
    model(torch.zeros(1, own.get("in_chans", 3), size, size))
    assert len(met) >= len(scale)
    if name == "mlp_six":  # each of its norms has a place in several layers, and the rate of the first
        assert set(met) == set(scale.values())
        return
    assert met == sorted(met)
    assert met[0] == min(scale.values()) and met[-1] == 1
    levels = sorted(set(met), reverse=True)
    assert levels == [0.5**i for i in range(len(levels))]
    if not name.startswith("timm/"):
        with_weights = [block for block in model.blocks() if any(True for _ in block.parameters())]
        assert len(levels) == len(with_weights) + 2


@pytest.mark.parametrize("name", ["mixer_nano", "deit_nano", "timm/test_vit"])
def test_layer_decay_falls_from_the_head_to_the_stem(name):
    model = archs.create(name)
    optimizer = optim.make_optimizer(make_run({"model": name, "layer_decay": 0.5}), model)
    scale = {id(weight): group["lr_scale"] for group in optimizer.param_groups for weight in group["params"]}
    by_name = {key: scale[id(weight)] for key, weight in model.named_parameters()}
    head = max(by_name, key=by_name.get)
    assert by_name["head.weight"] == by_name[head] == 1
    first = [value for key, value in by_name.items() if key.startswith(("stem", "patch_embed", "pos_embed"))]
    assert first and set(first) == {min(by_name.values())} and len(set(by_name.values())) >= 3


def test_accumulated_batches_are_one_big_batch(how, tmp_path):
    """Two batches of 32 per step give the steps of one batch of 64, up to the order of the sums."""
    common = {"model_kwargs": {"depth": 2, "dim": 16}, "train_samples": 330, "epochs": 2, "lr": 1e-2, "crop_pad": 1}
    big = make_run(common | {"batch_size": 64, "opt": "sgd"})
    small = make_run(common | {"batch_size": 32, "opt": "sgd", "grad_accum_steps": 2})
    for run, name in ((big, "big"), (small, "small")):
        train(run, tmp_path / name, how)
    weights = [
        torch.load(tmp_path / name / "last.pth.tar", weights_only=True)["state_dict"] for name in ("big", "small")
    ]
    assert all(torch.allclose(weights[0][key], weights[1][key], rtol=1e-4, atol=1e-6) for key in weights[0])
    assert store.read_status(tmp_path / "small")["steps"] == store.read_status(tmp_path / "big")["steps"] == 10


def stop_after(steps):
    count = iter(range(1, 10**9))
    return lambda: 75 if next(count) >= steps else 0


@pytest.mark.parametrize(
    "change",
    [
        {"grad_accum_steps": 2},
        {"amp_dtype": "float16"},
        {"bce_loss": True},
        {"model_ema_warmup": True},
        {"sched": "triangular", "warmup_epochs": 0},
        {"mode": "linear", "drop_path": 0.0},
        {"layer_decay": 0.7},
        {"opt": "sgd", "amp_dtype": "float16"},
    ],
    ids=str,
)
def test_resume_equals_uninterrupted(tiny, how, tmp_path, change):
    run = tiny.but(epochs=2, **change)
    train(run, tmp_path / "a", how)
    with pytest.raises(Refusal):
        train(run, tmp_path / "b", how, stop_after(2))
    train(run, tmp_path / "b", how)
    a, b = (torch.load(tmp_path / name / "last.pth.tar", weights_only=True)["state_dict"] for name in "ab")
    assert all(torch.equal(a[key], b[key]) for key in a)
    for name in ("summary.csv", "metrics.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_linear_probe_leaves_the_body_alone(how, tmp_path):
    """The BatchNorm statistics too."""
    run = make_run({"model": "convmixer_nano", "mode": "linear", "epochs": 1, "batch_size": 64, "train_samples": 128})
    train(run, tmp_path, how)
    from engine import rng

    rng.seed_everything(run.seed, "init")
    fresh = archs.create("convmixer_nano").state_dict()
    after = torch.load(tmp_path / "last.pth.tar", weights_only=True)["state_dict"]
    changed = {key for key in fresh if not torch.equal(fresh[key], after[key])}
    assert changed == {"head.weight", "head.bias"}


LOSSES = {
    "plain": {},
    "smoothed": {"smoothing": 0.1},
    "mixed": {"mixup": 0.8, "smoothing": 0.1},
    "binary": {"bce_loss": True, "smoothing": 0.1},
    "binary and mixed": {"bce_loss": True, "cutmix": 1.0},
}


@pytest.mark.parametrize("fields", LOSSES.values(), ids=LOSSES)
def test_the_loss_of_a_bfloat16_run_is_float32(how, tmp_path, monkeypatch, fields):
    """It and the gradient of its logits are what float64 makes of the same logits, and so is what is logged of it."""
    seen = []
    make_loss = optim.make_loss

    def make_listening(run):
        loss_of = make_loss(run)

        def listening(logits, labels):
            logits.retain_grad()
            seen.append((logits, labels, loss_of(logits, labels)))
            return seen[-1][-1]

        return listening

    monkeypatch.setattr(optim, "make_loss", make_listening)
    base = {"train_samples": 128, "batch_size": 64, "epochs": 2, "lr": 1e-2, "amp": True}
    run = make_run(base | {"model": "mixer_nano", "model_kwargs": {"depth": 1, "dim": 16}} | fields)
    train(run, tmp_path, how)
    logged = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(seen) == len(logged) == 4
    for (logits, labels, loss), number in zip(seen, logged, strict=True):
        assert logits.dtype == torch.float32 and (logits == logits.bfloat16()).all(), "autocast made them"
        expected, gradient = closed_form(run, logits.detach().double(), labels)
        assert loss.item() == pytest.approx(expected, rel=1e-6) == number
        torch.testing.assert_close(logits.grad.double(), gradient, rtol=1e-5, atol=1e-9)


def closed_form(run, z_BC, labels):
    """The loss and its gradient, in float64."""
    soft_BC = labels.double()
    if labels.ndim == 1:
        soft_BC = (1 - run.smoothing) * torch.eye(10, dtype=torch.float64)[labels] + run.smoothing / 10
    if run.bce_loss:
        p_BC = 1 / (1 + torch.exp(-z_BC))
        loss = -(soft_BC * p_BC.log() + (1 - soft_BC) * (1 - p_BC).log()).mean()
        return loss.item(), (p_BC - soft_BC) / z_BC.numel()
    logp_BC = z_BC - z_BC.exp().sum(1, keepdim=True).log()
    return -(soft_BC * logp_BC).sum(1).mean().item(), (logp_BC.exp() - soft_BC) / len(z_BC)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"model": "mlp_six"},
            r"mlp_six at 8 px cannot train on batch_size 1: its layer stem\.2\.layer \(BatchNorm2d\)",
        ),
        ({"model": "timm/resnet10t", "img_size": 32}, r"its layer layer4\.0\.bn1 \(BatchNorm\w*\) sees one value per"),
    ],
    ids=lambda value: value if isinstance(value, str) else value["model"],
)
def test_one_value_per_channel_is_refused_before_training(how, tmp_path, fields, words):
    run = make_run({"batch_size": 1, "train_samples": 2, "epochs": 1, **fields})
    with pytest.raises(Refusal, match=words) as caught:
        preflight(run)
    assert caught.value.code == USAGE and "give a batch_size of 2 or more" in str(caught.value)


def test_train_itself_refuses_one_value_per_channel(how, tmp_path):
    with pytest.raises(Refusal, match="mlp_six at 8 px cannot train on batch_size 1"):
        train(make_run({"model": "mlp_six", "batch_size": 1, "train_samples": 2, "epochs": 1}), tmp_path, how)


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "mixer_nano", "model_kwargs": {"depth": 1}, "batch_size": 1},  # no BatchNorm
        {"model": "convmixer_nano", "batch_size": 1},  # many places of one image
        {"model": "mlp_six", "mode": "linear", "batch_size": 1},  # its norms stay as they are
        {"model": "mlp_six", "batch_size": 2, "train_samples": 5},  # the fifth image is no batch of its own
        {"model": "mlp_six", "batch_size": 2, "train_samples": 6, "grad_accum_steps": 3},
    ],
    ids=str,
)
def test_small_batches_that_can_be_trained_are(how, tmp_path, fields):
    run = make_run({"train_samples": 2, "epochs": 1, **fields})
    preflight(run)
    train(run, tmp_path, how)
    assert store.read_status(tmp_path)["state"] == store.DONE


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"mixup": 0.2, "batch_size": 63}, "must be even"),
        ({"grad_accum_steps": 99}, "more than the 10 batches"),
    ],
)
def test_what_cannot_work_is_refused(how, tmp_path, fields, words):
    run = make_run({"train_samples": 640, "batch_size": 64, "epochs": 1} | fields)
    with pytest.raises(Refusal, match=words):
        train(run, tmp_path, how)
