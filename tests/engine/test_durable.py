"""What is on disk after a power cut: all that a run which goes on from its last checkpoint does not write again."""

import os
from pathlib import Path

import pytest
import torch

from engine.folder import files, store
from engine.train import train

CHECKPOINT, DONE = "checkpoint-", "status.json"


class Disk:
    """Which contents and names would outlive a power cut: those that os.fsync was asked for since they last changed."""

    def __init__(self, monkeypatch):
        self.contents, self.names, self.calls, self.published = {}, {}, 0, []
        fsync, replace = os.fsync, Path.replace

        def recording(descriptor):
            fsync(descriptor)
            self.calls += 1
            about = os.fstat(descriptor)
            self.contents[about.st_ino] = (about.st_size, about.st_mtime_ns)
            folder = Path(f"/proc/self/fd/{descriptor}").readlink()
            if folder.is_dir():
                self.names |= {path: path.stat().st_ino for path in folder.iterdir() if path.is_file()}

        def publishing(partial, target):
            if target.name.startswith(CHECKPOINT) or (target.name == DONE and '"done"' in partial.read_text()):
                kept = {path.name for path in target.parent.iterdir() if path != partial and self._has(path)}
                self.published.append((target.name, kept))
            return replace(partial, target)

        monkeypatch.setattr(os, "fsync", recording)
        monkeypatch.setattr(Path, "replace", publishing)

    def _has(self, path):
        about = path.stat()
        return self.contents.get(about.st_ino) == (about.st_size, about.st_mtime_ns)


@pytest.fixture
def disk(monkeypatch):
    return Disk(monkeypatch)


def test_the_word_done_comes_after_all_that_it_speaks_of(tiny, how, tmp_path, disk):
    train(tiny, tmp_path, how)
    assert [name for name, _ in disk.published] == [DONE]
    kept = {"args.yaml", "env.json", "profile.json", "summary.csv", "metrics.jsonl"}
    kept |= {"last.pth.tar", "model_best.pth.tar"}
    assert kept <= disk.published[0][1]
    assert kept | {DONE} <= {path.name for path, number in disk.names.items() if path.stat().st_ino == number}


def test_a_checkpoint_comes_after_what_is_not_written_again(tiny, how, tmp_path, disk):
    """summary.csv is; the best weights so far and the lines of metrics.jsonl are not."""
    train(tiny, tmp_path, how.model_copy(update={"checkpoint_interval": 4}))
    names = [name for name, _ in disk.published[:-1]]
    assert len(names) == 6 and all(name.startswith(CHECKPOINT) for name in names)
    for place, (_, kept) in enumerate(disk.published[:-1]):
        assert {"args.yaml", "env.json", "profile.json", "metrics.jsonl"} <= kept
        assert ("model_best.pth.tar" in kept) == (place > 0)  # the first checkpoint is of the first epoch


def test_epochs_do_not_wait_for_the_disk(tiny, how, tmp_path, disk):
    """Of a short run nobody needs more than its end."""
    counts = []
    for epochs in (2, 6):
        disk.calls = 0
        train(tiny.but(epochs=epochs), tmp_path / str(epochs), how)
        counts.append(disk.calls)
    assert counts[0] == counts[1] <= 11


def test_what_was_lost_after_a_checkpoint_is_made_again(tiny, how, tmp_path):
    """A power cut left half a summary.csv, and an older best: the run that goes on writes them as they were."""
    often = how.model_copy(update={"checkpoint_interval": 5})
    train(tiny, tmp_path / "whole", often)
    saved = {}
    stop = iter([0] * 15 + [75])  # asked once more than there are steps: never

    def looking():
        saved.update({path.name: path.read_bytes() for path in (tmp_path / "cut").glob("*") if path.is_file()})
        return next(stop)

    train(tiny, tmp_path / "cut", often, looking)
    for name in ("last.pth.tar", "status.json"):
        (tmp_path / "cut" / name).unlink()
    for name, data in saved.items():
        if name.startswith(CHECKPOINT):
            (tmp_path / "cut" / name).write_bytes(data)
    (tmp_path / "cut" / "summary.csv").write_bytes(b"epoch,tr")
    train(tiny, tmp_path / "cut", often)
    for name in ("summary.csv", "metrics.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    for name in ("last.pth.tar", "model_best.pth.tar"):
        one, two = (torch.load(tmp_path / word / name, weights_only=True)["state_dict"] for word in ("cut", "whole"))
        assert all(map(torch.equal, one.values(), two.values()))


def test_settling_what_is_not_there_or_cannot_be(tmp_path):
    files.settle(tmp_path / "nothing")
    store.write_bytes(tmp_path / "a", b"1", durable=False)
    files.settle(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"1"
