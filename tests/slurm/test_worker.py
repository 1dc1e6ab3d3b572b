"""A worker that trains run after run holds nothing of those before."""

import gc
import time
import weakref

import pytest

from engine import models
from engine.folder import store
from engine.run import make_run
from slurm.queue import worker


@pytest.fixture
def thawed():
    gc.unfreeze()
    yield
    gc.unfreeze()


def test_nothing_is_left_of_a_run_and_what_stays_is_looked_through_once(digits, tmp_path, monkeypatch, thawed):
    made, create, living = [], models.create, []

    def creating(*given):
        living.append(sum(model() is not None for model in made))
        model = create(*given)
        made.append(weakref.ref(model))
        return model

    monkeypatch.setattr(models, "create", creating)
    base = {"model_kwargs": {"depth": 1, "dim": 16}, "train_samples": 128, "batch_size": 64, "epochs": 1}
    folders = []
    for seed in range(4):
        run = make_run({**base, "seed": seed})
        folders.append(store.folder_of(run, tmp_path))
        store.make_folder(run, folders[-1])
    assert worker.drain(folders, {"data_dir": digits, "threads": 1}, "now", lambda: 0) == 0
    assert all(store.is_done(folder) for folder in folders)
    assert living == [0, 0, 0, 0] and all(model() is None for model in made)
    assert gc.get_freeze_count() > 100_000
    began = time.process_time()
    gc.collect()
    frozen = time.process_time() - began
    gc.unfreeze()
    began = time.process_time()
    gc.collect()
    assert frozen < (time.process_time() - began) / 3
