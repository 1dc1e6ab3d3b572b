"""Attention trained away: the published rule at every epoch, the same end however often stopped, nothing left of it."""

import math

import pytest
import torch
from timm.utils import ModelEmaV3

import archs
from archs.attention.diluted import Diluted
from engine import evaluate, models, transfer
from engine.data import loaders, normalize
from engine.errors import STOPPED, Refusal
from engine.fields import dilution
from engine.folder import checkpoint, store
from engine.run import make_run
from engine.step import make_autocast
from engine.train import train
from tests.engine.test_train import assert_same, result, stop_after

PUBLISHED = {"epochs": 400, "dilute_layers": "0,2,4", "dilute_epochs": 299, "model": "deit_1m", "dataset": "cifar10"}
SMALL = {
    "model": "deit_nano",
    "model_kwargs": {"depth": 3, "dim": 16},
    "train_samples": 330,
    "batch_size": 64,
    "epochs": 5,
    "lr": 2e-3,
    "hflip": 0.5,
    "mixup": 0.2,
    "clip_grad": 1.0,
    "drop_path": 0.2,
    "model_ema": True,
    "model_ema_decay": 0.9,
    "amp": True,
    "dilute_layers": "0,2",
    "dilute_epochs": 3,
}
WAYS = [
    {},
    {"dilute_by": "step", "dilute_sched": "cosine", "dilute_epochs": 2.5},
    {"dilute_layers": "0/2", "dilute_epochs": 2},
]


# --- when


def rule(epoch):
    """The repository's, written three times there (models_v4.py, models_small_timm3_lambda.py, models_shrink.py)."""
    return 1.0 if epoch <= 0 else max(0.0, 1.0 - epoch / 299)


def test_the_published_rule_is_one_of_the_schedules():
    run = make_run(PUBLISHED)
    for epoch in range(400):
        for step in (epoch * 7, epoch * 7 + 6):  # by the epoch, not by the step
            assert dilution.shares(run, step, 7) == dict.fromkeys((0, 2, 4), rule(epoch))
    assert dilution.gone_from(run) == 299 and rule(298) > 0 == rule(299)


@pytest.mark.parametrize("sched", ["linear", "cosine"])
@pytest.mark.parametrize("by", ["epoch", "step"])
@pytest.mark.parametrize("length", [1, 2.5, 2.3333333333333335, 0.1, 3])
@pytest.mark.parametrize("groups", ["0,2", "0/2", "0/2/1"])
def test_every_share_falls_from_one_to_zero_and_groups_take_turns(sched, by, length, groups):
    fields = {**PUBLISHED, "dilute_layers": groups, "dilute_epochs": length, "dilute_by": by, "dilute_sched": sched}
    try:
        run = make_run({**fields, "epochs": 12})
    except Refusal as refusal:
        assert by == "epoch" and (length < 1 or (sched == "cosine" and length == 1)), refusal
        return
    order = [layer for group in dilution.groups(groups) for layer in group]
    seen = [dilution.shares(run, step, 5) for step in range(12 * 5)]
    for layer in order:
        values = [shares[layer] for shares in seen]
        assert values[0] == 1 and values == sorted(values, reverse=True)
    for shares in seen:
        if "/" in groups:  # one at a time
            assert sum(0 < value < 1 for value in shares.values()) <= 1
            assert [shares[layer] for layer in order] == sorted(shares[layer] for layer in order)
    first = dilution.gone_from(run)
    assert not any(seen[first * 5].values()) and any(seen[(first - 1) * 5].values())


def test_shares_have_their_closed_form():
    for epochs in (0.5, 1.0, 2.75):
        assert dilution.share(epochs, 4) == 1 - epochs / 4
        assert dilution.share(epochs, 4, "cosine") == pytest.approx(math.cos(math.pi * epochs / 8) ** 2, abs=1e-15)
    run = make_run({**PUBLISHED, "dilute_by": "step", "dilute_epochs": 4})
    assert dilution.shares(run, 9, 4)[0] == 1 - 9 / 16


@pytest.mark.parametrize("given", ["0, 2/4", [[2, 0], [4]], [[0, 2], 4], "2,0/4"])
def test_layers_have_one_spelling(given):
    run = make_run({**PUBLISHED, "epochs": 5, "dilute_epochs": 2, "dilute_layers": given})
    assert run.dilute_layers == "0,2/4" and run == run.but()
    assert run.signature == make_run({**run.record(), "dilute_layers": "0,2/4"}).signature
    assert make_run({**PUBLISHED, "dilute_layers": 4}).dilute_layers == "4"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"epochs": 299}, "no epoch of 299 is left without attention; give 300 epochs or more"),
        ({"epochs": 30, "dilute_epochs": 10, "dilute_layers": "0/1/2"}, "after 3 groups of 10 no epoch of 30 is left"),
        ({"dilute_epochs": None}, "dilute_layers 0,2,4 needs dilute_epochs"),
        ({"dilute_layers": None}, "dilute_epochs 299.0 does nothing without dilute_layers; leave it out"),
        ({"dilute_layers": "0,6"}, "layer 6 is not among the layers 0 to 5 of deit_1m"),
        ({"dilute_layers": "0,2/0"}, "layer 0 is named twice"),
        ({"dilute_layers": "0-2"}, "'0-2' are no layers; name them as 0,2,4"),
        ({"model_kwargs": {"mlp_layers": [2]}}, "layer 2 of this deit_1m has no attention any more"),
        (
            {"model": "gmlp_1m"},
            "residual of its own, which could go; known: convmixer_*, cyclemlp_*, deit_*, ",
        ),
        ({"best_from": 298}, "there is attention left up to epoch 298; give 299 or more"),
        ({"best_from": 400}, "the last of 400 is 399"),
        ({"dilute_epochs": 0.5}, "dilute_epochs 0.5 by the epoch is 1"),
        ({"dilute_epochs": 2, "dilute_sched": "cosine"}, "dilute_sched cosine does nothing over dilute_epochs 2 by"),
    ],
)
def test_a_mistake_is_one_line(fields, words):
    with pytest.raises(Refusal) as caught:
        make_run({**PUBLISHED, **fields})
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_taken_anyway_has_one_signature():
    run = make_run(PUBLISHED)
    assert run.but(best_from=299) == run != run.but(best_from=300)
    assert make_run({"best_from": 0}) == make_run({}) != make_run({"best_from": 1})


# --- training


@pytest.mark.parametrize("way", WAYS, ids=["published", "cosine by the step", "groups"])
def test_resume_in_the_middle_equals_uninterrupted(how, tmp_path, way):
    run = make_run({**SMALL, **way})
    train(run, tmp_path / "a", how)
    for steps in (2, 9, 8):  # of 25: in epochs 0, 2 and 3
        with pytest.raises(Refusal) as caught:
            train(run, tmp_path / "b", how, stop_after(steps))
        assert caught.value.code == STOPPED
    train(run, tmp_path / "b", how)
    assert_same(result(tmp_path / "a"), result(tmp_path / "b"))


def test_each_step_is_at_its_share_in_the_model_and_its_average(how, tmp_path, monkeypatch):
    run, seen = make_run({**SMALL, "dilute_by": "step"}), []
    update = ModelEmaV3.update

    def note(ema, model, step):
        seen.append([float(m.stages[0][i][0].lambda_) for m in (model, ema.module) for i in (0, 2)])
        assert not isinstance(model.stages[0][1][0], Diluted)
        return update(ema, model, step)

    monkeypatch.setattr(ModelEmaV3, "update", note)
    train(run, tmp_path, how)
    assert seen == [[max(0.0, 1 - step / 5 / 3)] * 4 for step in range(25)]


def test_a_dilution_changes_the_training_from_its_second_epoch_on(how, tmp_path):
    run = make_run(SMALL)
    train(run, tmp_path / "a", how)
    train(run.but(**dict.fromkeys(("dilute_layers", "dilute_epochs"))), tmp_path / "b", how)
    a, b = (store.read_summary(tmp_path / name) for name in "ab")
    assert a[0] == b[0] and all(x["eval_loss"] != y["eval_loss"] for x, y in zip(a[1:], b[1:], strict=True))


def test_nothing_is_left_of_the_attention(how, tmp_path):
    """The weights are those of the end form, say so, load by every way, and give what training evaluated."""
    run = make_run({**SMALL, "amp": False})
    train(run, tmp_path, how)
    last = checkpoint.read(tmp_path / "last.pth.tar")
    assert last["args"]["model_kwargs"] == {"depth": 3, "dim": 16, "mlp_layers": [0, 2]}
    assert last["args"]["dilute_layers"] is None
    model = archs.create("deit_nano", depth=3, dim=16, mlp_layers=[0, 2])
    model.load_state_dict(last["state_dict"], strict=True)
    _, loader, facts = loaders.make_loaders(run, how)
    found = evaluate.evaluate(
        model, loader, normalize.make_prepare(run, facts, torch.device("cpu")), make_autocast(run, torch.device("cpu"))
    )
    assert round(found["loss"], 6) == store.read_summary(tmp_path)[-1]["eval_loss"]
    again = make_run({**last["args"]})  # as validate.py and finetune.py read it
    transfer.load_weights(tmp_path / "last.pth.tar", again, models.create(again, 10, 1), 10, 1, new_head=False)
    costs = store.read_json(tmp_path / "profile.json")
    assert costs["params"] == sum(weight.numel() for weight in model.parameters())
    assert run.rung == "deit_nano depth=3 dim=16 mlp_layers=[0, 2]" == again.rung


def test_the_end_form_gives_the_logits_of_a_share_of_zero():
    torch.manual_seed(0)
    model = archs.create("deit_nano", depth=4).double().eval()
    halves = model.dilute([1, 2])
    x = torch.randn(3, 1, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        for half in halves:
            half.dilute(0.0)
        without = model(x)
        for half in halves:
            half.gone = False  # computed, and weighted by 0
        weighted = model(x)
        final = archs.create("deit_nano", depth=4, mlp_layers=[1, 2]).double().eval()
        final.load_state_dict(models.final_state(model), strict=True)
        assert torch.equal(final(x), without) and torch.equal(weighted, without)


def test_no_weights_with_attention_left_are_the_best(how, tmp_path):
    """Without any attention nothing reaches the class token, so that accuracy falls to chance where it is gone."""
    plain = {key: SMALL[key] for key in ("model", "model_kwargs", "dilute_epochs")}
    run = make_run({**plain, "train_samples": 960, "batch_size": 32, "epochs": 5, "lr": 0.01, "dilute_layers": "0,1,2"})
    train(run, tmp_path, how)
    accuracies = [row["eval_top1"] for row in store.read_summary(tmp_path)]
    assert max(accuracies[:3]) > max(accuracies[3:])
    best, last = (checkpoint.read(tmp_path / name) for name in ("model_best.pth.tar", "last.pth.tar"))
    expected = 3 if accuracies[3] >= accuracies[4] else 4
    assert best["epoch"] == expected and best["state_dict"].keys() == last["state_dict"].keys()
    status = store.read_status(tmp_path)
    assert (status["best_epoch"], status["best_acc1"]) == (expected, accuracies[expected])


def test_a_run_declares_from_when_weights_may_be_the_best(how, tmp_path):
    """Also without dilution."""
    run = make_run({"model": "mixer_nano", "train_samples": 330, "batch_size": 64, "epochs": 3, "best_from": 2})
    with pytest.raises(Refusal):
        train(run, tmp_path, how, stop_after(11))
    assert not (tmp_path / "model_best.pth.tar").exists() and store.read_status(tmp_path).get("best_acc1") is None
    train(run, tmp_path, how)
    assert checkpoint.read(tmp_path / "model_best.pth.tar")["epoch"] == 2


def test_merging_counts_the_layers_that_are_left():
    kwargs = {"depth": 3, "dim": 16, "merge_r": 2, "merge_start": 1}
    with pytest.raises(Refusal, match=r"deit_nano.*: merge_start 1: 1 layers keep their attention"):
        models.preflight(make_run({**SMALL, "model_kwargs": kwargs}))


def test_a_second_dilution_starts_from_the_first(how, tmp_path):
    first = make_run({**SMALL, "dilute_layers": "0"})
    train(first, tmp_path / "a", how)
    second = make_run(
        {
            **SMALL,
            "model_kwargs": {"depth": 3, "dim": 16, "mlp_layers": [0]},
            "dilute_layers": "2",
            "initial_checkpoint": str(tmp_path / "a"),
        }
    )
    train(second, tmp_path / "b", how)
    assert checkpoint.read(tmp_path / "b" / "last.pth.tar")["args"]["model_kwargs"]["mlp_layers"] == [0, 2]
    with pytest.raises(Refusal, match=r"the weights are those of mlp_layers=\[0\], not \[\]; set mlp_layers=\[0\]"):
        train(second.but(model_kwargs={"depth": 3, "dim": 16}), tmp_path / "c", how)


def test_attention_that_is_gone_gets_no_gradient_and_is_not_computed():
    model = archs.create("deit_nano").train()
    (half,) = model.dilute([0])
    called = []
    half.branch.register_forward_hook(lambda *_: called.append(1))
    for lambda_, expected in ((0.5, True), (0.0, False)):
        called.clear()
        half.dilute(lambda_)
        model.zero_grad()
        model(torch.randn(2, 1, 8, 8)).sum().backward()
        assert bool(called) == expected == (half.branch.qkv.weight.grad is not None)
    assert "lambda_" not in "".join(model.state_dict())
    with pytest.raises(ValueError, match=r"lambda 1\.5 is not from 0 to 1"):
        half.dilute(1.5)
