"""Weights are read from every kind of file, whatever lies beside them, and nothing in the file is executed."""

import argparse
import collections
import datetime
import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import archs
from archs.parts.convert import unwrap
from engine.errors import CHECKPOINT, Refusal
from engine.folder import weights

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.tensor([1.5, -2.0]), "n": torch.tensor(3)}


class Settings(dict):
    """A dict of a library's own, as configurations are."""


BESIDE = {
    "score": np.float64(81.25),
    "curve": np.arange(3.0),
    "folder": Path("/x"),
    "settings": argparse.Namespace(output=Path("/x"), lr=0.1),
    "log": collections.defaultdict(list, {"loss": [1.0]}),
    "recent": collections.deque([1, 2]),
    "config": Settings(lr=0.1),
    "began": datetime.datetime(2020, 1, 2),
    "plain": {"epoch": 3, "words": {"a"}, "bytes": b"abc", "nothing": None, "long": 2**80},
    "scheduler": torch.optim.lr_scheduler.StepLR(torch.optim.SGD([torch.zeros(1)], 0.1), 1),
}


def _same(found: Any) -> bool:
    return found.keys() == STATE.keys() and all(torch.equal(found[key], value) for key, value in STATE.items())


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("zipped", [True, False])
def test_what_lies_beside_the_weights_does_not_stop_them(tmp_path, zipped, protocol):
    path = tmp_path / "file.pth"
    torch.save({"model": STATE, **BESIDE}, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    found = weights.read(path)
    assert _same(found["model"])
    assert found["score"] == 81.25 and found["curve"].tolist() == [0, 1, 2] and found["settings"].lr == 0.1
    assert found["plain"] == BESIDE["plain"] and found["log"] == {"loss": [1.0]}
    for key in ("folder", "recent", "config", "began", "scheduler"):
        assert isinstance(found[key], weights.StandIn), key


def test_the_content_decides_what_a_file_is(tmp_path):
    arrays = {key: value.numpy() for key, value in STATE.items()}
    np.savez(tmp_path / "a.npz", **arrays)
    save_file(STATE, tmp_path / "b.safetensors")
    torch.save(STATE, tmp_path / "c.pth")
    for protocol in (2, 4, 5):
        (tmp_path / f"{protocol}.pkl").write_bytes(pickle.dumps({"model": arrays}, protocol))
    for name in ("a.npz", "b.safetensors", "c.pth", "2.pkl", "4.pkl", "5.pkl"):
        path = (tmp_path / name).rename(tmp_path / f"{name}.bin")
        assert _same(unwrap(weights.read(path))), name


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "model_ema", "state_dict_ema"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module.", "model."])
def test_wrappers_and_prefixes_are_taken_off(tmp_path, wrapper, prefix):
    state = collections.OrderedDict((prefix + key, torch.nn.Parameter(v.float())) for key, v in STATE.items())
    torch.save({wrapper: state, "epoch": 1}, tmp_path / "file.pth.tar")
    assert {key: value.tolist() for key, value in unwrap(weights.read(tmp_path / "file.pth.tar")).items()} == {
        key: value.tolist() for key, value in STATE.items()
    }


def _saved(content: Any) -> bytes:
    torch.save(content, file := io.BytesIO())
    return file.getvalue()


def _archive(**members: bytes) -> bytes:
    with zipfile.ZipFile(file := io.BytesIO(), "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def _flipped(content: bytes) -> bytes:
    """With one bit of the weights changed, which only the checksum tells."""
    place = content.index(STATE["a.weight"].numpy().tobytes())
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def _old(content: Any) -> bytes:
    torch.save(content, file := io.BytesIO(), _use_new_zipfile_serialization=False)
    return file.getvalue()


MODEL = archs.create("mixer_nano", depth=1, dim=16)
CLASS = f"{type(MODEL).__module__}.{type(MODEL).__name__}"
WHOLE = CLASS + "{}, which cannot be had without running code; write the weights alone"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it is empty"),
        (b"hello", "it is none of .pth, .npz and .safetensors"),
        (b"<!DOCTYPE html><html>", "it is a web page"),
        (b"\n <HTML>", "it is a web page"),
        (b'{"error": "not found"}', "it is text"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
        (b"\x1f\x8b\x08\x00" + bytes(20), "it is compressed; unpack it first"),
        (bytes(257) + b"ustar" + bytes(300), "it is a tar archive; unpack it first"),
        (b"\x89HDF\r\n\x1a\n" + bytes(20), "it is HDF5"),
        (_archive(**{"model.pth": b"x"}), "it is a zip archive of model.pth; unpack it first"),
        (_saved(STATE)[:-100], "damaged or cut off perhaps"),
        (_old(STATE)[:-10], "damaged or cut off perhaps"),
        (_old(STATE)[:30], "damaged or cut off perhaps"),
        (_flipped(_saved(STATE)), "is damaged (wrong checksum of archive/data/0)"),
        (_saved(MODEL), WHOLE.format("")),
        (_old({"model": MODEL, "epoch": 3}), WHOLE.format(" under 'model'")),
        (_saved([STATE]), "holds a list, not weights by name"),
    ],
    ids=lambda value: None if isinstance(value, bytes) else "".join(c if c.isalnum() else "-" for c in value)[:30],
)
def test_what_is_no_weights_is_one_line_that_says_what_it_is(tmp_path, content, words):
    path = tmp_path / "file.pth"
    path.write_bytes(content)
    with pytest.raises(Refusal) as caught:
        weights.read(path)
    line = str(caught.value)
    assert words in line and str(path) in line and caught.value.code == CHECKPOINT
    assert line.isprintable()  # one line, no escape codes


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_folders_absent_files_and_programs_are_refused(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "program.pt")
    for path, words in (
        (tmp_path, "is a folder"),
        (tmp_path / "x", "does not exist"),
        (tmp_path / "program.pt", "TorchScript"),
    ):
        with pytest.raises(Refusal, match=words):
            weights.read(path)


class Evil:
    def __init__(self, *made: Any) -> None:
        self.made = made

    def __reduce__(self) -> tuple:
        return self.made


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_is_executed(tmp_path, zipped):
    bad = [Evil(open, (str(tmp_path / "made"), "w")), Evil(eval, (f"open({str(tmp_path / 'made')!r}, 'w')",))]
    torch.save({"model": STATE, "evil": bad}, tmp_path / "evil.pth", _use_new_zipfile_serialization=zipped)
    assert _same(weights.read(tmp_path / "evil.pth")["model"])
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "steps",
    [
        b"ctorch._utils\n_rebuild_tensor_v2\n(NN}X\x0b\x00\x00\x00__globals__Nsb.",  # a state for a function
        b"ccollections\nOrderedDict\n}X\x01\x00\x00\x00a\x88sb.",  # a state for a class
        b"ctorch\nfloat32\n)R.",  # a call of what is no function
        b"cnumpy\ndtype\nX\x01\x00\x00\x00O\x85R.",  # an array of objects
        b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R.",
    ],
)
def test_a_pickle_can_neither_change_nor_call_what_is_not_meant(tmp_path, steps):
    path = tmp_path / "file.pkl"
    path.write_bytes(b"\x80\x02" + steps)
    with pytest.raises(Refusal, match="cannot be loaded"):
        weights.read(path)
