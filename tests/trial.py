"""A sweep on a SLURM of tests/lab.py, as its user sees it, and what must be the same however it was disturbed."""

import contextlib
import csv
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.folder import lease, store
from slurm.define.load import load
from slurm.define.sweep import Sweep
from slurm.launch import launch
from slurm.queue import states, worker
from slurm.queue.collect import collect
from tests.lab import PATIENCE, Lab

ROOT = Path(__file__).parent.parent
# 120 steps of a few milliseconds. The loader without FFCV gives the same pixels and spares each process 5 s of imports.
RUN = {
    "model": "mixer_nano",
    "model_kwargs": {"depth": 2, "dim": 16},
    "train_samples": 640,
    "batch_size": 16,
    "epochs": 3,
    "lr": 2e-3,
    "crop_pad": 1,
    "hflip": 0.5,
    "mixup": 0.2,
    "model_ema": True,
}
HOW = {"threads": 1, "log_interval": 1, "checkpoint_interval": 12}
FLAGS = {"cpus": 1, "timeout_min": 30}
SHOWN = ("state", "step", "attempt", "error_class", "error")
DISTURBED = ("images_per_s", "data_wait", "seconds", "attempt", "host")  # columns of runs.csv that may differ


# On the path of every process of a trial: one that finds HALT in its run's folder stops itself after a checkpoint. A
# signal from outside comes too late where the machine leaves the test for half a second: the run has ended by then.
HALT = ".halt"
SITE = f"""
import os, signal
_replace = os.replace
def replace(source, target, **options):
    _replace(source, target, **options)
    folder, name = os.path.split(target)
    if name.startswith("checkpoint-"):
        try:
            os.unlink(os.path.join(folder, {HALT!r}))
        except FileNotFoundError:
            return
        os.kill(os.getpid(), signal.SIGSTOP)
os.replace = replace
"""

DIVERGING = 9  # the seed that comes with a learning rate it can not stand
SEEDS = (0, 1, 2, 3, 4, 5, DIVERGING)


class Trial:
    """One sweep with a folder of results of its own.

    Args:
        seeds: one run each; that of DIVERGING fails.
        rest: what else stands in the sweep's file.
    """

    def __init__(self, folder: Path, data: Path, seeds: Sequence[int], lab: Lab | None = None, rest: str = "") -> None:
        self.folder, self.data, self.lab = folder, data, lab
        folder.mkdir()
        self.path = folder / "trial.py"
        self.path.write_text(
            f'"""Does it get there?"""\nfrom engine.run import Run\n{rest}\ndef runs():\n'
            f"    for seed in {[*seeds]}:\n"
            f"        yield Run(**{{**{RUN!r}, 'lr': 1e30 if seed == {DIVERGING} else 2e-3}}, seed=seed)\n"
        )
        site = folder / "site"
        site.mkdir()
        (site / "sitecustomize.py").write_text(SITE)
        own = {**(lab.env if lab else os.environ), "SOFTMLP_RESULTS": str(folder / "results")}
        own["PYTHONPATH"] = f"{site}{os.pathsep}{ROOT}"
        # A frozen process says nothing, and may not be taken for dead while `freeze` waits for others.
        own["SOFTMLP_STALE_SECONDS"] = str(PATIENCE * lease.STALE_SECONDS)
        self.env = {**own, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{own['PATH']}"}
        with self.here():
            self.sweep: Sweep = load(str(self.path))
            self.folders, self.jobs = self.sweep.folders, self.sweep.jobs_folder

    @contextlib.contextmanager
    def here(self) -> Iterator[None]:
        """This process in the environment of the trial's user."""
        with pytest.MonkeyPatch.context() as patch:
            for key, value in self.env.items():
                patch.setenv(key, value)
            yield

    # --- what the user does -------------------------------------------------------------------------------------------

    def launch(self, cluster: str = "slurm", kinds: tuple[str, ...] = ("unfinished",), **flags: Any) -> None:
        """As the script does it, in this process, which has paid for its imports already."""
        how = {**HOW, "data_dir": str(self.data)}
        with self.here():
            given = {} if cluster == "debug" else {"flags": {**FLAGS, **flags}, "keep_code": False}
            launch(self.sweep, how, cluster=cluster, kinds=kinds, **given)

    def start(self, *words: str, **env: str) -> subprocess.Popen:
        """The script, with its output in a pipe."""
        command = [sys.executable, ROOT / "scripts/sweep.py", words[0], self.path]
        if words[0] in ("launch", "resume"):
            command += ["--data-dir", self.data]
            for key, value in {**HOW, **FLAGS}.items():
                command += [f"--{key.replace('_', '-')}", str(value)]
        command += words[1:]
        return subprocess.Popen(
            command, env={**self.env, **env}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def script(self, *words: str, code: int = 0, **env: str) -> str:
        """What the script prints, errors too."""
        process = self.start(*words, **env)
        said, _ = process.communicate(timeout=PATIENCE * 120)
        assert process.returncode == code, said
        return said

    # --- what can be seen ---------------------------------------------------------------------------------------------

    def states(self) -> list[str]:
        with self.here():
            return [worker.look(folder)["state"] for folder in self.folders]

    def standing(self) -> list[str]:
        """The states that a user is shown; `stalled`, which a frozen run is after a minute, is read as `running`."""
        with self.here():
            shown = [status["state"] for status in states.standing(self.sweep)]
        return ["running" if state == states.STALLED else state for state in shown]

    def finish(self, seconds: float = 90) -> None:
        """Wait until no run is left that a worker may take."""
        self.lab.wait_for(lambda: set(self.states()) <= {"done", "failed", "cancelled"}, seconds, self.story)

    def attempts(self, index: int) -> int:
        return (lease.last(self.folders[index]) or {"attempt": 0})["attempt"]

    def owner(self, index: int) -> dict[str, Any]:
        """The record of the newest attempt of a run."""
        return lease.last(self.folders[index]) or {}

    def log(self, index: int) -> str:
        return (self.folders[index] / "log.txt").read_text()

    def said(self) -> str:
        """What all elements wrote."""
        return "".join(path.read_text() for path in sorted(self.jobs.glob("*/*.out")))

    def story(self) -> str:
        """What there is to know when something went wrong."""
        parts = [str(self.states()), str(self.lab.jobs()) if self.lab else ""]
        for folder in self.folders:
            status = store.read_json(folder / "status.json")
            parts.append(f"{folder.name}: { ({key: status.get(key) for key in SHOWN}) }")
            parts += [path.read_text() for path in sorted(folder.glob(".attempt-*"))]
        for path in sorted(self.jobs.glob("*/*.out")):
            parts.append(f"{path.name}:\n{path.read_text()[-1500:]}")
        return "\n".join(parts)

    # --- what is done to it -------------------------------------------------------------------------------------------

    def freeze(self, *indices: int, seconds: float = 90) -> None:
        """Let the processes of runs stop in the middle of training, right after a checkpoint, and wait until they have.

        What is done to them next hits them there. A run that has saved its last checkpoint already can not be stopped.
        """
        for index in indices:
            self.folders[index].mkdir(parents=True, exist_ok=True)
            (self.folders[index] / HALT).touch()

        def stopped(index: int) -> bool:
            state = store.read_json(self.folders[index] / "status.json").get("state")
            assert state not in (store.DONE, store.FAILED), f"run {index} ended before it stopped; {self.story()}"
            return not (self.folders[index] / HALT).exists() and self._process_state(index) == "T"

        self.lab.wait_for(lambda: all(stopped(index) for index in indices), seconds, self.story)
        assert all(store.read_json(self.folders[index] / "status.json")["state"] == "running" for index in indices)

    def _process_state(self, index: int) -> str:
        """As the kernel names it, T for stopped; empty if there is none."""
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, KeyError):
            text = Path("/proc", str(self.owner(index)["pid"]), "stat").read_text()
            return text.rpartition(")")[2].split()[0]
        return ""

    def thaw(self, *indices: int) -> None:
        """Let frozen runs go on; one that was killed meanwhile can not."""
        for index in indices:
            with contextlib.suppress(ProcessLookupError):
                self.kill(index, signal.SIGCONT)

    def until_told(self, index: int, seconds: float = 60) -> None:
        """Wait until a frozen process has a signal to look at, which it does when it is thawed, or is gone."""
        path = Path("/proc", str(self.owner(index)["pid"]), "status")

        def told() -> bool:
            try:
                text = path.read_text()
            except (FileNotFoundError, ProcessLookupError):
                return True
            lines = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
            return not lines["State"].startswith("T") or int(lines["ShdPnd"], 16) > 0

        self.lab.wait_for(told, seconds, self.story)

    def job(self, index: int) -> str:
        """The element of SLURM that has a run."""
        return self.owner(index)["job"]

    def kill(self, index: int, number: int = signal.SIGKILL) -> None:
        """Send a signal to the process that trains a run."""
        os.kill(self.owner(index)["pid"], number)


def parent(pid: int) -> int:
    return int(Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[1])


def assert_same(disturbed: Trial, whole: Trial) -> None:
    """The table is the same but for times and places, and all the rest bit for bit: curves, losses, weights.

    Args:
        whole: has these runs, and perhaps others.
    """
    wanted = table(whole)
    for signature, row in table(disturbed).items():
        assert row == wanted[signature]
    for ours in disturbed.folders:
        theirs = whole.folders[0].parent / ours.name
        if store.read_json(theirs / "status.json")["state"] != store.DONE:
            continue
        for name in ("summary.csv", "metrics.jsonl", "args.yaml"):
            assert (ours / name).read_bytes() == (theirs / name).read_bytes(), ours / name
        assert not [path.name for path in ours.iterdir() if "partial" in path.name or "checkpoint" in path.name]
        for name in ("last.pth.tar", "model_best.pth.tar"):
            a, b = (torch.load(folder / name, weights_only=True)["state_dict"] for folder in (ours, theirs))
            assert list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a), ours / name


def table(trial: Trial) -> dict[str, dict[str, str]]:
    """runs.csv by signature, without what depends on the machine's mood."""
    with trial.here():
        runs, *_ = collect(trial.sweep)
    with runs.open() as file:
        rows = list(csv.DictReader(file))
    return {row["signature"]: {key: row[key] for key in row if key not in DISTURBED} for row in rows}
