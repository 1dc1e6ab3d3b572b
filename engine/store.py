"""Run folders: the only code that knows their layout. Reading and writing here needs neither torch nor timm.

A run's folder, `RESULTS/runs/SIGNATURE-MODEL-sSEED/`, is the only truth about it:

    args.yaml       the Run; feed it back with -c
    status.json     state, epoch, accuracy, heartbeat, attempt; replaced atomically
    summary.csv     one row per epoch, timm's columns first; the same bytes however often the run was interrupted
    metrics.jsonl   one line per log interval, likewise
    profile.json    parameters, MACs, FLOPs
    env.json        versions, machine, threads, commit, checksum of the data
    log.txt         what the run said
    .attempt-N.json who has, or had, the run (engine/lease.py)
    checkpoint-STEP.pth.tar, model_best.pth.tar, last.pth.tar
"""

import contextlib
import csv
import io
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import yaml

from engine import lease, values
from engine.errors import CHECKPOINT, OUTPUT, Refusal
from engine.run import SCHEME, Run, make_run, read_yaml

ROOT = Path(__file__).resolve().parent.parent
SPEEDS = "speeds.csv"  # in a sweep's folder: latencies of its rungs, of scripts/profile_model.py --sweep
DONE, FAILED, RUNNING, STOPPED, PLANNED = "done", "failed", "running", "stopped", "planned"


def results_dir() -> Path:
    """`$SOFTMLP_RESULTS`, or results/ of the checkout."""
    return values.folder("SOFTMLP_RESULTS", ROOT / "results")


def folder_of(run: Run, results: Path | None = None) -> Path:
    """The one folder of this run."""
    return (results or results_dir()) / "runs" / run.name


@contextlib.contextmanager
def replacing(path: Path, durable: bool = True) -> Iterator[IO[bytes]]:
    """A file to write to that takes the place of another at the end of the block, or not at all.

    A reader sees the old bytes or the new ones; if `durable`, also after a power cut. Raises Refusal (OUTPUT) where the
    disk is full or the folder cannot be written; the old file is then intact.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        partial.replace(path)
        if durable:
            descriptor = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise Refusal(
            f"cannot write {path}: {error.strerror}; free space or set SOFTMLP_RESULTS, then repeat", OUTPUT
        ) from None
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, data: bytes, durable: bool = True) -> None:
    """Replace a file as `replacing` does."""
    with replacing(path, durable) as file:
        file.write(data)


def write_json(path: Path, value: Any, durable: bool = True) -> None:
    write_bytes(path, (json.dumps(value, indent=1) + "\n").encode(), durable)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; {} where there is no such file. Raises Refusal for a damaged one."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError:
        raise Refusal(f"{path} is damaged; remove it and repeat the command", CHECKPOINT) from None


def make_folder(run: Run, folder: Path) -> None:
    """Create a run's folder with its args.yaml, or check that an existing one belongs to the same run.

    Raises Refusal: the folder cannot be written (OUTPUT), or holds another run (USAGE, naming the first difference).
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refusal(f"cannot create {folder}: {error.strerror}; choose another --output", OUTPUT) from None
    if not os.access(folder, os.W_OK):
        raise Refusal(f"cannot write in {folder}; choose another --output", OUTPUT)
    path = folder / "args.yaml"
    if not path.exists():
        write_bytes(path, yaml.safe_dump(run.record(), sort_keys=False).encode())
        return
    there = read_run(folder)
    if there != run:
        before, now = there.record(), run.record()
        changed = [f"{key} {before[key]} -> {now[key]}" for key in now if now[key] != before[key]]
        raise Refusal(f"{folder} holds another run ({', '.join(changed[:3])}); choose another --output")


def read_run(folder: Path) -> Run:
    """The Run of a folder, from its args.yaml. Raises Refusal, too, for one that was trained by another scheme."""
    path = folder / "args.yaml"
    fields = read_yaml(path)
    if (scheme := fields.get("scheme", 1)) != SCHEME:
        commit = read_json(folder / "env.json").get("commit") or "the one that wrote it"
        raise Refusal(
            f"{folder} is of scheme {scheme} and this version trains and names runs by scheme {SCHEME}: read or resume "
            f"it with commit {commit}, or train it anew: python scripts/train.py -c {path}"
        )
    return make_run(fields, where=str(path))


def read_status(folder: Path) -> dict[str, Any]:
    """status.json, or {"state": "planned"}. A run whose process is gone without a word is "stopped"."""
    status = read_json(folder / "status.json") or {"state": PLANNED}
    if status["state"] == RUNNING and not lease.owner(folder):
        status["state"] = STOPPED
    return status


def read_summary(folder: Path) -> list[dict[str, float]]:
    """summary.csv, one dict per epoch."""
    path = folder / "summary.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def csv_text(rows: list[dict[str, Any]]) -> str:
    """Rows of equal keys as CSV with one header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def now() -> float:
    """Seconds since the epoch, whole milliseconds."""
    return round(time.time(), 3)
