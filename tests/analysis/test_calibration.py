"""Calibration: closed forms of every score, nulls, and temperatures that are known."""

import numpy as np
import pytest
import torch
from torch import nn

from analysis.bias.probe import Subject
from analysis.probes import calibration
from engine import metrics


def says(logits, labels, batch=97):
    """A subject whose images are its logits."""
    x, y = torch.as_tensor(logits)[:, :, None, None], torch.as_tensor(labels)
    return Subject(nn.Flatten(), list(zip(x.split(batch), y.split(batch), strict=True)), 1, x.shape[1])


def drawn(count=3000, classes=4, temperature=1.0):
    """Logits, and labels drawn from softmax(logits / temperature)."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (count, classes))
    p = np.exp(metrics.scale(logits, temperature))
    return logits, (rng.random((count, 1)) > p.cumsum(1)[:, :-1]).sum(1)


def test_a_model_that_is_right_as_often_as_it_says_is_at_the_null():
    found = calibration.measure(says(*drawn()))
    assert set(found) == set(calibration.UNITS)
    for key, each in found.items():
        if key != "temperature":
            assert each.value == pytest.approx(each.null, rel=0.35 if "ece" in key or "ace" in key else 0.05), key
            assert each.low < (each.high if "ce" in key else each.value) <= each.high, key
    assert found["temperature"].value == pytest.approx(1, abs=0.06)


def test_a_temperature_is_found_and_takes_the_excess_away():
    found = calibration.measure(says(*drawn(temperature=2.5)))
    assert found["temperature"].value == pytest.approx(2.5, rel=0.06)
    assert found["ece"].low > 4 * found["ece"].null and found["ece_scaled"].value < 1.5 * found["ece_scaled"].null
    assert found["nll_scaled"].high < found["nll"].low and found["ace_scaled"].value < found["ace"].value / 2


def test_scores_of_a_constant_model_are_closed_forms():
    p, labels = np.array([0.6, 0.3, 0.1]), np.repeat([0, 1, 2], [45, 45, 10])
    order = np.random.default_rng(1).permutation(100)
    found = calibration.measure(says(np.log(np.tile(p, (100, 1))), labels[order]))
    assert found["ece_width"].value == pytest.approx(15)
    assert found["nll"].value == pytest.approx(-(0.45 * np.log(0.6) + 0.45 * np.log(0.3) + 0.1 * np.log(0.1)))
    brier = sum(share * ((p - np.eye(3)[k]) ** 2).sum() for k, share in enumerate((0.45, 0.45, 0.1)))
    assert found["brier"].value == pytest.approx(brier)
    assert found["nll"].null == pytest.approx(-(p * np.log(p)).sum(), rel=0.02), "its entropy"


def test_bins_hold_as_many_and_scores_are_their_sums():
    logits, labels = drawn(500, temperature=2)
    logp = metrics.scale(logits, 1.0)
    confidence, right = np.exp(logp).max(1), logp.argmax(1) == labels
    bins = calibration.equal_mass(confidence, 15)
    assert np.ptp(np.bincount(bins)) <= 1 and (np.diff(bins[confidence.argsort()]) >= 0).all()
    mine = calibration.measure(says(logits, labels))
    sizes = [np.bincount(bins)[i] for i in range(15)]
    edges = np.split(confidence.argsort(), np.cumsum(sizes)[:-1])
    theirs = sum(len(part) / 500 * abs(right[part].mean() - confidence[part].mean()) for part in edges)
    assert mine["ece"].value == pytest.approx(100 * theirs)
    assert mine["ece_width"].value == pytest.approx(metrics.ece(logp, labels))
    classes = []
    for k in range(4):
        p, bin_of = np.exp(logp[:, k]), calibration.equal_mass(np.exp(logp[:, k]), 15)
        gaps = [
            (bin_of == b).mean() * abs((labels[bin_of == b] == k).mean() - p[bin_of == b].mean()) for b in range(15)
        ]
        classes.append(sum(gaps))
    assert mine["ace"].value == pytest.approx(100 * np.mean(classes))
    assert mine["nll"].value == pytest.approx(metrics.nll(logp, labels))
