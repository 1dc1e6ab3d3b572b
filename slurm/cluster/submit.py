"""Submit a sweep to SLURM: one array per shape of resources, of identical elements that take runs until none is left.

What is submitted is written down in `.jobs/LAUNCH/` of the sweep: submitit's files, per shape a JSON with what its
elements need, and launch.json with the numbers of the jobs. An array carries the sweep in its name and LAUNCH/SHAPE in
its comment, so that squeue finds what a launcher submitted that died before it could write that down.
"""

import contextlib
import hashlib
import io
import math
import os
import re
import shlex
import sys
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine.errors import CLUSTER, OUTPUT, Refusal
from engine.folder import store
from slurm.cluster import nodes, scheduler
from slurm.cluster.clusters import Resources
from slurm.cluster.scheduler import Element
from slurm.define.sweep import Sweep
from slurm.queue.task import Task

FINISH = "finish"  # comment of the job that comes after a sweep's
MAX_RESTARTS = 50  # of an element that dies by a signal; how often a run may is decided in slurm/queue/worker.py
# After srun: what was killed is started again; of what was told to leave, the scheduler starts again what it wants to.
TEARDOWN = (
    "code=$?",
    "if [ $code -gt 128 ] && [ $code -ne 143 ] && [ $code -ne 130 ]",
    f"then [ ${{SLURM_RESTART_COUNT:-0}} -lt {MAX_RESTARTS} ] || exit $code",
    # Not SLURM_JOB_ID: of one element it is the number of the whole array.
    "scontrol requeue ${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}",
    "fi",
    "exit $code",
)


@dataclass(frozen=True)
class Shape:
    """Runs that need the same resources."""

    resources: Resources
    folders: tuple[str, ...]

    @property
    def key(self) -> str:
        return hashlib.sha256(self.resources.model_dump_json().encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Submitted:
    """One array, or a job of one element."""

    job: str
    elements: int
    shape: Shape


def job_name(sweep: Sweep) -> str:
    """The name of a sweep's jobs; squeue knows it whatever happened to the launcher."""
    return f"softmlp-{sweep.name}-{hashlib.sha256(str(sweep.folder).encode()).hexdigest()[:8]}"


def live(sweep: Sweep) -> list[Element] | None:
    """The elements of a sweep that wait or run; None where squeue does not answer.

    Which launch an element belongs to is told by launch.json, as some sites write comments of their own into jobs, and
    by the comment where a launcher died before it could note the job.
    """
    found = scheduler.queue(job_name(sweep))
    if not found:
        return found
    known: dict[str, str] = {}
    for path in sweep.jobs_folder.glob("*/launch.json"):
        with contextlib.suppress(Refusal):
            jobs = store.read_json(path).get("jobs", ())
            known |= {job["id"]: f"{path.parent.name}/{job['key']}" for job in jobs if "key" in job}
    return [replace(element, comment=known.get(element.job.partition("_")[0], element.comment)) for element in found]


def missing(shape: Shape, live: Iterable[Element], jobs: Path, renewed: Collection[str]) -> int:
    """Elements to add so that each run of a shape that is left finds one, beside those that wait or run already.

    Args:
        jobs: the sweep's folder of launches.
        renewed: folders of runs that had ended; an element that runs already may have struck them off its list.
    """
    left, covered, there = set(shape.folders), set(), 0
    known: dict[str, set[str]] = {}
    for element in live:
        if not element.comes:
            continue
        if element.comment not in known:
            known[element.comment] = set(read_spec(jobs, element.comment).get("folders", ())) & left
        theirs = known[element.comment] if element.waits else known[element.comment].difference(renewed)
        covered |= theirs
        there += bool(theirs)
    pack = shape.resources.pack
    return max(math.ceil(len(left) / pack) - there, math.ceil(len(left - covered) / pack), 0)


def read_spec(jobs: Path, comment: str) -> dict[str, Any]:
    """What the elements of an array were given, found by its comment; {} where that is not ours, or is gone."""
    launch, _, key = comment.partition("/")
    if not re.fullmatch(r"[\w-]+/[0-9a-f]{8}", comment):
        return {}
    try:
        return store.read_json(jobs / launch / f"shape-{key}.json")
    except Refusal:
        return {}


def mend(jobs: Path, live: Iterable[Element]) -> None:
    """Give elements what a launcher owed them that died right after sbatch; they wait for it for a minute."""
    from submitit.core.utils import DelayedSubmission

    for element in live:
        launch, _, key = element.comment.partition("/")
        path = jobs / launch / f"{element.job}_submitted.pkl"
        if read_spec(jobs, element.comment) and not path.exists():
            partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
            DelayedSubmission(Task(str(jobs / launch / f"shape-{key}.json"))).dump(partial)
            partial.replace(path)


class Launch:
    """One launch of a sweep on SLURM: its folder, and what it submits."""

    def __init__(self, sweep: Sweep, name: str, how: dict[str, Any], code: Path, note: dict[str, Any]) -> None:
        self.sweep, self.name, self.how, self.code = sweep, name, how, code
        self.folder = sweep.jobs_folder / name
        self.record = {"time": store.now(), "jobs": [], "how": how, **note}
        self.exclude = nodes.known(sweep.jobs_folder)
        if "%" in str(self.folder):
            raise Refusal(f"{self.folder}: SLURM replaces % in names of files; set SOFTMLP_RESULTS to another folder")

    def check(self, shape: Shape, elements: int) -> None:
        """Raises Refusal (CLUSTER), in sbatch's words, where it would not take this shape."""
        try:
            with _outside_jobs():
                scheduler.test_only(self._executor(shape, elements)._make_submission_file_text("true", ""))
        except Refusal as refusal:
            if not self.exclude:
                raise
            names, self.exclude = ", ".join(self.exclude), {}  # it may be that no other node is left
            self.check(shape, elements)
            print(f"not without {names}, which had a fault: {refusal}", flush=True)

    def submit(self, shape: Shape, elements: int) -> Submitted:
        """One array of so many elements, or of as many as the cluster lets a user have.

        Raises Refusal (CLUSTER), in sbatch's words.
        """
        from submitit.core.utils import FailedJobError

        resources = shape.resources
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            line = f"cannot create {self.folder}: {error.strerror}; free space, or set SOFTMLP_RESULTS"
            raise Refusal(line, OUTPUT) from None
        spec = self.folder / f"shape-{shape.key}.json"
        how = {"threads": max(1, resources.cpus // resources.pack), **self.how}
        if resources.gpus_per_node and how.get("device", "auto") == "auto":
            how["device"] = "cuda"  # a job that was given a GPU must not train on the CPU because that is broken
        limits = resources.model_dump(include={"pack", "timeout_min"}) | {"signal_delay_s": resources.warning_s}
        who = {"launch": self.name, "name": job_name(self.sweep), "probes": list(self.sweep.probes)}
        store.write_json(spec, {"folders": shape.folders, "how": how, **who, **limits})
        store.write_json(self.folder / "launch.json", self.record)
        elements = min(elements, scheduler.max_array_size())
        while True:
            executor = self._executor(shape, elements)
            try:
                # submitit repeats sbatch's words on stderr
                with _outside_jobs(), contextlib.redirect_stderr(io.StringIO()), executor.batch():
                    jobs = [executor.submit(Task(str(spec))) for _ in range(elements)]
                break
            except OSError as error:
                words = "what was submitted goes on; free space and repeat the command"
                raise Refusal(f"cannot write in {self.folder}: {error.strerror}; {words}", OUTPUT) from None
            except FailedJobError as error:
                line = str(error).strip().splitlines()[-1]
                if "limit" not in line.lower() or elements == 1:
                    raise Refusal(f"SLURM refused: {line}; see python scripts/sweep.py doctor", CLUSTER) from None
                elements = math.ceil(elements / 2)  # MaxSubmitJobs of user, account or QOS; it does not say how many
        submitted = Submitted(jobs[0].job_id.partition("_")[0], elements, shape)
        noted = {"id": submitted.job, "elements": elements, "key": shape.key, "shape": resources.model_dump()}
        self.record["jobs"].append(noted)
        store.write_json(self.folder / "launch.json", self.record)
        return submitted

    def finish(self, shape: Shape, jobs: Iterable[str], words: Iterable[str]) -> str:
        """Submit one job that begins when all these have ended, however they did; its number. An earlier one goes.

        Args:
            shape: whose place, memory and time it gets; it has no GPU.
            words: of scripts/sweep.py.

        Raises Refusal (CLUSTER), in sbatch's words.
        """
        name, given = f"{job_name(self.sweep)}-finish", shape.resources
        scheduler.cancel([element.job for element in scheduler.queue(name) or () if element.waits])
        sbatch = tuple(option for option in given.sbatch if not option.startswith("gres="))
        alone = given.model_copy(update={"gpus": 0, "nodes": 1, "tasks": 1, "sbatch": sbatch})
        with _outside_jobs():
            executor = self._executor(Shape(alone, ()), 1)
            after = "afterany:" + ":".join(dict.fromkeys(jobs))
            executor.update_parameters(job_name=name, comment=FINISH, dependency=after)
            python = given.python or shlex.quote(sys.executable)
            command = f"{python} -u {shlex.join([str(self.code / 'scripts/sweep.py'), *words])}"
            self.folder.mkdir(parents=True, exist_ok=True)
            job = scheduler.submit(executor._make_submission_file_text(command, FINISH))
        store.write_json(self.folder / "launch.json", self.record | {FINISH: job})
        return job

    def _executor(self, shape: Shape, elements: int) -> Any:
        import submitit

        given = shape.resources
        options = given.asked
        exclude = [*self.exclude, *filter(None, [options.pop("exclude", "")])]
        executor = submitit.SlurmExecutor(self.folder, max_num_timeout=1_000_000, python=given.python)
        executor.update_parameters(
            job_name=job_name(self.sweep),
            comment=f"{self.name}/{shape.key}",
            nodes=given.nodes,
            ntasks_per_node=given.tasks,
            cpus_per_task=given.cpus,
            time=given.timeout_min,
            signal_delay_s=given.warning_s,
            array_parallelism=given.array_parallelism or elements,
            setup=[*given.setup, *self._exports()],
            teardown=list(TEARDOWN),
            stderr_to_stdout=True,
            wckey=None,
            exclude=",".join(exclude) or None,
            additional_parameters={"requeue": True, **options},
            # srun does not take over sbatch's --cpus-per-task since SLURM 22.05.
            srun_args=["--kill-on-bad-exit=1", f"--cpus-per-task={given.cpus}"],
            **given.model_dump(include={"partition", "account", "qos", "constraint"}),
            mem=f"{math.ceil(given.mem_gb * 1024)}M" if given.mem_gb else None,
            gpus_per_node=given.gpus or None,
        )
        return executor

    def _exports(self) -> Iterator[str]:
        """A job must find this code, before what lies in its folder, and these data and results."""
        yield "export PYTHONSAFEPATH=1"
        paths = [str(self.code), *filter(None, [os.environ.get("PYTHONPATH")])]
        yield f"export PYTHONPATH={shlex.quote(os.pathsep.join(paths))}"
        yield f"export SOFTMLP_RESULTS={shlex.quote(str(self.sweep.folder.parent))}"


@contextlib.contextmanager
def _outside_jobs() -> Iterator[None]:
    """The environment of a job is not for its own jobs; SLURM_CONF alone says where the controller is."""
    if "SLURM_JOB_ID" not in os.environ:
        yield
        return
    import submitit

    keep = {"SLURM_CONF": os.environ["SLURM_CONF"]} if "SLURM_CONF" in os.environ else {}
    with submitit.helpers.clean_env():
        os.environ.update(keep)
        yield
