"""Kernels are compiled once where machine code can be kept, and work where it cannot: checkout and home read-only."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# A kernel of each way to be called; says where its cache is.
CODE = """
import logging, sys
logging.basicConfig(format="%(levelname)s %(message)s")
import numpy as np
from engine.data.augment import resample
out = np.empty((1, 2, 2, 3), np.uint8)
resample.resize(np.arange(48, dtype=np.uint8), np.array([0]), np.array([4]), np.array([[0, 0, 4, 4]]), out)
print(out[0, :, :, 0].tolist(), resample.resize.stats.cache_path, len(resample.resize.stats.cache_hits))
"""
# (0 + 3 + 12 + 15) / 4 = 7.5 and so on, rounded half up.
WANTED = "[[8, 14], [32, 38]]"


@pytest.fixture
def copy(tmp_path):
    """The engine without __pycache__, and with a file in its place, as a read-only disk would be."""
    shutil.copytree(ROOT / "engine", tmp_path / "copy" / "engine", ignore=shutil.ignore_patterns("__pycache__"))
    for folder in [path.parent for path in (tmp_path / "copy" / "engine").rglob("__init__.py")]:
        (folder / "__pycache__").write_text("in the way")
    (tmp_path / "tmp").mkdir()
    return tmp_path / "copy"


def run(copy, **env):
    env = {"HOME": "/proc/none", "XDG_CACHE_HOME": "/proc/none", "TMPDIR": str(copy.parent / "tmp"), **env}
    env = {key: value for key, value in os.environ.items() if not key.startswith("NUMBA")} | env
    done = subprocess.run(
        [sys.executable, "-c", CODE], cwd=copy, env=env | {"PYTHONPATH": str(copy)}, capture_output=True, text=True,
        timeout=240,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.startswith(WANTED), done.stderr
    *_, folder, hits = done.stdout.split()
    return folder, int(hits), done.stderr


def test_kernels_are_kept_in_a_private_folder_where_nothing_else_can_be_written(copy):
    own = copy.parent / "tmp" / f"softmlp-kernels-{os.getuid()}"
    folder, hits, said = run(copy)
    assert folder.startswith(str(own)) and hits == 0 and not said
    assert own.stat().st_mode & 0o777 == 0o700
    assert run(copy)[:2] == (folder, 1), "the second process takes them from there"


def test_kernels_of_a_folder_that_others_can_write_are_not_run(copy):
    own = copy.parent / "tmp" / f"softmlp-kernels-{os.getuid()}"
    own.mkdir()
    own.chmod(0o777)
    folder, hits, said = run(copy)
    assert (folder, hits) == ("None", 0) and said.count("WARNING compiled kernels are not kept") == 1
    assert not list(own.iterdir())


def test_a_cache_that_cannot_be_read_or_written_costs_a_compilation_only(copy):
    """As on a full disk or over a quota, and where another user's files are in the way."""
    cache = copy.parent / "cache"
    folder, hits, _ = run(copy, NUMBA_CACHE_DIR=str(cache))
    assert folder.startswith(str(cache)) and hits == 0
    for index in Path(folder).glob("resample.resize*.nbi"):
        index.unlink()
        index.mkdir()
    _, hits, said = run(copy, NUMBA_CACHE_DIR=str(cache))
    assert hits == 0 and "WARNING compiled kernels are not kept" in said and "resample.resize" in said


def test_importing_ffcv_compiles_nothing_and_leaves_numba_as_it_was():
    """A dictionary of numba's for two names of modes would cost each process three seconds of compiling."""
    code = (
        "import numba, numba.typed, torch\n"
        "from numba.core import event\n"
        "before, threads, compiled = numba.typed.Dict, torch.get_num_threads(), event.RecordingListener()\n"
        "with event.install_listener('numba:compile', compiled):\n"
        "    from engine.data.ffcv import package\n"
        "from ffcv.fields.rgb_image import IMAGE_MODES\n"
        "assert not compiled.buffer, len(compiled.buffer)\n"
        "assert IMAGE_MODES == {'jpg': 0, 'raw': 1} and type(IMAGE_MODES) is dict\n"
        "assert numba.typed.Dict is before and torch.get_num_threads() == threads\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
