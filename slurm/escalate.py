"""Memory for jobs by what was seen: peaks of finished runs, and deaths from too little.

A run counts as out of memory whose process was killed without a word until it was given up, as the kernel and SLURM do
it, or which said so itself; a GPU's memory is another matter. What its job had asked for stands in launch.json.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import Refusal
from engine.folder import lease, store
from slurm.cluster.clusters import Resources
from slurm.define.sweep import Sweep
from slurm.queue.choose import is_of_memory

HEADROOM = 1.3  # of a measured peak: it is that of one process, and SLURM counts the element's others and page cache
LEAST_GB = 1.0


@dataclass(frozen=True)
class Rule:
    """Ask for `factor` times as much as was too little, and never for more than `limit_gb`."""

    factor: float
    limit_gb: float


def parse(text: str) -> Rule:
    """`mem_gb=1.5:64`. Raises Refusal for anything else."""
    key, _, rest = text.partition("=")
    factor, _, limit = rest.partition(":")
    try:
        rule = Rule(float(factor), float(limit))
    except ValueError:
        rule = Rule(0.0, 0.0)
    if key != "mem_gb" or not 1 < rule.factor < 100 or not 0 < rule.limit_gb < 1e5:
        raise Refusal(f"--escalate takes mem_gb=FACTOR:LIMIT, as mem_gb=1.5:64 for up to 64 GB, and not '{text}'")
    return rule


def needs(
    sweep: Sweep, given: Sequence[Resources], statuses: Sequence[Mapping[str, Any]], rule: Rule
) -> list[Resources]:
    """The resources of each run, with the memory of the rule."""
    asked, peaks = _asked(sweep.jobs_folder), _peaks(sweep, statuses)
    found = []
    for run, folder, need, status in zip(sweep.runs, sweep.folders, given, statuses, strict=True):
        memory = need.mem_gb
        if memory is None and run.rung in peaks:
            memory = min(rule.limit_gb, max(LEAST_GB, round(HEADROOM * need.pack * peaks[run.rung], 1)))
        if is_of_memory(status):
            had = asked.get((lease.last(folder) or {}).get("job", "").partition("_")[0]) or memory or LEAST_GB
            memory = max(memory or 0.0, min(rule.limit_gb, round(rule.factor * had, 1)))
        found.append(need if memory == need.mem_gb else need.model_copy(update={"mem_gb": memory}))
    return found


def may_grow(sweep: Sweep, statuses: Sequence[Mapping[str, Any]], rule: Rule) -> int:
    """How many runs died, in jobs of SLURM, from less memory than the limit."""
    asked = _asked(sweep.jobs_folder)
    died = [folder for folder, status in zip(sweep.folders, statuses, strict=True) if is_of_memory(status)]
    jobs = [(lease.last(folder) or {}).get("job", "").partition("_")[0] for folder in died]
    return sum(asked.get(job, 0.0) < rule.limit_gb for job in jobs if job)


def _asked(jobs: Path) -> dict[str, float]:
    """By number of a job, the GB that it was submitted with."""
    found = {}
    for path in jobs.glob("*/launch.json"):
        with contextlib.suppress(Refusal):
            for job in store.read_json(path).get("jobs", ()):
                if memory := job.get("shape", {}).get("mem_gb"):
                    found[job["id"]] = memory
    return found


def _peaks(sweep: Sweep, statuses: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """By rung, the highest peak of the finished runs that were trained on a CPU: a GPU's is not the process's."""
    found: dict[str, float] = {}
    for run, folder, status in zip(sweep.runs, sweep.folders, statuses, strict=True):
        peak = status.get("memory_gb") if status["state"] == store.DONE else None
        if peak and store.read_or_warn(folder / "env.json").get("device") == "cpu":
            found[run.rung] = max(peak, found.get(run.rung, 0.0))
    return found
