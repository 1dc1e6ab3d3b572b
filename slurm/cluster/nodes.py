"""Nodes that a sweep leaves alone, because a fault of theirs ended one of its jobs before anything was gained.

`.jobs/LAUNCH/node-NODE.json` says so, for a day: launches exclude the node. What waits already is told by scontrol.
"""

import contextlib
import json
import time
from pathlib import Path
from typing import Any

from engine.errors import CLASSES, OUTPUT
from engine.folder import lease
from slurm.cluster import scheduler
from slurm.queue import worker

SECONDS = 24 * 3600.0


def leave(spec: Path, code: int) -> None:
    """Keep the sweep of an element away from this node; a results folder that is full is no node's fault.

    Args:
        spec: the JSON of the element's array (slurm/cluster/submit.py).
        code: of the fault.
    """
    given, node = json.loads(spec.read_text()), lease.node()
    if code == OUTPUT:
        print(
            "softmlp: the results cannot be written, so this element ends; nothing that was saved is lost", flush=True
        )
        return
    why = _why([Path(folder) for folder in given["folders"]], node) or CLASSES[code]
    print(f"softmlp: {node} trains nothing more of this sweep: {why}", flush=True)
    record = {"node": node, "job": scheduler.own_job(), "time": time.time(), "why": why}
    with contextlib.suppress(OSError):  # what waits is told in any case
        (spec.parent / f"node-{node}.json").write_text(json.dumps(record))
    scheduler.avoid(given["name"], node)


def left(launch: Path, job: str) -> bool:
    """Whether a job found fault with one of its nodes."""
    return any(record.get("job") == job for record in map(_read, launch.glob("node-*.json")))


def known(jobs: Path) -> dict[str, tuple[str, Path]]:
    """Nodes that launches of a sweep are kept away from: why, and the file to remove where that is mended."""
    found = {}
    for path in sorted(jobs.glob("*/node-*.json")):
        record = _read(path)
        if time.time() - record.get("time", 0.0) < SECONDS:
            found[record["node"]] = (record.get("why", ""), path)
    return found


def _why(folders: list[Path], node: str) -> str:
    """What the last run that this node gave up said."""
    said = [(lease.last(folder) or {}, worker.look(folder)) for folder in folders]
    mine = [(record, status) for record, status in said if record.get("node") == node and "error" in status]
    found = [status["error"] for record, status in sorted(mine, key=lambda pair: pair[0].get("time", 0.0))]
    return found[-1] if found else ""


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
