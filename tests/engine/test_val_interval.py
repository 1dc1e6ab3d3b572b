"""Evaluating less often changes no weight and no number of record: what was not evaluated is empty, not made up."""

import csv
import itertools
import json
import math

import numpy as np
import pytest
import torch

from engine.data import beton
from engine.data.loaders import make_loaders
from engine.data.normalize import make_prepare
from engine.errors import STOPPED, USAGE, Refusal
from engine.evaluate import evaluate, predict
from engine.folder import store
from engine.models import create
from engine.run import make_how
from engine.step import make_autocast
from engine.train import train
from tests.oracles import MemoryLoader

CPU = torch.device("cpu")
CELLS = ("eval_loss", "eval_top1", "eval_top5")


def stop_after(steps):
    count = iter(range(1, 10**9))
    return lambda: STOPPED if next(count) >= steps else 0


def rows(folder):
    with (folder / "summary.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder, name="last"):
    return torch.load(folder / f"{name}.pth.tar", weights_only=True)


def assert_same_weights(first, second):
    assert all(map(torch.equal, first["state_dict"].values(), second["state_dict"].values()))


@pytest.fixture(scope="module")
def changed(digits):
    """Make the How of these tests with other options."""
    return lambda **fields: make_how({"data_dir": digits, "threads": 1, "log_interval": 1, **fields})


@pytest.fixture
def run(tiny):
    """Whose accuracy moves from epoch to epoch."""
    return tiny.but(epochs=5, lr=0.02, model_ema=False, model_ema_decay=0.999)


@pytest.fixture
def every(run, how, tmp_path):
    """The same run, evaluated after every epoch."""
    train(run, tmp_path / "every", how)
    return tmp_path / "every"


@pytest.mark.parametrize("samples", [0, 70])
def test_epochs_in_between_are_empty_and_all_else_is_the_same(run, changed, every, tmp_path, samples):
    folder = tmp_path / "less"
    train(run, folder, changed(val_interval=2, val_samples=samples))
    expected = rows(every)
    for epoch in (0, 2):
        expected[epoch] |= dict.fromkeys(CELLS, "")
    assert rows(folder) == expected and [*rows(folder)[0]] == [*rows(every)[0]]
    assert_same_weights(weights(folder), weights(every))
    assert len({row["eval_top1"] for row in rows(every)}) > 3
    whole = {int(row["epoch"]): float(row["eval_top1"]) for row in expected if row["eval_top1"]}
    assert sorted(whole) == [1, 3, 4]
    best = max(whole, key=whole.get)
    status, kept = store.read_status(folder), weights(folder, "model_best")
    assert (status["acc1"], status["best_acc1"], status["best_epoch"]) == (whole[4], whole[best], best)
    assert (kept["epoch"], kept["metric"]) == (best, whole[best])
    read = store.read_summary(folder)
    assert [math.isnan(row["eval_loss"]) for row in read] == [True, False, True, False, False]
    looks = [line for line in lines(folder) if "val_samples" in line]
    assert [line for line in lines(folder) if "val_samples" not in line] == lines(every)
    assert [(look["epoch"], look["step"], look["val_samples"]) for look in looks] == (
        [(0, 5, 70), (2, 15, 70)] if samples else []
    )
    assert all(look["sample_top1"] == round(100 * round(0.7 * look["sample_top1"]) / 70, 4) for look in looks)


@pytest.mark.parametrize("steps", [5, 6, 15, 25])
def test_a_run_that_was_stopped_ends_the_same(run, changed, tmp_path, steps):
    """At the last step of an epoch too, where the look at a part is still to come and must not be told twice."""
    how = changed(val_interval=3, val_samples=70, checkpoint_interval=5)
    train(run, tmp_path / "a", how)
    with pytest.raises(Refusal):
        train(run, tmp_path / "b", how, stop_after(steps))
    train(run, tmp_path / "b", how)
    for name in ("summary.csv", "metrics.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    for name in ("last", "model_best"):
        assert_same_weights(weights(tmp_path / "a", name), weights(tmp_path / "b", name))


def test_it_may_go_on_evaluating_more_or_less_often(run, how, changed, every, tmp_path):
    """What was evaluated stays, and what was not stays empty; the rows of record are those of every epoch."""
    folder = tmp_path / "mixed"
    for option, steps in ((changed(val_interval=9), 7), (how, 7), (changed(val_interval=9, val_samples=70), 99)):
        if steps < 99:
            with pytest.raises(Refusal):
                train(run, folder, option, stop_after(steps))
        else:
            train(run, folder, option)
    expected = rows(every)
    for epoch in (0, 2, 3):
        expected[epoch] |= dict.fromkeys(CELLS, "")
    assert rows(folder) == expected
    assert_same_weights(weights(folder), weights(every))
    assert store.read_status(folder)["acc1"] == store.read_status(every)["acc1"]


def test_until_the_first_whole_evaluation_there_is_no_accuracy(run, changed, tmp_path):
    for steps in (12, 1):  # an attempt says where it stands as it begins
        with pytest.raises(Refusal):
            train(run, tmp_path, changed(val_interval=5, val_samples=70), stop_after(steps))
    status = store.read_status(tmp_path)
    assert (status["epoch"], status["acc1"], status["best_acc1"], status["best_epoch"]) == (2, None, None, None)
    assert not (tmp_path / "model_best.pth.tar").exists()


def test_a_part_is_scored_as_its_images_are_among_all(run, how):
    """Against the predictions of all images, in order, at the places of the fixed shuffle."""
    run = run.but(amp=False)  # without ties
    _, val, facts = make_loaders(run, how)
    torch.manual_seed(0)
    model = create(run, 10, 1)
    torch.nn.init.normal_(model.head.weight)
    prepare, autocast = make_prepare(run, facts, CPU), make_autocast(run, CPU)
    logp_NC, labels = predict(model, val, prepare, autocast)
    part = val.part(70)
    chosen = part.indices
    assert len(set(chosen.tolist())) == 70 and (np.diff(chosen) > 0).all() and chosen.max() > 400
    found = evaluate(model, part, prepare, autocast)
    assert found["loss"] == pytest.approx(-logp_NC[chosen, labels[chosen]].mean(), rel=1e-5)
    assert found["top1"] == pytest.approx(100 * (logp_NC[chosen].argmax(1) == labels[chosen]).mean())
    assert evaluate(model, val, prepare, autocast)["top1"] == pytest.approx(100 * (logp_NC.argmax(1) == labels).mean())
    assert set(val.part(20).indices) < set(chosen) and val.part(501).indices.tolist() == list(range(500))
    assert val.part(501).total == 500
    assert (val.total, val.whole, part.total, part.whole) == (500, 500, 70, 500)


@pytest.mark.parametrize("world", [2, 3, 7])
def test_processes_share_a_part(run, how, world):
    """Together they have its images, each once; where it has fewer images than there are processes, some have none."""
    _, val, _ = make_loaders(run, how)
    path = beton.path_of("digits", "val", 8, how.data_dir)
    for count in (70, 2):
        alone = val.part(count).indices.tolist()
        shares = [MemoryLoader(path, 64, val.augmentation, part=(rank, world)).part(count) for rank in range(world)]
        assert list(itertools.chain(*(share.indices.tolist() for share in shares))) == alone
        assert [share.num_samples for share in shares] == [len(share.indices) for share in shares]
        assert {share.total for share in shares} == {count}


def test_what_cannot_be_meant_is_refused(changed):
    with pytest.raises(Refusal, match="val_samples 70 is for the epochs between two evaluations") as refusal:
        changed(val_samples=70)
    assert refusal.value.code == USAGE
