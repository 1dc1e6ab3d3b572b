"""Shared fixtures: the digits as .beton files, written once per session; one thread, as tests run side by side."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, and for every process a test starts

import pytest

from engine.beton import ensure
from engine.run import How, Run, make_how, make_run


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """Folder of the digits' .beton files."""
    folder = tmp_path_factory.mktemp("data")
    ensure("digits", 8, folder, say=lambda line: None)
    return folder


@pytest.fixture
def how(digits) -> How:
    return make_how({"data_dir": digits, "threads": 1, "log_interval": 1})


@pytest.fixture
def tiny() -> Run:
    """Three epochs of five steps, with everything that draws at random switched on."""
    return make_run(
        {
            "model": "mixer_nano",
            "model_kwargs": {"depth": 2, "dim": 16},
            "train_samples": 330,
            "batch_size": 64,
            "epochs": 3,
            "lr": 2e-3,
            "warmup_epochs": 0.5,
            "crop_pad": 1,
            "hflip": 0.5,
            "mixup": 0.2,
            "cutmix": 1.0,
            "smoothing": 0.1,
            "drop_path": 0.2,
            "clip_grad": 1.0,
            "model_ema": True,
            "model_ema_decay": 0.9,
            "amp": True,
        }
    )
