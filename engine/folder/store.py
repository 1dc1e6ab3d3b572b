"""Run folders: the only code that knows their layout. Reading and writing here needs neither torch nor timm.

A run's folder, `RESULTS/runs/SIGNATURE-MODEL-sSEED/`, is the only truth about it:

    args.yaml       the Run; feed it back with -c
    status.json     state, epoch, accuracy, heartbeat, attempt; replaced atomically
    summary.csv     one row per epoch, timm's columns first; the same bytes however often the run was interrupted
    metrics.jsonl   one line per log interval, likewise
    profile.json    parameters, MACs, FLOPs
    env.json        versions, machine, threads, commit, checksum of the data
    log.txt         what the run said
    .attempt-N.json who has, or had, the run (engine/folder/lease.py)
    weights-epoch-N.pth.tar  on request, the weights after N epochs (engine/folder/epochs.py)
    predictions.npz what its last evaluation predicted (engine/folder/predictions.py)
    probes/         what probes measured, NAME.json, and some pictures, NAME.png (analysis/bias/probe_runs.py)
    checkpoint-STEP.pth.tar, model_best.pth.tar, last.pth.tar

A process may die at any instant and nothing is lost. What a power cut may take is what came after the last checkpoint:
a checkpoint, and the word that a run is done, come after the files that belong to it have been made durable.
"""

import contextlib
import csv
import json
import logging
import math
import os
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import yaml

from engine.cli.tables import csv_text
from engine.errors import CHECKPOINT, OUTPUT, Refusal
from engine.fields import values
from engine.folder import lease
from engine.folder.files import write_bytes
from engine.run import SCHEME, Run, make_run, read_yaml

__all__ = ["csv_text", "write_bytes"]

ROOT = Path(__file__).resolve().parents[2]
SPEEDS = "speeds.csv"  # in a sweep's folder: latencies of its rungs, of scripts/profile_model.py --sweep
DONE, FAILED, RUNNING, STOPPED, PLANNED = "done", "failed", "running", "stopped", "planned"

STATES = (DONE, FAILED, RUNNING, STOPPED, PLANNED)
# What a value of a file in a run's folder must be, if it is there. A number may be null: not known.
KINDS: dict[str, Callable[[Any], bool]] = {
    "number": lambda value: value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)),
    "count": lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= 0,
    "text": lambda value: value is None or isinstance(value, str),
    "state": lambda value: value in STATES,
}
_NUMBERS = ("epoch", "epochs", "step", "steps", "acc1", "best_acc1", "best_epoch", "images_per_s", "mfu", "memory_gb")
_NUMBERS += ("data_wait", "eta_s", "seconds", "started", "heartbeat", "attempt", "pid", "exit_code")
SHAPES: dict[str, dict[str, str]] = {
    "status.json": {
        "state": "state",
        **dict.fromkeys(_NUMBERS, "number"),
        **dict.fromkeys(("error_class", "error", "host"), "text"),
    },
    "profile.json": dict.fromkeys(("params", "macs", "flops", "trainable_params"), "count"),
    "env.json": {
        **dict.fromkeys(("threads", "world_size", "micro_batches"), "count"),
        **dict.fromkeys(("device", "processor", "host", "commit", "initial_checkpoint_sha256"), "text"),
    },
}
log = logging.getLogger("softmlp")


def results_dir() -> Path:
    """`$SOFTMLP_RESULTS`, or results/ of the checkout."""
    return values.folder("SOFTMLP_RESULTS", ROOT / "results")


def folder_of(run: Run, results: Path | None = None) -> Path:
    """The one folder of this run."""
    return (results or results_dir()) / "runs" / run.name


def write_json(path: Path, value: Any, durable: bool = True, named: bool = True) -> None:
    write_bytes(path, (json.dumps(value, indent=1) + "\n").encode(), durable, named)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; {} where there is no such file.

    Raises Refusal (CHECKPOINT) for one that cannot be read, is none, or has a value of another kind than SHAPES says;
    keys that are not there, or that nobody knows, are no fault: other versions wrote other keys.
    """
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise Refusal(f"{path} cannot be read: {error.strerror}", CHECKPOINT) from None
    except (ValueError, RecursionError):
        value, fault = {}, "it is no JSON"
    else:
        fault = _fault(path, value)
    if fault:
        raise Refusal(f"{path} is damaged ({fault}); remove it and repeat the command", CHECKPOINT)
    return value


def read_or_warn(path: Path) -> dict[str, Any]:
    """The same for those who look at many runs: a damaged file is named in a warning, and is as good as missing."""
    try:
        return read_json(path)
    except Refusal as refusal:
        log.warning("%s", refusal)
        return {}


def _fault(path: Path, value: Any) -> str:
    """What makes a JSON none that we wrote under this name, in a few words; "" where nothing does."""
    if not isinstance(value, dict):
        return "it holds no object"
    if path.name == "status.json" and value and "state" not in value:
        return "it has no state"
    for key, kind in SHAPES.get(path.name, {}).items():
        if key in value and not KINDS[kind](value[key]):
            return f"{key} is {json.dumps(value[key])[:40]}, not a {kind}"
    if path.parent.name == "probes":
        estimates = value.get("values", {})
        of_objects = isinstance(estimates, dict) and all(isinstance(estimate, dict) for estimate in estimates.values())
        if not of_objects or not all(map(KINDS["number"], (n for each in estimates.values() for n in each.values()))):
            return "its values are not what a probe writes"
    return ""


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
        write_bytes(path, yaml.safe_dump(run.record(), sort_keys=False).encode(), named=False)
        return
    there = read_run(folder)
    if there != run:
        before, now = there.record(), run.record()
        changed = [f"{key} {before[key]} -> {now[key]}" for key in now if now[key] != before[key]]
        raise Refusal(f"{folder} holds another run ({', '.join(changed[:3])}); choose another --output")


def withdraw(folder: Path) -> None:
    """Remove the folder of a run that was refused before its first step; one that holds anything else stays."""
    first = ("args.yaml", "status.json", "env.json", "profile.json", "log.txt", "metrics.jsonl")
    with contextlib.suppress(OSError):
        inside = list(folder.iterdir())
        if all(path.name in first or path.match(".attempt-*.json") for path in inside):
            for path in inside:
                path.unlink()
            folder.rmdir()


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


def scheme_of(folder: Path) -> int | None:
    """The scheme that trained and named a run, by the first line of its args.yaml; None where there is none."""
    try:
        with (folder / "args.yaml").open() as file:
            first = file.readline(40)
    except (OSError, ValueError):
        return None
    found = re.match(r"scheme: (\d+)$", first)
    return int(found[1]) if found else 1  # the first wrote none


def older(folders: Iterable[Path]) -> str:
    """One line about those of these folders that another scheme trained; "" where there is none."""
    schemes = {folder: scheme for folder in folders if (scheme := scheme_of(folder)) not in (None, SCHEME)}
    if not schemes:
        return ""
    first = next(iter(schemes))
    commit = read_or_warn(first / "env.json").get("commit") or "the one that wrote them"
    which = f"{first}{f' and {len(schemes) - 1} more' if len(schemes) > 1 else ''}"
    return (
        f"{which}: trained by another version (scheme {schemes[first]}, this is {SCHEME}), left as it is and counted "
        f"for nothing here; git worktree add ../older {commit} has the version that reads and resumes it"
    )


def read_status(folder: Path) -> dict[str, Any]:
    """status.json, or {"state": "planned"}. A run whose process is gone without a word is "stopped"."""
    status = {"state": PLANNED, **read_json(folder / "status.json")}
    if status["state"] == RUNNING and not lease.owner(folder):
        status["state"] = STOPPED
    return status


def is_done(folder: Path) -> bool:
    """Whether a run came to its end; one whose status is damaged is named in a warning, and did not."""
    try:
        return read_status(folder)["state"] == DONE
    except Refusal as refusal:
        log.warning("%s", refusal)
        return False


def read_summary(folder: Path) -> list[dict[str, float]]:
    """summary.csv, one dict per epoch; what was not evaluated is NaN. Raises Refusal (CHECKPOINT) for a damaged one."""
    path = folder / "summary.csv"
    try:
        with path.open(newline="") as file:
            rows = [{key: _value(key, text) for key, text in row.items()} for row in csv.DictReader(file, strict=True)]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise Refusal(f"{path} cannot be read ({error}); the run must be trained again", CHECKPOINT) from None
    if rows and "eval_top1" not in rows[0]:
        raise Refusal(f"{path} has no column eval_top1; the run must be trained again", CHECKPOINT)
    return rows


def _value(key: str, text: str) -> float:
    """A cell of summary.csv. Raises ValueError for what is no number, where there must be one."""
    return math.nan if text == "" and key.startswith("eval_") else float(text)


def now() -> float:
    """Seconds since the epoch, whole milliseconds."""
    return round(time.time(), 3)
