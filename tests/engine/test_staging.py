"""Data on the node's own disk: the same training from a copy that is checked, made once, shared and cleaned up."""

import os
import subprocess
import sys

import pytest
import torch

from engine.data import staging
from engine.errors import DATA, Refusal
from engine.folder import store
from engine.run import make_how
from engine.train import train


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The node's disk; what this process noted of it is forgotten in the end."""
    monkeypatch.delenv("SLURM_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "node"))
    (tmp_path / "node").mkdir()
    yield tmp_path / "node"
    for folder in list(staging._used):
        staging._leave(folder)


@pytest.fixture
def given(how):
    return make_how({**how.model_dump(), "stage": True})


def test_a_run_from_a_copy_is_the_same_run(tiny, how, given, place, tmp_path):
    train(tiny, tmp_path / "there", how)
    train(tiny, tmp_path / "here", given)
    (folder,) = [path for path in place.iterdir() if path.is_dir()]
    assert {path.name for path in folder.iterdir()} == {path.name for path in how.data_dir.glob("digits_*_8.*")}
    a, b = (torch.load(tmp_path / name / "last.pth.tar")["state_dict"] for name in ("there", "here"))
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert store.read_json(tmp_path / "here/env.json")["data_sha256"]
    staging._leave(folder)
    assert not folder.exists(), "the last one has gone"


def test_a_copy_is_made_once_and_again_where_it_is_not_whole(tiny, given, place):
    folder = staging.staged(tiny, given).data_dir
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert len(before) == 4 and staging.staged(tiny, given).data_dir == folder
    assert before == {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    damaged = folder / "digits_train_8.beton"
    damaged.write_bytes(b"half of it")
    staging.staged(tiny, given)
    assert damaged.read_bytes() == (given.data_dir / damaged.name).read_bytes()


def test_what_is_not_as_its_json_says_is_refused(tiny, given, place, tmp_path):
    (tmp_path / "data").mkdir()
    for path in given.data_dir.glob("digits_*_8.*"):
        (tmp_path / "data" / path.name).write_bytes(path.read_bytes())
    spoilt = tmp_path / "data" / "digits_val_8.beton"
    spoilt.write_bytes(spoilt.read_bytes()[:-1] + b"!")
    with pytest.raises(Refusal, match=r"is not what digits_val_8\.json says") as refusal:
        staging.staged(tiny, given.model_copy(update={"data_dir": tmp_path / "data"}))
    assert refusal.value.code == DATA


def test_no_place_is_refused_and_no_room_is_a_warning(tiny, given, place, monkeypatch, caplog):
    monkeypatch.setenv("SLURM_TMPDIR", str(place / "missing"))
    assert staging.staged(tiny, given) == given and "cannot be copied to" in caplog.text
    monkeypatch.delenv("SLURM_TMPDIR")
    monkeypatch.delenv("TMPDIR")
    with pytest.raises(Refusal, match=r"\$SLURM_TMPDIR or \$TMPDIR, and neither is set"):
        staging.staged(tiny, given)


def test_processes_share_a_copy_and_the_last_one_removes_it(tiny, given, place):
    """Three at once, of which one is killed: each finds all files, one copies, and no file is left."""
    code = (
        "import os, signal, sys\nfrom engine.data import staging\nfrom engine.run import How, Run\n"
        "how = staging.staged(Run(), How(data_dir=sys.argv[1], stage=True))\n"
        "print(*sorted((p.name, p.stat().st_mtime_ns) for p in how.data_dir.iterdir()), flush=True)\n"
        "sys.stdin.read()\nif sys.argv[2] == 'killed': os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, "-c", code, str(given.data_dir)]
    env, pipe = {**os.environ, "TMPDIR": str(place)}, subprocess.PIPE
    ends = ("killed", "leaves", "leaves")
    all_of_them = [subprocess.Popen([*command, end], env=env, stdin=pipe, stdout=pipe, text=True) for end in ends]
    said = {process.stdout.readline() for process in all_of_them}
    assert len(said) == 1 and said.pop().count("digits") == 4
    for process in all_of_them[:2]:
        process.communicate()
    (folder,) = [path for path in place.iterdir() if path.is_dir()]
    assert len(list(folder.iterdir())) == 4, "one of them still reads"
    all_of_them[2].communicate()
    assert not folder.exists()
