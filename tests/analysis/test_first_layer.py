"""The weights of a flat net as images: maps whose numbers are known, and weights that are planted."""

import numpy as np
import pytest
import torch
from torch import nn

import archs
from analysis.bias.probe import Rearranged, Subject
from analysis.measures import fields, gabor, pictures
from analysis.probes import first_layer
from engine.data.normalize import places
from engine.run import make_run


def test_a_uniform_map_and_a_single_pixel():
    uniform = np.ones((2, 32, 32))
    assert fields.half_radius(uniform) == pytest.approx((0.5 * 32 * 32 / np.pi) ** 0.5, abs=0.1)  # 12.8 px
    assert fields.rms_radius(uniform) == pytest.approx(((32**2 + 32**2 - 2) / 12) ** 0.5)  # 13.1 px
    assert fields.entropy(uniform) == pytest.approx(1) and fields.participation(uniform) == pytest.approx(1)
    one = np.zeros((16, 16))
    one[3, 5] = 2
    assert tuple(fields.centroid(one)) == (3, 5)
    assert (fields.half_radius(one), fields.rms_radius(one), fields.entropy(one)) == (0, 0, 0)
    assert fields.participation(one) == pytest.approx(1 / 256)


def test_a_gaussian_has_its_radii():
    """Mass exp(-d^2 / 2 s^2): half of it within s sqrt(2 ln 2), root mean square s sqrt 2."""
    rows, columns = fields.places((41, 41))
    mass = np.exp(-((rows - 18) ** 2 + (columns - 22) ** 2) / (2 * 4**2))
    assert fields.half_radius(mass) == pytest.approx(4 * (2 * np.log(2)) ** 0.5, abs=0.3)
    assert fields.rms_radius(mass) == pytest.approx(4 * 2**0.5, rel=0.01)
    assert tuple(fields.centroid(mass)) == pytest.approx((18, 22), abs=0.01)


def test_morans_i_is_its_definition_and_knows_stripes():
    x = np.random.default_rng(0).normal(size=(1, 5, 7))
    at = [(r, c) for r in range(5) for c in range(7)]
    near = np.array([[abs(a - c) + abs(b - d) == 1 for c, d in at] for a, b in at], float)
    off = x.reshape(-1) - x.mean()
    assert fields.moran(x) == pytest.approx(35 / near.sum() * (off @ near @ off) / (off @ off))
    rows, columns = fields.places((8, 8))
    assert fields.moran((-1.0) ** (rows + columns)[None]) == pytest.approx(-1)
    assert fields.moran(np.stack([rows, columns])) > 0.8


def test_morans_i_of_shuffled_pixels_has_its_null():
    x = np.random.default_rng(1).exponential(size=(1, 6, 6))
    drawn = [np.random.default_rng(i).permutation(x.reshape(-1)).reshape(1, 6, 6) for i in range(4000)]
    assert fields.moran(np.stack(drawn)).mean() == pytest.approx(-1 / 35, abs=0.005)


@pytest.mark.parametrize("chans", [1, 3])
def test_independent_weights_are_at_every_null(chans):
    w = np.random.default_rng(chans).normal(size=(300, chans, 16, 16))
    for key, one in first_layer.locality(w).items():
        wide = {"half_radius": 0.1, "rms_radius": 0.05, "gabor": 0.05, "entropy": 0.002}.get(key, 0.012)
        assert one.value == pytest.approx(one.null, abs=wide), key
    assert first_layer.locality(w)["low_frequency"].null == pytest.approx(29 / 256)


def bumps(units, size, sigma, seed=0):
    """Gabor functions of random places and directions."""
    rng = np.random.default_rng(seed)
    drawn = [
        [*rng.uniform(3, size - 4, 2), np.log(sigma), np.log(sigma), rng.uniform(0, np.pi), 0.15] for _ in range(units)
    ]
    waves = [gabor.basis(np.array(numbers), (size, size)) @ rng.normal(size=2) for numbers in drawn]
    return np.stack(waves).reshape(units, 1, size, size)


def test_local_units_are_seen_by_every_number():
    w = bumps(200, 16, 1.5)
    found = first_layer.locality(w)
    for key in ("half_radius", "rms_radius", "entropy", "participation"):
        assert found[key].high < 0.6 * found[key].null, key
    for key in ("moran_energy", "moran_signed", "gabor", "recovered"):
        assert found[key].low > found[key].null + 0.4, key
    assert found["gabor"].value > 0.98


def test_a_gabor_function_is_found_in_noise():
    (clean,) = bumps(1, 16, 2.0)[0]
    noise = np.random.default_rng(5).normal(size=clean.shape)
    noise *= np.linalg.norm(clean) / np.linalg.norm(noise)
    assert gabor.explained(clean) > 0.99 and gabor.explained(np.full((9, 9), 3.0)) > 0.95
    assert gabor.explained(clean + noise) == pytest.approx(0.5, abs=0.1)
    assert gabor.explained(noise) < 0.3 and np.isnan(gabor.explained(np.zeros((4, 4))))


def planted(permute="none"):
    """A B-MLP whose training added local bumps to its first layer; and before."""
    run = make_run({"model": "bmlp_nano", "permute": permute, "seed": 2})
    torch.manual_seed(0)
    start, model = archs.create("bmlp_nano"), archs.create("bmlp_nano")
    added = torch.from_numpy(bumps(40, 8, 1.0)).float().flatten(1)
    shuffle = places(run)
    # What the network reads in place i is pixel places[i] of the image.
    added = added if shuffle is None else added[:, shuffle]
    model.load_state_dict(start.state_dict())
    model.stem.proj.weight.data += 0.05 * added
    wrap = (lambda net: net) if shuffle is None else (lambda net: Rearranged(net, shuffle))
    return Subject(wrap(model), [], 8, 10, None, wrap(start))


@pytest.mark.parametrize("permute", ["none", "pixels"])
def test_the_change_is_read_in_the_places_of_the_image(permute):
    subject = planted(permute)
    found = first_layer.measure(subject)
    assert found.keys() == first_layer.UNITS.keys()
    assert found["gabor_change"].value > 0.95 and found["moran_signed_change"].value > 0.3
    assert abs(found["moran_signed_start"].value) < 0.05 and found["recovered_change"].value > 0.4
    w = first_layer.weights(subject.model, 8)
    x = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        seen = subject.model(x) if permute == "none" else subject.model.model(subject.model.arrange(x))
        inner = subject.model if permute == "none" else subject.model.model
        first = torch.einsum("bchw,uchw->bu", x.double(), torch.from_numpy(w)).float() + inner.stem.proj.bias
        again = inner.forward_head(inner.norm(inner.stages(first[:, None, None])))
    assert torch.allclose(seen, again, atol=1e-4), "the same first layer, in the image's own places"
    assert first_layer.draw(subject).startswith(b"\x89PNG")


def test_what_reads_patches_or_is_not_ours_has_no_first_layer():
    for model in (archs.create("mixer_nano"), nn.Sequential(nn.Flatten(), nn.Linear(64, 10))):
        assert first_layer.measure(Subject(model, [], 8, 10)) == {}
    pixels = archs.create("lattice_nano", stem="pixels")
    assert first_layer.weights(pixels, 8).shape == (4 * 4 * 32, 1, 8, 8)


def test_a_sheet_is_a_picture_of_its_maps():
    import io

    from PIL import Image

    maps = np.zeros((3, 2, 2))
    maps[0, 0, 0], maps[1, 1, 1] = 2.0, -1.0
    picture = np.array(Image.open(io.BytesIO(pictures.tiles(maps, 2))))
    side = 48
    step = side + pictures.GAP
    assert picture.shape == (2 * step, 2 * step, 3)
    assert tuple(picture[0, 0]) == (255, 0, 0) and tuple(picture[side - 1, step + side - 1]) == (0, 0, 255)
    assert (picture[step:] == 255).all(), "a map of zeros is paper"
