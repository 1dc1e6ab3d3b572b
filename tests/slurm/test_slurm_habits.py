"""What a user of a cluster asks for beside training, on a real SLURM: options of a site, waiting, what comes after."""

import os

from engine.folder import store
from tests.trial import ROOT


def test_a_launch_that_waits_and_a_job_that_comes_after(make_trial, lab):
    """One run of two diverges: the command and the job after it both say so by their code, with report and tables; from
    a copy of the code, whose tables are the checkout's."""
    trial = make_trial(0, 9)
    given = ("--sbatch", "exclude=127.0.0.1,127.0.0.3", "nice=7", "mail-type=END")
    said = trial.script("launch", "--wait", "--finish", *given, code=1)
    assert "1 failed, 1 done" in said and "report: " in said, said
    assert "1 of 2 runs failed; look: " in said and "next:" not in said
    assert {trial.owner(index)["node"] for index in (0, 1)} == {"127.0.0.2"}
    assert "Nice=7" in lab.run("scontrol", "show", "job", trial.job(0))

    lab.wait_idle(90)
    (launch,) = trial.jobs.glob("*/launch.json")
    job = store.read_json(launch)["finish"]
    shown = lab.run("scontrol", "show", "job", job)
    assert "ExitCode=1:0" in shown and "ExcNodeList=127.0.0.[1,3]" in shown, shown
    said = trial.said()
    assert "1 of 2 runs failed" in said and said.count("report: ") == 1, said
    assert (trial.folder / "results" / "trial" / "runs.csv").exists() and trial.attempts(0) == 1


def test_an_option_that_the_site_does_not_know_is_refused_in_its_words(make_trial, lab):
    trial = make_trial(0)
    said = trial.script("launch", "--no-snapshot", "--sbatch", "reservaton=x", code=9)
    assert "SLURM would refuse this: " in said and "reservaton" in said, said
    assert not lab.jobs("PENDING", "RUNNING")


def test_waiting_ends_when_no_job_comes_for_what_is_left(make_trial, lab):
    trial = make_trial(0)
    launch = trial.start("launch", "--no-snapshot", "--wait")
    trial.freeze(0)
    said = trial.script("finish", code=1)
    assert "1 of 1 runs are left (1 running)" in said, said
    lab.run("scancel", trial.job(0))
    trial.thaw(0)
    said = launch.communicate(timeout=240)[0]
    assert launch.returncode == 1 and "1 of 1 runs are left" in said and "resume" in said, said


def test_it_is_said_what_slurm_waits_for(make_trial, lab):
    trial = make_trial(0)
    launch = trial.start("launch", "--no-snapshot", "--wait", "--sbatch", "begin=now+1hour")
    said = ""
    while "SLURM waits: " not in said:
        line = launch.stdout.readline()
        assert line, said
        said += line
    assert said.endswith("SLURM waits: BeginTime\n") and "waits (BeginTime)" in trial.script("status"), said
    (job,) = {job.id.partition("_")[0] for job in lab.jobs("PENDING")}
    lab.run("scontrol", "update", f"jobid={job}", "starttime=now")
    said = launch.communicate(timeout=240)[0]
    assert launch.returncode == 0 and "1 done" in said, said


SMALL = """
import os, signal, sys
if "slurm.queue.task" in sys.orig_argv and int(os.environ.get("SLURM_MEM_PER_NODE", 0)) < 2000:
    import engine.train
    engine.train.profile = lambda *args, **given: os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_memory_was_too_little_for_gets_more_until_it_is_done(make_trial, lab):
    """A stand-in for the kernel's killer, as the lab's nodes limit nothing: below 2,000 MB a process is killed."""
    trial = make_trial(0)
    (trial.folder / "path").mkdir()
    (trial.folder / "path" / "sitecustomize.py").write_text(SMALL)
    trial.env |= {"PYTHONPATH": f"{trial.folder / 'path'}{os.pathsep}{ROOT}"}
    said = trial.script("launch", "--no-snapshot", "--mem-gb", "1", "--wait", "--escalate", "mem_gb=1.6:1.5", code=1)
    assert said.count("elements for 1 run") == 2 and "1.5 GB" in said and "1 of 1 runs failed" in said, said
    said = trial.script("resume", "--no-snapshot", "--memory", "--wait", "--escalate", "mem_gb=1.6:3")
    assert "2.4 GB" in said and "1 done" in said and said.count("elements for 1 run") == 1, said
