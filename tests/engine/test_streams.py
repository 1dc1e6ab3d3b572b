"""Streams that are closed, full or unread, and locales that know no umlaut: one line or none, never a traceback."""

import json
import os
import subprocess
import sys

import pytest

from engine.errors import OUTPUT, USAGE
from engine.fields.limits import startable

ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
LIST = ("scripts/list_models.py", "mixer*")


def shell(redirect, *words, env=None):
    """A command under bash with its streams redirected; standard output and error where they are left."""
    command = ["bash", "-c", f'exec "$@" {redirect}' if "|" not in redirect else f'set -o pipefail; "$@" {redirect}']
    command += ["x", sys.executable, *map(str, words)]
    return subprocess.run(command, capture_output=True, timeout=120, env={**os.environ, **(env or {})})


@pytest.mark.parametrize(
    ("redirect", "why"),
    [(">&-", b"Bad file descriptor"), (">/dev/full", b"No space left on device"), ("<&- >&-", b"Bad file descriptor")],
)
def test_a_list_that_cannot_be_printed_is_an_error(redirect, why):
    done = shell(redirect, *LIST)
    assert done.returncode == OUTPUT
    assert done.stderr == b"softmlp: standard output could not be written: " + why + b"\n"


def test_help_that_cannot_be_printed_is_an_error_too():
    done = shell(">/dev/full", "scripts/train.py", "--help")
    assert done.returncode == OUTPUT and done.stderr.count(b"\n") == 1


def test_a_reader_that_has_seen_enough_ends_a_list_quietly():
    done = shell("| head -n 1", "scripts/train.py", "--help")
    assert done.returncode == 0 and done.stdout.count(b"\n") == 1 and not done.stderr


@pytest.mark.parametrize("redirect", ["2>&-", "2>/dev/full", "<&- >&- 2>&-"])
def test_a_refusal_keeps_its_code_where_nobody_hears_it(redirect):
    done = shell(redirect, "scripts/train.py", "--lr", "abc")
    assert done.returncode == USAGE and not done.stdout and not done.stderr


def test_training_goes_on_without_streams_and_says_what_was_lost(tmp_path, digits):
    """In an ASCII locale and a folder with an umlaut, all streams closed; then again, with a full disk to print to."""
    words = ["scripts/train.py", "--model", "mixer_nano", "--epochs", "1", "--train-samples", "64", "-b", "32"]
    words += ["--threads", "1", "--data-dir", digits, "--output", tmp_path / "Größe", "--model-kwargs", "dim=16"]
    done = shell("<&- >&- 2>&-", *words, env=ASCII)
    assert done.returncode == 0 and not done.stdout and not done.stderr
    (folder,) = (tmp_path / "Größe" / "runs").iterdir()
    assert json.loads((folder / "status.json").read_text())["state"] == "done"
    assert "Traceback" not in (folder / "log.txt").read_text(encoding="utf-8")
    done = shell(">/dev/full", *words)
    assert done.returncode == 0
    assert done.stderr.endswith(b"standard output could not be written: No space left on device; all else was done\n")
    done = shell("", *words, env={**ASCII, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and b"Gr\\xf6\\xdfe" in done.stdout and not done.stderr


def test_arguments_that_are_no_text_are_refused():
    done = shell("", "scripts/train.py", "--model", "mixer\udcff")
    assert done.returncode == USAGE and done.stderr.count(b"\n") == 1
    assert b"the argument 'mixer\\udcff' has bytes that are no UTF-8" in done.stderr


def test_an_umlaut_is_told_in_an_ascii_locale():
    done = shell("", "scripts/train.py", "--dataset", "größe", env=ASCII)
    assert done.returncode == USAGE and "unknown dataset 'größe'" in done.stderr.decode()


def test_a_question_without_an_answer_is_a_refusal(tmp_path):
    (tmp_path / "two.py").write_text('"""Q"""\nfrom engine.run import Run\ndef runs():\n    return [Run()]\n')
    env = {"SOFTMLP_RESULTS": str(tmp_path / "r")}
    done = shell("<&-", "scripts/sweep.py", "cancel", tmp_path / "two.py", env=env)
    assert done.returncode == USAGE and b"add --yes" in done.stderr and b"Traceback" not in done.stderr


def test_a_tilde_that_the_shell_left_is_a_home(tmp_path):
    env = {"HOME": str(tmp_path)}
    for word in ("--data-dir=~/x", "--raw-dir=~/x"):
        done = shell("", "scripts/make_beton.py", "--dataset", "imagenet", "--img-size", "8", word, env=env)
        assert f"{tmp_path}/x" in done.stderr.decode() or word.startswith("--data-dir")
    assert not os.path.lexists("~")


# --- threads ----------------------------------------------------------------------------------------------------------


def test_more_threads_than_a_machine_can_start_are_refused(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert startable(256) == 256
    with pytest.raises(ValueError, match="2 cores, and 256 is the most"):
        startable(257)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert startable(1024) == 1024


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--threads", "100000"],
        ["train", "-j", "100000"],
        ["train", "--threads", "-1"],
        ["validate", "x", "--threads", "100000"],
        ["sweep", "launch", "demo", "--slots", "100000"],
        ["sweep", "launch", "demo", "--slots", "-1"],
        ["tune", "--arch", "mixer_nano", "--slots", "100000"],
    ],
)
def test_absurd_counts_are_one_line(words):
    done = shell("", f"scripts/{words[0]}.py", *words[1:])
    assert done.returncode == USAGE and done.stderr.count(b"\n") == 1 and words[-1].encode() in done.stderr
