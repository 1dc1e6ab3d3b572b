"""The user's side on a real SLURM: arrays, packing, launches that meet or die, cancel and resume, a controller away."""

import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from engine.errors import BUSY, CLUSTER, Refusal
from engine.folder import lease, store
from slurm.queue import worker
from tests.lab import PATIENCE
from tests.trial import DIVERGING, Trial, assert_same, parent


def elements(trial: Trial) -> int:
    """Elements that were ever submitted for a sweep."""
    return sum(job.name.startswith("softmlp-trial") for job in trial.lab.jobs())


def test_an_array_with_a_throttle(make_trial, make_lab, whole):
    """On a cluster whose arrays have three elements at most: those take all runs."""
    trial = make_trial(0, 1, 2, 3, on=make_lab(max_array_size=4))
    said = trial.script("launch", "--array-parallelism", "2")
    assert "3 elements of 4, as many as one may have for 4 runs" in said, said
    assert "next: python scripts/sweep.py status" in said
    most = 0

    def ended() -> bool:
        nonlocal most
        most = max(most, len(trial.lab.jobs("RUNNING")))
        return set(trial.states()) == {"done"}

    trial.freeze(0, 1)
    table = trial.script("status")  # without sacct
    assert "2 queued" in table, table
    assert trial.standing() == ["running"] * 2 + ["queued"] * 2
    assert len(trial.lab.jobs("RUNNING")) == 2
    trial.thaw(0, 1)
    trial.lab.wait_for(ended, 120, trial.story)
    assert most == 2
    assert_same(trial, whole)
    assert (trial.folders[0] / "env.json").exists()
    codes = list((trial.folder / "results" / ".code").iterdir())
    assert len(codes) == 1 and store.read_json(trial.folders[0] / "env.json")["commit"] == codes[0].name

    trial.lab.wait_idle(60)
    before = {path: path.stat().st_mtime_ns for folder in trial.folders for path in folder.iterdir()}
    assert "4 done" in trial.script("status")
    trial.launch()
    assert elements(trial) == 3, "nothing is left to submit"
    trial.lab.run("scontrol", "requeue", next(job.id for job in trial.lab.jobs()))
    trial.lab.wait_for(lambda: trial.lab.jobs("PENDING", "RUNNING"), 30)
    trial.lab.wait_idle(60)
    assert {job.state for job in trial.lab.jobs()} == {"COMPLETED"}
    assert before == {path: path.stat().st_mtime_ns for folder in trial.folders for path in folder.iterdir()}


def test_packed_runs_do_not_die_with_each_other(make_trial, lab, whole):
    trial = make_trial(DIVERGING, 0, 1, 2)
    trial.launch(pack=4)
    trial.freeze(1, 2, 3)
    assert len({trial.job(index) for index in (1, 2, 3)}) == 1, "one element has all"
    assert len({trial.owner(index)["pid"] for index in (1, 2, 3)}) == 3
    trial.kill(2)
    trial.thaw(1, 3)
    trial.finish(120)
    assert [trial.attempts(index) for index in (1, 2, 3)] == [1, 2, 1], trial.story()
    assert trial.states() == ["failed", "done", "done", "done"]
    assert_same(trial, whole)
    lab.wait_idle(60)


def test_two_launches_at_the_same_moment(make_trial, make_lab, whole):
    trial = make_trial(0, 1, on=make_lab())
    launches = [trial.start("launch", "--no-snapshot") for _ in range(2)]
    said = [launch.communicate(timeout=PATIENCE * 120)[0] for launch in launches]
    assert [launch.returncode for launch in launches] == [0, 0], said
    assert elements(trial) == 2, said
    assert sorted("nothing to submit" in words for words in said) == [False, True], said
    trial.finish(120)
    assert [trial.attempts(index) for index in (0, 1)] == [1, 1]
    assert_same(trial, whole)


def test_a_launcher_killed_half_way(make_trial, make_lab, whole):
    """Two arrays, as the runs differ in what they need; the launcher dies as soon as the first one is there."""
    trial = make_trial(0, 1, on=make_lab(), rest="def resources(run): return {'mem_gb': 1 + run.seed}")
    launcher = trial.start("launch", "--no-snapshot")
    while not elements(trial):
        assert launcher.poll() is None, launcher.communicate()[0]
        time.sleep(0.01)
    launcher.kill()
    launcher.communicate()
    trial.launch()
    assert elements(trial) == 2, trial.story()
    trial.launch()
    assert elements(trial) == 2, trial.story()
    trial.finish(120)
    assert_same(trial, whole)


def test_an_sbatch_that_outlives_its_launcher_is_waited_for(make_trial, make_lab, whole):
    """The launcher dies while its second sbatch takes three seconds; what that brings is there for the next launch."""
    trial = make_trial(0, 1, on=make_lab(), rest="def resources(run): return {'mem_gb': 1 + run.seed}")
    slow, first, second, ended = (trial.folder / name for name in ("slow", "first", "second", "ended"))
    slow.mkdir()
    (slow / "sbatch").write_text(
        f"#!/bin/sh\nsbatch={shutil.which('sbatch', path=trial.env['PATH'])}\n"
        'case "$*" in *test-only*) exec $sbatch "$@";; esac\n'
        f'[ -e {first} ] || {{ touch {first}; exec $sbatch "$@"; }}\n'
        f'touch {second}; sleep 3; $sbatch "$@"; touch {ended}\n'
    )
    (slow / "sbatch").chmod(0o755)
    launcher = trial.start("launch", "--no-snapshot", PATH=f"{slow}{os.pathsep}{trial.env['PATH']}")
    while not second.exists():
        assert launcher.poll() is None, launcher.communicate()[0]
        time.sleep(0.01)
    launcher.kill()
    launcher.wait()
    assert elements(trial) == 1
    trial.launch()
    trial.lab.wait_for(ended.exists, 30, trial.story)
    assert elements(trial) == 2, trial.story()
    trial.finish(120)
    launcher.communicate()
    assert_same(trial, whole)


def test_cancel_and_resume(make_trial, make_lab, whole):
    """What is being trained saves and leaves, what waits is taken out of the queue; nothing is lost."""
    trial = make_trial(0, 1, 2, on=make_lab())
    trial.launch(array_parallelism=1)
    trial.freeze(0)
    with trial.here(), pytest.raises(Refusal, match=rf"is being trained by process \d+ of job {trial.job(0)}") as busy:
        lease.claim(trial.folders[0])
    assert busy.value.code == BUSY
    assert "add --yes" in trial.script("cancel", code=2)
    assert "2 cancelled" in trial.script("cancel", "--yes")
    time.sleep(worker.CANCEL_SECONDS)  # so long ago that the process looks again at once: it has 0.3 s left to train
    trial.thaw(0)
    trial.lab.wait_for(lambda: trial.states() == ["cancelled"] * 3, 30, trial.story)
    trial.lab.wait_idle(30)
    before = elements(trial)
    trial.launch()
    assert elements(trial) == before, "what was cancelled is left out"
    trial.launch(kinds=("cancelled",))
    trial.finish(120)
    assert trial.states() == ["done"] * 3 and "from step" in trial.log(0)
    assert_same(trial, whole)


def test_the_controller_is_away_when_a_run_wants_to_be_requeued(make_trial, make_lab, whole):
    trial = make_trial(0, on=make_lab())
    trial.launch()
    trial.freeze(0)
    worker = trial.owner(0)["pid"]
    element = parent(worker)
    trial.lab.controller_stop()
    os.kill(element, signal.SIGUSR2)
    trial.thaw(0)
    trial.lab.wait_for(lambda: not Path("/proc", str(element)).exists(), 60, trial.story)
    assert store.read_json(trial.folders[0] / "status.json")["error_class"] == "preempted"
    trial.lab.controller_start()
    trial.lab.wait_idle(60)
    assert trial.states() == ["stopped"], "saved, and never failed"
    trial.launch()
    trial.finish(120)
    assert "from step" in trial.log(0)
    assert_same(trial, whole)


def test_a_signal_during_the_imports(make_trial, make_lab, whole):
    """Before any handler is there the signal kills; the element starts again by itself."""
    trial = make_trial(0, 1, on=make_lab())
    trial.launch()
    trial.lab.wait_for(lambda: len(trial.lab.jobs("RUNNING")) == 2, 30, trial.story)
    jobs = [job.id for job in trial.lab.jobs("RUNNING")]
    trial.lab.wait_for(lambda: len(steps(trial)) == 2, 30, trial.story)
    trial.lab.run("scancel", "--signal=USR2", jobs[0])
    trial.lab.run("scontrol", "requeue", jobs[1])
    trial.finish(150)
    assert_same(trial, whole)


def steps(trial: Trial) -> list[str]:
    return [line for line in trial.lab.run("squeue", "-h", "-s", "-o", "%i").split() if line.endswith(".0")]


def test_what_the_cluster_refuses_is_said_before_anything_is_submitted(make_trial, make_lab):
    trial = make_trial(0, on=make_lab())
    for words, line in (
        (("--partition", "nope"), "Invalid partition name specified"),
        (("--nodes", "9"), "Node count specification invalid"),
        (("--cpus", "64"), "More processors requested than permitted"),
        (("--gpus", "9"), "Requested node configuration is not available"),
    ):
        said = trial.script("launch", "--no-snapshot", *words, code=CLUSTER)
        last = said.splitlines()[-1]
        assert last.startswith("softmlp: SLURM would refuse this: ") and line in last, said
    assert elements(trial) == 0 and not trial.folders[0].exists()
    trial.lab.controller_stop()
    said = trial.script("launch", "--cluster", "slurm", code=CLUSTER)
    assert "no SLURM controller answers" in said
    trial.lab.controller_start()
