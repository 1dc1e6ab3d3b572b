"""Commands of this project in processes that need not import torch first: each is a fork of one that has.

A process of its own takes five seconds of a core to import torch and timm. Here a server, one per pytest worker and
started when it is first asked, imports the packages of others, and nothing of ours, and forks a child for each command:
with the arguments, environment, folder and streams it is given, as the main program, threads and atexit to the end.
Where the process is itself what is tested (what it imports, signals, locales, the interpreter's flags), `subprocess` is
the right thing.
"""

import atexit
import functools
import gc
import importlib
import json
import os
import runpy
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
    """`python WORDS` (`-m MODULE ...` or `FILE.py ...`), without standard input; as subprocess.run, with its text.

    Raises:
        subprocess.TimeoutExpired: after so many seconds; the command is then dead.
    """
    given = [str(word) for word in words]
    order = {"words": given, "env": dict(os.environ if env is None else env), "cwd": str(cwd or Path.cwd())}
    server = _server()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err, Path(os.devnull).open() as nothing:
        socket.send_fds(server, [json.dumps(order).encode()], [nothing.fileno(), out.fileno(), err.fileno()])
        pid = int(server.recv(64))
        server.settimeout(timeout)
        try:
            code = int(server.recv(64))
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)
            server.settimeout(None)
            server.recv(64)
            raise subprocess.TimeoutExpired(given, timeout) from None
        finally:
            server.settimeout(None)
        out.seek(0), err.seek(0)
        return subprocess.CompletedProcess([sys.executable, *given], code, out.read(), err.read())


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
    while True:
        order, streams, *_ = socket.recv_fds(line, 1 << 20, 3)
        if not order:
            return
        pid = os.fork()
        if not pid:
            line.close()
            _become(json.loads(order), streams, path)
        for stream in streams:
            os.close(stream)
        line.send(str(pid).encode())
        line.send(str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode())


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
    module = words[0] == "-m"
    first = order["cwd"] if module else str(Path(words[0]).resolve().parent)
    sys.path[:] = [first, *added, *path]
    sys.orig_argv = [sys.executable, *words]
    sys.argv = words[1:] if module else words
    code = 1
    try:
        if module:
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
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
