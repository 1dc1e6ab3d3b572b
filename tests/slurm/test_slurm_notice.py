"""Every way in which SLURM tells a job to leave: four settings of preemption, and the time limit. All at once."""

import math
import time

from engine.folder import store
from slurm.queue import states
from tests.lab import NODES, Lab
from tests.trial import Trial, assert_same

# Whether a job hears SIGUSR2 or SIGTERM first, how long it then has, and what the run says of it. Where it has no time
# SLURM requeues it; with time it must do that itself. Notice without time is a race inside SLURM: the message with
# the end can overtake the one with the notice on its way to the node.
WORLDS = {
    "notice and time": ({"notice": True, "grace_s": 5}, ("preempted",)),
    "notice, no time": ({"notice": True, "grace_s": 0}, ("preempted", "terminated")),
    "no notice, but time": ({"notice": False, "grace_s": 5}, ("preempted",)),
    "neither": ({"notice": False, "grace_s": 0}, ("terminated",)),
}


def test_preemption_in_four_worlds_and_the_time_limit(make_lab, make_trial, whole):
    """A run is saved, says why, and goes on by itself; it is never taken for failed."""
    trials: list[tuple[Trial, tuple[str, ...]]] = []
    for seed, (options, why) in enumerate(WORLDS.values()):
        trials.append((make_trial(seed, name=f"world{seed}", on=make_lab(**options)), why))
        trials[-1][0].launch()
    timed = make_trial(4, name="timed", on=make_lab())
    trials.append((timed, ("timeout",)))
    timed.launch(timeout_min=1, signal_delay_s=5)
    timed.lab.wait_for(lambda: timed.lab.jobs("RUNNING"), 30, timed.story)
    began = time.monotonic()
    limit(timed, 30)  # on a busy machine the first minute ends before anything is saved
    for trial, _ in trials:
        trial.freeze(0)
        # What must leave may not start again before it has been looked at.
        trial.lab.close_to_jobs(*{*NODES} - {trial.owner(0)["node"]})
    timed.lab.close_to_jobs(timed.owner(0)["node"])
    for trial, _ in trials[:-1]:
        trial.lab.preempt(trial.owner(0)["node"])
    limit(timed, math.ceil((time.monotonic() - began + 40) / 60))  # SLURM looks at limits twice a minute
    for trial, _ in trials:
        trial.until_told(0, 90)
        trial.thaw(0)
    for trial, reasons in trials:
        assert_said(trial, reasons)
    limit(timed, 30)
    for trial, _ in trials:
        trial.lab.open_to_jobs()
    for trial, _ in trials:
        trial.finish(120)
        assert trial.attempts(0) == 2 and "from step" in trial.log(0), trial.story()
        assert_same(trial, whole)
        assert restarts(trial.lab) == 1


def assert_said(trial: Trial, reasons: tuple[str, ...]) -> None:
    """The run's own record, and what the user is shown while it waits."""

    def reason() -> str | None:
        return store.read_json(trial.folders[0] / "status.json").get("error_class")

    trial.lab.wait_for(lambda: reason() in reasons, 60, trial.story)
    shown = "queued" if reason() == "terminated" else reason()
    with trial.here():
        trial.lab.wait_for(lambda: states.standing(trial.sweep)[0]["state"] == shown, 30, trial.story)


def limit(trial: Trial, minutes: int) -> None:
    """Move the time limit of a sweep's only job."""
    trial.lab.run("scontrol", "update", f"jobid={trial.lab.jobs()[0].id}", f"timelimit={minutes}")


def restarts(lab: Lab) -> int:
    job = next(job for job in lab.jobs() if job.name.startswith("softmlp"))
    return int(lab.run("scontrol", "show", "job", job.id).partition("Restarts=")[2].split()[0])
