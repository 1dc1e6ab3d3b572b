"""A failure of a test of several machines is tried once more in CI, and cannot be overlooked (tests/rerun.py)."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLAKY = """
import pathlib
import pytest
MARK = pathlib.Path(__file__).with_suffix(".mark")
@pytest.fixture(scope="module")
def lab():
    yield 1
def test_flaky(lab):
    if not MARK.exists():
        MARK.touch()
        raise ValueError("busy today")
def test_good(lab):
    pass
def test_bad():
    assert False
"""


@pytest.mark.parametrize(
    ("name", "ci", "options", "failed", "rerun"),
    [
        ("test_slurm_x", "1", [], 1, 2),
        ("test_distributed", "1", ["-n", "2"], 1, 2),
        ("test_other", "1", [], 2, 0),
        ("test_slurm_x", "", [], 2, 0),
    ],
)
def test_a_failure_is_tried_once_more_and_said(tmp_path, name, ci, options, failed, rerun):
    (tmp_path / f"{name}.py").write_text(FLAKY)
    command = [sys.executable, "-m", "pytest", "-p", "tests.rerun", "-p", "no:cacheprovider", *options, tmp_path]
    env = {**os.environ, "CI": ci, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    lines = done.stdout.splitlines()
    assert done.returncode == 1 and f"{failed} failed, {3 - failed} passed" in lines[-1], done.stdout
    said = [line for line in lines[-6:] if "rerun:" in line]
    assert len(said) == bool(rerun), done.stdout
    if rerun:
        assert f" 2 rerun: {name}.py::test_bad, {name}.py::test_flaky " in said[0]
        assert re.search(rf"test_flaky failed at first: {name}\.py:\d+: ValueError: busy today", done.stdout)
