"""Calibration: is a model right as often as it says?

With p the softmax, c = max p and bins of equally many images (15 by c; for `ace` 15 by the p of each class):

    ece = sum over bins of |mean(right - c)| x share            ace = the same of p_k against y = k, mean over classes k
    ece_width: 15 bins of equal width in c                      brier = mean sum_k (p_k - 1[y = k])^2
    nll = mean -log p_y

and each again, `_scaled`, after softmax(logits / T). Every other image is scaled by what fits the rest, so that none is
judged at a temperature that it helped to choose; `temperature` is the mean of the two, which stand where its interval
would. ece and ace in percent.

Source: Guo et al., arXiv 1706.04599; equal mass and classwise bins: Nixon et al., arXiv 1904.01685.
Null: what a model that is right exactly as often as it says would have on as many images, from 100 draws of labels
from its own p: no ece is zero on finite data. Intervals are the basic bootstrap's over images, of the bins as they are:
what chance adds to an ece they take away, so that where there is little else they lie below the value.
Expect: label smoothing and mixup decide the raw values (T below 1), so compare the scaled ones, whose differences are
mostly those of accuracy; flat MLPs without augmentation are most confident.
Cost: 1 pass.
"""

from collections.abc import Callable

import numpy as np
import torch

from analysis.bias.probe import Estimate, Subject
from engine import metrics
from engine.rng import derive

PROTOCOL = {"bins": 15, "draws": 100, "resamples": 1000, "seed": 0, "scaling": "cross-fitted halves"}
UNITS = {"ece": "%", "ece_width": "%", "ace": "%", "brier": "squares", "nll": "nats", "temperature": "ratio"}
UNITS |= {"ece_scaled": "%", "ece_width_scaled": "%", "ace_scaled": "%", "brier_scaled": "squares"}
UNITS |= {"nll_scaled": "nats"}
COST = (1, 30)
HEADLINE = ("ece", "ece_scaled", "ace_scaled", "brier_scaled", "nll", "nll_scaled", "temperature")
TITLE = "Calibration: what a model says of its own certainty"
WORDS = {r"(.*)_scaled": r"\1 at T", "temperature": "T"}


def measure(subject: Subject) -> dict[str, Estimate]:
    """All keys of UNITS."""
    logp_NC, labels = log_probabilities(subject)
    scaled_NC, temperature = metrics.cross_scale(logp_NC, labels)
    result, counts_RN = {}, resamples(len(labels))
    for end, each_NC in (("", logp_NC), ("_scaled", scaled_NC)):
        by_chance = draws(each_NC)
        for key, (score, statistic) in scores(each_NC).items():
            null = np.mean([statistic(score(drawn).mean(0)) for drawn in by_chance])
            scores_NK = score(labels)
            value, drawn_R = statistic(scores_NK.mean(0)), statistic(counts_RN @ scores_NK / len(labels))
            low, high = 2 * value - np.quantile(drawn_R, [0.975, 0.025])
            result[key + end] = Estimate(float(value), float(low), float(high), float(null))
    low, high = sorted(metrics.fit_temperature(logp_NC[half], labels[half]) for half in _halves(len(labels)))
    result["temperature"] = Estimate(temperature, low, high, 1.0)
    return result


def scores(logp_NC: np.ndarray) -> dict[str, tuple[Callable[[np.ndarray], np.ndarray], Callable]]:
    """Per key labels (N,) -> scores (N, K), whose means (..., K) the second function turns into the value."""
    p_NC, bins = np.exp(logp_NC), PROTOCOL["bins"]
    confidence, predicted = p_NC.max(1), p_NC.argmax(1)
    width = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    mass_NC = np.stack([equal_mass(column, bins) for column in p_NC.T], 1) + bins * np.arange(p_NC.shape[1])
    total = bins * p_NC.shape[1]

    def top(which_N: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        return lambda y: np.eye(bins)[which_N] * ((predicted == y) - confidence)[:, None]

    def classwise(y: np.ndarray) -> np.ndarray:
        spread = np.zeros((len(y), total))
        np.put_along_axis(spread, mass_NC, np.eye(p_NC.shape[1])[y] - p_NC, 1)
        return spread

    def gaps(means: np.ndarray) -> np.ndarray:
        return 100 * np.abs(means).sum(-1)

    return {
        "ece": (top(equal_mass(confidence, bins)), gaps),
        "ece_width": (top(width), gaps),
        "ace": (classwise, lambda means: gaps(means) / p_NC.shape[1]),
        "brier": (lambda y: ((p_NC - np.eye(p_NC.shape[1])[y]) ** 2).sum(1)[:, None], lambda means: means[..., 0]),
        "nll": (lambda y: -logp_NC[np.arange(len(y)), y][:, None], lambda means: means[..., 0]),
    }


def equal_mass(values_N: np.ndarray, bins: int) -> np.ndarray:
    """The bin (N,) of each value: as many in each, up to one; equal values in the order they come."""
    bin_of = np.empty(len(values_N), int)
    bin_of[values_N.argsort(kind="stable")] = np.arange(len(values_N)) * bins // len(values_N)
    return bin_of


def resamples(count: int) -> np.ndarray:
    """How often each image comes in each bootstrap sample, (resamples, N)."""
    rng = np.random.Generator(np.random.Philox(derive(PROTOCOL["seed"], "calibration", 1)))
    return np.stack(
        [np.bincount(rng.integers(0, count, count), minlength=count) for _ in range(PROTOCOL["resamples"])], dtype=float
    )


def draws(logp_NC: np.ndarray) -> np.ndarray:
    """Labels (draws, N), each drawn from the model's own probabilities."""
    rng = np.random.Generator(np.random.Philox(derive(PROTOCOL["seed"], "calibration")))
    edges_NC = np.exp(logp_NC).cumsum(1)
    edges_NC /= edges_NC[:, -1:]
    return np.stack([(rng.random((len(logp_NC), 1)) >= edges_NC).sum(1) for _ in range(PROTOCOL["draws"])])


@torch.inference_mode()
def log_probabilities(subject: Subject) -> tuple[np.ndarray, np.ndarray]:
    """Of all test images, (N, classes), and their labels (N,)."""
    logp, labels = [], []
    for x_BCHW, y in subject.images:
        logp.append(subject.model(x_BCHW).double().log_softmax(1).cpu().numpy())
        labels.append(y.cpu().numpy().copy())
    return np.concatenate(logp), np.concatenate(labels)


def _halves(count: int) -> tuple[np.ndarray, np.ndarray]:
    even = np.arange(count) % 2 == 0
    return even, ~even
