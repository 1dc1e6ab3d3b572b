"""Layers that learn what they gave with their mixing: closed forms, only they move, any stop, then the task."""

import pytest
import torch

import archs
from analysis.probes.receptive_field import randomise
from archs.attention.distilled import Distilled
from engine import models
from engine.data import loaders, normalize
from engine.errors import CHECKPOINT, STOPPED, Refusal
from engine.fields import dilution
from engine.folder import checkpoint, store
from engine.run import make_run
from engine.train import train
from slurm.define import removal
from tests.engine.test_train import assert_same, result, stop_after

KWARGS = {"depth": 3, "dim": 16}
SMALL = {"model": "deit_nano", "train_samples": 200, "batch_size": 64, "epochs": 3, "lr": 2e-3, "distil_epochs": 1}
LESS = {**KWARGS, "mlp_layers": [0, 2], "replacement": "skip"}
PAST = {"initial_checkpoint": "x.pth", "initial_identity": "sha256:0123456789abcdef"}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Weights of a whole model of which every layer counts."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("source") / "whole.pth"
    torch.save(randomise(archs.create("deit_nano", **KWARGS)).state_dict(), path)
    return path


def pair(name, replacement="skip", change=lambda teacher: None, **given):
    """A teacher and a student that starts from it, in float64."""
    torch.manual_seed(1)
    teacher = randomise(archs.create(name, depth=3, **given)).double().eval()
    with torch.no_grad():
        change(teacher)
    student = archs.create(name, depth=3, mlp_layers=[0, 2], replacement=replacement, **given).double()
    state = {key: value for key, value in teacher.state_dict().items() if key in student.state_dict()}
    student.load_state_dict(state)
    return Distilled(student, teacher, [0, 2])


def attends(number):
    """Attention of layers 0 and 2 that adds the same number to each channel of each token, whatever it reads."""

    def change(teacher):
        for i in (0, 2):
            teacher.stages[0][i][0].branch.proj.weight.zero_()
            teacher.stages[0][i][0].branch.proj.bias.fill_(number)

    return change


def images(count=5):
    torch.manual_seed(2)
    return torch.randn(count, 1, 8, 8, dtype=torch.float64)


# --- what is measured


@torch.no_grad()
@pytest.mark.parametrize("name", ["deit_nano", "mixer_nano"])
@pytest.mark.parametrize("replacement, factor", [("skip", 1), ("double", 2)])
def test_the_error_is_its_closed_form(name, replacement, factor):
    distilled, x_BCHW = pair(name, replacement), images()
    z, expected = distilled.teacher.embed(x_BCHW), []
    for i, layer in enumerate(distilled.teacher.stages[0]):
        mixed = layer[0](z)
        wanted, made = mixed + layer[1].branch(layer[1].norm(mixed)), layer[1](factor * z)
        if i != 1:
            expected.append([(made[b] - wanted[b]).norm() ** 2 / (wanted[b] - z[b]).norm() ** 2 for b in range(5)])
        z = wanted
    expected = torch.tensor(expected, dtype=torch.float64).T
    assert expected.min() > 1e-3 and distilled.errors(x_BCHW).allclose(expected, rtol=1e-8)
    assert distilled(x_BCHW).allclose(expected.mean(1), rtol=1e-8)
    distilled.learning = False
    assert torch.equal(distilled(x_BCHW), distilled.student(x_BCHW))


def test_attention_that_adds_nothing_leaves_nothing_to_learn():
    distilled = pair("deit_nano", change=attends(0.0))
    assert distilled(images()).max() == 0


def test_attention_that_is_the_identity_of_its_layers_input_leaves_nothing_to_learn():
    distilled = pair("deit_nano", "double")
    halves = distilled.teacher.dilute([0, 2])
    for half in halves:
        half.dilute(0.0)
    assert distilled(images()).max() == 0


def test_attention_that_is_a_constant_is_one_bias():
    """The same number in all channels is nothing to the norm behind it, so that the MLP's last bias can be it."""
    distilled, x_BCHW = pair("deit_nano", change=attends(0.5)), images()
    with torch.no_grad():
        found, taught = distilled.errors(x_BCHW), distilled.taught(x_BCHW)
        for column, (_, given, wanted) in enumerate(taught):
            moved = (wanted - given).flatten(1).square().sum(1)
            assert found[:, column].allclose(0.25 * given[0].numel() / moved, rtol=1e-4)  # but for the norm's eps
        for i in (0, 2):
            distilled.student.stages[0][i][1].branch.fc2.bias.add_(0.5)
        assert distilled(x_BCHW).max() < 1e-9


def test_layers_learn_without_stochastic_depth():
    torch.manual_seed(3)
    distilled = pair("deit_nano", drop_path=0.5).train()
    x_BCHW = images()
    assert torch.equal(distilled(x_BCHW), distilled(x_BCHW)) and distilled.student.stages[0][2].training


# --- training


def test_a_constant_is_distilled_to_nothing(how, tmp_path):
    torch.manual_seed(0)
    whole = randomise(archs.create("deit_nano", **KWARGS))
    with torch.no_grad():
        attends(0.5)(whole)
    torch.save(whole.state_dict(), tmp_path / "whole.pth")
    fields = {**SMALL, "batch_size": 20, "epochs": 13, "distil_epochs": 12, "lr": 0.02, "weight_decay": 0}
    start = {"model_kwargs": LESS, "initial_checkpoint": str(tmp_path / "whole.pth")}
    train(make_run({**fields, **start}), tmp_path / "run", how.model_copy(update={"val_interval": 13}))
    losses = [row["train_loss"] for row in store.read_summary(tmp_path / "run")]
    assert losses[11] < 1e-3 < 0.01 < losses[0] and losses[12] > 0.1, losses  # the last is the task's


def test_the_first_step_is_that_of_the_error_and_moves_the_layers_alone(how, file, tmp_path):
    plain = {"opt": "momentum", "momentum": 0, "weight_decay": 0, "sched": "constant", "lr": 0.05}
    fields = {**SMALL, **plain, "train_samples": 64, "epochs": 2, "model_kwargs": LESS}
    run = make_run({**fields, "initial_checkpoint": str(file)})
    train(run, tmp_path, how.model_copy(update={"keep_epochs": (0, 1)}))
    before, after = (checkpoint.read(tmp_path / f"weights-epoch-{n}.pth.tar")["state_dict"] for n in (0, 1))
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved == {key for key in before if key.startswith(("stages.0.0.1.", "stages.0.2.1."))}
    loader, _, facts = loaders.make_loaders(run, how)
    x_BCHW = normalize.make_prepare(run, facts, torch.device("cpu"))(next(loader.epoch(0, 0))[0])
    teacher, layers = models.create_teacher(run, 10, 1)
    student = models.create(run, 10, 1)
    student.load_state_dict(before)
    assert layers == [0, 2]
    z, losses = teacher.embed(x_BCHW), []
    for i, layer in enumerate(teacher.stages[0]):
        wanted = layer(z)
        if i in layers:
            off, all_ = student.stages[0][i](z) - wanted, wanted - z
            losses.append((off.square().sum((1, 2)) / all_.square().sum((1, 2))).mean())
        z = wanted.detach()
    loss = sum(losses) / 2
    loss.backward()
    assert store.read_summary(tmp_path)[0]["train_loss"] == pytest.approx(loss.item(), abs=2e-6)
    for key, weight in student.named_parameters():
        if key in moved:
            assert (weight - 0.05 * weight.grad).allclose(after[key], atol=1e-6), key


@pytest.mark.parametrize(
    "way", [{"opt": "momentum", "lr": 0.01}, {"distil_epochs": 1.5, "amp": True, "mixup": 0.2, "model_ema": True}]
)
def test_resume_in_the_middle_equals_uninterrupted(how, file, tmp_path, way):
    """Steps of 3 epochs of 3: inside of the distillation, at its end, after it."""
    more = {"clip_grad": 1.0, "drop_path": 0.2, "hflip": 0.5, "initial_checkpoint": str(file)}
    run = make_run({**SMALL, **more, "model_kwargs": LESS, **way})
    train(run, tmp_path / "a", how)
    for steps in (2, 1, 2):
        with pytest.raises(Refusal) as caught:
            train(run, tmp_path / "b", how, stop_after(steps))
        assert caught.value.code == STOPPED
    train(run, tmp_path / "b", how)
    assert_same(result(tmp_path / "a"), result(tmp_path / "b"))


def test_afterwards_it_is_a_run_like_any_other(how, file, tmp_path):
    run = make_run({**SMALL, "model_kwargs": LESS, "initial_checkpoint": str(file)})
    train(run, tmp_path, how)
    last = checkpoint.read(tmp_path / "last.pth.tar")
    model = archs.create("deit_nano", **LESS)
    model.load_state_dict(last["state_dict"], strict=True)
    assert run.rung == "deit_nano depth=3 dim=16 mlp_layers=[0, 2] replacement=skip"
    assert store.read_json(tmp_path / "profile.json")["params"] == sum(w.numel() for w in model.parameters())
    assert store.read_status(tmp_path)["mfu"] is None  # the cost of a step changes


def test_a_second_removal_learns_from_the_first(how, file, tmp_path):
    first = make_run({**SMALL, "model_kwargs": {**LESS, "mlp_layers": [0]}, "initial_checkpoint": str(file)})
    train(first, tmp_path / "a", how)
    second = make_run({**SMALL, "model_kwargs": LESS, "initial_checkpoint": str(tmp_path / "a")})
    teacher, layers = models.create_teacher(second, 10, 1)
    assert layers == [2] and [hasattr(layer[0], "branch") for layer in teacher.stages[0]] == [False, True, True]
    train(second, tmp_path / "b", how)
    third = second.but(initial_checkpoint=str(tmp_path / "b"))
    with pytest.raises(Refusal, match=r"no mixing in layers \[0, 2\] either; leave out distil_epochs") as caught:
        train(third, tmp_path / "c", how)
    assert caught.value.code == CHECKPOINT


def test_the_study_distils_on_the_budget_of_all_ways(file):
    source = make_run({"model": "deit_nano", "model_kwargs": KWARGS, "seed": 2})
    budget = {"epochs": 4, "lr": 1e-3}
    made = {way: removal.start(source, (0, 2), way, budget, 3, 1) for way in ("drop", "distil")}
    assert made["distil"] == made["drop"].but(distil_epochs=1) != made["drop"]
    assert [removal.way_of(run) for run in made.values()] == ["drop", "distil"]
    assert dilution.distil_steps(made["distil"], 10) == 10 and dilution.distil_steps(made["drop"], 10) == 0


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"initial_checkpoint": None}, "distil_epochs 1.0 does nothing without initial_checkpoint in mode full"),
        ({"mode": "linear"}, "distil_epochs 1.0 does nothing without initial_checkpoint in mode full"),
        ({"model_kwargs": {}}, "distil_epochs 1: deit_nano has lost no mixing that its layers could learn; name them"),
        ({"model": "gmlp_nano", "model_kwargs": {}}, "gmlp_nano has lost no mixing"),
        ({"model_kwargs": {"mlp_layers": [0], "merge_r": 2}}, "leave out merge_r"),
        ({"dilute_layers": "1", "dilute_epochs": 1}, "dilute_layers is another way to lose the mixing of layers"),
        ({"model": "resmlp_nano", "penalty": "distance", "penalty_weight": 0.1}, "weights that are to stand still"),
        ({"distil_epochs": 2.5}, "no epoch of 3 is left to learn the task; give 4 epochs or more"),
    ],
)
def test_a_mistake_is_one_line(fields, words):
    own = {} if fields.get("initial_checkpoint", "x") is None else PAST
    with pytest.raises(Refusal) as caught:
        make_run({**SMALL, "model_kwargs": {"mlp_layers": [0]}, **own, **fields})
    assert words in str(caught.value) and "\n" not in str(caught.value)
