"""What is not the run's doing, on a real SLURM: runs that other jobs own, nodes that are broken, GPUs that do not work.

A broken node is a stand-in for one call: a `sitecustomize` on the path of the jobs makes the function that profiles a
model raise CUDA's error on that node. All else is real.
"""

import contextlib
import getpass
import os
import signal
import subprocess
import sys

import pytest

from engine.errors import CLUSTER, Refusal
from engine.folder import lease, store
from slurm.cluster import clusters, scheduler, submit
from slurm.define.load import load
from tests.lab import NODES
from tests.trial import HOW, ROOT, Trial, assert_same

BROKEN = """
import os, sys
on_it = os.environ.get("SLURMD_NODENAME") in os.environ.get("BROKEN_NODES", "").split()
if on_it and "slurm.queue.task" in sys.orig_argv:
    import engine.train
    def broken(*args, **kwargs):
        raise RuntimeError("CUDA error: uncorrectable ECC error encountered")
    engine.train.profile = broken
"""


def break_nodes(trial: Trial, *nodes: str) -> None:
    with (trial.folder / "site" / "sitecustomize.py").open("a") as site:
        site.write(BROKEN)
    trial.env["BROKEN_NODES"] = " ".join(nodes)


# --- runs that another job has ----------------------------------------------------------------------------------------


def test_a_launch_leaves_alone_what_another_sweep_or_an_allocation_trains(make_trial, lab, whole):
    """Two sweeps share a run, and a second one is trained by train.py in an allocation; both have live owners."""
    first = make_trial(0, name="first")
    first.launch()
    first.freeze(0)
    both = make_trial(0, 1, name="both")
    both.env["SOFTMLP_RESULTS"] = first.env["SOFTMLP_RESULTS"]
    with both.here():
        both.sweep = load(str(both.path))
        both.folders, both.jobs = both.sweep.folders, both.sweep.jobs_folder
    run = both.sweep.runs[1]
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in HOW.items()]
    store.make_folder(run, both.folders[1])
    command = ["srun", "-n1", "-c1", sys.executable, ROOT / "scripts/train.py", "-c", both.folders[1] / "args.yaml"]
    command += [*flags, f"--data-dir={both.data}"]
    out = (first.folder / "train.txt").open("w")
    train = subprocess.Popen(command, env=both.env, stdout=out, stderr=out)
    try:
        both.freeze(1)
        assert both.job(1) and both.job(1) != both.job(0)
        before = [both.attempts(index) for index in (0, 1)]
        both.launch()
        assert both.standing() == ["running"] * 2
        assert [both.attempts(index) for index in (0, 1)] == before, both.story()
        # Once the allocation is gone, the next launch need not wait.
        pid = both.owner(1)["pid"]
        lab.run("scancel", both.job(1))
        with contextlib.suppress(ProcessLookupError):  # SLURM was faster
            os.kill(pid, signal.SIGKILL)
        lab.wait_for(lambda: scheduler_lost(both, 1), 60, both.story)
        assert both.standing()[1] == "queued", "another element has it on its list"
        first.thaw(0)
        both.launch()
        both.finish(120)
        assert both.attempts(0) == 1 and both.attempts(1) == 3, "the second is the claim by which it was freed"
        assert_same(both, whole)
    finally:
        first.thaw(0)
        train.kill()
        train.wait()
        lab.run("scancel", "-u", getpass.getuser())
    lab.wait_idle(60)


def scheduler_lost(trial: Trial, index: int) -> bool:
    with trial.here():
        return bool(scheduler.gone([trial.owner(index)]))


def test_a_users_taste_for_squeue_and_jobs_of_others_tell_nothing(make_trial, lab, monkeypatch):
    job = lab.run("sbatch", "--parsable", "-o", "/dev/null", "--wrap", "sleep 600").strip()
    lab.wait_for(lambda: job in [found.id for found in lab.jobs("RUNNING")], 20)
    mine = {"job": job, "uid": os.getuid(), "cluster": "lab"}
    with make_trial(0).here(), monkeypatch.context() as patch:
        patch.setenv("SQUEUE_PARTITION", "high")
        ended = {**mine, "job": "999_7"}
        assert scheduler.gone([mine, ended]) == {"999_7"}
        assert scheduler.gone([{**ended, "uid": os.getuid() + 1}, {**ended, "cluster": "elsewhere"}]) == set()
        lab.run("scontrol", "suspend", job)
        assert scheduler.gone([mine]) == set(), "a suspended job lives"
        lab.run("scontrol", "resume", job)
        patch.setenv("SLURM_CONF", "/nowhere")
        patch.setattr(scheduler, "ANSWER_SECONDS", 0.5)
        assert scheduler.gone([mine, ended]) == set(), "no answer"
        with pytest.raises(Refusal, match=r"no controller answers; .* --cluster local") as refusal:
            clusters.pick("auto")
        assert refusal.value.code == CLUSTER
    lab.run("scancel", job)
    lab.wait_idle(30)


def test_a_site_that_rewrites_comments_gets_no_duplicates(make_trial, lab):
    trial = make_trial(0, 1)
    trial.launch(array_parallelism=1)
    trial.freeze(0)
    submitted = len(lab.jobs())
    for job in lab.jobs("PENDING", "RUNNING"):
        lab.run("scontrol", "update", f"JobId={job.id}", "Comment=project42")
    assert set(lab.run("squeue", "-h", "-r", "-o", "%k").split()) == {"project42"}
    trial.launch()
    assert len(lab.jobs()) == submitted, trial.story()
    assert trial.standing() == ["running", "queued"]
    trial.thaw(0)
    trial.finish(120)
    lab.wait_idle(60)


def test_an_element_that_completes_is_live_and_takes_nothing_more(tmp_path):
    element = scheduler.Element("1", "COMPLETING", "", "")
    assert element.state in scheduler.LIVE and not element.comes and not element.waits
    assert not scheduler.Element("1", "SUSPENDED", "", "").waits
    shape = submit.Shape(clusters.Resources(), ("a",))
    assert submit.missing(shape, [element], tmp_path, ()) == 1


def test_what_waits_is_kept_away_from_one_node_after_another(make_trial, lab, capsys):
    words = ["sbatch", "--parsable", "-J", "waits", "--begin=now+1hour", "--array=0-3", "-o", "/dev/null"]
    array = lab.run(*words, "--wrap", "true").strip()
    other = lab.run(*words[:2], "-J", "other", *words[4:], "--wrap", "true").strip()
    with make_trial(0).here():
        for node in NODES[:2]:
            scheduler.avoid("waits", node)
    assert not capsys.readouterr().out
    excluded = lab.run("squeue", "-h", "-r", "-j", f"{array},{other}", "-o", "%F|%x").split()
    nodes = {entry for entry in excluded if entry.startswith(array)}
    assert nodes <= {f"{array}|{NODES[0]},{NODES[1]}", f"{array}|127.0.0.[1-2]"} and nodes, excluded
    assert f"{other}|(null)" in excluded or f"{other}|" in excluded, excluded
    lab.run("scancel", array, other)
    lab.wait_idle(30)


# --- machines that are broken -----------------------------------------------------------------------------------------


def test_a_node_on_which_every_run_fails_ends_alone(make_trial, lab, whole):
    """Four runs; the first node is broken. All are trained on the others, none fails, and the node is left alone."""
    trial = make_trial(0, 1, 2, 3)
    break_nodes(trial, NODES[0])
    lab.close_to_jobs(*NODES[1:])  # or it might come too late to be given a run
    trial.launch(cpus=4, array_parallelism=3)
    lab.wait_for(lambda: "ended with 79" in trial.said(), 90, trial.story)
    lab.open_to_jobs()
    trial.finish(150)
    assert trial.states() == ["done"] * 4, trial.story()
    assert {trial.owner(index)["node"] for index in range(4)} <= {*NODES[1:]}
    lab.wait_idle(60)
    said = trial.said()
    # A second fault there says so and ends the element, unless the others have taken all runs by then.
    assert said.count(f"{NODES[0]} trains nothing more of this sweep") <= 1, said
    assert f"fault of {NODES[0]}: RuntimeError: CUDA error: uncorrectable ECC" in said
    assert_same(trial, whole)


def test_the_only_run_of_a_broken_node_is_stopped_and_goes_on_elsewhere(make_trial, lab, whole, capsys):
    trial = make_trial(0)
    break_nodes(trial, NODES[0])
    lab.close_to_jobs(*NODES[1:])
    trial.launch()
    lab.wait_idle(90)
    status = store.read_json(trial.folders[0] / "status.json")
    assert (status["state"], status["error_class"], status["exit_code"]) == ("stopped", "machine", 79), trial.story()
    assert len(list(trial.jobs.glob(f"*/node-{NODES[0]}.json"))) == 1
    table = trial.script("status")
    assert "CUDA error: uncorrectable ECC" in table.replace("\n", "") and "1 stopped" in table
    with trial.here():
        launched = submit.Launch(trial.sweep, "another", {}, ROOT, {})
        assert [*launched.exclude] == [NODES[0]]
        launched.check(submit.Shape(clusters.Resources(), ()), 1)
    assert not launched.exclude, "no other node is open"
    assert f"not without {NODES[0]}, which had a fault: SLURM would refuse this" in capsys.readouterr().out
    lab.open_to_jobs()
    said = trial.script("launch", "--no-snapshot")
    assert f"without {NODES[0]}, which had a fault" in said, said
    trial.finish(90)
    assert trial.owner(0)["node"] != NODES[0]
    assert_same(trial, whole)
    lab.wait_idle(60)


def test_a_run_that_breaks_on_every_node_fails_alone(make_trial, tmp_path):
    """Faults on two nodes are the run's: otherwise it would take one node after another out of the sweep."""
    from slurm.queue import worker

    trial = make_trial(0)
    folder = trial.folders[0]
    store.make_folder(trial.sweep.runs[0], folder)
    for node in NODES[:2]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SLURMD_NODENAME", node)
            with lease.own(folder, "launch") as mine:
                mine.record["fault"] = True
                status = {"state": "stopped", "error_class": "machine", "error": "CUDA error: illegal", "step": 0}
                store.write_json(folder / "status.json", status)
    worker.drain([folder], {}, "launch", lambda: 0)
    status = store.read_status(folder)
    assert (status["state"], status["error_class"]) == ("failed", "machine")
    assert f"on {NODES[0]} and {NODES[1]} alike, so it is the run: CUDA error: illegal" in status["error"]


def test_a_gpu_that_was_asked_for_and_does_not_work_is_no_cpu(make_trial, lab):
    """The nodes of the lab pretend to have GPUs, so SLURM gives one and torch sees none."""
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU, which would work")
    trial = make_trial(0)
    said = trial.script("launch", "--no-snapshot")
    assert "warning: nodes here have GPUs (gpu:2), and these jobs ask for none; --gpus 1 does" in said, said
    trial.finish(90)
    asks = make_trial(1, name="asks")
    said = asks.script("launch", "--no-snapshot", "--gpus", "1")
    assert "warning" not in said
    lab.wait_idle(90)
    status = store.read_json(asks.folders[0] / "status.json")
    assert (status["state"], status["error_class"]) == ("stopped", "machine"), asks.story()
    assert "a GPU was asked for, but torch sees none on 127.0.0." in status["error"]
    assert not (asks.folders[0] / "summary.csv").exists()


def test_a_login_node_without_torch_submits(make_trial, lab):
    """A stand-in for one thing: the import of torch and its kin fails, also in the jobs, which inherit the path."""
    trial = make_trial(0)
    (trial.folder / "path").mkdir()
    (trial.folder / "path" / "sitecustomize.py").write_text(
        "import importlib.abc, sys\n"
        "class Missing(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name.partition('.')[0] in ('torch', 'torchvision', 'timm', 'ffcv'):\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Missing())\n"
    )
    said = trial.script("launch", "--no-snapshot", PYTHONPATH=str(trial.folder / "path"))
    assert "models are not tried out here but in the jobs: ModuleNotFoundError: No module named 'torch'" in said, said
    assert "1 elements for 1 run" in said and "Traceback" not in said
    lab.wait_idle(120)
    assert trial.states() == ["planned"], "a job without torch is the machine's fault"
    assert "trains nothing more of this sweep" in trial.said(), trial.said()


# --- probes as work of the queue --------------------------------------------------------------------------------------


def test_probes_are_measured_by_the_jobs(make_trial, lab):
    trial = make_trial(0, 1, rest="PROBES = ['shift']")
    trial.launch()
    trial.finish(120)
    lab.wait_idle(120)
    for folder in trial.folders:
        assert store.read_json(folder / "probes" / "shift.json")["values"], trial.story()
    first = trial.folders[0] / "probes" / "shift.json"
    before = first.read_bytes()
    first.unlink()
    submitted = len(lab.jobs())
    said = trial.script("launch", "--no-snapshot")
    assert "2 of 2 runs done, 1 to probe on slurm" in said and "1 finished runs are probed by the jobs" in said, said
    lab.wait_idle(120)
    assert len(lab.jobs()) == submitted + 1 and first.read_bytes() == before
    said = trial.script("launch", "--no-snapshot")
    assert "report:" in said and "probes:" not in said, said
