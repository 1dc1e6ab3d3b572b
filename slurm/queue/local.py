"""The queue on this machine: a fixed number of worker processes, started by submitit, refilled while runs remain.

submitit's local executor has no queue (it starts everything at once), and its word on the state of a job is not used:
what is running, done or left is read from the folders and from who holds their locks. So a launcher may die at any
instant; its workers go on, and the next launch counts them, waits for them and does not start what they hold.
"""

import contextlib
import itertools
import math
import os
import re
import signal
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from engine.errors import BUSY, CLASSES, OUTSIDE, STOPPED, Refusal
from engine.folder import lease, store
from engine.signals import Stop
from slurm.cluster import scheduler
from slurm.define.sweep import Sweep
from slurm.queue import claims, probing, worker
from slurm.queue.progress import TICK_SECONDS, Status, View, Watch

TIMEOUT_MIN = 60 * 24 * 365  # submitit's default would end a worker after some minutes
EXIT_SECONDS = 30.0
BARREN = 3  # workers in a row that end without taking a run, or by a fault of the machine: then it is not the runs
DEV = Path("/dev")
_GPU = re.compile(r"\d+|(GPU|MIG)-[\w/-]+")


class Workers:
    """The workers of one sweep: those started here, and those that an earlier launch left behind."""

    def __init__(self, sweep: Sweep, how: dict[str, Any], slots: int, gpus: list[str]) -> None:
        import submitit

        self.sweep, self.slots = sweep, slots
        self.jobs_folder = sweep.jobs_folder
        self.launch = new_launch_id()
        self.arguments = {"jobs": str(self.jobs_folder), "launch": self.launch, "slots": slots, "gpus": gpus}
        self.arguments["probes"] = sweep.probes
        self.how = how
        # A folder per launch: submitit names its files by process number, and those come round again.
        self.executor = submitit.LocalExecutor(self.jobs_folder / self.launch)
        self.executor.update_parameters(timeout_min=TIMEOUT_MIN, stderr_to_stdout=True)
        self.jobs: list[tuple[Any, float]] = []
        self.barren = 0
        self.probed: set[Path] = set()

    def refill(self, statuses: list[Status]) -> None:
        """Start workers while places are free and runs wait that nobody is about to take."""
        self._bury(statuses)
        here = lease.node()
        owners = {status["owner"]["pid"] for status in statuses if status["owner"] and status["owner"]["node"] == here}
        waiting = sum(map(worker.waits, statuses)) or math.ceil(len(self.to_probe(statuses)) / probing.BATCH)
        places, starting = self._alive()
        alive = len(owners | places) + len(starting)
        idle = len(places - owners) + len(starting)
        while alive < self.slots and idle < waiting:
            with _deaf_to_ctrl_c():
                job = self.executor.submit(
                    worker.work, [str(folder) for folder in self.sweep.folders], self.how, **self.arguments
                )
            self.jobs.append((job, time.time()))
            alive, idle = alive + 1, idle + 1

    def to_probe(self, statuses: list[Status]) -> list[Path]:
        """Runs to be probed, once none waits to be trained."""
        if any(map(worker.waits, statuses)) or not self.sweep.probes:
            return []
        done = {f for f, status in zip(self.sweep.folders, statuses, strict=True) if status["state"] == store.DONE}
        left = probing.left(sorted(done - self.probed), self.sweep.probes)
        self.probed = done.difference(left)
        return left

    def stop(self) -> None:
        """Ask all workers of the sweep to save and leave, and wait until they have. A second Ctrl-C kills them."""
        try:
            while self._signal(signal.SIGTERM):
                time.sleep(1)  # and again: one that was just starting may not have listened yet
        except KeyboardInterrupt:
            self._signal(signal.SIGKILL)
            raise

    def join(self) -> None:
        """Wait for the workers started here, which have nothing left to do; kill those that hang at their exit."""
        deadline = time.monotonic() + EXIT_SECONDS
        while any(not job.done() for job, _ in self.jobs):
            if time.monotonic() > deadline:
                self._signal(signal.SIGKILL)
            time.sleep(0.1)

    def _alive(self) -> tuple[set[int], list[int]]:
        """Processes that hold a place; processes of submitit whose worker has not taken one yet."""
        places = claims.workers(self.jobs_folder)
        starting = [int(job.job_id) for job, _ in self.jobs if not job.done() and job.job_id not in places.values()]
        return set(places), starting

    def _signal(self, number: int) -> bool:
        places, starting = self._alive()
        for pid in [*places, *starting]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        return bool(places or starting)

    def _bury(self, statuses: list[Status]) -> None:
        """Forget workers that ended.

        Raises Refusal if one after another ended without having taken a run, or because this machine is at fault.
        """
        last_claim = worker.last_claim(self.sweep.folders) if any(job.done() for job, _ in self.jobs) else 0.0
        for job, started in [pair for pair in self.jobs if pair[0].done()]:
            self.jobs.remove((job, started))
            faults = [status for status in statuses if _is_fault(status, since=started)]
            self.barren = 0 if last_claim >= started and not faults else self.barren + 1
            if self.barren >= BARREN and faults:
                words = "nothing that was saved is lost; mend it and repeat the command"
                code = next(code for code in OUTSIDE if CLASSES[code] == faults[-1]["error_class"])
                raise Refusal(f"{BARREN} workers in a row: {faults[-1].get('error')}; {words}", code)
            if self.barren >= BARREN:
                log = Path(job.paths.stdout)
                lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
                last = lines[-1] if lines else "it wrote nothing"
                raise Refusal(f"{BARREN} workers ended before they took a run; the last one said: {last} ({log})", 1)


def train_all(sweep: Sweep, how: dict[str, Any], slots: int, gpus: list[str], view: View, stop: Stop) -> None:
    """Return when every run is done or failed, or, after a signal, when the workers have saved and left."""
    watch, workers, told = Watch(sweep), Workers(sweep, how, slots, gpus), False
    while not stop():
        view.show(statuses := watch.look())
        unprobed = workers.to_probe(statuses)
        if all(map(worker.ended, statuses)):
            if not unprobed:
                workers.join()
                return
            if not told:
                view.say(f"probes: {', '.join(sweep.probes)} of {len(unprobed)} runs")
                told = True
        workers.refill(statuses)
        time.sleep(TICK_SECONDS)
    view.say("stopping: the workers save and leave; press Ctrl-C again to kill them (nothing that was saved is lost)")
    workers.stop()
    view.show(watch.look())


def train_inline(sweep: Sweep, how: dict[str, Any], view: View, stop: Stop) -> None:
    """The same in this process, one run after another, for debuggers."""
    watch, launch = Watch(sweep), new_launch_id()
    shown = 0.0

    def show_and_ask() -> int:
        nonlocal shown
        if time.monotonic() - shown > TICK_SECONDS:
            view.show(watch.look())
            shown = time.monotonic()
        return stop()

    while not stop():
        code = worker.drain(sweep.folders, how, launch, show_and_ask)
        if code in OUTSIDE or (code == STOPPED and not stop()):
            raise Refusal("this process, or machine, can train nothing more, see above; repeat the command", code)
        view.show(statuses := watch.look())
        if all(map(worker.ended, statuses)):
            return
        time.sleep(TICK_SECONDS)


@contextlib.contextmanager
def only_launcher(sweep: Sweep, patience_s: float = 0.0) -> Iterator[IO[str]]:
    """Refuse to launch a sweep that a live launcher has in hand, and does not let go of within `patience_s`.

    What is held meanwhile.
    """
    path = sweep.jobs_folder / "launcher.lock"
    deadline = time.monotonic() + patience_s
    while claims.holder(path) is not None and time.monotonic() < deadline:
        time.sleep(TICK_SECONDS)
    with claims.hold(path) as file:
        if file is None:
            look = f"watch it: python scripts/sweep.py status {sweep.name}"
            raise Refusal(f"sweep {sweep.name} is being launched by process {claims.holder(path)}; {look}", BUSY)
        claims.write(file, {"pid": os.getpid()})
        yield file


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def visible_gpus(device: str) -> list[str]:
    """GPUs as CUDA_VISIBLE_DEVICES would name them, found without torch; none for device cpu."""
    if device == "cpu":
        return []
    if (chosen := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        names = [gpu.strip() for gpu in chosen.split(",")]
        return list(itertools.takewhile(_GPU.fullmatch, names))  # CUDA, too, stops at the first that is none
    said = scheduler.ask("nvidia-smi", "-L")
    if said is not None:
        parts = re.findall(r"\(UUID: (MIG-[\w/-]+)\)", said)
        return parts or [str(number) for number in range(len(re.findall(r"^GPU \d+:", said, re.MULTILINE)))]
    # A container may show /dev/nvidia3 alone: to CUDA that is number 0.
    return [str(number) for number, _ in enumerate(DEV.glob("nvidia[0-9]*"))]


def new_launch_id() -> str:
    return f"{datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}"


def _is_fault(status: Status, since: float) -> bool:
    """Whether a run was given up since then because of this machine."""
    return (
        status["state"] == store.STOPPED
        and status.get("error_class") in worker.FAULTS
        and (status.get("heartbeat") or 0.0) >= since
    )


@contextlib.contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """What is started here inherits that it ignores Ctrl-C: the launcher alone hears it, and asks for a clean stop.

    (submitit's controller would kill its worker one second after a Ctrl-C.) It also inherits where our modules are.
    """
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(store.ROOT), *([path] if path else [])])
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if path is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = path
