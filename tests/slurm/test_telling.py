"""What tells two runs apart, and how far an epoch is, where there is no terminal."""

import pytest

from engine.cli import console
from engine.errors import Refusal
from engine.fields import rungs
from engine.folder import store
from engine.run import make_run
from slurm.define import asked
from slurm.define.sweep import Sweep
from slurm.queue import progress, states

RATES = [make_run({"model": "mlp_nano", "lr": lr, "seed": seed}) for lr in (1e-3, 4e-3) for seed in (0, 1)]
STATUS = {"state": store.RUNNING, "owner": None, "epoch": 3, "epochs": 20, "step": 70, "steps": 400, "note": ""}


def test_runs_of_one_model_are_told_apart_by_what_differs():
    called = rungs.names(RATES)
    assert [called[run.signature] for run in RATES] == ["mlp_nano lr=0.001"] * 2 + ["mlp_nano lr=0.004"] * 2
    assert set(rungs.names(RATES[:2]).values()) == {"mlp_nano"}, "seeds are no recipe"
    table = states.table(Sweep("rates", "", tuple(RATES)), [dict(STATUS) for _ in RATES], sort="run")
    assert list(table.columns[1].cells) and [str(cell) for cell in table.columns[1].cells] == [
        f"mlp_nano lr={lr} s{seed}" for lr in ("0.001", "0.004") for seed in (0, 1)
    ]


def test_a_log_says_how_far_an_epoch_is(capsys):
    """70 of 400 steps, 20 to an epoch, are three epochs and a half."""
    assert progress.step_of(STATUS) == "3/20 + 50 %"
    assert progress.step_of(STATUS | {"step": 60}) == "3/20" == progress.step_of({"epoch": 3, "epochs": 20})
    view = progress.View(Sweep("rates", "", tuple(RATES)), 1)
    view.show([dict(STATUS) for _ in RATES])
    assert "mlp_nano lr=0.004 s1 3/20 + 50 %" in capsys.readouterr().out


def test_a_training_without_a_terminal_has_a_line_now_and_then(monkeypatch):
    said, clock = [], [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: clock[0])
    tell = console.lines(said.append, every=15.0)
    for clock[0] in (1.0, 14.0, 15.5, 16.0, 31.0):
        tell({"steps": 400, "step": int(clock[0]), "epoch": 0, "epochs": 20, "images_per_s": 1234.5})
    assert [line.partition("  ")[0] for line in said] == ["step 15/400", "step 31/400"]
    assert "epoch 0/20  1,234 images/s" in said[0]
    tell({"state": "running"})
    assert len(said) == 2, "nothing before the first step"


def test_labels_of_a_sweep_name_its_rungs_and_differ():
    assert asked.labels({"mlp_nano": "flat"}, RATES[:2]) == {"mlp_nano": "flat"}
    with pytest.raises(Refusal, match="LABELS: unknown rung 'mlp_nan'; did you mean 'mlp_nano"):
        asked.labels({"mlp_nan": "flat"}, RATES[:2])
    with pytest.raises(Refusal, match="LABELS: two rungs are called 'flat'"):
        asked.labels({"mlp_nano lr=0.001": "flat", "mlp_nano lr=0.004": "flat"}, RATES)
    with pytest.raises(Refusal, match="LABELS must map rungs to what they are called"):
        asked.labels(["mlp_nano"], RATES)
