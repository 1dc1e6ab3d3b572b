"""Seeds apart from test images, and shared errors, on simulated runs whose truth is known."""

import numpy as np
import pytest
from scipy.special import expit
from sklearn.metrics import cohen_kappa_score

from analysis.factorial import images


def draw(rng, seeds, count, ability=0.0, difficulty=1.5, own=1.0, level=1.0, shared=None):
    """Correctness of runs: each has an ability, each image a difficulty, each pair of both a taste of its own."""
    hard = rng.normal(0, difficulty, count) if shared is None else shared
    logit = level + rng.normal(0, ability, (seeds, 1)) + hard + rng.normal(0, own, (seeds, count))
    return rng.random((seeds, count)) < expit(logit)


@pytest.mark.parametrize("ability", [0.0, 0.15])
def test_parts_of_the_variance_are_the_true_ones_on_average(ability):
    """2000 studies of four seeds and 400 images; the truth of the seed's part by quadrature over abilities."""
    rng = np.random.default_rng(0)
    found = [images.split(draw(rng, 4, 400, ability)) for _ in range(2000)]
    seeds, total, part = (np.array([getattr(one, key) for one in found]) for key in ("seeds", "total", "images"))
    grid = 1.0 + np.linspace(-4, 4, 161) * max(ability, 1e-9)
    weights = np.exp(-(np.linspace(-4, 4, 161) ** 2) / 2)
    noise = rng.normal(0, np.hypot(1.5, 1.0), 200_000)
    accuracy = 100 * np.array([expit(x + noise).mean() for x in grid])
    mean = np.average(accuracy, weights=weights)
    truth = np.average((accuracy - mean) ** 2, weights=weights) if ability else 0.0
    error = 3 * seeds.std() / np.sqrt(len(seeds))
    assert abs(seeds.mean() - truth) < error and error < 0.12 * total.mean()
    assert np.allclose(total, part + seeds)
    if not ability:
        assert total.mean() > 2  # seeds differ on 400 images though none is better


def test_split_is_the_two_way_table_of_its_definition():
    x = draw(np.random.default_rng(1), 5, 60, 0.3)
    values = 100.0 * x
    rest = values - values.mean(1, keepdims=True) - values.mean(0) + values.mean()
    found = images.split(x)
    assert found.images == pytest.approx((rest**2).sum() / (4 * 59) / 60)
    assert found.total == pytest.approx(values.mean(1).var(ddof=1)) and found.df == 4
    other = images.split(draw(np.random.default_rng(2), 3, 60))
    both = images.pooled([found, other])
    assert both.total == pytest.approx((4 * found.total + 2 * other.total) / 6) and both.df == 6
    with pytest.raises(ValueError, match="1 seeds on 60 images"):
        images.split(x[:1])


def test_error_consistency_is_cohens_kappa_of_correctness():
    first, second = draw(np.random.default_rng(3), 2, 500)
    assert images.kappa(first, second) == pytest.approx(cohen_kappa_score(first, second))
    assert images.kappa(first, first) == 1 and np.isnan(images.kappa(np.ones(5, bool), np.ones(5, bool)))


def test_overlap_of_one_cell_with_itself_lacks_nothing_and_of_others_does():
    rng = np.random.default_rng(4)
    hard, other = rng.normal(0, 1.5, (2, 2000))
    same = images.overlap(draw(rng, 5, 2000, shared=hard), draw(rng, 5, 2000, shared=hard))
    assert same.lack.low < 0 < same.lack.high and abs(same.lack.value) < 0.03
    mixed = images.overlap(draw(rng, 5, 2000, shared=hard), draw(rng, 5, 2000, shared=(hard + other) / 2**0.5))
    assert mixed.lack.low > 0 and mixed.between < mixed.within
    x, y = draw(rng, 3, 300), draw(rng, 2, 300)
    pairs = [images.kappa(a, b) for a in x for b in y]
    assert images.overlap(x, y, resamples=10).between == pytest.approx(np.mean(pairs))
    with pytest.raises(ValueError, match="one seed"):
        images.overlap(x, y[:1])


def test_the_interval_of_the_lack_covers_zero_about_as_often_as_it_says():
    """60 pairs of cells that are one: with eight seeds, too narrow but not by much."""
    rng, missed = np.random.default_rng(5), 0
    for place in range(60):
        hard = rng.normal(0, 1.5, 500)
        sides = [draw(rng, 8, 500, shared=hard) for _ in range(2)]
        lack = images.overlap(*sides, resamples=200, seed=place).lack
        missed += not lack.low < 0 < lack.high
    assert missed <= 9
