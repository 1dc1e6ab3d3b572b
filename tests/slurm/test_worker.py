"""A worker that trains run after run holds nothing of those before."""

import gc
import time
import weakref

import pytest

from engine import models
from engine.folder import lease, store
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


def test_a_worker_that_is_not_the_first_goes_on_to_the_next_run_at_once(digits, tmp_path, monkeypatch):
    """Another node takes the run between its look and its claim, and then is silent, as a stopped process is."""
    base = {"model_kwargs": {"depth": 1, "dim": 16}, "train_samples": 64, "batch_size": 64, "epochs": 1}
    runs = [make_run({**base, "seed": seed}) for seed in range(2)]
    folders = [store.folder_of(run, tmp_path) for run in runs]
    for run, folder in zip(runs, folders, strict=True):
        store.make_folder(run, folder)
    looked = []

    def look(left, launch, ours=worker._next):
        looked.append([*left])
        if len(looked) > 1:
            return ours(left, launch)
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(lease, "_identity", lambda: {"node": "other", "pid": 1, "job": "7", "restart": 0})
            lease.claim(folders[0], launch)
        return folders[0], False

    monkeypatch.setattr(worker, "_next", look)
    monkeypatch.setattr(lease, "_watch", lambda *given: pytest.fail("it waits for what another has"))
    monkeypatch.setattr(worker, "UNSURE_SECONDS", 0.0)
    how = {"data_dir": digits, "threads": 1}
    code = worker.drain(folders, how, "now", lambda: 75 if store.is_done(folders[1]) else 0)
    assert code == 75 and store.is_done(folders[1]) and not store.is_done(folders[0])
