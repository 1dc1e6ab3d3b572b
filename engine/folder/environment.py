"""What a result depends on besides its Run: versions, machine, threads, commit, data."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from engine.folder.store import ROOT

PACKAGES = ("torch", "torchvision", "timm", "ffcv", "numpy", "numba")


def environment() -> dict[str, Any]:
    """Versions, machine and commit as plain values; no import of the packages is needed."""
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        "machine": platform.machine(),
        "processor": processor(),
        "host": platform.node(),
        "cores": os.cpu_count(),
        "commit": commit(),
        "command": " ".join(sys.argv),
    }


def commit() -> str:
    """The checkout's commit, with `+` if files differ from it; "unknown" outside a repository.

    A copy of the source, as queued jobs run it (slurm/cluster/snapshot.py), says in a file of what it is one.
    """
    if (copy := ROOT / "COMMIT").exists():
        return copy.read_text().strip()
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, timeout=10)
        dirty = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    if head.returncode:
        return "unknown"
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")


def processor() -> str:
    """The name that the processor gives itself."""
    try:
        with Path("/proc/cpuinfo").open() as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"
