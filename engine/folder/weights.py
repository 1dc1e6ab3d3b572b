"""Weight files that others wrote, read without executing anything in them: .pth of either format, .npz, .safetensors.

The content decides what a file is, not its name. A pickle may name any function of any library; here those that make
tensors, arrays and plain values are called, and every other name stands for an inert object (`StandIn`) that takes
what it is given and does nothing. So dates, paths, settings and scores beside the weights do not stop the weights from
being read, and a model that was pickled whole is refused, because its weights are not there without its code.
"""

import argparse
import collections
import io
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import numpy as np
import torch

from archs.parts.convert import WRAPPERS
from engine.errors import CHECKPOINT, Refusal, line_of

ADVICE = "write the weights alone, where its code is: torch.save(model.state_dict(), FILE)"
# What a file that is no weights begins with, what it is, and what to do.
OTHERS = (
    (rb"version https://git-lfs", "is a pointer of Git LFS, not the weights; git lfs pull fetches them"),
    (rb"\s*(<!doctype|<html|<\?xml)", "is a web page, not the weights; download the file itself"),
    (rb"\s*[{\[]", "is text (JSON), not the weights"),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd", "is compressed; unpack it first"),
    (rb"\x89HDF", "is HDF5 (Keras), which is not read; convert it to .npz or .safetensors"),
    (rb"(?s).{257}ustar", "is a tar archive; unpack it first"),
)


class StandIn:
    """An object of a kind that is not known here: it takes everything and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> "StandIn":
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def ignore(self, *_: Any, **__: Any) -> None:
        pass

    __setstate__ = __setitem__ = append = extend = add = update = ignore


def _bytes(text: str, encoding: str) -> bytes:
    """How pickles of protocol 2 hold bytes: as text in Latin 1."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"bytes in the encoding {encoding}")
    return text.encode(encoding)


def _dtype(name: str, *_: Any) -> np.dtype:
    """A copy, because the pickle fills it, and NumPy's own are shared; of numbers and text only."""
    found = np.dtype(name, copy=True)
    if found.kind in "OV":
        raise pickle.UnpicklingError(f"an array of the type {found}")
    return found


def _from_array(array: np.ndarray, dtype: torch.dtype, *_: Any) -> torch.Tensor:
    return torch.from_numpy(array).to(dtype)


# The only names that mean what they say.
CALLED: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": collections.OrderedDict,
    "collections.defaultdict": lambda *_: {},
    "collections.Counter": collections.Counter,
    "argparse.Namespace": argparse.Namespace,
    "_codecs.encode": _bytes,
    "torch.Size": torch.Size,
    "torch.device": torch.device,
    "torch.nn.parameter.Parameter": torch.nn.Parameter,
    "torch._utils._rebuild_parameter": torch._utils._rebuild_parameter,
    "torch._utils._rebuild_tensor": torch._utils._rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": torch._utils._rebuild_tensor_v2,
    "torch._utils._rebuild_device_tensor_from_numpy": _from_array,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": lambda tensor, *_: tensor,
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": _dtype,
    "numpy._core.multiarray._reconstruct": np._core.multiarray._reconstruct,
    "numpy._core.numeric._frombuffer": np._core.numeric._frombuffer,
    "numpy._core.multiarray.scalar": np._core.multiarray.scalar,
    **{f"builtins.{kind.__name__}": kind for kind in (set, frozenset, bytearray, complex, list, dict, tuple)},
}
DTYPES = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
FILLED = (torch.Tensor, collections.OrderedDict, argparse.Namespace, np.ndarray, np.dtype)


class _Unpickler(pickle._Unpickler):  # in Python, unlike pickle.Unpickler, so that each step can be checked
    """Calls what CALLED names and nothing else; fills only objects of the kinds that those make."""

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}".replace("__builtin__.", "builtins.").replace("numpy.core.", "numpy._core.")
        if full in DTYPES:
            return DTYPES[full]
        return CALLED.get(full) or type(full, (StandIn,), {"__module__": module, "__qualname__": name})

    def _check(self, called: Any) -> None:
        stands_in = isinstance(called, type) and issubclass(called, StandIn)
        if not stands_in and all(called is not each for each in CALLED.values()):
            raise pickle.UnpicklingError(f"a call of {called!r}")

    def load_reduce(self) -> None:
        self._check(self.stack[-2])
        super().load_reduce()

    def load_newobj(self) -> None:
        self._check(self.stack[-2])
        super().load_newobj()

    def load_newobj_ex(self) -> None:
        self._check(self.stack[-3])
        super().load_newobj_ex()

    def _instantiate(self, klass: Any, args: Any) -> None:
        self._check(klass)
        super()._instantiate(klass, args)

    def load_build(self) -> None:
        if not isinstance(self.stack[-2], (StandIn, *FILLED)):
            raise pickle.UnpicklingError(f"a state for a {type(self.stack[-2]).__name__}")
        super().load_build()

    dispatch = pickle._Unpickler.dispatch | {
        pickle.REDUCE[0]: load_reduce,
        pickle.NEWOBJ[0]: load_newobj,
        pickle.NEWOBJ_EX[0]: load_newobj_ex,
        pickle.BUILD[0]: load_build,
    }


def _load(file: BinaryIO, **given: Any) -> Any:
    return _Unpickler(file, **given).load()


PICKLE = SimpleNamespace(
    __name__=__name__, Unpickler=_Unpickler, load=_load, loads=lambda data, **given: _load(io.BytesIO(data), **given)
)


def read(path: Path) -> Mapping[str, Any]:
    """The content of a weight file, by name. Raises Refusal (CHECKPOINT), in one line that says what the file is."""
    try:
        kind = _kind(path)
        if kind is None:
            raise Refusal(f"{path} cannot be loaded: it is none of .pth, .npz and .safetensors", CHECKPOINT)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            file = {"npz": _npz, "safetensors": _safetensors, "torch": _torch}[kind](path)
    except Refusal:
        raise
    except FileNotFoundError:
        raise Refusal(f"{path} does not exist", CHECKPOINT) from None
    except OSError as error:
        raise Refusal(f"{path} cannot be read: {error.strerror or line_of(error)}", CHECKPOINT) from None
    except Exception as error:  # a damaged file raises whatever it was damaged into
        reason = f"{line_of(error)}; the file has {path.stat().st_size:,} bytes"
        raise Refusal(f"{path} cannot be loaded, damaged or cut off perhaps ({reason})", CHECKPOINT) from None
    _refuse_code(path, file)
    return file


def _kind(path: Path) -> str | None:
    """npz, safetensors or torch, by the first bytes and the names inside; None for what is nothing known."""
    if path.is_dir():
        raise Refusal(f"{path} is a folder, not a file of weights", CHECKPOINT)
    with path.open("rb") as file:
        begin = file.read(512)
    if not begin:
        raise Refusal(f"{path} cannot be loaded: it is empty", CHECKPOINT)
    if begin[8:9] == b"{" and int.from_bytes(begin[:8], "little") < 2**32:  # the length of its header comes first
        return "safetensors"
    for pattern, words in OTHERS:
        if re.match(pattern, begin, re.IGNORECASE):
            raise Refusal(f"{path} cannot be loaded: it {words}", CHECKPOINT)
    if begin.startswith(b"PK"):
        return _kind_of_zip(path)
    return "torch" if begin.startswith(b"\x80") else None


def _kind_of_zip(path: Path) -> str:
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():  # torch does not look at the checksums
            raise Refusal(f"{path} is damaged (wrong checksum of {damaged})", CHECKPOINT)
        names = {name.rpartition("/")[2]: name for name in archive.namelist()}
    if "constants.pkl" in names:
        raise Refusal(f"{path} cannot be loaded: it is a TorchScript program; {ADVICE}", CHECKPOINT)
    if "data.pkl" in names:
        return "torch"
    if names and all(name.endswith(".npy") for name in names):
        return "npz"
    inside = ", ".join(sorted(names.values())[:3])
    raise Refusal(f"{path} cannot be loaded: it is a zip archive of {inside}; unpack it first", CHECKPOINT)


def _torch(path: Path) -> Any:
    """Either format of torch, or a plain pickle."""
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            first = _load(file)
        if not isinstance(first, int):  # the format before PyTorch 1.6 begins with a number of its own
            return first
    return torch.load(path, map_location="cpu", pickle_module=PICKLE, weights_only=False)


def _npz(path: Path) -> Mapping[str, Any]:
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def _safetensors(path: Path) -> Mapping[str, Any]:
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise Refusal(f"{path} needs a package: pip install safetensors", CHECKPOINT) from None
    return load_file(path)


def _refuse_code(path: Path, file: Any) -> None:
    """Refuse a file that is, or keeps where weights are looked for, an object that only its code can make."""
    where, found = "", file
    if isinstance(file, Mapping):
        kept = {key: file[key] for key in WRAPPERS if key in file}
        if any(isinstance(value, Mapping) for value in kept.values()):
            return
        where, found = next(((f" under '{key}'", v) for key, v in kept.items() if isinstance(v, StandIn)), ("", None))
    if isinstance(found, StandIn):
        kind = f"{type(found).__module__}.{type(found).__qualname__}"
        raise Refusal(
            f"{path} holds a whole {kind}{where}, which cannot be had without running code; {ADVICE}", CHECKPOINT
        )
    if not isinstance(file, Mapping):
        raise Refusal(f"{path} holds a {type(file).__name__}, not weights by name", CHECKPOINT)
