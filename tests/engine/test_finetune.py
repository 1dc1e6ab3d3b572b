"""Fine-tuning: what is trained, at which rate, what stays bit for bit, and that a stop changes nothing."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from engine import optim
from engine.data import write
from engine.errors import STOPPED, Refusal
from engine.folder import checkpoint, store
from engine.models import create
from engine.run import make_how, make_run
from engine.train import train
from scripts import finetune

CLASSES = ("columns", "noise", "rows")


@pytest.fixture(scope="module")
def data_dir(digits, tmp_path_factory):
    """The digits, and three kinds of stripes in colour at 12 pixels: other classes, channels and resolution."""
    rng, raw = np.random.default_rng(0), tmp_path_factory.mktemp("raw")
    for split, count in (("train", 40), ("val", 15)):
        for name in CLASSES:
            folder = raw / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 100, (12, 12, 3), dtype=np.uint8)
                if name != "noise":
                    pixels[:: 2 if name == "rows" else 1, :: 2 if name == "columns" else 1] += 155
                Image.fromarray(pixels).save(folder / f"{index}.png")
    for split in ("train", "val"):
        write.write("imagefolder/stripes", split, 12, raw, digits, say=lambda line: None)
    return digits


@pytest.fixture(scope="module")
def how(data_dir):
    return make_how({"data_dir": data_dir, "threads": 1})


@pytest.fixture(scope="module")
def pretrained(how, tmp_path_factory):
    """A convolutional model with BatchNorm, trained for two epochs on the digits."""
    folder = tmp_path_factory.mktemp("pretrained")
    fields = {"model": "convmixer_nano", "model_kwargs": {"depth": 1, "dim": 16}, "epochs": 2, "batch_size": 64}
    train(make_run({**fields, "lr": 5e-3}), folder, how)
    return folder


def run_on_stripes(pretrained, **fields):
    return make_run(
        {
            "model": "convmixer_nano",
            "model_kwargs": {"depth": 1, "dim": 16},
            "dataset": "imagefolder/stripes",
            "img_size": 12,
            "initial_checkpoint": str(pretrained),
            "epochs": 4,
            "batch_size": 30,
            "opt": "momentum",
            "lr": 0.05,
            "weight_decay": 0.0,
            "sched": "constant",
            "clip_grad": 1.0,
            "smoothing": 0.1,
            "hflip": 0.5,
            **fields,
        }
    )


def weights(folder):
    return checkpoint.read(folder / "last.pth.tar")["state_dict"]


def stop_after(steps):
    count = iter(range(1, 10**9))
    return lambda: STOPPED if next(count) >= steps else 0


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("mode", ["linear", "full"])
def test_a_stop_changes_nothing_and_the_body_only_moves_where_it_should(mode, pretrained, how, tmp_path):
    run = run_on_stripes(pretrained, mode=mode, body_lr_scale=0.1 if mode == "full" else 1.0)
    train(run, tmp_path / "whole", how)
    with pytest.raises(Refusal) as caught:
        train(run, tmp_path / "parts", how, stop_after(6))
    assert caught.value.code == STOPPED
    train(run, tmp_path / "parts", how)
    after = weights(tmp_path / "whole")
    assert same(after, weights(tmp_path / "parts"))
    assert (tmp_path / "whole" / "summary.csv").read_bytes() == (tmp_path / "parts" / "summary.csv").read_bytes()

    # What the run began with, had it stopped before its first step: the same seed, no step.
    with pytest.raises(Refusal):
        train(run.but(lr=1e-30), tmp_path / "start", how, stop_after(1))
    start = checkpoint.latest(tmp_path / "start")["model"]
    body = {name for name in start if not name.startswith("head")}
    assert after["head.weight"].shape == (3, 16) and not torch.equal(after["head.weight"], start["head.weight"])
    if mode == "linear":  # BatchNorm's running statistics among them
        assert any(name.endswith("running_mean") for name in body)
        assert same({name: after[name] for name in body}, {name: start[name] for name in body})
    else:
        assert all(not torch.equal(after[name], start[name]) for name in body)
    # Apart from the stem, which sees other channels, the body began as the pre-trained one.
    before = weights(pretrained)
    kept = [name for name in body if start[name].shape == before[name].shape and "stem" not in name]
    assert len(kept) >= 8
    if mode == "linear":
        assert same({name: start[name] for name in kept}, {name: before[name] for name in kept})
    assert store.read_summary(tmp_path / "whole")[-1]["eval_top1"] > 50  # of three classes


def test_only_the_head_is_in_the_optimizer_of_a_linear_probe(pretrained):
    run = run_on_stripes(pretrained, mode="linear")
    model = create(run, 3, 3)
    optim.freeze_body(model)
    groups = optim.make_optimizer(run, model).param_groups
    held = {id(weight) for group in groups for weight in group["params"]}
    assert held == {id(weight) for weight in model.head.parameters()}
    assert all(weight.requires_grad == (id(weight) in held) for weight in model.parameters())


@pytest.mark.parametrize("sched", ["constant", "cosine"])
def test_the_body_learns_at_its_share_of_the_rate_throughout(pretrained, sched):
    run = run_on_stripes(pretrained, body_lr_scale=0.1, sched=sched, lr=0.02)
    model = create(run, 3, 3)
    optimizer = optim.make_optimizer(run, model)
    schedule = optim.make_schedule(run, optimizer, 10)
    head = {id(weight) for weight in model.head.parameters()}
    seen = set()
    for step in (0, 7, 39):
        schedule.step_update(step)
        rates = {id(weight): group["lr"] for group in optimizer.param_groups for weight in group["params"]}
        peak = rates[id(model.head.weight)]
        seen.add(peak)
        assert {id(weight) for weight in model.parameters()} == rates.keys()
        assert all(rate == pytest.approx(peak * (1 if weight in head else 0.1)) for weight, rate in rates.items())
    assert max(seen) == 0.02 and len(seen) == (1 if sched == "constant" else 3)


def test_a_small_step_of_the_body_is_a_tenth_of_a_plain_one(pretrained):
    """By the weights themselves: one step of SGD with and without body_lr_scale."""
    moved = []
    for share in (1.0, 0.1):
        run = run_on_stripes(pretrained, body_lr_scale=share, momentum=0.0)
        torch.manual_seed(0)
        model = create(run, 3, 3)
        nn.init.normal_(model.head.weight)
        before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        optimizer = optim.make_optimizer(run, model)
        optim.make_schedule(run, optimizer, 10).step_update(0)
        model(torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(1))).square().sum().backward()
        optimizer.step()
        moved.append({name: weight.detach() - before[name] for name, weight in model.named_parameters()})
    for name in moved[0]:
        share = 1.0 if name.startswith("head") else 0.1
        torch.testing.assert_close(moved[1][name], share * moved[0][name], rtol=1e-3, atol=1e-6)


@pytest.fixture
def script(data_dir, tmp_path, monkeypatch, capsys):
    def call(*words):
        command = ["finetune", "--data-dir", data_dir, "--output", tmp_path / "results", "--threads", 1, *words]
        monkeypatch.setattr(sys, "argv", [str(word) for word in command])
        finetune.main()
        return capsys.readouterr().out.splitlines()[-1].removeprefix("results: ")

    return call


STRIPES = ("--dataset", "imagefolder/stripes", "--img-size", 12, "-b", 30)


@pytest.mark.parametrize("mode, share", [("full", 0.1), ("linear", 1.0)])
def test_the_script_takes_the_model_from_the_weights_and_the_recipe_from_the_mode(script, pretrained, mode, share):
    folder = script("--initial-checkpoint", pretrained, "--mode", mode, *STRIPES, "--epochs", 2, "--lr", 0.02)
    run = store.read_run(store.Path(folder))
    assert (run.model, run.model_kwargs, run.dataset) == ("convmixer_nano", {"depth": 1, "dim": 16}, STRIPES[1])
    assert (run.mode, run.body_lr_scale, run.opt, run.smoothing, run.clip_grad) == (mode, share, "momentum", 0.3, 1)
    assert (run.lr, run.epochs, run.batch_size) == (0.02, 2, 30), "flags win"
    assert script("--initial-checkpoint", pretrained, "--mode", mode, *STRIPES, "--epochs", 2, "--lr", 0.02) == folder


def test_a_config_replaces_the_preset(script, pretrained, tmp_path):
    (tmp_path / "own.yaml").write_text(f"opt: adamw\nepochs: 1\nlr: 1e-3\ninitial_checkpoint: {pretrained}\n")
    run = store.read_run(store.Path(script("-c", tmp_path / "own.yaml", *STRIPES)))
    assert (run.opt, run.lr, run.smoothing, run.body_lr_scale, run.model) == ("adamw", 1e-3, 0, 1, "convmixer_nano")


def test_what_is_missing_is_said_in_one_line(script, pretrained, tmp_path):
    with pytest.raises(Refusal, match="--initial-checkpoint FILE"):
        script(*STRIPES)
    with pytest.raises(Refusal, match="does not exist"):
        script("--initial-checkpoint", tmp_path / "none.pth", *STRIPES)
    torch.save({"w": torch.zeros(1)}, tmp_path / "bare.pth")
    with pytest.raises(Refusal, match="does not say which model it is of; give --model"):
        script("--initial-checkpoint", tmp_path / "bare.pth", *STRIPES)
    with pytest.raises(Refusal, match="mode 'lin'"):
        script("--initial-checkpoint", pretrained, "--mode", "lin", *STRIPES)
    with pytest.raises(Refusal, match="linear"):
        script("--initial-checkpoint", pretrained, "--mode", "linear", "--model", "convmixer_linear", *STRIPES)
