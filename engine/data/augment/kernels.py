"""How kernels are compiled: by numba, without the interpreter's lock, and once per machine where that can be kept.

numba keeps machine code beside the source, else in the user's own cache. Where neither can be written (a shared
installation in a container without a home) it is kept in a private folder for temporary files; where that fails, too,
or the disk is full, each process compiles anew, which takes some ten seconds, and says so.
"""

import contextlib
import functools
import logging
import os
import pickle
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core.caching import FunctionCache

log = logging.getLogger("softmlp")


def kernel(function: Callable) -> Any:
    """Decorator of what Python calls. What only kernels call is compiled into them, and needs no more than njit."""
    compiled = numba.njit(nogil=True)(function)
    cache = _cache(function)
    if cache is None and (folder := _private_folder()):
        numba.config.CACHE_DIR = str(folder)
        cache = _cache(function)
    if cache is None:
        _say_uncached("no folder for them can be written; set NUMBA_CACHE_DIR to one that can")
    else:
        compiled._cache = cache  # as enable_caching() sets it, with a cache that bears faults of the disk
    return compiled


class _Cache(FunctionCache):
    """numba's cache on disk; what cannot be read or written is compiled anew instead of ending a run."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        with _bearing_faults():
            return super().load_overload(sig, target_context)

    def save_overload(self, sig: Any, data: Any) -> None:
        with _bearing_faults():
            super().save_overload(sig, data)


def _cache(function: Callable) -> _Cache | None:
    try:
        return _Cache(function)
    except RuntimeError:  # numba found no folder that it can write to
        return None


@contextlib.contextmanager
def _bearing_faults():
    try:
        yield
    except (OSError, EOFError, pickle.UnpicklingError) as error:
        _say_uncached(str(error))


def _private_folder() -> Path | None:
    """A folder for temporary files that is this user's alone: what lies in the cache is run as it is."""
    try:
        folder = Path(tempfile.gettempdir(), f"softmlp-kernels-{os.getuid()}")
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return None
    ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
    return folder if ours else None


@functools.cache
def _say_uncached(why: str) -> None:
    log.warning("compiled kernels are not kept (%s): each process compiles them anew, some ten seconds", why)
