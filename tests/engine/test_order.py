"""Which sample comes when, to which process, how often, and where its pixels go."""

import numpy as np
import pytest
import torch

from engine import distributed
from engine.data import loaders, normalize
from engine.errors import Refusal
from engine.run import make_run
from tests.engine.test_data import batches, joined, same
from tests.oracles import MemoryLoader


def of_rank(monkeypatch, run, how, rank, world):
    monkeypatch.setattr(distributed, "rank", lambda: rank)
    monkeypatch.setattr(distributed, "world", lambda: world)
    return loaders.make_loaders(run, how)


@pytest.mark.parametrize("world", [2, 4])
def test_processes_share_each_global_batch_and_all_of_the_validation_set(tiny, how, monkeypatch, world):
    whole = batches(tiny, how)
    alone = joined([(x.clone(), y.clone()) for x, y in loaders.make_loaders(tiny, how)[1].epoch(0)])
    train, val = [], []
    for rank in range(world):
        loader, val_loader, _ = of_rank(monkeypatch, tiny, how, rank, world)
        train.append([(x.clone(), y.clone()) for x, y in loader.epoch(0)])
        val.append([(x.clone(), y.clone()) for x, y in val_loader.epoch(0)])
        assert val_loader.num_samples == sum(len(y) for _, y in val[-1]) and val_loader.total == 500
    assert same([tuple(joined(parts)) for parts in zip(*train, strict=True)], whole)
    assert same([tuple(joined([batch for part in val for batch in part]))], [tuple(alone)])


def test_a_repeated_image_is_augmented_anew(tiny, how, monkeypatch):
    run = tiny.but(aug_repeats=3, train_samples=192, batch_size=64)
    images, labels = joined(batches(run, how))
    once = joined(batches(tiny.but(train_samples=192, batch_size=64), how))
    assert len(images) == len(once[0]) == 192
    threes, labels = images.view(64, 3, *images.shape[1:]), labels.view(64, 3)
    assert torch.equal(threes[:, 0], once[0][:64]) and torch.equal(labels, once[1][:64, None].expand(-1, 3))
    differ = (threes[:, 0] != threes[:, 1]).flatten(1).any(1).float().mean()
    assert differ > 0.8  # 1 in 18 draws the same crop and flip
    ours = batches(run, how)
    monkeypatch.setattr(loaders, "FfcvLoader", MemoryLoader)
    assert same(ours, batches(run, how))


def test_repeating_without_augmentation_is_refused():
    with pytest.raises(Refusal, match="aug_repeats 2 repeats the same pixels"):
        make_run({"model": "mixer_nano", "aug_repeats": 2})


def test_permuted_pixels_are_one_shuffle_of_all_images_after_augmentation(tiny, how):
    plain, mixed = tiny, tiny.but(permute="pixels")
    places = normalize.places(mixed)
    assert sorted(places) == list(range(64)) and (places != np.arange(64)).sum() > 50
    loader, _, facts = loaders.make_loaders(mixed, how)
    assert same(batches(plain, how), batches(mixed, how)), "the augmentation must stay spatial"
    images = next(loader.epoch(0))[0]
    before = normalize.make_prepare(plain, facts, torch.device("cpu"))(images).flatten(2)
    after = normalize.make_prepare(mixed, facts, torch.device("cpu"))(images).flatten(2)
    for place in range(64):
        assert torch.equal(after[:, :, place], before[:, :, places[place]])
    assert (normalize.places(mixed) == places).all() and (normalize.places(mixed.but(seed=1)) != places).any()
    assert normalize.places(plain) is None


def test_pixels_shuffled_first_are_augmented_in_their_new_places(tiny, how, monkeypatch):
    first, later = tiny.but(permute="pixels_first"), tiny.but(permute="pixels")
    shuffle = normalize.places(first)
    assert (shuffle == normalize.places(later)).all(), "one seed, one shuffle"
    found = batches(first, how)
    monkeypatch.setattr(loaders, "FfcvLoader", MemoryLoader)
    assert same(found, batches(first, how)), "the oracle shuffles images, then crops and flips them"
    assert not same(found, batches(later, how))
    train_loader, val_loader, facts = loaders.make_loaders(first, how)
    device = torch.device("cpu")
    seen, as_stored = next(train_loader.epoch(0))[0], next(val_loader.epoch(0))[0].clone()
    plain = normalize.make_prepare(tiny, facts, device)
    assert torch.equal(normalize.make_prepare(first, facts, device, training=True)(seen), plain(seen))
    test = normalize.make_prepare(first, facts, device)(as_stored).flatten(2)
    assert torch.equal(test, plain(as_stored).flatten(2)[:, :, shuffle]), "the loader leaves what judges as it is"
    both = normalize.make_prepare(later, facts, device, training=True)(seen)
    assert torch.equal(both.flatten(2), plain(seen).flatten(2)[:, :, shuffle])


def test_a_shuffle_before_nothing_or_before_a_resized_crop_is_refused(tiny):
    with pytest.raises(Refusal, match="permute pixels_first is permute pixels without any of crop_pad, hflip, aa"):
        make_run({"model": "mixer_nano", "permute": "pixels_first", "color_jitter": 0.4})
    with pytest.raises(Refusal, match="permute pixels_first shuffles whole images, and scale cuts"):
        make_run({"model": "mixer_nano", "permute": "pixels_first", "hflip": 0.5, "scale": (0.3, 1.0)})
    assert make_run({"model": "mixer_nano", "permute": "pixels_first", "reprob": 0.5})


def test_permuted_patches_move_whole_and_all_alike_inside(tiny):
    places = normalize.places(tiny.but(permute="patches"))  # 8 x 8 pixels in patches of 2 x 2
    rows = places.reshape(4, 2, 4, 2).transpose(0, 2, 1, 3).reshape(16, 4)
    patches, inside = rows // 16 * 4 + rows % 8 // 2, rows % 16 // 8 * 2 + rows % 2
    assert (patches == patches[:, :1]).all() and sorted(patches[:, 0]) == list(range(16))
    assert (inside == inside[:1]).all() and sorted(inside[0]) == [0, 1, 2, 3]


@pytest.mark.parametrize("model", ["mlp_nano", "timm/test_resnet"])
def test_patches_of_a_model_without_patches_are_refused(model):
    with pytest.raises(Refusal, match="permute patches needs a model with patches"):
        make_run({"model": model, "permute": "patches"})
