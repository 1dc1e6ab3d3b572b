"""Cues in conflict: the pictures themselves, and oracles that go by one cue, the other or both."""

from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

from analysis.bias.probe import Subject
from analysis.measures import shapes
from analysis.probes import phase_amplitude, shape_bias
from engine.errors import OUTPUT
from tests import warm


def test_silhouettes_have_their_areas():
    grid = (np.arange(2000) + 0.5) / 1000 - 1
    areas = {name: 4 * where(*np.meshgrid(grid, grid)).mean() for name, where in shapes.SHAPES.items()}
    assert areas["disc"] == pytest.approx(np.pi * 0.81, rel=0.01)
    assert areas["ring"] == pytest.approx(np.pi * (1 - 0.25), rel=0.01)
    assert areas["square"] == pytest.approx(2.56, rel=0.01) and areas["triangle"] == pytest.approx(
        1.75**2 / 2, rel=0.01
    )
    assert areas["bar"] == pytest.approx(1.4, rel=0.01) and areas["plus"] == pytest.approx(2.4 - 0.36, rel=0.01)
    assert areas["ell"] == pytest.approx(0.65 * 2 + 0.65 * 0.95, rel=0.01)
    assert areas["tee"] == pytest.approx(1.8 * 0.6 + 0.6 * 1.2, rel=0.01)
    assert areas["you"] == pytest.approx(1.8**2 - 0.7 * 1.2, rel=0.01)
    assert (
        areas["arrow"] == pytest.approx(0.5 + 1.0, abs=0.02) and 1 < areas["star"] < 1.6 and 1 < areas["crescent"] < 1.6
    )


def test_textures_have_their_waves():
    grid = np.arange(64.0)
    x, y = np.meshgrid(grid, grid)
    for name, texture in shapes.TEXTURES.items():
        fill = texture(x, y, np.random.default_rng(0))
        assert fill.min() >= 0 and fill.max() <= 1 and fill.std() > 0.1
        assert not np.array_equal(fill, texture(x, y, np.random.default_rng(1)))
        if "_" in name:
            word, degrees = name.split("_")
            power = np.abs(np.fft.fft2(fill - fill.mean()))
            down, right = np.unravel_index(power[:, :33].argmax(), (64, 33))
            down = (down + 32) % 64 - 32
            assert 64 / np.hypot(down, right) == pytest.approx({"fine": 3, "coarse": 7}[word], rel=0.1)
            assert np.degrees(np.arctan2(down, right)) % 180 == pytest.approx(int(degrees), abs=6)


@pytest.mark.parametrize("cue", shapes.CUES)
def test_a_cue_tells_the_class_and_the_other_is_drawn(cue):
    found = list(shapes.pictures(cue, "train", 30, 16))
    labels, shape, texture, images = (np.array(each) for each in zip(*found, strict=True))
    assert Counter(labels.tolist()) == dict.fromkeys(range(12), 30)
    assert (shape == labels).all() == (cue != "texture") and (texture == labels).all() == (cue != "shape")
    if cue != "both":
        free = texture if cue == "shape" else shape
        assert abs(np.corrcoef(free, labels)[0, 1]) < 0.15 and (np.bincount(free, minlength=12) > 10).all()
    assert len({image.tobytes() for image in images}) == 360 and images.min() >= 0 and images.max() <= 1
    again = next(iter(shapes.pictures(cue, "train", 1, 16)))[3]
    assert np.array_equal(again, images[0])
    assert not np.array_equal(next(iter(shapes.pictures(cue, "val", 1, 16)))[3], again)


class Oracle(nn.Module):
    """Knows every conflict by heart, and gives the answer that `says` makes of its number, shape and texture."""

    def __init__(self, says, size):
        super().__init__()
        known = list(shapes.conflicts(shape_bias.PROTOCOL["per_pair"], size))
        self.images = torch.tensor(np.array([image for *_, image in known])).flatten(1)
        self.answers = torch.tensor([says(i, shape, texture) for i, (shape, texture, _) in enumerate(known)])

    def forward(self, x_BCHW):
        assert torch.equal(x_BCHW[:, 0], x_BCHW[:, 1]), "grey in every channel"
        return torch.eye(12)[self.answers[torch.cdist(x_BCHW[:, 0].flatten(1), self.images).argmin(1)]]


def ask(says, size=16, dataset="imagefolder/shapes"):
    like = torch.zeros(2, 3, size, size, dtype=torch.float64)
    images = [(like, torch.arange(2))]
    return Subject(Oracle(says, size), images, size, 12, mean=(0.0,) * 3, std=(255.0,) * 3, dataset=dataset)


def test_oracles_have_the_bias_that_they_go_by():
    by_shape = shape_bias.measure(ask(lambda i, shape, texture: shape))
    assert by_shape["shape_bias"].value == by_shape["shape"].value == 100 and by_shape["texture"].value == 0
    assert by_shape["shape"].null == pytest.approx(100 / 12) and by_shape["shape_bias"].null == 50
    by_texture = shape_bias.measure(ask(lambda i, shape, texture: texture))
    assert by_texture["shape_bias"].value == 0 and by_texture["texture"].value == 100

    def third(i, shape, texture):
        neither = next(k for k in range(12) if k not in (shape, texture))
        return (shape, texture, shape, neither)[i % 4]

    mixed = shape_bias.measure(ask(third))
    assert mixed["shape_bias"].value == pytest.approx(200 / 3) and mixed["shape"].value == 50
    assert mixed["shape_bias"].low < 200 / 3 < mixed["shape_bias"].high < 72
    assert np.isnan(shape_bias.bias(np.array([0.0, 0.0])))


def test_other_data_sets_are_not_asked():
    for name in ("cifar10", "imagefolder/shap"):
        assert shape_bias.measure(ask(lambda i, shape, texture: shape, dataset=name)) == {}
    assert shape_bias.draw(ask(lambda i, shape, texture: shape)).startswith(b"\x89PNG")


def test_the_script_draws_an_image_folder_once(tmp_path):
    from PIL import Image

    from engine.data.folders import class_names

    words = ["-m", "scripts.make_shapes", tmp_path / "shapes", "--per-class", "2", "--val-per-class", "1"]
    words += ["--img-size", "16", "--cue", "texture"]
    done = warm.run(*words)
    assert done.returncode == 0 and "24 images to train on, 12 to test, cue texture" in done.stdout, done.stderr
    for split, count in (("train", 2), ("val", 1)):
        assert class_names(tmp_path / "shapes" / split) == [f"{k:02d}" for k in range(12)], "numbered as the probe does"
        for label, shape, texture, image in shapes.pictures("texture", split, count, 16):
            files = sorted((tmp_path / "shapes" / split / f"{label:02d}").glob(f"*-{shape:02d}-{texture:02d}.png"))
            assert any(np.abs(np.asarray(Image.open(file)) / 255 - image).max() < 0.51 / 255 for file in files)
    again = warm.run(*words)
    assert (again.returncode, again.stderr.count("\n")) == (OUTPUT, 1) and "is there already" in again.stderr


# --- phase against amplitude


def two_classes(count=60, size=16):
    """Class 0 has a bright left half, class 1 a bright right one; class 0 is darker on the whole, too."""
    x = torch.full((count, 1, size, size), 0.3, dtype=torch.float64)
    labels = torch.arange(count) % 2
    x[labels == 0, :, :, : size // 2] += 0.15
    x[labels == 1, :, :, size // 2 :] += 0.35
    x += 0.02 * torch.rand(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    return x, labels


class Reads(nn.Module):
    def __init__(self, read):
        super().__init__()
        self.read = read

    def forward(self, x):
        z = self.read(x)
        return torch.stack([-z, z], 1)


@pytest.mark.parametrize(
    ("read", "expected"),
    [
        (lambda x: x[..., 8:].mean((1, 2, 3)) - x[..., :8].mean((1, 2, 3)), 100),
        (lambda x: x.mean((1, 2, 3)) - 0.43, 0),
    ],
)
def test_layout_is_phase_and_brightness_is_amplitude(read, expected):
    x, y = two_classes()
    found = phase_amplitude.measure(Subject(Reads(read), [(x, y)], 16, 2))
    assert found["acc"].value == 100 and found["phase"].value == expected == 100 - found["amplitude"].value
    assert found["phase_bias"][:2] == (expected, expected) and found["phase_bias"].null == 50


def test_a_mixture_has_the_phase_of_one_and_the_amplitude_of_the_other():
    a, b = (
        0.4 + 0.2 * torch.rand(2, 3, 9, 8, generator=torch.Generator().manual_seed(s), dtype=torch.float64)
        for s in (0, 1)
    )
    assert torch.allclose(phase_amplitude.mix(a, a), a)
    spectrum = np.fft.fft2(phase_amplitude.mix(a, b).numpy())
    assert np.allclose(np.abs(spectrum), np.abs(np.fft.fft2(b.numpy())))
    strong = np.abs(spectrum) > 1e-6
    turned = spectrum * np.conj(np.fft.fft2(a.numpy()))
    assert np.allclose(np.angle(turned)[strong], 0, atol=1e-6)


def test_partners_are_of_another_class_and_come_once():
    labels = np.random.default_rng(0).integers(0, 4, 200)
    partner = phase_amplitude.partners(labels)
    assert (labels[partner] != labels).all() and sorted(partner) == list(range(200))
    uneven = np.array([0] * 8 + [1, 2])
    partner = phase_amplitude.partners(uneven)
    assert (uneven[partner[partner >= 0]] != uneven[partner >= 0]).all() and (partner >= 0).sum() == 4
    assert len(phase_amplitude.partners(np.zeros(5, int))) == 0
