"""Several processes train one run as one process would; whatever kills one of them, all leave and the run goes on."""

import os
import signal
import socket
import subprocess
import sys

import pytest
import torch

import archs
from engine import distributed
from engine.errors import DIVERGED, STOPPED, TERMINATED, USAGE, Refusal
from engine.folder import predictions, store
from engine.run import make_run
from engine.train import train
from tests import warm
from tests.engine.test_train import assert_same, result
from tests.lab import PATIENCE

# Not Adam: where a gradient is 0 but for rounding, it takes whole steps into the direction of the rounding.
RUN = {"model": "mixer_nano", "train_samples": 650, "batch_size": 64, "epochs": 3, "hflip": 0.5}
RUN |= {"opt": "momentum", "lr": 0.2}
# HIT, of three numbers, makes a rank signal itself after a step: from outside, a busy machine would do it too late.
CODE = (
    "import itertools, os, pathlib, sys\nfrom engine import distributed; from engine.folder import store\n"
    "from engine.errors import Refusal\n"
    "from engine.run import make_how\nfrom engine.signals import CODES, Stop\nfrom engine.train import train\n"
    "distributed.start()\nfolder = pathlib.Path(sys.argv[1])\n"
    "how = make_how({'data_dir': sys.argv[2], 'threads': 1, 'log_interval': 1, 'checkpoint_interval': 5})\n"
    "rank, step, number = map(int, os.environ.get('HIT', '0 0 0').split())\n"
    "steps = itertools.count(1)\n"
    "def asked():\n"
    "    if next(steps) == step and distributed.rank() == rank: os.kill(os.getpid(), number)\n"
    "    return stop()\n"
    "try:\n"
    "    with Stop().on(CODES) as stop: train(store.read_run(folder), folder, how, asked)\n"
    "except Refusal as refusal: print(refusal, file=sys.stderr, flush=True); os._exit(refusal.code)\n"
    "distributed.finish()"
)


def start(folder, data, world=2, command=None, **more):
    """The processes of a run, as torchrun would start them; a command of its own, in interpreters of its own."""
    env = {**os.environ, "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    env |= {"GLOO_SOCKET_IFNAME": "lo", "SOFTMLP_DISTRIBUTED_TIMEOUT": "120", **more}
    ranks = [{**env, "RANK": str(r), "LOCAL_RANK": str(r)} for r in range(world)]
    if command:
        return [subprocess.Popen(command, env=each, stderr=subprocess.PIPE, text=True) for each in ranks]
    return [warm.Process("-c", CODE, folder, data, env=each) for each in ranks]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def finish(processes):
    return [(process.communicate(timeout=PATIENCE * 120)[1], process.returncode) for process in processes]


@pytest.fixture(scope="module")
def together(tmp_path_factory, digits):
    """A run of two processes that nobody disturbed."""
    folder = tmp_path_factory.mktemp("together")
    store.make_folder(make_run(RUN), folder)
    assert [code for _, code in finish(start(folder, digits))] == [0, 0]
    return folder


def test_mixup_of_an_odd_share_is_refused_by_all(digits, tmp_path):
    """An even batch does not do: each process pairs the images of its share."""
    store.make_folder(make_run(RUN | {"batch_size": 6, "train_samples": 60, "mixup": 0.2}), tmp_path)
    for words, code in finish(start(tmp_path, digits)):
        assert code == USAGE and words.splitlines()[-1] == (
            "mixup and cutmix pair the images of a batch: batch_size 6 must be even for each of 2 processes, it is 3"
        )
    assert store.read_status(tmp_path)["exit_code"] == USAGE


def test_two_processes_learn_what_one_learns(together, how, tmp_path):
    """Same global batch, same order, same pixels: equal up to the order of sums in float32."""
    train(make_run(RUN), tmp_path, how)
    alone, both = (torch.load(f / "last.pth.tar", weights_only=True)["state_dict"] for f in (tmp_path, together))
    for name, weight in alone.items():
        assert torch.allclose(weight, both[name], atol=2e-6), (name, (weight - both[name]).abs().max())
    rows = [store.read_summary(folder) for folder in (tmp_path, together)]
    for a, b in zip(*rows, strict=True):
        assert a == pytest.approx(b, abs=1e-4)
    assert store.read_json(together / "env.json")["world_size"] == 2
    one, two = predictions.read(tmp_path), predictions.read(together)
    assert (one.label == two.label).all(), "each process's stretch, in the order of the images"
    assert (one.prediction != two.prediction).sum() <= 1 and two.are_of(rows[1][-1]["eval_top1"])


@pytest.mark.parametrize("victim", [0, 1])
def test_one_process_killed_ends_all_and_the_next_attempt_ends_the_same(together, digits, tmp_path, victim):
    store.make_folder(make_run(RUN), tmp_path)
    ends = finish(start(tmp_path, digits, HIT=f"{victim} 7 {signal.SIGKILL:d}"))
    (words, code) = ends[1 - victim]
    assert code == STOPPED and "another of its processes died" in words
    assert ends[victim][1] == -signal.SIGKILL
    assert store.read_status(tmp_path)["state"] == store.STOPPED
    assert [code for _, code in finish(start(tmp_path, digits))] == [0, 0]
    assert_same(result(tmp_path), result(together))


def test_a_signal_to_one_process_stops_all_at_the_same_step(together, digits, tmp_path):
    store.make_folder(make_run(RUN), tmp_path)
    words = finish(start(tmp_path, digits, HIT=f"1 7 {signal.SIGTERM:d}"))
    assert [code for _, code in words] == [TERMINATED, TERMINATED]
    assert all("stopped at step 7 of 30, saved" in said.splitlines()[-1] for said, _ in words)
    assert [code for _, code in finish(start(tmp_path, digits))] == [0, 0]
    assert_same(result(tmp_path), result(together))


def test_a_process_that_hangs_is_noticed(digits, tmp_path):
    store.make_folder(make_run(RUN), tmp_path)
    processes = start(tmp_path, digits, HIT=f"1 3 {signal.SIGSTOP:d}", SOFTMLP_DISTRIBUTED_TIMEOUT="20")
    try:
        _, code = finish(processes[:1])[0]
        assert code == STOPPED
    finally:
        processes[1].kill()
        processes[1].communicate()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch_size": 65}, "batch_size 65 is of all processes"),
        ({"model": "convmixer_nano"}, "convmixer_nano has BatchNorm"),
        ({"lr": 1e30}, "loss became"),
    ],
)
def test_all_processes_refuse_alike(digits, tmp_path, change, words):
    store.make_folder(make_run(RUN | change), tmp_path)
    said = finish(start(tmp_path, digits))
    assert len({code for _, code in said}) == 1 and said[0][1] in (USAGE, 5)
    assert all(words in text for text, _ in said)
    assert store.read_status(tmp_path)["state"] == store.FAILED


@pytest.mark.parametrize(("lr", "code"), [("0.01", 0), ("1e30", DIVERGED)])
def test_no_thread_of_gloo_is_left_when_the_interpreter_ends(digits, tmp_path, lr, code):
    """One that waits for Python's lock then dies of SIGABRT; the exit code of a run that ended well is lost."""
    noting = (
        "import atexit, os, pathlib, runpy, sys\n"
        "def note():\n"
        "    names = [path.read_text() for path in pathlib.Path('/proc/self/task').glob('*/comm')]\n"
        "    pathlib.Path(os.environ['NOTE'], os.environ['RANK']).write_text(''.join(names))\n"
        "atexit.register(note)\n"  # the first, so that it is the last to be called
        "runpy.run_module('scripts.train', run_name='__main__', alter_sys=True)"
    )
    command = [sys.executable, "-c", noting, "--lr", lr, "--epochs", "1", "--train-samples", "256", "--device", "cpu"]
    command += ["--threads", "1", "--data-dir", str(digits), "--output", str(tmp_path)]
    processes = start(tmp_path, digits, command=command, NOTE=str(tmp_path))
    assert [each for _, each in finish(processes)] == [code, code]
    for rank in ("0", "1"):
        names = (tmp_path / rank).read_text().split()
        assert names and not [name for name in names if "gloo" in name or "tcpstore" in name]


def test_a_taken_port_asks_for_another_start_and_launches_on_one_port_do_not_meet(monkeypatch):
    port = free_port()
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    first = distributed._meeting("first", 0, 2)
    first.set("who", "first")
    with pytest.raises(Refusal, match=f"port {port} of 127.0.0.1 is taken") as refusal:
        distributed._meeting("second", 0, 2)
    assert refusal.value.code == STOPPED
    assert distributed._meeting("first", 1, 2).get("who") == b"first"
    assert not distributed._meeting("second", 1, 2).check(["who"])


def test_torchrun_trains_and_prints_once(digits, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1"]
    command += ["--master-port", free_port(), "-m", "scripts.train", "--model", "mixer_nano"]
    command += ["--epochs", "1", "--data-dir", str(digits), "--output", str(tmp_path), "--device", "cpu"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE * 120, env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done: acc1") == 1 and done.stderr.count("epoch 1/1") == 1
    assert len(store.read_summary(next((tmp_path / "runs").iterdir()))) == 1


@pytest.mark.parametrize(
    "way",
    [
        {"dilute_layers": "0", "dilute_epochs": 1, "epochs": 3},
        {
            "model_kwargs": {"mlp_layers": [0], "replacement": "skip"},
            "distil_epochs": 1,
            "epochs": 2,
            "lr": 0.05,
            "clip_grad": 1.0,
        },
    ],
    ids=["diluted", "distilled"],
)
def test_two_processes_train_attention_away_as_one_does(how, digits, tmp_path, way):
    """What is gone, or is not taught, gets no gradient, which DistributedDataParallel must expect."""
    if "distil_epochs" in way:
        torch.manual_seed(0)
        torch.save(archs.create("deit_nano").state_dict(), tmp_path / "whole.pth")
        way = {**way, "initial_checkpoint": str(tmp_path / "whole.pth")}
    run = make_run({**RUN, "model": "deit_nano", **way})
    train(run, tmp_path / "alone", how)
    store.make_folder(run, tmp_path / "both")
    assert [code for _, code in finish(start(tmp_path / "both", digits))] == [0, 0]
    alone, both = (
        torch.load(tmp_path / f / "last.pth.tar", weights_only=True)["state_dict"] for f in ("alone", "both")
    )
    assert alone.keys() == both.keys()
    for name, weight in alone.items():
        assert torch.allclose(weight, both[name], atol=1e-5), (name, (weight - both[name]).abs().max())
