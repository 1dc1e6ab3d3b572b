"""Wait for a sweep on SLURM, as a script that goes on with its results does."""

import time
from datetime import datetime

from slurm.cluster import submit
from slurm.define.sweep import Sweep
from slurm.queue import states
from slurm.queue.progress import Status

EVERY_SECONDS = 10.0
LOOKS = 2  # in a row at a queue without jobs: one that is started again is away for a moment


def until_ended(sweep: Sweep, every: float = EVERY_SECONDS) -> list[Status]:
    """The statuses of slurm.queue.states.standing once no job of the sweep waits or runs; tells what changed.

    Runs may be left then, which no job comes for. Whoever interrupts the waiting ends nothing else. Returns at once
    for a sweep that never went to SLURM.
    """
    on_slurm = next(sweep.jobs_folder.glob("*/launch.json"), None) is not None
    told, quiet = "", 0
    while True:
        live = submit.live(sweep) if on_slurm else []
        statuses = states.standing(sweep)
        left = any(status["state"] in states.UNFINISHED for status in statuses)
        quiet = quiet + 1 if live == [] else 0  # None: squeue does not answer, which says nothing
        why = states.waits_for(live or []) if left else ""
        if on_slurm and (words := states.summary(statuses) + (f"; SLURM waits: {why}" if why else "")) != told:
            told = words
            print(f"{datetime.now():%H:%M:%S}  {words}", flush=True)
        if not on_slurm or quiet == LOOKS or (quiet and not left):
            return statuses
        time.sleep(every)
