"""What a sweep leaves on the disk that neither a table nor a resume needs, and its removal.

    checkpoints   states to resume from, of runs that are done (a process that died at the very end leaves them)
    best          model_best.pth.tar of done runs; accuracies, probes and reports are of last.pth.tar, which stays
    jobs          submitit's files and the logs of launches, once every run is done and no job waits or runs

Weights that somebody asked for (`--keep-epochs`), or that a run which is not done starts from, stay.
"""

import shutil
from collections.abc import Collection, Iterable
from pathlib import Path

from engine.errors import OUTPUT, Refusal
from engine.folder import store
from engine.run import BEST, LAST, read_yaml
from slurm.cluster import submit
from slurm.define.sweep import Sweep
from slurm.queue import claims, worker

KINDS = ("checkpoints", "best", "jobs")


def find(sweep: Sweep, kinds: Collection[str] = KINDS) -> dict[str, list[Path]]:
    """By kind, the files and folders that can go."""
    states = [worker.look(folder)["state"] for folder in sweep.folders]
    done = [folder for folder, state in zip(sweep.folders, states, strict=True) if state == store.DONE]
    found: dict[str, list[Path]] = {kind: [] for kind in KINDS if kind in kinds}
    if "checkpoints" in found:
        found["checkpoints"] = [path for folder in done for path in sorted(folder.glob("checkpoint-*.pth.tar"))]
    if "best" in found:
        best = [folder / BEST for folder in done if (folder / BEST).exists() and (folder / LAST).exists()]
        needed = _started_from(sweep.folder.parent) if best else set()
        found["best"] = [path for path in best if path not in needed]
    if "jobs" in found and len(done) == len(states) and not _at_work(sweep):
        found["jobs"] = sorted(path for path in sweep.jobs_folder.glob("*") if path.is_dir())
    return found


def size(paths: Iterable[Path]) -> int:
    """Bytes, of folders with all that is in them."""
    files = (file for path in paths for file in (path.rglob("*") if path.is_dir() else (path,)))
    return sum(file.lstat().st_size for file in files if not file.is_dir())


def remove(paths: Iterable[Path]) -> None:
    """Remove files and folders; what is gone already is no fault. Raises Refusal (OUTPUT) at the first that stays."""
    for path in paths:
        try:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise Refusal(f"cannot remove {path}: {error.strerror}", OUTPUT) from None


def _at_work(sweep: Sweep) -> bool:
    """Whether somebody here, or a job of the sweep, may still write into its folder of jobs; no answer is a yes."""
    if claims.workers(sweep.jobs_folder):
        return True
    on_slurm = next(sweep.jobs_folder.glob("*/launch.json"), None) is not None
    return on_slurm and submit.live(sweep) != []


def _started_from(results: Path) -> set[Path]:
    """Files that runs which are not done start from."""
    found = set()
    for args in results.glob("runs/*/args.yaml"):
        if "initial_checkpoint: null" not in args.read_text() and worker.look(args.parent)["state"] != store.DONE:
            found.add(Path(read_yaml(args).get("initial_checkpoint") or ""))
    return found
