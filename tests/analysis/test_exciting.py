"""Exciting inputs and universal perturbations of models whose answers are known."""

import math
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import archs
from analysis.bias.probe import Rearranged, Subject
from analysis.measures import exciting, pixels
from analysis.probes import exciting_inputs, universal
from engine.errors import Refusal

SIDE = 8


def subject_of(model, images, labels=None, patch_size=None, start=None, classes=4):
    labels = torch.zeros(len(images), dtype=torch.long) if labels is None else labels
    batches = list(zip(images.split(50), labels.split(50), strict=True))
    return Subject(model.eval().requires_grad_(False), batches, SIDE, classes, patch_size, start)


def images(count=200, chans=1, seed=0):
    """On the 0..255 scale with mean 0 and deviation 255, as a subject's default says: pixels from 0 to 1."""
    return torch.rand((count, chans, SIDE, SIDE), generator=torch.Generator().manual_seed(seed))


def wave(k, side=SIDE):
    return torch.cos(2 * math.pi * k * torch.arange(side) / side).repeat(side, 1)


def linear(rows):
    model = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, len(rows)))
    model[1].weight.data = torch.stack(rows).flatten(1)
    return model


def test_what_excites_a_linear_unit_most_is_its_weights_at_the_norm_of_images():
    bump = torch.zeros(SIDE, SIDE)
    bump[2, 5] = 3.0
    weights = [wave(1), wave(3), bump, torch.randn(SIDE, SIDE, generator=torch.Generator().manual_seed(1))]
    model, x = linear(weights), images()
    subject = subject_of(model, x)
    found, value, seen = exciting_inputs.excited(subject, model, "", x)
    away, centre = found - x.mean(0), x.mean(0)
    radius = (x - centre).flatten(1).norm(dim=1).square().mean().sqrt()
    for unit, w in enumerate(weights):
        assert torch.allclose(away[unit, 0], radius * w / w.norm(), atol=1e-4)
        top = (w * centre[0]).sum() + model[1].bias[unit] + radius * w.norm()
        assert value[unit] == pytest.approx(top.item(), rel=1e-5)
    numbers = exciting_inputs.numbers(subject, model, "", x)
    assert numbers["frequency"][:2] == pytest.approx([1, 3], abs=1e-3) and numbers["radius"][2] == pytest.approx(
        0, abs=1e-2
    )
    expected = [(value[i] - seen[:, i].mean()) / (seen[:, i].max() - seen[:, i].mean()) for i in range(4)]
    assert numbers["gain"] == pytest.approx(expected) and min(expected) > 2
    known = exciting_inputs.measure(subject)
    assert known["frequency_logits"].value == pytest.approx(numbers["frequency"].mean(), abs=1e-6)
    assert known["frequency_logits"].low < known["frequency_logits"].value < known["frequency_logits"].high
    white = exciting_inputs.frequency(np.eye(SIDE * SIDE).reshape(-1, 1, SIDE, SIDE)).mean()
    assert known["frequency_logits"].null == pytest.approx(white, abs=0.6), "the same numbers in random order"


def test_a_bent_unit_is_climbed_from_the_better_start():
    """|w x| has two tops of its own on the sphere: the one that the images are near is not the only one to be found."""
    w, x = wave(2), images()
    read = exciting.reader(subject_of(linear([w]), x), model := linear([w]), "")
    tall = lambda p: torch.cat([read(p).abs() - 2 * read(p)], 1)  # noqa: E731 - 1 up the weights, 3 down them
    model[1].bias.data.zero_()
    starts = torch.stack([0.5 + 0.1 * w[None, None], 0.5 - 0.1 * w[None, None]])
    found, _ = exciting.most_exciting(tall, torch.tensor([0]), starts, torch.full((1, SIDE, SIDE), 0.5), 1.0, 30)
    assert torch.allclose(found[0, 0] - 0.5, -w / w.norm(), atol=1e-4)


def test_a_convolution_sees_a_window_and_a_shuffled_model_is_seen_in_the_images_places():
    x = images(chans=3)
    conv = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    subject = subject_of(conv, x)
    away = exciting_inputs.excited(subject, conv, "0", x)[0] - x.mean(0)
    window = away.abs().sum((0, 1)) > 1e-3
    expected = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    expected[3:6, 3:6] = True
    assert torch.equal(window, expected)
    order = np.random.default_rng(0).permutation(SIDE * SIDE)
    grey = images()
    plain = linear([wave(1), wave(2)])
    mixed = Rearranged(plain, order)
    found = exciting_inputs.excited(subject_of(mixed, grey), mixed, "", grey)[0] - grey.mean(0)
    w = torch.empty(SIDE * SIDE)
    w[torch.from_numpy(order)] = wave(1).flatten()
    cosine = torch.nn.functional.cosine_similarity(found[0].flatten(), w, 0)
    assert cosine > 0.9999


def test_layers_are_found_in_ours_in_timms_and_in_any_model():
    names = exciting.layers(archs.create("mixer_nano"))
    assert list(names) == ["first", "middle", "last", "logits"] and names["logits"] == ""
    model = archs.create("mixer_nano")
    assert dict(model.named_modules())[names["last"]] is model.blocks()[-1]
    assert exciting.layers(archs.create("timm/test_resnet"))["first"] != ""
    vit = exciting.layers(archs.create("timm/test_vit"))
    assert vit["first"].startswith("blocks.") and vit["first"] != vit["last"], "tokens, of which one in the middle"
    assert exciting.layers(linear([wave(1)])) == {"first": "1", "logits": ""}
    subject = subject_of(archs.create("mixer_nano"), images(), patch_size=2, classes=10)
    read = exciting.reader(subject, subject.model, names["first"])
    tokens = model.blocks()[0](model.eval().embed(pixels.to_model(subject, images(3))))
    assert read(images(3)).shape == (3, tokens.shape[-1]), "channels last, the middle token"
    with pytest.raises(Refusal, match=r"unknown module 'stages\.0\.9'"):
        exciting.reader(subject, subject.model, "stages.0.9")


def test_random_weights_hold_the_same_numbers_and_the_picture_has_two_rows_a_layer():
    model = archs.create("mixer_nano")
    other = exciting.shuffled(model)
    for (name, a), b in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(a.flatten().sort().values, b.flatten().sort().values)
        assert torch.equal(a, b) == (a.ndim < 2 or len(a.unique()) == 1), name
    sheet = Image.open(BytesIO(exciting_inputs.draw(subject_of(model, images(), patch_size=2, classes=10))))
    assert sheet.size == (8 * (SIDE + 1) * 8, 8 * (SIDE + 1) * 8)


def two_classes(weight, images_, shift=0.0):
    """Class 1 where the weighted sum of pixels is above its median over the images, moved by `shift`."""
    model = linear([torch.zeros(SIDE, SIDE), weight])
    level = (images_ * weight).sum((1, 2, 3)).quantile(0.5 + shift)
    model[1].bias.data = torch.tensor([level, 0.0])
    model[1].weight.data *= 20  # sure of itself, as a trained model is
    model[1].bias.data *= 20
    return model


@pytest.fixture
def few(monkeypatch):
    for key, value in (("steps", 60), ("batch", 100)):
        monkeypatch.setitem(universal.PROTOCOL, key, value)


def test_the_universal_perturbation_of_a_linear_model_is_the_signs_of_its_weights(few):
    """The best of all: everything is moved to the class of fewer, by e times the sum of absolute weights."""
    w = torch.randn(SIDE, SIDE, generator=torch.Generator().manual_seed(2))
    x = 0.2 + 0.6 * images(1000)
    subject = subject_of(two_classes(w, x, 0.3), x, classes=2)
    found = universal.measure(subject)
    _, judge = universal.halves(subject)
    z = (judge * w).sum((1, 2, 3)) - (x * w).sum((1, 2, 3)).quantile(0.8)
    for e in universal.PROTOCOL["radii"]:
        reach = e / 255 * w.abs().sum()
        best = 100 * max(((z <= 0) & (z + reach > 0)).float().mean(), ((z > 0) & (z - reach <= 0)).float().mean())
        assert found[f"fooled_{e}"].value == pytest.approx(best.item(), abs=0.3)
        assert found[f"fooled_{e}"].null < best / 3
        assert found[f"fooled_{e}"].low < found[f"fooled_{e}"].value < found[f"fooled_{e}"].high
    assert found["sane_radius"].value == found["sane_random"].value == 1
    change = universal.perturbations(subject, universal.halves(subject)[0])
    assert all(each.abs().max() <= e / 255 + 1e-7 for e, each in change.items())
    assert torch.equal(change[10][0, 0].sign(), w.sign())


def test_what_cannot_be_fooled_is_not_and_an_ascent_that_fails_is_told(few, monkeypatch):
    x = images(400)
    constant = linear([torch.zeros(SIDE, SIDE), torch.zeros(SIDE, SIDE)])
    constant[1].bias.data = torch.tensor([1.0, 0.0])
    found = universal.measure(subject_of(constant, x, classes=2))
    assert found["fooled_10"].value == found["fooled_10"].null == 0 and found["sane_random"].value == 1
    # Down instead of up: noise is stronger then, and the flag says so.
    w = torch.randn(SIDE, SIDE, generator=torch.Generator().manual_seed(2))
    monkeypatch.setattr(universal, "perturbations", lambda subject, fit: {4: w.sign()[None, None] / 255 * 0, 10: 0 * w})
    found = universal.measure(subject_of(two_classes(w, x), x, classes=2))
    assert found["fooled_10"].null > 2 and found["sane_random"].value == 0 and found["sane_radius"].value == 1


def test_images_that_judge_were_not_fitted_and_the_picture_is_that_of_what_was_measured(few):
    x = images(300)
    subject = subject_of(two_classes(wave(1) + 0.1, x), x, classes=2)
    fit, judge = universal.halves(subject)
    assert len(fit) == len(judge) == 150
    assert sorted(torch.cat([fit, judge]).flatten(1).sum(1).tolist()) == sorted(x.flatten(1).sum(1).tolist())
    universal.measure(subject)
    kept = universal._FOUND[subject.model]
    picture = universal.draw(subject)
    assert subject.model not in universal._FOUND
    again = universal.draw(subject)
    assert picture == again and Image.open(BytesIO(picture)).size == (4 * (SIDE + 1) * 8, 2 * (SIDE + 1) * 8)
    assert set(kept) == {4, 8, 10}
