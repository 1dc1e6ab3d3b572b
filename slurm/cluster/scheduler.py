"""What SLURM is asked and told: the only code that runs its commands. Each has a time limit.

It is asked for what folders cannot say: which elements wait or run, what the limits are, why a process died without a
word. Where it is not there, or does not answer, the answer is None.
"""

import getpass
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.errors import CLUSTER, Refusal

ANSWER_SECONDS = 20.0  # a controller of a large cluster, or one that is being restarted, is waited for
NOTICE_SECONDS = 3.0  # a job that is told to leave has no time for more
ACT_SECONDS = 30.0
# States in which an element is yet to come, or at work; in LEAVING its processes may still be there, and will go.
WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT")
LEAVING = ("COMPLETING", "STAGE_OUT", "PREEMPTED")
LIVE = (*WAITING, *LEAVING, "RUNNING", "CONFIGURING", "SIGNALING", "RESIZING", "SUSPENDED", "STOPPED")
# What a user has set for his own look at the queue would hide jobs from us.
OWN_TASTE = ("SQUEUE_", "SINFO_", "SACCT_")


@dataclass(frozen=True)
class Element:
    """One element of a job array, or a job that is none, as squeue shows it."""

    job: str
    """123_4, or 123."""
    state: str
    reason: str
    comment: str
    """LAUNCH/SHAPE, as it was submitted."""

    @property
    def waits(self) -> bool:
        return self.state in WAITING

    @property
    def comes(self) -> bool:
        """Whether it will take runs, now or later."""
        return self.state not in LEAVING


def ask(*words: str, seconds: float | None = None) -> str | None:
    """What a command of SLURM prints; None if it is not there, fails or takes too long."""
    if not shutil.which(words[0]):
        return None
    env = {key: value for key, value in os.environ.items() if not key.startswith(OWN_TASTE)}
    try:
        done = subprocess.run(
            words, env=env, capture_output=True, text=True, timeout=seconds or ANSWER_SECONDS, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def installed() -> bool:
    """Whether this machine has SLURM's commands, as a login node of a cluster does."""
    return shutil.which("sinfo") is not None


def answers() -> bool:
    """Whether there is a controller that answers."""
    return bool(ask("sinfo", "-h", "-o", "%P"))


def gpus(partition: str | None = None) -> str:
    """The GPUs that nodes of a partition, by default of any, have, as SLURM writes it (gpu:a100:4); empty for none."""
    text = ask("sinfo", "-h", *(["-p", partition] if partition else []), "-o", "%G") or ""
    found = [word.partition("(")[0] for word in text.replace(",", "\n").split() if word.startswith("gpu")]
    return found[0] if found else ""


def own_job() -> str:
    """The job, or element of an array, that this process belongs to; empty outside."""
    env = os.environ
    if "SLURM_ARRAY_JOB_ID" in env:
        return f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}"
    return env.get("SLURM_JOB_ID", "")


def requeue_self() -> bool:
    """Ask for this element to be started again once it has left. Best effort: what was saved can be resumed anyway."""
    line = _refused("scontrol", "requeue", own_job())
    print(f"softmlp: {'requeued' if line is None else 'not requeued: ' + line}", flush=True)
    return line is None


def is_preempted() -> bool:
    """Whether this job, which still runs, is to make room: some clusters say so by SIGTERM and not by SIGUSR2.

    SLURM requeues what it has to kill after the time of grace, but not what leaves before.
    """
    text = ask("scontrol", "show", "job", own_job(), seconds=NOTICE_SECONDS) or ""
    facts = dict(word.split("=", 1) for word in text.split() if "=" in word)
    return facts.get("JobState") == "RUNNING" and facts.get("PreemptTime", "None") != "None"


def queue(name: str) -> list[Element] | None:
    """The live elements of all jobs of a name, of this user; None where squeue does not answer."""
    form = "%i|%T|%r|%k"
    text = ask("squeue", "-h", "-r", "-u", getpass.getuser(), "-n", name, "-o", form)
    if text is None:
        return None
    rows = [line.split("|", 3) for line in text.splitlines() if line.count("|") >= 3]
    return [Element(*row) for row in rows if row[1] in LIVE]


def gone(owners: Iterable[Mapping[str, Any]]) -> set[str]:
    """Jobs of these owners of runs (engine/folder/lease.py) that are at an end, or wait to begin anew, whatever their
    name.

    Asked are the jobs of this user on this cluster; another's are hidden on some, so nothing follows from not seeing
    them. Nor from no answer.
    """
    asked = [owner for owner in owners if owner.get("job") and owner.get("uid", os.getuid()) == os.getuid()]
    if not asked or (text := ask("squeue", "-h", "-a", "-r", "-u", getpass.getuser(), "-o", "%i|%A|%T")) is None:
        return set()
    if any(owner.get("cluster") for owner in asked):
        here = config().get("ClusterName")
        asked = [owner for owner in asked if owner.get("cluster") in ("", None, here)]
    rows = [line.split("|") for line in text.splitlines() if line.count("|") == 2]
    at_work = {job for shown, number, state in rows if state not in WAITING for job in (shown, number)}
    return {owner["job"] for owner in asked} - at_work


def waits_anew(job: str) -> bool:
    """Whether a job is in the queue, to begin (again)."""
    return (ask("squeue", "-h", "-r", "-j", job, "-o", "%T") or "").strip() in WAITING


def own_jobs() -> set[str] | None:
    """The numbers of all jobs of this user that have not ended, those of elements without their place in the array."""
    text = ask("squeue", "-h", "-a", "-r", "-u", getpass.getuser(), "-o", "%F")
    return None if text is None else set(text.split())


def avoid(name: str, node: str) -> None:
    """Keep what waits of the jobs of a name away from a node. Best effort."""
    text = ask("squeue", "-h", "-u", getpass.getuser(), "-n", name, "-t", "PENDING", "-o", "%i|%x") or ""
    for line in text.splitlines():
        job, _, before = line.partition("|")
        nodes = ",".join(dict.fromkeys([*before.strip().replace("(null)", "").split(","), node])).strip(",")
        if refused := _refused("scontrol", "update", f"JobId={job}", f"ExcNodeList={nodes}"):
            print(f"softmlp: {job} is not kept away from {node}: {refused}", flush=True)


def cancel(jobs: Sequence[str]) -> None:
    """scancel elements. Raises Refusal (CLUSTER) with its own line."""
    for start in range(0, len(jobs), 500):  # a command line has a greatest length
        if line := _refused("scancel", *jobs[start : start + 500]):
            raise Refusal(f"scancel: {line}", CLUSTER)


def test_only(script: str) -> None:
    """Ask sbatch whether it would take a script, without submitting. Raises Refusal (CLUSTER) with its own line."""
    if line := _refused("sbatch", "--test-only", text=script):
        raise Refusal(f"SLURM would refuse this: {line}; see python scripts/sweep.py doctor", CLUSTER)


def submit(script: str) -> str:
    """sbatch a script; the number of the job. Raises Refusal (CLUSTER) with its own line."""
    told = _run("sbatch", "--parsable", text=script)
    if isinstance(told, str):
        raise Refusal(f"SLURM refused: {told}; see python scripts/sweep.py doctor", CLUSTER)
    return told.stdout.strip().partition(";")[0]


def config() -> dict[str, str]:
    """`scontrol show config` as a dict; empty where it does not answer."""
    text = ask("scontrol", "show", "config") or ""
    return {key.strip(): value.strip() for key, _, value in (line.partition("=") for line in text.splitlines())}


def max_array_size() -> int:
    """Elements that an array may have; 1000 where the cluster does not say."""
    size = config().get("MaxArraySize", "")
    return max(1, int(size) - 1) if size.isdecimal() else 1000


def deaths(jobs: Sequence[str]) -> dict[str, str]:
    """How accounting says that jobs or elements ended, such as OUT_OF_MEMORY, and where; of those that it knows."""
    form = "JobID,State,NodeList,ExitCode"
    text = ask("sacct", "-n", "-X", "-P", "-j", ",".join(jobs), "-o", form) or ""
    rows = [line.split("|") for line in text.splitlines() if line.count("|") == 3]
    return {job: f"{state} on {node} ({code})" for job, state, node, code in rows if not state.startswith(LIVE)}


def _refused(*words: str, text: str | None = None) -> str | None:
    """Run a command; None if it succeeded, otherwise the line that says why not."""
    told = _run(*words, text=text)
    return told if isinstance(told, str) else None


def _run(*words: str, text: str | None = None) -> subprocess.CompletedProcess[str] | str:
    """Run a command; the line that says why not, where it did not succeed."""
    try:
        done = subprocess.run(words, input=text or "", capture_output=True, text=True, timeout=ACT_SECONDS)
    except FileNotFoundError:
        return f"there is no {words[0]} on this machine"
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{words[0]} did not answer ({type(error).__name__})"
    if done.returncode == 0:
        return done
    lines = [re.sub(r"^\w+: (error|fatal): ", "", line) for line in done.stderr.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith('Try "')]
    return lines[-1] if lines else f"{words[0]} ended with {done.returncode}"
