"""Weights kept on the way: those of a run that ends there, the same however often it was stopped."""

import json
import logging

import pytest
import torch

import archs
from engine.cli.flags import Parser, add_fields, collect
from engine.cli.repro import command
from engine.errors import STOPPED, USAGE, Refusal
from engine.folder import checkpoint, store
from engine.run import How, Run, make_how, make_run
from engine.train import train
from tests.engine.test_train import stop_after


def weights(folder) -> dict[str, dict]:
    return {path.name: checkpoint.read(path) for path in folder.glob("weights-epoch-*.pth.tar")}


def assert_equal(a: dict, b: dict) -> None:
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def keeping(how, *epochs):
    return how.model_copy(update={"keep_epochs": epochs})


def test_they_are_those_of_the_epoch_and_of_the_start(tiny, how, tmp_path):
    run = tiny.but(sched="constant", warmup_epochs=0.0)  # so that a shorter run is the beginning of a longer one
    train(run, tmp_path / "long", keeping(how, 3, 0, 1))
    found = weights(tmp_path / "long")
    assert sorted(found) == [f"weights-epoch-{epoch}.pth.tar" for epoch in (0, 1, 3)]
    last = checkpoint.read(tmp_path / "long" / "last.pth.tar")
    assert_equal(found["weights-epoch-3.pth.tar"]["state_dict"], last["state_dict"])
    train(run.but(epochs=1), tmp_path / "short", how)
    short = checkpoint.read(tmp_path / "short" / "last.pth.tar")
    one = found["weights-epoch-1.pth.tar"]
    assert_equal(one["state_dict"], short["state_dict"])
    assert (one["epoch"], one["metric"], one["arch"]) == (0, short["metric"], run.model)
    assert not weights(tmp_path / "short") and "keep_epochs" not in store.read_json(tmp_path / "short" / "env.json")
    # A run that starts from epoch 0 of the other starts where that one did.
    from engine import models, rng

    rng.seed_everything(run.seed, "init")
    assert_equal(found["weights-epoch-0.pth.tar"]["state_dict"], models.create(run, 10, 1).state_dict())


@pytest.mark.parametrize("steps", [1, 5, 6, 14])
def test_a_run_that_resumes_keeps_the_same_ones_whatever_is_asked_then(tiny, how, tmp_path, caplog, steps):
    run = tiny.but(epochs=3)
    train(run, tmp_path / "whole", keeping(how, 0, 1, 3))
    with pytest.raises(Refusal) as refusal:
        train(run, tmp_path / "run", keeping(how, 0, 1, 3), stop_after(steps))
    assert refusal.value.code == STOPPED
    with caplog.at_level(logging.WARNING):
        train(run, tmp_path / "run", keeping(how, 2) if steps == 6 else how)
    assert ("began with --keep-epochs 0 1 3 and goes on so" in caplog.text) == (steps == 6)
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "run")
    assert first.keys() == second.keys() and len(first) == 3
    for name in first:
        assert_equal(first[name]["state_dict"], second[name]["state_dict"])


def test_what_is_beyond_the_end_is_said_to_be(tiny, how, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        train(tiny.but(epochs=1, warmup_epochs=0.0), tmp_path, keeping(how, 1, 4))
    assert "ends after 1 epochs: --keep-epochs 4 is never reached" in caplog.text
    assert list(weights(tmp_path)) == ["weights-epoch-1.pth.tar"]


def test_weights_with_attention_that_is_on_its_way_out_are_refused(how, tmp_path):
    diluting = {"dilute_layers": "0", "dilute_epochs": 1, "epochs": 3, "train_samples": 200, "batch_size": 100}
    run = make_run({"model": "deit_nano", **diluting})
    with pytest.raises(Refusal, match=r"keep_epochs 0: there is attention left .* give 1 or more"):
        train(run, tmp_path, keeping(how, 0, 2))
    train(run, tmp_path, keeping(how, 1, 3))
    after = checkpoint.read(tmp_path / "weights-epoch-1.pth.tar")
    assert after["args"]["model_kwargs"] == {"mlp_layers": [0]}
    model = archs.create("deit_nano", img_size=8, in_chans=1, num_classes=10, mlp_layers=[0])
    model.load_state_dict(after["state_dict"])


def test_it_is_a_flag_that_a_command_repeats():
    parser = Parser()
    add_fields(parser, Run)
    add_fields(parser, How)
    run, how = collect(parser.parse(["--keep-epochs", "0", "1", "10", "--seed", "3"]))
    assert how.keep_epochs == (0, 1, 10) and run.seed == 3
    fields = json.loads(how.model_dump_json(exclude_unset=True))
    assert make_how(fields) == how and "--keep-epochs 0 1 10" in command(run, fields)
    with pytest.raises(Refusal, match="keep_epochs") as refusal:
        make_how({"keep_epochs": [-1]})
    assert refusal.value.code == USAGE
