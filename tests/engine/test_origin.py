"""Weights to start from count by what they are: a file by its content, a run's folder by the run's signature."""

import os
import shutil

import pytest
import torch
import yaml

from analysis.compare import frames
from engine import transfer
from engine.errors import CHECKPOINT, STOPPED, USAGE, Refusal
from engine.folder import store
from engine.models import preflight
from engine.run import Run, identify, make_run, read_yaml
from engine.train import train

TINY = {"model_kwargs": {"depth": 1, "dim": 8}, "train_samples": 64, "batch_size": 32, "epochs": 1}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "x.pth"
    path.write_bytes(b"some weights")
    return path


def test_one_file_is_one_run_however_it_is_spelt(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "sub").mkdir()
    (tmp_path / "link.pth").symlink_to(file)
    shutil.copy(file, "copy.pth")
    spellings = ["x.pth", "./x.pth", "sub/../x.pth", str(file), "~/x.pth", "link.pth", "copy.pth"]
    runs = [Run(initial_checkpoint=spelling) for spelling in spellings]
    assert all(run == runs[0] and run.signature == runs[0].signature for run in runs)
    # sha256sum of b"some weights"
    assert runs[0].initial_identity == "sha256:a0c76a31f14d6cbe"
    assert runs[0] != Run() and runs[0].signature != Run().signature
    (tmp_path / "copy.pth").write_bytes(b"other weights")
    assert Run(initial_checkpoint="copy.pth").signature != runs[0].signature


def test_the_path_is_kept_so_that_it_is_found_from_anywhere(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = Run(initial_checkpoint="x.pth")
    monkeypatch.chdir("/")
    assert run.initial_checkpoint == str(file) and transfer.file_of(run.initial_checkpoint).is_file()


def test_args_yaml_gives_the_run_back_though_the_file_moved_or_is_gone(file, tmp_path):
    run = Run(initial_checkpoint=str(file))
    store.make_folder(run, tmp_path / "run")
    file.rename(tmp_path / "moved.pth")
    args = read_yaml(tmp_path / "run" / "args.yaml")
    assert make_run(args) == run == store.read_run(tmp_path / "run")
    moved = make_run({**args, "initial_checkpoint": str(tmp_path / "moved.pth")})
    assert moved == run and moved.signature == run.signature
    store.make_folder(moved, tmp_path / "run")  # the same run, so no refusal
    with pytest.raises(Refusal, match="holds another run"):
        store.make_folder(run.but(initial_checkpoint=None), tmp_path / "run")
    (tmp_path / "moved.pth").write_bytes(b"changed")
    with pytest.raises(Refusal, match="was changed since") as caught:
        preflight(moved)
    assert caught.value.code == CHECKPOINT


def test_other_weights_are_looked_at_anew(file, tmp_path):
    (tmp_path / "y.pth").write_bytes(b"other")
    run = Run(initial_checkpoint=str(file))
    assert run.but(seed=1).initial_identity == run.initial_identity
    assert run.but(initial_checkpoint=str(tmp_path / "y.pth")) == Run(initial_checkpoint=str(tmp_path / "y.pth"))
    assert run.but(initial_checkpoint=None) == Run()


def test_a_file_that_is_not_there_is_refused_early(tmp_path):
    for path in (tmp_path / "nowhere.pth", tmp_path, tmp_path / "no" / "run"):
        with pytest.raises(Refusal, match=r"initial_checkpoint .* does not exist") as caught:
            make_run({"initial_checkpoint": str(path)})
        assert caught.value.code == CHECKPOINT
    with pytest.raises(Refusal, match="initial_identity 'sha256:zz': string should match pattern") as caught:
        make_run({"initial_checkpoint": "x", "initial_identity": "sha256:zz"})
    assert caught.value.code == USAGE


def test_a_second_stage_can_be_planned_before_the_first_has_run(how, tmp_path):
    """By the folder's name, then by its args.yaml, then by its weights: always the same run."""
    first = make_run(TINY)
    folder = store.folder_of(first, tmp_path)
    second = make_run({**TINY, "initial_checkpoint": str(folder), "lr": 1e-4})
    assert second.initial_identity == f"run:{first.signature}"
    spellings = (f"{folder}/", str(folder / "last.pth.tar"), os.path.relpath(folder))
    assert {make_run({**TINY, "initial_checkpoint": each, "lr": 1e-4}).signature for each in spellings} == {
        second.signature
    }
    with pytest.raises(Refusal, match="does not exist; the run that it belongs to comes first"):
        preflight(second)
    train(first, folder, how)
    again = make_run({**TINY, "initial_checkpoint": str(folder), "lr": 1e-4})
    assert again == second and identify(str(folder / "last.pth.tar")) == second.initial_identity
    preflight(second)
    train(second, store.folder_of(second, tmp_path), how)
    (tmp_path / "elsewhere").mkdir()
    shutil.move(folder, tmp_path / "elsewhere" / "renamed")
    renamed = make_run({**TINY, "initial_checkpoint": str(tmp_path / "elsewhere" / "renamed"), "lr": 1e-4})
    assert renamed.signature == second.signature
    other = make_run({**TINY, "seed": 1})
    assert make_run({**TINY, "initial_checkpoint": str(store.folder_of(other, tmp_path))}).signature != second.signature


def old_folder(folder):
    """As the commits before scheme 2 left it: args.yaml without a scheme."""
    folder.mkdir()
    args = {key: value for key, value in Run(seed=3).record().items() if key not in ("scheme", "initial_identity")}
    (folder / "args.yaml").write_text(yaml.safe_dump(args, sort_keys=False))
    store.write_json(folder / "env.json", {"commit": "0123abc"})
    store.write_json(folder / "status.json", {"state": "stopped", "step": 3})
    return folder


def test_a_folder_of_an_older_scheme_is_not_resumed_and_says_what_to_do(how, tmp_path):
    folder = old_folder(tmp_path / "73632c8c-mixer_nano-s3")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for attempt in (
        lambda: store.read_run(folder),
        lambda: store.make_folder(Run(seed=3), folder),
        lambda: train(Run(seed=3), folder, how, lambda: STOPPED),
    ):
        with pytest.raises(Refusal) as caught:
            attempt()
        words = str(caught.value)
        assert "is of scheme 1 and this version trains and names runs by scheme 2" in words
        assert "commit 0123abc" in words and f"-c {folder}/args.yaml" in words and "\n" not in words
    row = frames.load([folder]).iloc[0]
    assert row.state == "unreadable" and "is of scheme 1" in row.error
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert make_run(read_yaml(folder / "args.yaml")) == Run(seed=3)  # as a recipe it is as good as any


def test_weights_of_an_older_scheme_count_by_their_content(tmp_path):
    folder = old_folder(tmp_path / "73632c8c-mixer_nano-s3")
    with pytest.raises(Refusal, match="does not exist"):
        make_run({"initial_checkpoint": str(folder)})
    torch.save({}, folder / "last.pth.tar")
    assert make_run({"initial_checkpoint": str(folder)}).initial_identity.startswith("sha256:")
