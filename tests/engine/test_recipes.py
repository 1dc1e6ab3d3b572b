"""The recipes that come with the testbed: each is valid, builds its model, and follows the schedule of its paper."""

import argparse
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from engine import optim
from engine.cli.flags import RECIPES, Parser, add_config, add_fields, collect, find_config, split
from engine.data.augment.pipeline import Augmentation
from engine.errors import Refusal
from engine.fields.effects import AUGMENTED
from engine.models import preflight
from engine.run import How, Run, read_yaml

NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))
IMAGENET, IMAGENET21K, CIFAR = 1_281_167, 11_801_680, 50_000


def load(name):
    path = RECIPES / f"{name}.yaml"
    return split(read_yaml(path), str(path))[0]


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_valid_and_builds_its_model(name):
    fields = read_yaml(RECIPES / f"{name}.yaml")
    assert not fields.keys() & How.model_fields.keys(), "a recipe says nothing of the machine"
    run = load(name)
    preflight(run)
    Augmentation(run.img_size, **{key: getattr(run, key) for key in AUGMENTED})


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_says_where_it_is_from(name):
    text = (RECIPES / f"{name}.yaml").read_text()
    header = text[: text.index("\nmodel:")]
    assert all(line.startswith("#") for line in header.splitlines())
    assert all(f"{word}: " in header for word in ("Source", "Result", "Hardware"))


@pytest.mark.parametrize("name", NAMES)
def test_no_key_of_a_recipe_does_nothing(name):
    fields = read_yaml(RECIPES / f"{name}.yaml")
    needs = {"ratio": "scale", "remode": "reprob", "amp_dtype": "amp", "decay_rate": "decay_epochs"}
    assert all(need in fields for key, need in needs.items() if key in fields)
    assert ("decay_epochs" in fields) == (fields["sched"] == "step")
    assert not ("color_jitter" in fields and fields.get("aa") and "imagenet" in name), (
        "timm drops it beside RandAugment"
    )
    # Said although it is the default: what the reader of a recipe looks for. Anything else must change the run.
    said = {"model", "dataset", "epochs", "batch_size", "opt", "lr", "weight_decay", "sched", "mode", "momentum"}
    said |= {"min_lr", "decay_epochs", "decay_rate", "remode"}
    run = load(name)
    idle = [key for key in fields.keys() - said if getattr(run, key) == Run.model_fields[key].default]
    assert not idle


def triangle(share, lr):
    """ConvMixer's own words: np.interp(t, [0, 2E//5, 4E//5, E], [0, lr, lr / 20, 0]), t the end of the step."""
    return float(np.interp(share, [0, 0.4, 0.8, 1], [0, lr, lr / 20, 0]))


def warm(step, warmup, start, peak, then):
    """A linear warm-up, then a function of the steps since."""
    return start + (peak - start) * step / warmup if step < warmup else then(step - warmup)


def deit(step, epochs=300, peak=1e-3, per_epoch=1251, warmup=5):
    steps = (epochs - warmup) * per_epoch
    half = (1 + math.cos(math.pi * min(max(step - warmup * per_epoch, 0) / steps, 1))) / 2
    return warm(step, warmup * per_epoch, 1e-6, peak, lambda _: 1e-5 + (peak - 1e-5) * half)


# name: images, (learning rate at a step of so many in all, by the paper)
PUBLISHED = {
    "scaling_mlps_pretrain": (IMAGENET21K, lambda step, steps: 5e-5),
    "scaling_mlps_finetune": (CIFAR, lambda step, steps: 0.01),
    "scaling_mlps_linear": (CIFAR, lambda step, steps: 0.01),
    "mixer_imagenet": (
        IMAGENET,
        lambda step, steps: warm(
            step, 10_000, 0, 1e-3, lambda t: 1e-3 * (1e-5 + (1 - 1e-5) * (1 - t / (steps - 10_000)))
        ),
    ),
    "resmlp_imagenet": (IMAGENET, lambda step, steps: deit(step, epochs=400, peak=5e-3)),
    "gmlp_imagenet": (
        IMAGENET,
        lambda step, steps: warm(
            step, 10_000, 0, 1e-3, lambda t: 1e-3 * (1 + math.cos(math.pi * t / (steps - 10_000))) / 2
        ),
    ),
    # 310 epochs, of which the last 10 stay at the least rate.
    "vip_imagenet": (IMAGENET, lambda step, steps: deit(step, peak=2e-3, per_epoch=625, warmup=20)),
    "cyclemlp_imagenet": (IMAGENET, lambda step, steps: deit(step)),
    "convmixer_imagenet": (IMAGENET, lambda step, steps: triangle((step + 1) / steps, 0.01)),
    "convmixer_cifar10_25": (CIFAR, lambda step, steps: triangle((step + 1) / steps, 0.05)),
    "convmixer_cifar10_100": (CIFAR, lambda step, steps: triangle((step + 1) / steps, 0.05)),
    "deit_imagenet": (IMAGENET, lambda step, steps: deit(step)),
    "deit_dilution_imagenet": (IMAGENET, lambda step, steps: deit(step, epochs=400, peak=2e-3, per_epoch=625)),
    "deit_finetune_cifar10": (CIFAR, lambda step, steps: deit(step, epochs=1000, peak=0.01, per_epoch=65)),
    "resmlp_finetune_cifar10": (
        CIFAR,
        lambda step, steps: warm(step, 325, 1e-6, 5e-6, lambda t: 5e-6 * (1 + math.cos(math.pi * t / (995 * 65))) / 2),
    ),
    "mixer_finetune_cifar10": (
        CIFAR,
        lambda step, steps: warm(step, 500, 0, 0.03, lambda t: 0.03 * (1 + math.cos(math.pi * t / (steps - 500))) / 2),
    ),
    "rank_pruning_two": (48_000, lambda step, steps: 5e-3),
    "rank_pruning_three": (48_000, lambda step, steps: 5e-3 * 0.1 ** (step // (93 * 30))),
    "rank_pruning_six": (40_000, lambda step, steps: 1e-4 * 0.1 ** (step // (78 * 30))),
    "rank_pruning_twelve": (40_000, lambda step, steps: 1e-4 * 0.1 ** (step // (78 * 30))),
    "common_cifar10": (
        CIFAR,
        lambda step, steps: warm(
            step, 0.05 * steps, 0, 1e-3, lambda t: 1e-3 * (1 + math.cos(math.pi * t / (0.95 * steps))) / 2
        ),
    ),
}


@pytest.mark.parametrize("name", NAMES)
def test_the_learning_rate_is_the_published_one_at_every_step(name):
    run = load(name)
    images, published = PUBLISHED[name]
    per_epoch = images // run.batch_size
    steps = run.epochs * per_epoch
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=run.lr)
    schedule = optim.make_schedule(run, optimizer, per_epoch)
    shares = (0, 0.001, 0.01, 0.05, 0.1, 0.15, 0.3, 0.4, 0.5, 0.64, 0.7, 0.8, 0.9, 0.95, 0.97, 0.99)
    for step in [round(share * steps) for share in shares] + [steps - 1]:
        schedule.step_update(step)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(published(step, steps), rel=1e-6, abs=1e-12), step


def test_the_triangle_is_convmixers():
    run = load("convmixer_cifar10_25")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=run.lr)
    schedule = optim.make_schedule(run, optimizer, 97)
    rates = {}
    for epochs in (1, 10, 20, 21, 25):
        schedule.step_update(epochs * 97 - 1)  # the last step of that epoch
        rates[epochs] = optimizer.param_groups[0]["lr"]
    # As its README prints them at the end of each epoch.
    assert rates == pytest.approx({1: 0.005, 10: 0.05, 20: 0.0025, 21: 0.002, 25: 0}, abs=1e-15)


def test_mixers_converted_numbers_are_big_visions_arithmetic():
    """A sum over classes clipped at 1 with decay beside lr, as there; a mean with our numbers, as here."""
    run = load("mixer_imagenet")
    torch.manual_seed(0)
    x, y = torch.randn(16, 5, dtype=torch.float64), torch.rand(16, 1000, dtype=torch.float64).round()
    weight = torch.randn(1000, 5, dtype=torch.float64)

    theirs, m, v = weight.clone().requires_grad_(), torch.zeros_like(weight), torch.zeros_like(weight)
    model = nn.Linear(5, 1000, bias=False, dtype=torch.float64)
    model.weight.data.copy_(weight)
    ours = optim.make_optimizer(run, model)
    loss_of = optim.make_loss(run)
    for t in range(1, 4):
        loss = F.binary_cross_entropy_with_logits(x @ theirs.T, y, reduction="none").sum(1).mean()
        (grad,) = torch.autograd.grad(loss, theirs)
        grad = grad * min(1.0, 1.0 / grad.norm())
        m, v = 0.9 * m + 0.1 * grad, 0.999 * v + 0.001 * grad**2
        step = (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
        theirs = (theirs - 1e-3 * step - 1e-4 * theirs).detach().requires_grad_()

        ours.zero_grad()
        loss_of(model(x), y).backward()
        nn.utils.clip_grad_norm_(model.parameters(), run.clip_grad)
        ours.step()
    # torch's clipping adds 1e-6 to the norm, and its decay comes before the step: 1e-4 of 1e-3.
    torch.testing.assert_close(model.weight, theirs, rtol=0, atol=3e-6)
    assert (model.weight - weight).abs().max() > 1e-3


def parse(*words):
    parser = Parser(prog="scripts/train.py")
    add_config(parser)
    add_fields(parser, Run)
    add_fields(parser, How)
    return collect(parser.parse(words))[0]


def test_a_recipe_is_found_by_name_and_flags_win():
    assert parse("-c", "common_cifar10") == load("common_cifar10")
    run = parse("-c", "common_cifar10", "--lr", "3e-3", "--model", "bmlp_1m")
    assert run == load("common_cifar10").but(lr=3e-3, model="bmlp_1m")


@pytest.mark.parametrize("word, hint", [("mixer-imagnet", "did you mean 'mixer_imagenet'?"), ("zzz", "known: common_")])
def test_an_unknown_recipe_names_the_nearest_and_lists_all(word, hint):
    with pytest.raises(Refusal) as caught:
        parse("-c", word)
    assert hint in str(caught.value) and all(name in str(caught.value) for name in NAMES)


def test_a_file_of_the_users_is_not_taken_for_a_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deit_imagenet").write_text("lr: 0.5\n")
    assert parse("-c", "./deit_imagenet").lr == 0.5
    assert parse("-c", "deit_imagenet").lr == 1e-3
    assert find_config("r.yaml").name == "r.yaml"


@pytest.mark.parametrize("name", NAMES)
def test_a_misspelt_key_names_file_line_and_the_key_meant(name, tmp_path):
    lines = (RECIPES / f"{name}.yaml").read_text().splitlines()
    number = next(number for number, line in enumerate(lines, 1) if line.startswith("weight_decay:"))
    lines[number - 1] = lines[number - 1].replace("weight_decay", "wieght_decay")
    path = tmp_path / f"{name}.yaml"
    path.write_text("\n".join(lines))
    with pytest.raises(Refusal) as caught:
        collect(argparse.Namespace(**vars(SimpleNamespace(config=path))))
    assert f"{name}.yaml line {number}: unknown key 'wieght_decay'; did you mean 'weight_decay'?" in str(caught.value)
