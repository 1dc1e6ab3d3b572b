"""Threads of the loader: they end with their epoch, their errors reach whoever reads, and torch's and numba's stay."""

import subprocess
import sys
import threading

import pytest
import torch

from engine.data import loaders
from engine.data.augment import pipeline
from engine.errors import DATA, Refusal


def read(run, how):
    """All batches of an epoch."""
    loader, _, _ = loaders.make_loaders(run, how)
    return [images.clone() for images, _ in loader.epoch(0)]


def test_leaving_an_epoch_early_ends_its_thread(tiny, how):
    def running():
        return [thread for thread in threading.enumerate() if type(thread).__name__ == "Batches"]

    loader, _, _ = loaders.make_loaders(tiny.but(batch_size=8), how)
    for _ in range(3):
        epoch = loader.epoch(0)
        next(epoch)
        assert len(running()) == 1
        epoch.close()
        assert not running()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_error_in_the_loader_thread_is_raised_in_the_consumer(tiny, how, monkeypatch):
    calls = []

    def broken(*args):
        calls.append(args)
        if len(calls) == 3:
            raise RuntimeError("bad sector")

    monkeypatch.setattr(pipeline, "read", broken)
    with pytest.raises(Refusal, match="bad sector") as caught:
        read(tiny, how)
    assert caught.value.code == DATA


def test_the_number_of_threads_is_left_alone(tiny, how):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        read(tiny, how.model_copy(update={"workers": 3}))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_loading_starts_no_threads_of_numba(digits):
    """TBB's pool, which FFCV starts at import, can hang the exit of a process that has one core."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom engine.data.augment import pipeline as augment; "
        "from engine.data import loaders as data\nfrom numba.np.ufunc import parallel\n"
        "path = Path(sys.argv[1]) / 'digits_val_8.beton'\n"
        "loader = data.FfcvLoader(path, 50, augment.Augmentation(8), workers=2)\n"
        "assert len(list(loader.epoch(0))) == 10 and not parallel._is_initialized"
    )
    subprocess.run([sys.executable, "-c", code, digits], check=True, timeout=60)
