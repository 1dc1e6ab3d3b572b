"""Standard input, output and error as a daemon, a cron job, a full disk or `| head` may leave them.

Made good once, before a script's main (engine/cli/flags.py, run_main):
- A stream that is closed is opened on /dev/null, so that no file gets its number and, later, what is written to it.
- What a stream cannot spell is written escaped; nothing is lost to an encoding.
- The first write that fails turns the stream to /dev/null. Where standard output is what was asked for, the command
  ends: quietly if nobody reads on (`| head`), with one line and exit code 6 if the disk is full or the stream closed.
  Where it is not, as in training, the command goes on and says so at its end.
"""

import contextlib
import errno
import io
import os
import sys
from typing import Any, TextIO

from engine.errors import OUTPUT, Refusal


class Stream(io.TextIOWrapper):
    """A text stream that survives whatever takes its text. `lost` is why some of it was not written, or ''."""

    lost: str = ""
    wanted: bool = False
    """Whether the command ends where its text cannot be written."""

    def write(self, text: str) -> int:
        if self.lost and self.wanted:
            self._end()
        try:
            return super().write(text)
        except OSError as error:
            self._lose(error)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        self.lost = error.strerror or str(error)
        _nowhere(self.fileno())
        super().flush()  # what was kept goes to /dev/null and fails no more
        if self.wanted:
            if error.errno == errno.EPIPE:
                self.wanted = False
                raise SystemExit(0)
            self._end()

    def _end(self) -> None:
        self.wanted = False
        raise Refusal(f"standard output could not be written: {self.lost}", OUTPUT)


def mend(wanted: bool) -> None:
    """Put the three streams in order; `wanted` says whether standard output is what the command is for."""
    if sys.stdin is None:
        _nowhere(0)
        sys.stdin = sys.__stdin__ = open(0, closefd=False)  # noqa: SIM115 - for as long as the process
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        closed = stream is None
        if closed:
            _nowhere(number)
            stream = open(number, "w", closefd=False)  # noqa: SIM115
        if type(stream) is not io.TextIOWrapper:
            continue  # something of a test's or a notebook's
        mended = _over(stream)
        mended.wanted = wanted and number == 1
        mended.lost = os.strerror(errno.EBADF) if closed else ""
        setattr(sys, name, mended)
        setattr(sys, f"__{name}__", mended)


def finish() -> None:
    """Write what is left; say of a lost output, which nobody has ended for, that it was lost."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    lost = getattr(sys.stdout, "lost", "")
    if lost and lost not in (os.strerror(errno.EBADF), os.strerror(errno.EPIPE)):
        if sys.stdout.wanted:
            sys.stdout._end()
        print(f"softmlp: standard output could not be written: {lost}; all else was done", file=sys.stderr)


def want(wanted: bool) -> None:
    """From now on, whether standard output is what the command is for; where its reader has left, nobody asks."""
    if isinstance(sys.stdout, Stream):
        sys.stdout.wanted = wanted


def leave() -> None:
    """Write what can be written and raise no more, as the interpreter will flush again when it ends."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, Stream):
            stream.wanted = False
            stream.flush()


def in_utf8() -> None:
    """Start this process anew in Python's UTF-8 mode where the locale's encoding is another, such as ASCII.

    Arguments are decoded, and files opened without an encoding, by the locale: an umlaut would end in a traceback, or
    differ between two machines. Children inherit the mode.
    """
    if sys.flags.utf8_mode or sys.getfilesystemencoding() == "utf-8" == _locale() or not sys.orig_argv:
        return
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError):
            stream.flush()
    os.environ["PYTHONUTF8"] = "1"
    with contextlib.suppress(OSError):
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _locale() -> str:
    import locale

    return locale.getencoding().lower()


def _over(stream: TextIO) -> Stream:
    told: dict[str, Any] = {"line_buffering": stream.line_buffering, "write_through": stream.write_through}
    encoding = stream.encoding
    return Stream(stream.detach(), encoding=encoding, errors="backslashreplace", **told)


def _nowhere(number: int) -> None:
    """Point a descriptor to /dev/null."""
    null = os.open(os.devnull, os.O_RDWR)
    if null != number:
        os.dup2(null, number)
        os.close(null)
