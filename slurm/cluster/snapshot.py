"""The code that queued jobs run: a copy per state of the source, so that editing goes on while jobs wait.

`RESULTS/.code/COMMIT` holds the files that git knows or would add, without tests/; its results/ is a link to the
checkout's, as tables are data, which the job that reports reads as they are then. COMMIT gets a `-HASH` of the content
where files differ from the commit. Inside, a file COMMIT says what it is, and
engine/folder/environment.py puts that into the record of every run. A copy is made once, under another name, and then
renamed; `prune` removes those that no job uses any more. Files are copied piece by piece, and large ones that git does
not know are data, not code.
"""

import contextlib
import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Mapping, Set
from pathlib import Path

from engine.errors import OUTPUT, Refusal
from engine.folder import environment, store

LEFT_OUT = ("results", "tests")
NAME = "COMMIT"
LARGE_BYTES = 5_000_000
PRUNE_SECONDS = 24 * 3600.0


def take(results: Path) -> Path:
    """The folder of the present state of the source; the source itself where it is a copy already, or no repository."""
    root = store.ROOT
    if (root / NAME).exists() or (commit := _git("rev-parse", "HEAD")) is None:
        return root
    known = {name: root / name for name in _listed("--cached")}
    added = {name: path for name in _listed("--others", "--exclude-standard") if (path := root / name).is_file()}
    large = {name: path.stat().st_size / 1e6 for name, path in added.items() if path.stat().st_size > LARGE_BYTES}
    if large:
        name = max(large, key=large.__getitem__)
        more = f" and {len(large) - 1} more" if len(large) > 1 else ""
        why = f"over {LARGE_BYTES / 1e6:.0f} MB and not in git; git add what the code needs"
        print(f"jobs get no copy of {name} ({large[name]:.0f} MB){more}: {why}", flush=True)
    files = {name: path for name, path in sorted((known | added).items()) if name not in large and path.is_file()}
    label = commit.strip()
    if _git("status", "--porcelain", "--", ".", *(f":(exclude){name}" for name in LEFT_OUT)):
        digest = hashlib.sha256()
        for name, path in files.items():
            with path.open("rb") as file:
                digest.update(f"{name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\0".encode())
        label += f"-{digest.hexdigest()[:8]}"
    folder = results / ".code" / label
    if folder.exists():
        os.utime(folder)
    else:
        _write(folder, files, label)
    return folder


def prune(results: Path, jobs: Set[str], keep: Path) -> list[Path]:
    """Remove copies that no live job can use, older than a day; returns them.

    Args:
        jobs: numbers of all live jobs of this user (slurm.cluster.scheduler.own_jobs).
        keep: the copy that is in use now.
    """
    used = {keep}
    for path in results.glob("*/.jobs/*/launch.json"):
        with contextlib.suppress(Refusal):
            record = store.read_json(path)
            if record.get("snapshot") and any(job.get("id") in jobs for job in record.get("jobs", ())):
                used.add(Path(record["snapshot"]))
    copies = [folder for folder in (results / ".code").glob("*") if folder not in used]
    # Another launch may have taken a copy and be about to submit; it then touches it (`take`).
    old = [folder for folder in copies if time.time() - folder.stat().st_mtime > PRUNE_SECONDS]
    for folder in old:
        shutil.rmtree(folder, ignore_errors=True)
    return old


def label(code: Path) -> str:
    """Which commit a folder of code is of."""
    if (code / NAME).exists():
        return (code / NAME).read_text().strip()
    return environment.commit()


def _listed(*options: str) -> list[str]:
    """Files that git lists, without those of folders that are left out."""
    names = (_git("ls-files", "-z", *options) or "").split("\0")
    return [name for name in names if name and Path(name).parts[0] not in LEFT_OUT]


def _write(folder: Path, files: Mapping[str, Path], label: str) -> None:
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    try:
        for name, source in files.items():
            path = partial / name
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, path)  # by the kernel, not through our memory
            shutil.copymode(source, path)
        partial.mkdir(parents=True, exist_ok=True)
        (partial / NAME).write_text(label)
        (partial / "results").symlink_to(store.ROOT / "results")
        try:
            partial.rename(folder)
        except OSError:
            if not folder.exists():
                raise
            shutil.rmtree(partial)  # another launch made the same copy meanwhile
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise Refusal(f"cannot copy the code to {folder}: {error.strerror}; or launch --no-snapshot", OUTPUT) from None


def _git(*words: str) -> str | None:
    """What git says of the source; None where it is no repository of its own."""
    if not (store.ROOT / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", *words], cwd=store.ROOT, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
