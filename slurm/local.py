"""The queue on this machine: a fixed number of worker processes, started by submitit, refilled while runs remain.

submitit's local executor has no queue (it starts everything at once), and its word on the state of a job is not used:
what is running, done or left is read from the folders and from who holds their locks. So a launcher may die at any
instant; its workers go on, and the next launch counts them, waits for them and does not start what they hold.
"""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from engine import lease, store
from engine.errors import BUSY, Refusal
from engine.signals import Stop
from slurm import claims, worker
from slurm.progress import TICK_SECONDS, Status, View, Watch
from slurm.sweep import Sweep

TIMEOUT_MIN = 60 * 24 * 365  # submitit's default would end a worker after some minutes
EXIT_SECONDS = 30.0
BARREN = 3  # workers in a row that end without taking a run: then it is not the runs


class Workers:
    """The workers of one sweep: those started here, and those that an earlier launch left behind."""

    def __init__(self, sweep: Sweep, how: dict[str, Any], slots: int, gpus: list[str]) -> None:
        import submitit

        self.sweep, self.slots = sweep, slots
        self.jobs_folder = sweep.jobs_folder
        self.launch = new_launch_id()
        self.arguments = {"jobs": str(self.jobs_folder), "launch": self.launch, "slots": slots, "gpus": gpus}
        self.how = how
        # A folder per launch: submitit names its files by process number, and those come round again.
        self.executor = submitit.LocalExecutor(self.jobs_folder / self.launch)
        self.executor.update_parameters(timeout_min=TIMEOUT_MIN, stderr_to_stdout=True)
        self.jobs: list[tuple[Any, float]] = []
        self.barren = 0

    def refill(self, statuses: list[Status]) -> None:
        """Start workers while places are free and runs wait that nobody is about to take."""
        self._bury()
        here = lease.node()
        owners = {status["owner"]["pid"] for status in statuses if status["owner"] and status["owner"]["node"] == here}
        waiting = sum(worker.waits(status) for status in statuses)
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

    def _bury(self) -> None:
        """Forget workers that ended. Raises Refusal if one after another ended without having taken a run."""
        for job, started in [pair for pair in self.jobs if pair[0].done()]:
            self.jobs.remove((job, started))
            self.barren = 0 if worker.last_claim(self.sweep.folders) >= started else self.barren + 1
            if self.barren >= BARREN:
                log = Path(job.paths.stdout)
                lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
                last = lines[-1] if lines else "it wrote nothing"
                raise Refusal(f"{BARREN} workers ended before they took a run; the last one said: {last} ({log})", 1)


def train_all(sweep: Sweep, how: dict[str, Any], slots: int, gpus: list[str], view: View, stop: Stop) -> None:
    """Return when every run is done or failed, or, after a signal, when the workers have saved and left."""
    watch, workers = Watch(sweep), Workers(sweep, how, slots, gpus)
    while not stop():
        view.show(statuses := watch.look())
        if all(map(worker.ended, statuses)):
            workers.join()
            return
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
        worker.drain(sweep.folders, how, launch, show_and_ask)
        view.show(statuses := watch.look())
        if all(map(worker.ended, statuses)):
            return
        time.sleep(TICK_SECONDS)


@contextlib.contextmanager
def only_launcher(sweep: Sweep, patience_s: float = 0.0) -> Iterator[None]:
    """Refuse to launch a sweep that a live launcher has in hand, and does not let go of within `patience_s`."""
    path = sweep.jobs_folder / "launcher.lock"
    deadline = time.monotonic() + patience_s
    while claims.holder(path) is not None and time.monotonic() < deadline:
        time.sleep(TICK_SECONDS)
    with claims.hold(path) as file:
        if file is None:
            look = f"watch it: python scripts/sweep.py status {sweep.name}"
            raise Refusal(f"sweep {sweep.name} is being launched by process {claims.holder(path)}; {look}", BUSY)
        claims.write(file, {"pid": os.getpid()})
        yield


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def visible_gpus(device: str) -> list[str]:
    """GPUs as CUDA_VISIBLE_DEVICES would name them, found without torch; none for device cpu."""
    if device == "cpu":
        return []
    if (chosen := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [gpu for gpu in chosen.split(",") if gpu.strip() not in ("", "-1")]
    return [path.name.removeprefix("nvidia") for path in sorted(Path("/dev").glob("nvidia[0-9]*"))]


def new_launch_id() -> str:
    return f"{datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}"


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
