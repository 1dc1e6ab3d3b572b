"""What predictions are worth: pure functions of probabilities (N, classes) and labels (N,), in NumPy.

Probabilities are given as their logarithms, so that a confident mistake costs what it costs and not infinity.
"""

import json
import math
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from engine.errors import DATA, Refusal


def judge(
    logp_NC: np.ndarray,
    labels: np.ndarray,
    temperature: float | str | None = None,
    label_sets: Sequence[Collection[int]] | None = None,
) -> dict[str, float]:
    """The figures of one evaluation: `loss` (mean negative log-likelihood), then in percent `top1`, `top5`, `balanced`
    (mean accuracy of the classes) and `ece`.

    Args:
        temperature: also give `loss_scaled` and `ece_scaled` at this temperature; "fit": at the one that fits.
        label_sets: also give the ImageNet-ReaL accuracy `real`, and how many images have labels.
    """
    top = top_k(logp_NC, 5)
    row = {
        "loss": nll(logp_NC, labels),
        "top1": accuracy(top, labels),
        "top5": accuracy(top, labels, 5),
        "balanced": balanced_accuracy(top[:, 0], labels),
        "ece": ece(logp_NC, labels),
    }
    if temperature is not None:
        if temperature == "fit":
            scaled, temperature = cross_scale(logp_NC, labels)
        else:
            scaled = scale(logp_NC, float(temperature))
        row |= {"temperature": float(temperature), "loss_scaled": nll(scaled, labels)}
        row["ece_scaled"] = ece(scaled, labels)
    if label_sets is not None:
        row["real"], row["real_samples"] = real_accuracy(top[:, 0], label_sets)
    return row


def top_k(logp_NC: np.ndarray, k: int) -> np.ndarray:
    """The k likeliest classes of each sample, (N, k), best first; fewer where there are fewer classes."""
    import torch  # its topk, so that a tie is broken here as it is while training

    return torch.from_numpy(logp_NC).topk(min(k, logp_NC.shape[1])).indices.numpy()


def accuracy(top_NK: np.ndarray, labels: np.ndarray, k: int = 1) -> float:
    """Share of samples whose label is among the first k guesses, in percent."""
    return 100 * float((top_NK[:, :k] == labels[:, None]).any(1).mean())


def balanced_accuracy(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Mean of the accuracies (recalls) of the classes that have a sample, in percent."""
    counts = np.bincount(labels)
    right = np.bincount(labels[predicted == labels], minlength=len(counts))
    return 100 * float((right[counts > 0] / counts[counts > 0]).mean())


def nll(logp_NC: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative log-likelihood (cross-entropy), in nats."""
    return -float(logp_NC[np.arange(len(labels)), labels].mean())


def ece(logp_NC: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error in percent: |accuracy - confidence|, averaged over equal-width bins of confidence.

    Bins are (low, high], as in Guo et al. 2017 (On Calibration of Modern Neural Networks, equation 3).
    """
    predicted = top_k(logp_NC, 1)[:, 0]
    confidence = np.exp(logp_NC[np.arange(len(labels)), predicted])
    which = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gap = np.bincount(which, (predicted == labels) - confidence, minlength=bins)
    return 100 * float(np.abs(gap).sum() / len(labels))


def confusion(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts, (classes, classes): row is the label, column the prediction."""
    pairs = np.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return pairs.reshape(num_classes, num_classes)


def per_class(matrix: np.ndarray, names: Sequence[str]) -> list[dict[str, float | str]]:
    """Of each class, from its confusion matrix: name, samples, recall `acc1` and `precision`.

    Percent, NaN for 0 of 0.
    """
    rows, columns = matrix.sum(1), matrix.sum(0)
    return [
        {
            "class": index,
            "name": names[index],
            "samples": int(rows[index]),
            "acc1": 100 * int(matrix[index, index]) / int(rows[index]) if rows[index] else math.nan,
            "precision": 100 * int(matrix[index, index]) / int(columns[index]) if columns[index] else math.nan,
        }
        for index in range(len(matrix))
    ]


def real_accuracy(predicted: np.ndarray, label_sets: Sequence[Collection[int]]) -> tuple[float, int]:
    """ImageNet-ReaL: a prediction is right if it is in the image's set; images without labels are left out.

    Beyer et al. 2020, Are we done with ImageNet? Returns the percentage and how many images had labels.
    """
    hits = [guess in labels for guess, labels in zip(predicted.tolist(), label_sets, strict=True) if labels]
    return 100 * sum(hits) / len(hits) if hits else math.nan, len(hits)


def read_real(path: Path, names: Sequence[str] | None, labels: np.ndarray) -> list[frozenset[int]]:
    """The label sets of real.json in the order of our samples.

    Args:
        path: of a list of lists, in the order of the images' names (github.com/google-research/reassessed-imagenet).
        names: of the files of our samples; None if these are in that order, too.
        labels: the samples' original labels.

    Raises Refusal (DATA): another file or number of images, or the sets of other images: ImageNet's original label is
    in nine of ten.
    """
    try:
        sets = [frozenset(map(int, found)) for found in json.loads(path.read_text())]
    except (OSError, TypeError, ValueError) as error:
        raise Refusal(f"{path} is no list of label lists such as real.json ({error})", DATA) from None
    if len(sets) != len(labels):
        raise Refusal(f"{path} has labels of {len(sets)} images, not {len(labels)}", DATA)
    if names is not None:
        if len(names) != len(labels):
            raise Refusal(f"--raw-dir has {len(names)} validation images, the .beton {len(labels)}", DATA)
        order = sorted(range(len(names)), key=lambda index: Path(names[index]).name)
        sets = [found for _, found in sorted(zip(order, sets, strict=True), key=lambda pair: pair[0])]
    agreement, counted = real_accuracy(labels, sets)
    if counted and agreement < 50:
        raise Refusal(
            f"{path} has the validation label of {agreement:.0f} % of the images only, so these are in another order; "
            "give --raw-dir, the image folder that the .beton was written from",
            DATA,
        )
    return sets


def scale(logp_NC: np.ndarray, temperature: float | np.ndarray) -> np.ndarray:
    """Log-probabilities of softmax(logits / temperature), of one temperature or of one per sample, (N, 1)."""
    scaled = logp_NC / temperature
    scaled = scaled - scaled.max(1, keepdims=True)
    return scaled - np.log(np.exp(scaled).sum(1, keepdims=True))


def fit_temperature(logp_NC: np.ndarray, labels: np.ndarray) -> float:
    """The temperature in 0.05 .. 20 of the least negative log-likelihood, to 1e-4."""
    from scipy.optimize import minimize_scalar

    # The likelihood is convex in 1 / temperature, so that in its logarithm, too, there is one minimum only.
    found = minimize_scalar(
        lambda log: nll(scale(logp_NC, math.exp(log)), labels),
        bounds=(math.log(0.05), math.log(20)),
        method="bounded",
        options={"xatol": 1e-5},
    )
    return math.exp(found.x)


def cross_scale(logp_NC: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, float]:
    """Log-probabilities at the temperature that fits, and that temperature (the mean of two).

    Every other sample is scaled by what fits the rest, so that no sample is judged at a temperature it helped choose.
    """
    even = np.arange(len(labels)) % 2 == 0
    fitted = [fit_temperature(logp_NC[half], labels[half]) for half in (~even, even)]
    return scale(logp_NC, np.where(even, *fitted)[:, None]), sum(fitted) / 2
