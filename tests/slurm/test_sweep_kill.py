"""Real launches, killed at bad moments: nothing is lost, nothing is trained twice, the weights are the same bits."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from engine.folder import lease, store
from slurm.define.load import load
from slurm.define.sweep import Sweep
from slurm.queue import claims
from tests.lab import PATIENCE

ROOT = Path(__file__).parents[2]
SLOTS = 2
SWEEP = '''"""Three runs of some seconds."""
from engine.run import Run

def runs():
    for seed in range(3):
        yield Run(model="mixer_nano", seed=seed, epochs=9, batch_size=16, crop_pad=1, model_ema=True)
'''


class Launches:
    """Launches of one sweep into one folder of results, watched for how many processes train at a time."""

    def __init__(self, folder: Path, data_dir: Path) -> None:
        self.folder, self.data_dir = folder, data_dir
        self.path = folder / "trio.py"
        self.path.write_text(SWEEP)
        self.env = {**os.environ, "SOFTMLP_RESULTS": str(folder / "results")}
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SOFTMLP_RESULTS", self.env["SOFTMLP_RESULTS"])
            self.sweep: Sweep = load(str(self.path))
            self.folders, self.jobs = self.sweep.folders, self.sweep.jobs_folder
        self.most, self.over = 0, threading.Event()
        self.watcher = threading.Thread(target=self._watch)
        self.watcher.start()

    def start(self) -> subprocess.Popen:
        command = [sys.executable, ROOT / "scripts/sweep.py", "launch", self.path, "--cluster", "local"]
        command += ["--slots", str(SLOTS)]
        command += ["--data-dir", self.data_dir]
        # A file and not a pipe: what outlives the launcher would keep a pipe open.
        with (self.folder / "out.txt").open("a") as out:
            return subprocess.Popen(command, stdout=out, stderr=out, env=self.env, start_new_session=True)

    def finish(self) -> None:
        launcher = self.start()
        assert launcher.wait(120) == 0, self.said()
        assert self.states() == ["done"] * 3

    def said(self) -> str:
        return (self.folder / "out.txt").read_text()

    def states(self) -> list[str]:
        return [store.read_status(folder)["state"] for folder in self.folders]

    def owners(self) -> set[int]:
        return {record["pid"] for folder in self.folders if (record := lease.owner(folder))}

    def workers(self) -> set[int]:
        return set(claims.workers(self.jobs)) | self.owners()

    def until_training(self) -> None:
        """Wait until a run has said, from now on, that it is being trained; then a few steps more."""
        began = store.now()

        def training() -> bool:
            statuses = [store.read_status(folder) for folder in self.folders]
            return any(s["state"] == "running" and s["heartbeat"] > began for s in statuses)

        wait(training, self.said)
        time.sleep(0.3)

    def close(self) -> None:
        self.over.set()
        self.watcher.join()
        kill(self.workers())

    def _watch(self) -> None:
        while not self.over.wait(0.05):
            self.most = max(self.most, len(self.workers()))


def wait(condition, said=lambda: "", timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, said()
        time.sleep(0.05)


def kill(pids: set[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def make(tmp_path, digits):
    """Make folders of results by name; whatever still runs at the end of the test is killed."""
    with contextlib.ExitStack() as stack:

        def make(name: str) -> Launches:
            (tmp_path / name).mkdir()
            made = Launches(tmp_path / name, digits)
            stack.callback(made.close)
            return made

        yield make


def test_killed_in_every_way_and_repeated_gives_the_same_bits(make):
    whole, broken = make("whole"), make("broken")
    only_the_launcher_is_killed(whole)
    everything_is_killed(broken)
    for ours, theirs in zip(broken.folders, whole.folders, strict=True):
        for name in ("summary.csv", "metrics.jsonl"):
            assert (ours / name).read_bytes() == (theirs / name).read_bytes(), ours / name
        a, b = (torch.load(f / "last.pth.tar", weights_only=True)["state_dict"] for f in (ours, theirs))
        assert list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a), ours


def only_the_launcher_is_killed(launches: Launches) -> None:
    """Its workers go on; the next launcher waits for them. So every run is trained in one piece."""
    launcher = launches.start()
    launches.until_training()
    launcher.kill()
    launcher.wait()
    orphans = launches.workers()
    assert orphans

    launches.finish()
    attempts = [store.read_status(folder)["attempt"] for folder in launches.folders]
    assert attempts == [1, 1, 1], "no run was begun a second time"
    assert launches.most == SLOTS, "the machine was used, and not more than that"
    wait(lambda: not launches.workers(), launches.said)


def everything_is_killed(launches: Launches) -> None:
    # A worker dies: the launcher puts another in its place.
    launcher = launches.start()
    launches.until_training()
    victim = min(launches.owners())
    kill({victim})
    wait(lambda: len(launches.workers() - {victim}) == SLOTS, launches.said)
    # Ctrl-C, as a terminal sends it: to all processes at once.
    launches.until_training()
    os.killpg(launcher.pid, signal.SIGINT)
    assert launcher.wait(60) == 130, launches.said()
    assert not launches.workers() and "repeat the command" in launches.said()
    assert any(list(folder.glob("checkpoint-*")) for folder in launches.folders), "what was running has saved"
    # The plug is pulled.
    launcher = launches.start()
    launches.until_training()
    launcher.kill()
    kill(launches.workers())
    launcher.wait()
    wait(lambda: not launches.workers(), launches.said)
    assert launches.states() != ["done"] * 3, "it was in the middle"

    launches.finish()
    assert any("from step" in (folder / "log.txt").read_text() for folder in launches.folders), "it did resume"
    assert launches.most <= SLOTS
    assert not list(launches.folder.glob("**/*.partial")), "nothing half written is left"


def test_a_terminated_launcher_takes_its_workers_with_it(make):
    launches = make("terminated")
    launcher = launches.start()
    wait(launches.workers, launches.said)  # while they still import
    launcher.terminate()
    assert launcher.wait(60) == 143, launches.said()
    assert not launches.workers() and set(launches.states()) <= {"planned", "stopped"}


def test_what_was_started_holds_a_file_after_its_parent(tmp_path):
    """And what was started after the block does not."""
    words = (
        "import os, pathlib, signal, subprocess, sys\nfrom slurm.queue import claims\n"
        "with claims.hold(pathlib.Path(sys.argv[1])) as file:\n"
        "    with claims.inherited(file): one = subprocess.Popen(['sleep', '600'])\n"
        "    two = subprocess.Popen(['sleep', '600'])\n"
        "    print(one.pid, two.pid, flush=True)\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, "-c", words, tmp_path / "lock"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    one, two = map(int, process.stdout.readline().split())
    try:
        assert process.wait() == -signal.SIGKILL and claims.holder(tmp_path / "lock") is not None
        os.kill(one, signal.SIGKILL)
        deadline = time.monotonic() + 10 * PATIENCE
        while claims.holder(tmp_path / "lock") is not None:
            assert time.monotonic() < deadline, "held, although only what came after the block lives"
            time.sleep(0.01)
    finally:
        for pid in (one, two):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
