"""The SLURM that other tests stand on: it is one, its faults are faults, and it leaves nothing behind."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.lab import NODES, PATIENCE, Lab, using

ROOT = Path(__file__).parents[2]
LAB = {"max_array_size": 5}


def submit(lab: Lab, script: str, *options: str) -> str:
    """The number of a new job whose output is LAB/JOB.out."""
    words = ["sbatch", "--parsable", "--open-mode=append", "-o", lab.folder / "%j.out", *options]
    return lab.run(*words, "--wrap", script).strip()


def output(lab: Lab, job: str) -> list[str]:
    path = lab.folder / f"{job}.out"
    return [line for line in path.read_text().splitlines() if line[0].isdigit()] if path.exists() else []


def states(lab: Lab, job: str) -> list[str]:
    return [found.state for found in lab.jobs() if found.id.partition("_")[0] == job]


def test_three_nodes_run_a_step_each(lab):
    job = submit(lab, "srun sh -c 'echo $SLURM_PROCID $SLURMD_NODENAME'", "-N", "3")
    lab.wait_for(lambda: states(lab, job) == ["COMPLETED"], 20, lab.jobs)
    assert sorted(output(lab, job)) == [f"{rank} {node}" for rank, node in enumerate(NODES)]


def test_arrays_are_throttled_and_limited(lab):
    job = submit(lab, "sleep 30", "--array=0-4%2")
    lab.wait_for(lambda: sorted(states(lab, job)) == ["PENDING"] * 3 + ["RUNNING"] * 2, 20, lab.jobs)
    lab.run("scancel", job)
    assert "Invalid job array specification" in lab.run("sbatch", "--array=0-5", "--wrap", "true", check=False)


def test_jobs_outlive_a_restart_of_the_controller(lab):
    over = lab.folder / "over"
    job = submit(lab, f"until [ -e {over} ]; do sleep 0.1; done; echo 0 done")
    lab.wait_for(lambda: states(lab, job) == ["RUNNING"], 20, lab.jobs)
    lab.controller_stop()
    assert "error" in lab.run("squeue", check=False, SLURM_CONF=str(fast(lab)))
    lab.controller_start()
    over.touch()
    lab.wait_for(lambda: states(lab, job) == ["COMPLETED"], 30, lab.jobs)
    assert output(lab, job) == ["0 done"]


def fast(lab: Lab) -> Path:
    """The configuration for a client that does not wait for a controller."""
    path = lab.folder / "fast.conf"
    path.write_text(f"{lab.conf.read_text()}MessageTimeout=1\n")
    return path


def test_accounting_remembers_how_a_job_ended(make_lab):
    lab = make_lab(accounting=True)
    good, bad = submit(lab, "true"), submit(lab, "exit 3")
    lab.wait_idle(20)
    lab.wait_for(lambda: lab.run("sacct", "-nXPo", "state,exitcode").split() == ["COMPLETED|0:0", "FAILED|3:0"], 20)
    assert good != bad


def test_nothing_is_left_behind(make_lab):
    """Not by a lab that is closed; where the tests are killed, the daemons die with them."""
    make_lab().close()  # or skip
    for ending, name in ((signal.SIGUSR1, "closed"), (signal.SIGKILL, "killed")):
        code = (
            "import signal; from tests.lab import Lab\n"
            "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])\n"
            "with Lab() as lab:\n"
            "    print(lab.conf, flush=True)\n"
            "    lab.run('sbatch', '-o', '/dev/null', '--wrap', 'srun sleep 60')\n"
            "    lab.wait_for(lambda: len(lab.processes()) >= 6, 20)\n"
            "    print(flush=True)\n"
            "    signal.sigwait([signal.SIGUSR1])\n"
        )
        with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            conf = Path(process.stdout.readline().strip())
            assert process.stdout.readline() == "\n"
            assert len(using(conf)) > 5
            process.send_signal(ending)
        if name == "closed":
            assert process.returncode == 0 and not using(conf) and not conf.parent.exists()
        else:
            deadline = time.monotonic() + PATIENCE * 10
            while any("SLURMD_NODENAME" not in env for env in using(conf).values()):
                assert time.monotonic() < deadline, using(conf)
                time.sleep(0.1)
            for pid in using(conf):
                os.kill(pid, signal.SIGKILL)
            shutil.rmtree(conf.parent)
