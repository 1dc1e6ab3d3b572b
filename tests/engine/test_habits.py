"""What users know from other trainers: how many checkpoints stay, what is trained, exact repeats, less memory."""

import os
import subprocess
import sys

import pytest
import torch

from engine import models
from engine.errors import STOPPED, Refusal
from engine.folder import store
from engine.run import make_how
from engine.step import Step
from engine.train import train


def until(steps):
    """A `stop` that asks a run to leave after so many steps."""
    left = iter([0] * (steps - 1))
    return lambda: next(left, STOPPED)


@pytest.mark.parametrize("keep", [1, 2, 4])
def test_as_many_checkpoints_stay_as_were_asked_for(tiny, how, tmp_path, keep):
    given = make_how({**how.model_dump(), "checkpoint_interval": 1, "checkpoint_hist": keep})
    with pytest.raises(Refusal, match="stopped at step 7"):
        train(tiny, tmp_path, given, until(7))
    names = sorted(path.name for path in tmp_path.glob("checkpoint-*"))
    assert names == [f"checkpoint-{step:09d}.pth.tar" for step in range(8 - keep, 8)]


def test_a_linear_probe_says_what_it_trains(tiny, how, tmp_path):
    train(tiny.but(mode="linear", drop_path=0.0, epochs=1), tmp_path, how)
    head, all_of_it = 16 * 10 + 10, store.read_json(tmp_path / "profile.json")["params"]
    assert store.read_json(tmp_path / "profile.json")["trainable_params"] == head
    assert f": {head} of {all_of_it:,} parameters, digits" in (tmp_path / "log.txt").read_text()


def test_exact_repeats_are_asked_of_torch_on_a_gpu_alone(monkeypatch, how):
    """No GPU is used: what torch is told before the first product. `auto` on a CPU, and the next run, undo it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    exact = make_how({**how.model_dump(), "device": "auto", "deterministic": True})
    try:
        assert models.pick_device(exact).type == "cuda"
        assert torch.are_deterministic_algorithms_enabled() and torch.backends.cudnn.deterministic
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8" and not torch.backends.cudnn.benchmark
        assert models.pick_device(make_how({**how.model_dump(), "device": "auto"})).type == "cuda"
        assert not torch.are_deterministic_algorithms_enabled()
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert models.pick_device(exact).type == "cpu" and not torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def test_on_a_cpu_memory_is_kept_from_step_to_step_until_the_run_is_over():
    """In processes of their own: ten buffers of 64 MB, one after another, of which glibc alone keeps none."""
    script = (
        "import resource, sys, torch\n"
        "from engine import models\n"
        "from engine.run import make_how\n"
        "def faults(count):\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    for _ in range(count): torch.ones(2**24)\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "def resident(): return int(open('/proc/self/statm').read().split()[1]) * resource.getpagesize()\n"
        "torch.set_num_threads(1)\n"
        "if sys.argv[1] == 'kept': models.pick_device(make_how({'device': 'cpu'}))\n"
        "first, later = faults(1), faults(10)\n"
        "held = resident()\n"
        "models.return_memory()\n"
        "print(later, held - resident())\n"
    )
    command = [sys.executable, "-c", script]
    (plain, _), (kept, returned) = (
        map(int, subprocess.run([*command, how], check=True, capture_output=True, text=True).stdout.split())
        for how in ("plain", "kept")
    )
    assert kept < 0.1 * plain and returned > 60e6


def test_a_run_that_was_split_says_so_and_goes_on_split(tiny, how, tmp_path, monkeypatch):
    """A stand-in for a GPU's memory: more than 32 of the 64 images at a time do not fit."""
    run = tiny.but(drop_path=0.0, amp=False, opt="sgd", lr=0.05)
    backward, seen = Step._backward, []

    def small(self, x, labels, part):
        seen.append(self.micro_batches)
        if len(x) / self.micro_batches > 32:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return backward(self, x, labels, part)

    monkeypatch.setattr(Step, "_backward", small)
    given = make_how({**how.model_dump(), "checkpoint_interval": 1})
    with pytest.raises(Refusal, match="stopped at step 2"):
        train(run, tmp_path, given, until(2))
    assert seen == [1, 2, 2] and store.read_json(tmp_path / "env.json")["micro_batches"] == 2
    train(run, tmp_path, given)
    assert seen[3:] == [2] * 13 and store.read_json(tmp_path / "status.json")["state"] == "done"
    assert "out of memory; each batch is trained in 2 parts" in (tmp_path / "log.txt").read_text()
    monkeypatch.undo()
    train(run, tmp_path.with_name("whole"), how)
    split, whole = (
        torch.load(folder / "last.pth.tar")["state_dict"] for folder in (tmp_path, tmp_path.with_name("whole"))
    )
    assert all(torch.allclose(split[key], whole[key], rtol=1e-4, atol=1e-6) for key in whole)
