"""Checkpoints: tensors and plain values only, published by rename, verified before they are believed.

`torch.save` writes a zip file with a CRC-32 per record and `torch.load` does not look at them, so a flipped bit loads
silently; `zipfile` looks. Files are `checkpoint-STEP.pth.tar`; the newest are kept, and the order is that of the
number in the name, never of the clock.
"""

import logging
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from engine.errors import CHECKPOINT, Refusal, line_of
from engine.folder.files import replacing, settle
from engine.run import BEST

HISTORY = ("metrics.jsonl", BEST)
_NAME = re.compile(r"checkpoint-(\d+)\.pth\.tar")
log = logging.getLogger("softmlp")


def save(folder: Path, state: dict[str, Any], keep: int = 2) -> None:
    """Publish the state of a run after `state["step"]` steps, then drop all but the newest.

    What a run that goes on from there does not write again is made durable first.
    """
    settle_history(folder)
    write(folder / f"checkpoint-{state['step']:09d}.pth.tar", state)
    for path in _newest_first(folder)[keep:]:
        path.unlink(missing_ok=True)


def settle_history(folder: Path) -> None:
    """Make durable what a run has told and kept so far; it is written without waiting for the disk."""
    for name in HISTORY:
        settle(folder / name)


def write(path: Path, state: dict[str, Any], durable: bool = True) -> None:
    """torch.save, atomic and, by default, durable.

    Raises Refusal (OUTPUT) where it cannot be written; the old file is intact.
    """
    with replacing(path, durable) as file:
        try:
            torch.save(state, file)
        except Exception as error:
            # torch closes its archive after a failed write, which fails too, with an error of its own that says less.
            if cause := _first_os_error(error):
                raise cause from None
            raise


def read(path: Path) -> dict[str, Any]:
    """Load a file of ours; nothing in it is executed. Raises Refusal (CHECKPOINT) naming the damage."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged:
            raise Refusal(f"{path} is damaged (wrong checksum of {damaged})", CHECKPOINT)
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise Refusal(f"{path} does not exist", CHECKPOINT) from None
    except Refusal:
        raise
    except Exception as error:
        raise Refusal(f"{path} cannot be loaded ({line_of(error)})", CHECKPOINT) from None


def latest(folder: Path) -> dict[str, Any] | None:
    """The newest whole checkpoint of a run; None if it has none.

    A damaged one is passed over with a warning. If all are damaged that is a Refusal (CHECKPOINT), never a silent
    restart from step 0.
    """
    paths = _newest_first(folder)
    for path in paths:
        try:
            return read(path)
        except Refusal as refusal:
            log.warning("%s; falling back to the one before", refusal)
    if paths:
        names = ", ".join(path.name for path in paths)
        raise Refusal(f"no checkpoint in {folder} can be used ({names}); remove them to train from step 0", CHECKPOINT)
    return None


def clear(folder: Path) -> None:
    """Drop the resumable states of a finished run; its weights are in last.pth.tar."""
    for path in _newest_first(folder):
        path.unlink(missing_ok=True)


def _first_os_error(error: BaseException | None) -> OSError | None:
    while error and not isinstance(error, OSError):
        error = error.__context__
    return error


def _newest_first(folder: Path) -> list[Path]:
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]
