"""The loader: reproducible pixels for any number of workers, exact counts, errors that end the run."""

import threading

import numpy as np
import pytest
import torch

from engine import augment, data
from engine.errors import DATA, Refusal


def batches(run, how, epochs=(0,), first_batch=0):
    loader, _, _ = data.make_loaders(run, how)
    return [(x.clone(), y.clone()) for epoch in epochs for x, y in loader.epoch(epoch, first_batch)]


def same(first, second):
    return len(first) == len(second) and all(
        torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(first, second, strict=True)
    )


@pytest.mark.parametrize("workers, loader", [(2, "ffcv"), (3, "ffcv"), (1, "memory")])
def test_pixels_do_not_depend_on_workers_or_loader(tiny, how, workers, loader):
    expected = batches(tiny, how, epochs=(0, 1))
    other = how.model_copy(update={"workers": workers, "loader": loader})
    assert same(batches(tiny, other, epochs=(0, 1)), expected)


def test_an_epoch_can_be_entered_in_the_middle(tiny, how):
    assert same(batches(tiny, how, first_batch=3), batches(tiny, how)[3:])


def test_seeds_and_epochs_differ_and_one_seed_repeats(tiny, how):
    assert same(batches(tiny, how), batches(tiny, how))
    assert not same(batches(tiny, how), batches(tiny, how, epochs=(1,)))
    assert not same(batches(tiny, how), batches(tiny.but(seed=1), how))


def test_seed_plus_one_is_not_the_next_epoch(tiny, how):
    assert not same(batches(tiny.but(seed=1), how), batches(tiny, how, epochs=(1,)))


def test_augmentation_covers_its_range(tiny, how):
    """Every crop offset and both flips occur, about equally often, over many samples."""
    samples = np.arange(20_000)
    draws = [augment._numpy_draw(np.uint64(7), samples, operation) for operation in (1, 2, 3)]
    for draw in draws[:2]:
        counts = np.bincount((draw % np.uint64(3)).astype(int))
        assert abs(counts / len(samples) - 1 / 3).max() < 0.02
    assert abs((draws[2] / 2**53 < 0.5).mean() - 0.5) < 0.02
    assert abs(np.corrcoef([draw.astype(float) for draw in draws]) - np.eye(3)).max() < 0.02


def test_evaluation_scores_every_sample_once(tiny, how):
    _, val, _ = data.make_loaders(tiny, how)
    labels = torch.cat([y.clone() for _, y in val.epoch(0)])
    assert len(labels) == val.num_samples == 500
    images = torch.cat([x.clone() for x, _ in val.epoch(0)])
    assert len(torch.unique(images.reshape(500, -1), dim=0)) == 500


def test_training_batches_are_all_full(tiny, how):
    assert [len(y) for _, y in batches(tiny, how)] == [64] * 5


def test_train_samples_is_the_same_subset_for_every_seed(tiny, how):
    def labels(run):
        loader, _, _ = data.make_loaders(run.but(batch_size=330), how)
        return sorted(y.item() for _, batch in loader.epoch(0) for y in batch)

    assert labels(tiny) == labels(tiny.but(seed=5))


def test_leaving_an_epoch_early_ends_its_thread(tiny, how):
    before = threading.active_count()
    loader, _, _ = data.make_loaders(tiny.but(batch_size=8), how)
    for _ in range(3):
        epoch = loader.epoch(0)
        next(epoch)
        epoch.close()
    assert threading.active_count() == before


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_error_in_the_loader_thread_is_raised_in_the_consumer(tiny, how, monkeypatch):
    calls = []

    def broken(*args):
        calls.append(args)
        if len(calls) == 3:
            raise RuntimeError("bad sector")

    monkeypatch.setattr(augment, "read", broken)
    with pytest.raises(Refusal, match="bad sector") as caught:
        batches(tiny, how)
    assert caught.value.code == DATA


def test_the_number_of_threads_is_left_alone(tiny, how):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        batches(tiny, how.model_copy(update={"workers": 3}))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_normalisation_is_mean_zero_deviation_one(tiny, how):
    loader, _, facts = data.make_loaders(tiny.but(train_samples=None, batch_size=1297, crop_pad=0), how)
    prepare = data.Normalize(*data.channel_statistics(tiny, facts), torch.device("cpu"))
    images, _ = next(loader.epoch(0))
    x_BCHW = prepare(images)
    assert x_BCHW.shape == (1297, 1, 8, 8) and x_BCHW.dtype == torch.float32
    assert abs(x_BCHW.mean()) < 1e-4 and abs(x_BCHW.std() - 1) < 1e-3


def test_a_batch_larger_than_the_training_set_is_refused(tiny, how):
    with pytest.raises(Refusal, match="batch_size 400"):
        data.make_loaders(tiny.but(batch_size=400), how)
