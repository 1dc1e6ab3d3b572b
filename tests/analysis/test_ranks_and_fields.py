"""Ranks of matrices, tiling of units and fields of tokens whose answer is known."""

import numpy as np
import pytest
import torch
from torch import nn

import archs
from analysis.bias.probe import Rearranged, Subject
from analysis.probes import ranks, receptive_field, tiling
from analysis.probes.receptive_field import randomise
from tests.analysis.test_first_layer import bumps, planted


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


# --- ranks


@pytest.mark.parametrize("shape", [(64, 64), (40, 192), (300, 100)])
def test_independent_entries_have_the_ranks_of_the_law(shape):
    s = np.linalg.svd(noise(*shape), compute_uv=False)
    assert ranks.law(*sorted(shape)) == pytest.approx(s, rel=0.15, abs=0.35)
    assert (ranks.law(*sorted(shape)) ** 2).sum() == pytest.approx(shape[0] * shape[1], rel=0.02), "E |W|^2"
    found = ranks.ratios(noise(*shape))
    assert found["effective"] == pytest.approx(1, abs=0.02) and found["r90"] == pytest.approx(1, abs=0.04)
    assert found["stable"] == pytest.approx(1, abs=0.12) and found["outliers"] == 0
    edge = (shape[0] ** 0.5 + shape[1] ** 0.5) ** 2
    assert ranks.stable(ranks.law(*sorted(shape))) == pytest.approx(shape[0] * shape[1] / edge, rel=0.1)


def test_ranks_of_matrices_that_are_known():
    equal, one = np.ones(20), np.array([5.0, *[0.0] * 19])
    assert [f(equal) for f in ranks.RANKS.values()] == pytest.approx([20, 20, 18])
    assert [f(one) for f in ranks.RANKS.values()] == pytest.approx([1, 1, 0.9])
    assert ranks.effective(np.array([3.0, 1.0])) == pytest.approx(4 / 3**0.75)  # exp of -3/4 log 3/4 - 1/4 log 1/4
    planted = noise(60, 80) + 6 * noise(60, 3, seed=1) @ noise(3, 80, seed=2)
    found = ranks.ratios(planted)
    assert found["outliers"] == pytest.approx(3 / 60) and found["stable"] < 0.2 and found["effective"] < 0.9


def subject_of(model, start, count=40, size=8, chans=1):
    x = torch.randn(count, chans, size, size, generator=torch.Generator().manual_seed(0))
    return Subject(model.eval(), [(x, torch.zeros(count, dtype=torch.long))], size, 10, 2, start and start.eval())


def test_a_change_of_low_rank_is_seen_where_it_is():
    start, model = archs.create("mixer_nano"), archs.create("mixer_nano")
    model.load_state_dict(start.state_dict())
    for block in model.blocks():
        weight = block[1].branch.fc1.weight
        weight.data += torch.outer(torch.arange(len(weight)) % 3 - 1.0, torch.arange(weight.shape[1]) / 9)
    found = ranks.measure(subject_of(model, start))
    law = ranks.effective(ranks.law(32, 128))
    assert found["effective_channels_change"].value == pytest.approx(1 / law, rel=1e-3)
    assert "effective_tokens_change" not in found, "nothing changed there"
    assert found["effective_tokens"][:3] == found["effective_tokens_start"][:3]
    assert found["effective_tokens"].low < 1 < found["effective_tokens"].high + 0.1
    assert found["effective_features"].value < 1 and found.keys() <= ranks.UNITS.keys()


def test_features_in_one_direction_have_rank_one():
    class Line(nn.Module):
        def forward_features(self, x):
            return x.sum((1, 2, 3))[:, None] * torch.arange(1.0, 21.0)

        def forward_head(self, x, pre_logits):
            return x

    (one,) = ranks.features(subject_of(Line(), None)).values()
    assert one.value == pytest.approx(1 / 20, rel=1e-3) and np.isnan(one.null)
    assert ranks.measure(subject_of(nn.Flatten(), None)) == {}


# --- tiling


def test_similarity_is_the_largest_product_over_shifts():
    w = noise(3, 2, 4, 5)
    for u, v in ((0, 1), (1, 0), (2, 2)):
        best = -np.inf
        for down in range(-3, 4):
            for right in range(-4, 5):
                if (down, right) != (0, 0):
                    moved = np.zeros_like(w[v])
                    rows, columns = slice(max(down, 0), 4 + min(down, 0)), slice(max(right, 0), 5 + min(right, 0))
                    back = (slice(max(-down, 0), 4 + min(-down, 0)), slice(max(-right, 0), 5 + min(-right, 0)))
                    moved[:, rows, columns] = w[v][:, back[0], back[1]]
                    best = max(best, (w[u] * moved).sum() / np.linalg.norm(w[u]) / np.linalg.norm(w[v]))
        assert tiling.similarities(w)[u, v] == pytest.approx(best)


def test_one_filter_everywhere_tiles_and_noise_does_not():
    kernel, w = noise(1, 4, 4, seed=3), np.zeros((49, 1, 16, 16))
    for unit in range(49):
        w[unit, :, 2 * (unit // 7) : 2 * (unit // 7) + 4, 2 * (unit % 7) : 2 * (unit % 7) + 4] = kernel
    found = tiling.tiling(w)
    assert found.value == pytest.approx(1) and found.null < 0.8
    assert tiling.coverage(w).value > 0.95
    found = tiling.tiling(noise(60, 1, 16, 16))
    assert found.value == pytest.approx(found.null, abs=0.01)
    assert tiling.coverage(noise(60, 1, 16, 16)).value < 0.8, "without local units, all centroids are in the middle"
    several = tiling.tiling(bumps(90, 16, 1.5))
    assert several.low > several.null, "of all directions and phases"


def test_phases_at_random_keep_the_power_spectrum():
    w = noise(4, 3, 8, 8)
    drawn = tiling.randomised(w, np.random.default_rng(0))
    assert np.abs(np.fft.fft2(drawn)) == pytest.approx(np.abs(np.fft.fft2(w))) and not np.allclose(drawn, w)
    both = [np.fft.fft2(each) for each in (w, drawn)]
    cross = [each[:, 0] * each[:, 1].conj() for each in both]
    assert cross[0] == pytest.approx(cross[1]), "channels keep their places to each other"


def test_tiling_of_a_model_has_all_three_sets():
    assert tiling.measure(planted()).keys() == tiling.UNITS.keys()
    assert tiling.measure(subject_of(archs.create("mixer_nano"), None)) == {}


# --- receptive field


def test_convolutions_grow_by_their_kernel_and_tokens_mixed_at_once_read_all():
    torch.manual_seed(0)
    given = {"img_size": 22, "in_chans": 1, "patch_size": 2, "kernel_size": 3, "depth": 3}
    model = randomise(archs.create("convmixer_nano", **given)).double()
    subject = subject_of(model, None, 4, 22)
    x = subject.images[0][0].double()
    subject = Subject(model.eval(), [(x, None)], 22, 10, 2)
    maps = [field.maps.mean(0) for field in receptive_field.gradients(model, subject)]
    for depth, g in enumerate(maps, 1):
        inside = np.zeros((22, 22), bool)
        first, last = 10 - 2 * depth, 12 + 2 * depth
        inside[first:last, first:last] = True
        assert (g[inside] > 0).all() and (g[~inside] == 0).all(), "so many tokens around the middle, and no others"
    found = receptive_field.measure(subject)
    for depth in (1, 2, 3):
        assert found[f"share_{depth}"].value <= ((4 * depth + 2) / 22) ** 2
    assert found["share_1"].value < found["share_2"].value < found["share_3"].value == found["share"].value
    assert np.isnan(found["share"].null)
    whole = receptive_field.measure(subject_of(randomise(archs.create("mixer_nano")), None))
    assert whole["share_1"].value > 0.5


def test_a_token_alone_reads_its_patch_and_a_cross_is_on_the_axes():
    torch.manual_seed(0)
    model = randomise(archs.create("lattice_nano", mixer="none")).eval()
    found = receptive_field.measure(subject_of(model, None))
    assert found["axes"].value == 1 and found["share"].value <= 4 / 64, "a token alone reads its patch"
    cross = np.zeros((8, 8))
    cross[4:6], cross[:, 4:6] = 1, 1
    assert receptive_field.Field(cross[None], (4, 4)).axes(cross) == 1
    assert receptive_field.Field(cross[None], (4, 4)).axes(np.ones((8, 8))) == pytest.approx(28 / 64)


def test_the_null_is_that_of_the_start_and_places_are_the_images():
    torch.manual_seed(0)
    model, start = randomise(archs.create("convmixer_nano")), randomise(archs.create("convmixer_nano"), seed=1)
    straight = receptive_field.measure(subject_of(model, start))
    before = receptive_field.measure(subject_of(start, None))
    for key in ("share_3", "axes_1", "radius_3"):
        assert straight[key].null == before[key].value
    assert straight["axes_1"].null != straight["axes_1"].value
    moved = torch.randperm(64, generator=torch.Generator().manual_seed(1)).numpy()
    subject = subject_of(model, None)
    shuffled = Subject(Rearranged(model, moved), subject.images, 8, 10, 2)
    own = Subject(model, [(shuffled.model.arrange(subject.images[0][0]), None)], 8, 10, 2)
    here, there = (receptive_field.gradients(each.model, each)[0].maps for each in (shuffled, own))
    assert here.reshape(40, -1)[:, moved] == pytest.approx(there.reshape(40, -1), rel=1e-4)
    assert receptive_field.draw(subject_of(model, start)).startswith(b"\x89PNG")


def test_a_flat_net_has_a_field_for_each_channel():
    model = archs.create("bmlp_nano")
    with torch.no_grad():
        model.stem.proj.weight.zero_()
        model.stem.proj.weight[:, 27] = 1.0  # one pixel
    found = receptive_field.measure(subject_of(model, archs.create("bmlp_nano")))
    assert found.keys() == {"radius_1", "radius_2", "radius"} and found["radius"].value == 0
    assert found["radius"].null == pytest.approx((0.5 * 64 / np.pi) ** 0.5, abs=0.4)
    assert receptive_field.measure(subject_of(nn.Flatten(), None)) == {}
