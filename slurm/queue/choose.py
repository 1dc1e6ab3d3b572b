"""Which runs of a sweep a launch trains, and how they are let be trained again."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import CLASSES, TIMED_OUT
from engine.folder import store
from engine.run import Run
from slurm.define.sweep import Sweep
from slurm.queue import tables, worker
from slurm.queue.progress import Status
from slurm.queue.worker import ended

KINDS = ("unfinished", "failed", "timeout", "cancelled", "published", "memory")
KILLED = "signal"  # error class of a run whose process died without a word, again and again
OUT_OF_MEMORY = ("allocate memory", "not enough memory", "Unable to allocate", "Cannot allocate memory", "MemoryError")
WHY = ("error_class", "error", "exit_code")  # of status.json, where a run did not end well


@dataclass(frozen=True)
class Chosen:
    """Runs of a sweep, by their places in it."""

    sweep: Sweep
    places: frozenset[int]
    renewed: frozenset[str]
    """Folders of those that had ended when they were chosen, and may now be trained again."""

    def __bool__(self) -> bool:
        return bool(self.places)

    @property
    def runs(self) -> list[Run]:
        """In the order of the sweep."""
        return [self.sweep.runs[place] for place in sorted(self.places)]

    def release(self, there: Collection[str] = (), owner: str | None = None) -> None:
        """Let them be trained: also those that had ended, and those reserved for a launch that is gone.

        What ended since it was chosen stays.

        Args:
            there: launches that have live elements.
            owner: the launch to reserve the runs for.
        """
        for place in sorted(self.places):
            folder = self.sweep.folders[place]
            status = worker.look(folder)
            before = status.get(worker.RESERVED)
            reserved = owner or (before if before in there else None)
            again = str(folder) in self.renewed if ended(status) else reserved != before
            if again and status["owner"] is None and status["state"] != store.DONE:
                store.make_folder(self.sweep.runs[place], folder)
                _renew(folder, status, reserved)


def choose(sweep: Sweep, kinds: Collection[str]) -> Chosen:
    """The runs of the given KINDS.

    Unfinished is what has neither ended nor been cancelled; published is what a table alone has as done, and is then
    nothing else.
    """
    statuses = tables.standing(sweep)
    places = frozenset(place for place, status in enumerate(statuses) if _kinds(status).intersection(kinds))
    return Chosen(sweep, places, frozenset(str(sweep.folders[place]) for place in places if ended(statuses[place])))


def _kinds(status: Status) -> set[str]:
    if tables.TABLE in status:
        return {"published"}
    memory = {"memory"} if is_of_memory(status) else set()
    timeout = {"timeout"} if status.get("error_class") == CLASSES[TIMED_OUT] and not status["owner"] else set()
    return {"unfinished" if not ended(status) else status["state"]} | timeout | memory


def is_of_memory(status: Mapping[str, Any]) -> bool:
    """Whether a run failed because of too little memory of the machine, as far as its record tells."""
    said = str(status.get("error"))
    own = any(word in said for word in OUT_OF_MEMORY) and "CUDA" not in said
    return status["state"] == store.FAILED and (status.get("error_class") == KILLED or own)


def _renew(folder: Path, status: Status, reserved: str | None) -> None:
    """Let a run be trained again, or for the first time, from its last checkpoint, by a launch or by any."""
    kept = {key: value for key, value in status.items() if key not in ("owner", "silent", worker.RESERVED, *WHY)}
    kept["state"] = store.STOPPED if status["state"] != store.PLANNED else store.PLANNED
    store.write_json(folder / "status.json", kept | ({worker.RESERVED: reserved} if reserved else {}))
    (folder / worker.CANCEL).unlink(missing_ok=True)
