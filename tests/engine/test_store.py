"""JSON in a run's folder that is not what we write, and commands that are refused before a folder is there."""

import importlib
import logging
import math
import sys

import pytest

from analysis.bias import probe_table
from analysis.compare import frames
from engine.errors import CHECKPOINT, Refusal
from engine.folder import lease, store
from engine.folder.store import ROOT
from tests import warm

ESTIMATE = '{"values": {"acc": {"value": "x"}}}'


@pytest.mark.parametrize(
    "name, text, fault",
    [
        ("status.json", "[]", "it holds no object"),
        ("status.json", "null", "it holds no object"),
        ("status.json", "{", "it is no JSON"),
        ("status.json", "[" * 100_000, "it is no JSON"),
        ("status.json", '{"epoch": 2}', "it has no state"),
        ("status.json", '{"state": "ready"}', 'state is "ready", not a state'),
        ("status.json", '{"state": ["done"]}', r'state is \["done"\], not a state'),
        ("status.json", '{"state": "done", "acc1": "97"}', 'acc1 is "97", not a number'),
        ("status.json", '{"state": "done", "seconds": true}', "seconds is true, not a number"),
        ("status.json", '{"state": "failed", "error": {}}', "error is {}, not a text"),
        ("profile.json", '{"flops": null}', "flops is null, not a count"),
        ("env.json", "[1]", "it holds no object"),
        ("env.json", '{"threads": "4"}', 'threads is "4", not a count'),
        ("probes/shift.json", '{"values": [1]}', "its values are not what a probe writes"),
        ("probes/shift.json", '{"values": {"acc": 1}}', "its values are not what a probe writes"),
        ("probes/shift.json", ESTIMATE, "its values are not what a probe writes"),
    ],
)
def test_json_of_another_shape_is_one_line(tmp_path, name, text, fault):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    with pytest.raises(Refusal, match=rf"{name} is damaged \({fault}\); remove it and repeat the command") as caught:
        store.read_json(path)
    assert caught.value.code == CHECKPOINT and "\n" not in str(caught.value)


def test_keys_of_other_versions_are_no_fault(tmp_path):
    for name, text in (("status.json", '{"state": "done", "new": []}'), ("profile.json", "{}"), ("env.json", "{}")):
        (tmp_path / name).write_text(text)
        assert store.read_json(tmp_path / name) == store.read_or_warn(tmp_path / name)
    assert store.read_json(tmp_path / "nothing.json") == {}
    assert store.read_status(tmp_path)["state"] == store.DONE
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(Refusal, match="cannot be read: Is a directory"):
        store.read_json(tmp_path / "folder.json")


def test_an_epoch_without_evaluation_is_nan(make):
    folder = make(acc1=90.0)
    (folder / "summary.csv").write_text("epoch,train_loss,eval_top1,lr\n0,2.1,,0.1\n1,2.0,90.0,0.1\n")
    first, last = store.read_summary(folder)
    assert math.isnan(first.pop("eval_top1")) and first == {"epoch": 0.0, "train_loss": 2.1, "lr": 0.1}
    assert last["eval_top1"] == 90.0


@pytest.mark.parametrize(
    "text", ["epoch,eval_top1\n,1\n", "epoch,eval_top1\n0,x\n", "epoch,eval_top1\n0\n", "epoch,top1\n0,1\n", "\x00"]
)
def test_a_damaged_summary_is_one_line(make, text):
    folder = make(acc1=90.0)
    (folder / "summary.csv").write_text(text)
    if text == "\x00":  # a header without rows
        assert store.read_summary(folder) == []
        return
    with pytest.raises(Refusal, match=r"summary\.csv"):
        store.read_summary(folder)


@pytest.fixture
def ten_faults(make):
    """A good run, and runs each with one file that is not what we write; the folder of all."""
    faults = {"status.json": ("[]", "{}", '{"state": 1}', '{"state": "done", "heartbeat": "now"}')}
    faults |= {"profile.json": ("[1]", '{"macs": "many"}'), "env.json": ("[1]",), "summary.csv": ("epoch,x\n0,1\n",)}
    good, folders = make("mlp_nano", 90.0), []
    for name, texts in faults.items():
        for text in texts:
            folders.append(make(acc1=91.0, seed=len(folders) + 1))
            (folders[-1] / name).write_text(text)
    probed = make(acc1=91.0, seed=99)
    (probed / "probes").mkdir()
    (probed / "probes" / "shift.json").write_text(ESTIMATE)
    return good, [*folders, probed]


def test_one_bad_folder_is_named_and_the_others_are_shown(ten_faults, caplog):
    good, bad = ten_faults
    frame = frames.load([good, *bad]).set_index("folder")
    assert frame.loc[good, "acc1"] == 90.0
    unreadable = frame[frame["state"] == frames.UNREADABLE]
    assert len(unreadable) == 7 and frame["state"].value_counts().to_dict()["done"] == 2  # {} is no status: planned
    assert all(str(folder) in row["error"] for folder, row in unreadable.iterrows())
    with caplog.at_level(logging.WARNING, "softmlp"):
        probe_table.of(frame.reset_index())
    assert f"{bad[-1]}/probes/shift.json is damaged" in caplog.text


@pytest.mark.parametrize(
    "name, words", [("compare", ["unreadable", "mlp_nano"]), ("probe", ["status.json is damaged"])]
)
def test_scripts_survive_one_bad_folder(ten_faults, monkeypatch, capsys, caplog, name, words):
    good, bad = ten_faults
    what = [good.parent] if name == "compare" else [good, *bad]
    monkeypatch.setattr(sys, "argv", [name, *map(str, what)])
    if name == "probe":  # none of them has weights
        with pytest.raises(Refusal, match=r"6 of 6 finished runs could not be probed, the first: .* has no last"):
            importlib.import_module(f"scripts.{name}").main()
    else:
        importlib.import_module(f"scripts.{name}").main()
    printed = "".join(capsys.readouterr()) + caplog.text
    assert all(word in printed for word in words)


def test_a_heartbeat_of_another_kind_does_not_break_the_lease(tmp_path):
    (tmp_path / "status.json").write_text('{"step": "x", "heartbeat": [1]}')
    with lease.own(tmp_path) as owned:
        assert owned.record["step"] == 0


@pytest.mark.parametrize(
    "words, said",
    [
        (["train", "--dataset", "cifar1"], "did you mean 'cifar10'?"),
        (["train", "--dataset", "cifar10"], "cifar10"),
        (["train", "--dataset", "imagefolder/nothing", "--img-size", "8"], "imagefolder"),
        (["train", "--model", "mixer_nanoo"], "mixer_nano"),
        (["train", "--device", "cuda"], "torch sees no GPU"),
        (["train", "--batch-size", "5000"], "is more than the"),
        (["train", "--initial-checkpoint", "nowhere.pth"], "nowhere.pth"),
        (["finetune", "--initial-checkpoint", __file__, "--dataset", "cifar10"], "cifar10"),
        (["finetune", "--initial-checkpoint", __file__, "--img-size", "8", "-b", "64"], "test_store.py"),
    ],
)
def test_a_refused_command_leaves_no_run(digits, tmp_path, words, said):
    import torch

    if "cuda" in words and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    given = ["--dataset", "digits", "--model", "mixer_nano", "--epochs", "1", "--threads", "1", "--data-dir", digits]
    done = warm.run("-m", f"scripts.{words[0]}", *given, *words[1:], "--output", tmp_path / "out", cwd=ROOT)
    assert done.returncode in (2, 3, 4) and "Traceback" not in done.stderr, done.stderr
    assert said in done.stderr.splitlines()[-1]
    assert not list((tmp_path / "out").glob("runs/*")), done.stderr


def test_what_a_run_has_made_is_never_withdrawn(make):
    folder = make(acc1=90.0)
    before = sorted(path.name for path in folder.iterdir())
    store.withdraw(folder)
    assert sorted(path.name for path in folder.iterdir()) == before
    (folder / "summary.csv").unlink()
    store.withdraw(folder)
    assert not folder.exists()
