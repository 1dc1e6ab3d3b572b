"""The promise of the engine: whatever stops a run, the next call continues it, and the end is the same bit for bit."""

import os
import signal
import subprocess
import sys
import time
import zipfile

import pytest
import torch
import yaml

from engine.data import loaders
from engine.errors import CHECKPOINT, DIVERGED, OUTPUT, STOPPED, TERMINATED, USAGE, Refusal
from engine.folder import checkpoint, store
from engine.folder.lease import own
from engine.models import preflight
from engine.run import make_how, make_run
from engine.train import train
from tests import warm
from tests.oracles import MemoryLoader

DETERMINISTIC = ("summary.csv", "metrics.jsonl", "args.yaml", "predictions.npz")


def result(folder):
    """Everything that must be the same bit for bit."""
    weights = [torch.load(folder / name, weights_only=True) for name in ("last.pth.tar", "model_best.pth.tar")]
    return [(folder / name).read_bytes() for name in DETERMINISTIC], weights


def assert_same(first, second):
    assert first[0] == second[0]
    for a, b in zip(first[1], second[1], strict=True):
        assert a["epoch"] == b["epoch"] and a["state_dict"].keys() == b["state_dict"].keys()
        assert all(torch.equal(a["state_dict"][name], b["state_dict"][name]) for name in a["state_dict"])


@pytest.fixture
def undisturbed(tiny, how, tmp_path):
    train(tiny, tmp_path / "undisturbed", how)
    return result(tmp_path / "undisturbed")


def stop_after(steps, code=STOPPED):
    """A `stop` for train that asks to leave after some steps of this attempt."""
    count = iter(range(1, 10**9))
    return lambda: code if next(count) >= steps else 0


@pytest.mark.parametrize("steps", [1, 4, 5, 6, 10, 14])
def test_resume_equals_uninterrupted(tiny, how, tmp_path, undisturbed, steps):
    folder = tmp_path / "run"
    with pytest.raises(Refusal) as caught:
        train(tiny, folder, how, stop_after(steps))
    assert caught.value.code == STOPPED
    assert store.read_status(folder)["state"] == store.STOPPED
    torch.manual_seed(99)  # the global generators are no part of the state
    train(tiny, folder, how)
    assert_same(result(folder), undisturbed)
    assert store.read_status(folder)["attempt"] == 2


@pytest.fixture(scope="module")
def whole_batches(digits, tmp_path_factory):
    """A run whose 500 validation images are whole batches, so that training and evaluation share a buffer."""
    fields = {"model_kwargs": {"depth": 1, "dim": 16}, "train_samples": 750, "batch_size": 250, "epochs": 2}
    run, folder = make_run({"model": "mixer_nano", **fields}), tmp_path_factory.mktemp("whole")
    train(run, folder, make_how({"data_dir": digits, "threads": 1, "log_interval": 1}))
    return run, folder


@pytest.mark.parametrize("steps", range(1, 7))
def test_resume_at_every_step_of_an_epoch(whole_batches, how, tmp_path, steps):
    """At the last one too, where evaluation comes before any training."""
    run, undisturbed = whole_batches
    with pytest.raises(Refusal):
        train(run, tmp_path, how, stop_after(steps))
    train(run, tmp_path, how)
    assert_same(result(tmp_path), result(undisturbed))


@pytest.mark.parametrize("opt", ["sgd", "lamb", "lion"])
def test_resume_equals_uninterrupted_for_every_optimizer(tiny, how, tmp_path, opt):
    run = tiny.but(opt=opt, epochs=2, sched="constant")
    train(run, tmp_path / "a", how)
    with pytest.raises(Refusal):
        train(run, tmp_path / "b", how, stop_after(3))
    train(run, tmp_path / "b", how)
    assert_same(result(tmp_path / "a"), result(tmp_path / "b"))


def test_a_finished_run_is_not_trained_again(tiny, how, tmp_path, undisturbed):
    folder = tmp_path / "undisturbed"
    before = {path: path.stat().st_mtime_ns for path in folder.glob("[a-z]*") if path.name != "log.txt"}
    train(tiny, folder, how)
    assert {path: path.stat().st_mtime_ns for path in folder.glob("[a-z]*") if path.name != "log.txt"} == before
    assert not list(folder.glob("checkpoint-*")) and not list(folder.glob(".*partial"))


def test_a_run_killed_at_any_moment_ends_the_same(tiny, how, tmp_path, undisturbed):
    """SIGKILL, at moments spread over the run, until it gets through."""
    folder = tmp_path / "run"
    code = (
        "import pathlib, sys\nfrom engine.folder import store\nfrom engine.run import make_how\n"
        "from engine.train import train\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "how = make_how({'data_dir': sys.argv[2], 'threads': 1, 'log_interval': 1, 'checkpoint_interval': 2})\n"
        "print('ready', flush=True); train(store.read_run(folder), folder, how)"
    )
    store.make_folder(tiny, folder)
    for delay in (0.05, 0.3, 0.6, 0.9, None):
        process = warm.Process("-c", code, folder, how.data_dir)
        while process.poll() is None and "ready" not in process.said()[0]:
            time.sleep(0.01)
        if delay is not None:
            while process.poll() is None and not (folder / "status.json").exists():
                time.sleep(0.01)
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
        _, stderr = process.communicate(timeout=60)
        assert delay is not None or process.returncode == 0, stderr
    assert_same(result(folder), undisturbed)


def test_sigterm_saves_and_says_so(tiny, tmp_path, digits):
    command = [sys.executable, "-m", "scripts.train", "--data-dir", str(digits), "--output", str(tmp_path)]
    command += ["--model-kwargs", "depth=2", "--epochs", "5000", "-b", "64", "--threads", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("runs/*/summary.csv")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == TERMINATED
    assert "repeat the command to go on" in stderr.splitlines()[-1]
    (folder,) = (tmp_path / "runs").iterdir()
    assert store.read_status(folder)["state"] == store.STOPPED and checkpoint.latest(folder)["step"] >= 20


@pytest.mark.parametrize("damage", ["bit", "cut", "empty", "text"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tiny, how, tmp_path, undisturbed, damage, caplog):
    folder = tmp_path / "run"
    every = how.model_copy(update={"checkpoint_interval": 3})
    with pytest.raises(Refusal):
        train(tiny, folder, every, stop_after(7))
    newest = sorted(folder.glob("checkpoint-*"))[-1]
    data = bytearray(newest.read_bytes())
    largest = max(zipfile.ZipFile(newest).infolist(), key=lambda record: record.file_size)
    data[largest.header_offset + largest.file_size // 2 + 128] ^= 1
    newest.write_bytes({"bit": bytes(data), "cut": bytes(data[:-99]), "empty": b"", "text": b"hello"}[damage])
    train(tiny, folder, how)
    assert "falling back" in caplog.text
    assert_same(result(folder), undisturbed)


def test_only_damaged_checkpoints_is_an_error_not_a_restart(tiny, how, tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(Refusal):
        train(tiny, folder, how, stop_after(3))
    for path in folder.glob("checkpoint-*"):
        path.write_bytes(b"")
    with pytest.raises(Refusal, match="remove them") as caught:
        train(tiny, folder, how)
    assert caught.value.code == CHECKPOINT


def test_a_checkpoint_cannot_execute_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "canary"),)

    torch.save({"x": Evil()}, tmp_path / "evil.pth.tar")
    with pytest.raises(Refusal) as caught:
        checkpoint.read(tmp_path / "evil.pth.tar")
    assert caught.value.code == CHECKPOINT and not (tmp_path / "canary").exists()


def test_a_folder_of_another_run_is_refused(tiny, how, tmp_path):
    store.make_folder(tiny, tmp_path)
    with pytest.raises(Refusal, match=r"lr 0.002 -> 0.004") as caught:
        train(tiny.but(lr=4e-3), tmp_path, how)
    assert caught.value.code == USAGE


def test_a_diverging_loss_is_said_and_the_last_good_state_kept(tiny, how, tmp_path):
    run = tiny.but(opt="sgd", lr=1e30, warmup_epochs=0, clip_grad=0, amp=False)
    with pytest.raises(Refusal, match="try --clip-grad 1 or a lower --lr") as caught:
        train(run, tmp_path, how)
    assert caught.value.code == DIVERGED
    status = store.read_status(tmp_path)
    assert (status["state"], status["error_class"], status["exit_code"]) == (store.FAILED, "diverged", DIVERGED)


def test_a_full_disk_keeps_the_last_good_state(tiny, how, tmp_path, undisturbed):
    """A real file system of 300 KB, filled while the run is under way; after space is freed the end is the same."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)]).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        folder = disk / "run"
        with pytest.raises(Refusal):
            train(tiny, folder, how, stop_after(6))
        kept = sorted(path.name for path in folder.glob("checkpoint-*"))
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        (disk / "ballast").write_bytes(b"x" * (free - 4096))
        with pytest.raises(Refusal, match="No space left") as caught:
            train(tiny, folder, how)
        assert caught.value.code == OUTPUT
        assert sorted(path.name for path in folder.glob("checkpoint-*")) == kept
        assert not list(folder.glob(".*partial"))
        (disk / "ballast").unlink()
        train(tiny, folder, how)
        assert_same(result(folder), undisturbed)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_an_output_that_cannot_be_written_is_refused_before_any_work(tiny, how, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Refusal, match="cannot create") as caught:
        train(tiny, tmp_path / "file" / "run", how)
    assert caught.value.code == OUTPUT


def test_two_processes_cannot_train_one_run(tiny, how, tmp_path):
    store.make_folder(tiny, tmp_path)
    with own(tmp_path), pytest.raises(Refusal, match=f"process {os.getpid()}"):
        train(tiny, tmp_path, how)


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"img_size": 9}, "nearest: 8, 10"),
        ({"model": "timm/resnet10"}, "timm/resnet10t"),
        ({"model": "timm/resnet10t", "model_kwargs": {"dpth": 3}}, "dpth"),
    ],
)
def test_what_cannot_be_built_is_refused_before_anything_is_written(fields, words):
    with pytest.raises(Refusal, match=words):
        preflight(make_run(fields))


def test_the_two_newest_checkpoints_are_kept_by_step_not_by_name(tmp_path):
    for step in (9, 100, 2000):
        checkpoint.save(tmp_path, {"step": step})
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        "checkpoint-000000100.pth.tar",
        "checkpoint-000002000.pth.tar",
    ]
    assert checkpoint.latest(tmp_path) == {"step": 2000}


def test_seeds_differ_and_one_seed_repeats(tiny, how, tmp_path, undisturbed):
    train(tiny, tmp_path / "again", how)
    assert_same(result(tmp_path / "again"), undisturbed)
    train(tiny.but(seed=1), tmp_path / "other", how)
    assert (tmp_path / "other" / "summary.csv").read_bytes() != undisturbed[0][0]


def test_the_result_does_not_depend_on_workers_or_loader(tiny, how, tmp_path, undisturbed, monkeypatch):
    train(tiny, tmp_path / "workers", how.model_copy(update={"workers": 2}))
    assert_same(result(tmp_path / "workers"), undisturbed)
    monkeypatch.setattr(loaders, "FfcvLoader", MemoryLoader)
    train(tiny, tmp_path / "memory", how)
    assert_same(result(tmp_path / "memory"), undisturbed)


def test_a_model_learns_the_digits(how, tmp_path):
    run = make_run({"epochs": 8, "batch_size": 64, "lr": 3e-3, "warmup_epochs": 1})
    train(run, tmp_path, how)
    assert store.read_summary(tmp_path)[-1]["eval_top1"] > 90


def test_the_environment_names_the_training_file(undisturbed, tmp_path):
    env = store.read_json(tmp_path / "undisturbed" / "env.json")
    assert env["data_file"] == "digits_train_8.beton" and len(env["data_sha256"]) == 64


def test_args_yaml_makes_the_same_run(tiny, how, tmp_path, undisturbed):
    path = tmp_path / "undisturbed" / "args.yaml"
    assert make_run(yaml.safe_load(path.read_text())) == tiny
    assert store.read_run(path.parent).signature == tiny.signature


@pytest.mark.parametrize("flag", ["torchcompile", "channels_last"])
def test_resume_equals_uninterrupted_for_another_way_to_compute(tiny, how, tmp_path, flag):
    run = tiny.but(model="convmixer_nano", model_kwargs={"depth": 1, "dim": 16}, drop_path=0.0)
    how = how.model_copy(update={flag: True})
    train(run, tmp_path / "a", how)
    with pytest.raises(Refusal):
        train(run, tmp_path / "b", how, stop_after(7))
    train(run, tmp_path / "b", how)
    assert_same(result(tmp_path / "a"), result(tmp_path / "b"))
