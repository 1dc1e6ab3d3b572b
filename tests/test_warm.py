"""A command forked off a warm process does what it does in one of its own."""

import signal
import subprocess
import sys

import pytest

from tests import warm

TELL = """
import atexit, os, sys
atexit.register(lambda: print("the end", flush=True))
print(sys.argv, sys.orig_argv[1:], __name__, os.getcwd(), os.environ.get("COLOUR"), sys.path[:2], sys.stdin.read())
print("é", sys.stdout.isatty(), file=sys.stderr)
import beside
print(beside.NAME, [name for name in sys.modules if name.split(".")[0] in ("engine", "archs", "tests", "pytest")])
ENDING
"""
ENDINGS = (
    "",
    "sys.exit(3)",
    "sys.exit('why')",
    "raise ValueError('no')",
    "print('lost'); sys.stdout.flush(); os._exit(4)",
)


@pytest.mark.parametrize("form", ["file", "-m", "-c"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_forked_command_is_told_and_says_the_same(tmp_path, ending, form):
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "beside.py").write_text("NAME = 'beside'\n")
    (tmp_path / "tell.py").write_text(TELL.replace("ENDING", ending))
    start = {
        "file": [str(tmp_path / "tell.py")],
        "-m": ["-m", "tell"],
        "-c": ["-c", (tmp_path / "tell.py").read_text()],
    }
    words = [*start[form], "--a", "1"]
    env = {"COLOUR": "red", "PYTHONPATH": str(tmp_path / "path"), "LC_ALL": "C.UTF-8"}
    own = subprocess.run(
        [sys.executable, *words], env=env, cwd=tmp_path, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    forked = warm.run(*words, env=env, cwd=tmp_path)
    assert (forked.returncode, forked.stdout) == (own.returncode, own.stdout), forked
    last = [done.stderr.splitlines()[-1] for done in (own, forked)]
    assert last[0] == last[1] and ("ValueError" in ending or forked.stderr == own.stderr), forked.stderr


def test_one_command_leaves_nothing_to_the_next(tmp_path):
    (tmp_path / "change.py").write_text(
        "import os, sys, torch\nprint(torch.get_default_dtype(), os.environ.get('LEFT'), os.getcwd(), sys.path)\n"
        "torch.set_default_dtype(torch.float64); os.environ['LEFT'] = '1'; os.chdir('/'); sys.path.clear()\n"
    )
    first, second = (warm.run("change.py", cwd=tmp_path) for _ in range(2))
    assert first.returncode == 0 and first.stdout == second.stdout and "float32 None" in first.stdout


def test_a_command_that_hangs_is_ended_and_the_next_is_served(tmp_path):
    (tmp_path / "hang.py").write_text("import time\ntime.sleep(100)\n")
    (tmp_path / "hello.py").write_text("print('hello')\n")
    with pytest.raises(subprocess.TimeoutExpired):
        warm.run(tmp_path / "hang.py", timeout=0.2)
    assert warm.run(tmp_path / "hello.py").stdout == "hello\n"


def test_two_commands_run_side_by_side_and_can_be_killed(tmp_path):
    code = "import os, sys, time\nprint(os.getpid(), sys.argv[1], flush=True)\ntime.sleep(100)"
    first, second = (warm.Process("-c", code, name) for name in ("a", "b"))
    for process, name in ((first, "a"), (second, "b")):
        while not process.said()[0].endswith("\n"):
            assert process.poll() is None
        assert process.said() == (f"{process.pid} {name}\n", "")
    second.kill()
    assert second.communicate(60)[0].endswith("b\n") and second.returncode == -signal.SIGKILL
    assert first.poll() is None
    first.send_signal(signal.SIGTERM)
    assert first.wait(60) == first.poll() == -signal.SIGTERM
