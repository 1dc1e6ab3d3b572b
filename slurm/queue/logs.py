"""What a run said: its log.txt and, where it died, the end of what its process on SLURM wrote."""

import sys
import time
from pathlib import Path
from typing import Any

from engine.folder import lease, store
from slurm.define.sweep import Sweep
from slurm.queue import worker

TAIL_LINES = 20
POLL_SECONDS = 0.5


def show(sweep: Sweep, folder: Path, follow: bool = False) -> None:
    """Print the log of a run; with `follow` also what is added, until the run ends."""
    place, said = folder / "log.txt", 0
    while True:
        status = worker.look(folder)  # before the file, so that its last lines are not missed
        said = _print_from(place, said)
        if not follow or worker.ended(status):
            break
        time.sleep(POLL_SECONDS)
    if not said:
        print(f"{folder.name} has said nothing yet ({status['state']})")
    if status["state"] in (store.FAILED, store.STOPPED):
        print(f"{status['state']}: {status.get('error_class', 'without a word')}: {status.get('error', '')}")
        if (path := element_log(sweep, folder)) and path.exists():
            print(f"--- the last lines of {path}")
            print("\n".join(path.read_text(errors="replace").splitlines()[-TAIL_LINES:]))


def element_log(sweep: Sweep, folder: Path) -> Path | None:
    """Where the SLURM job of a run's last attempt wrote; None if that was none."""
    record: dict[str, Any] = lease.last(folder) or {}
    if not record.get("job") or not record.get("launch"):
        return None
    return sweep.jobs_folder / record["launch"] / f"{record['job']}_0_log.out"


def _print_from(path: Path, offset: int) -> int:
    """Print what a file has gained; its new length."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read()
    except FileNotFoundError:
        return offset
    sys.stdout.write(data.decode(errors="replace"))
    sys.stdout.flush()
    return offset + len(data)
