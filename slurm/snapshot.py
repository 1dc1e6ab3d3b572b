"""The code that queued jobs run: a copy per state of the source, so that editing goes on while jobs wait.

`RESULTS/.code/COMMIT` holds the files that git knows or would add, without results/ and tests/; COMMIT gets a `-HASH`
of the content where files differ from the commit. Inside, a file COMMIT says what it is, and engine/environment.py
puts that into the record of every run. A copy is made once, under another name, and then renamed.
"""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from engine import environment, store
from engine.errors import OUTPUT, Refusal

LEFT_OUT = ("results", "tests")
NAME = "COMMIT"


def take(results: Path) -> Path:
    """The folder of the present state of the source; the source itself where it is a copy already, or no repository."""
    root = store.ROOT
    if (root / NAME).exists() or (commit := _git("rev-parse", "HEAD")) is None:
        return root
    listed = (_git("ls-files", "-z", "--cached", "--others", "--exclude-standard") or "").split("\0")
    files = sorted(name for name in set(listed) if name and Path(name).parts[0] not in LEFT_OUT)
    content = {name: (root / name).read_bytes() for name in files if (root / name).is_file()}
    label = commit.strip()
    if _git("status", "--porcelain", "--", ".", *(f":(exclude){name}" for name in LEFT_OUT)):
        digest = hashlib.sha256()
        for name, data in content.items():
            digest.update(f"{name}\0{len(data)}\0".encode() + data)
        label += f"-{digest.hexdigest()[:8]}"
    folder = results / ".code" / label
    if not folder.exists():
        _write(folder, {**content, NAME: label.encode()}, root)
    return folder


def label(code: Path) -> str:
    """Which commit a folder of code is of."""
    if (code / NAME).exists():
        return (code / NAME).read_text().strip()
    return environment.commit()


def _write(folder: Path, content: dict[str, bytes], root: Path) -> None:
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    try:
        for name, data in content.items():
            path = partial / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            if (root / name).exists():
                shutil.copymode(root / name, path)
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
