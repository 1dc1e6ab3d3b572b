"""Commands of this project in processes that need not import torch first: each is a fork of one that has.

A process of its own takes five seconds of a core to import torch and timm. Here a server, one per pytest worker and
started when it is first asked, imports the packages of others, and nothing of ours, and forks a child for each command:
with the arguments, environment, folder and streams it is given, as the main program, threads and atexit to the end.
Where the process is itself what is tested (what it imports, locales, the interpreter's flags), `subprocess` is the
right thing.
"""

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

PACKAGES = ("numpy", "pandas", "scipy.stats", "matplotlib.figure", "numba", "torch", "torchvision", "timm")


# --- the test's side --------------------------------------------------------------------------------------------------


def run(
    *words: object, env: Mapping[str, str] | None = None, cwd: str | Path | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """`python WORDS` (`-m MODULE ...`, `-c CODE ...` or `FILE.py ...`), as subprocess.run with its text.

    Raises:
        subprocess.TimeoutExpired: after so many seconds; the command is then dead.
    """
    process = Process(*words, env=env, cwd=cwd)
    try:
        code = process.wait(timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise
    return subprocess.CompletedProcess(process.args, code, *process.said())


class Process:
    """A command that goes on beside the test, without standard input; the methods are those of subprocess.Popen."""

    def __init__(self, *words: object, env: Mapping[str, str] | None = None, cwd: str | Path | None = None) -> None:
        given = [str(word) for word in words]
        self.args, self.returncode = [sys.executable, *given], None
        self._files = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115 - until this object goes
        order = {"words": given, "env": dict(os.environ if env is None else env), "cwd": str(cwd or Path.cwd())}
        told, tell = os.pipe()
        self._told = os.fdopen(told)
        with Path(os.devnull).open() as nothing:
            streams = [nothing.fileno(), *(file.fileno() for file in self._files), tell]
            socket.send_fds(_server(), [json.dumps(order).encode()], streams)
        os.close(tell)
        self.pid = int(self._told.readline())

    def said(self) -> tuple[str, str]:
        """What it has written so far to standard output and error."""
        numbers = [file.fileno() for file in self._files]
        return tuple(os.pread(number, os.fstat(number).st_size, 0).decode() for number in numbers)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        return self.said()

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._told], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout)
            self.returncode = int(self._told.readline())
            self._told.close()
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


@functools.cache
def _server() -> socket.socket:
    """Ends when this process does, as its end of the line is then closed."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # which keeps messages apart
    command = [sys.executable, __file__, str(theirs.fileno())]
    subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
    theirs.close()
    return ours


# --- the server's side ------------------------------------------------------------------------------------------------


def _serve(line: socket.socket) -> None:
    path = sys.path[1:]  # without the folder of this file
    for name in PACKAGES:
        importlib.import_module(name)
    gc.collect(), gc.freeze()  # a collection in a child would copy every page it looks at
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # keepers vanish when they end
    while True:
        order, streams, *_ = socket.recv_fds(line, 1 << 20, 4)
        if not order:
            return
        if not os.fork():
            line.close()
            _keep(json.loads(order), streams, path)
        for stream in streams:
            os.close(stream)


def _keep(order: dict, streams: list[int], path: list[str]) -> NoReturn:
    """The parent of the command: it tells the test the number of the process, and at the end its exit code."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    tell = streams.pop()
    pid = os.fork()
    if not pid:
        os.close(tell)
        _become(order, streams, path)
    os.write(tell, f"{pid}\n".encode())
    for stream in streams:
        os.close(stream)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with contextlib.suppress(BrokenPipeError):  # the test has ended
        os.write(tell, f"{code}\n".encode())
    os._exit(0)


def _become(order: dict, streams: list[int], path: list[str]) -> NoReturn:
    """The command, in the state in which python would start it."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin, sys.stdout = open(0), open(1, "w")  # noqa: SIM115 - for as long as the process lives
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace")  # noqa: SIM115
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["env"])
    added = [folder for folder in order["env"].get("PYTHONPATH", "").split(os.pathsep) if folder]
    words = order["words"]
    first = {"-m": order["cwd"], "-c": ""}.get(words[0], str(Path(words[0]).resolve().parent))
    sys.path[:] = [first, *added, *path]
    sys.orig_argv = [sys.executable, *words]
    sys.argv = {"-m": words[1:], "-c": ["-c", *words[2:]]}.get(words[0], words)
    code = 1
    try:
        if words[0] == "-m":
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        elif words[0] == "-c":
            exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
        else:
            runpy.run_path(words[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        if not isinstance(end.code, str):
            code = int(end.code or 0)
        else:
            print(end.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    # The interpreter's own end, without taking down every module of torch page by page, which takes seconds.
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(code & 0xFF)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
