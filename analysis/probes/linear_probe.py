"""Linear probe: after which block can the classes be read off linearly?

    avg_b: accuracy of a ridge regression on the output of block b, averaged over its map
    all_b: on the whole map, through its first `components` principal components, so that flat and token models compete
    depth90_avg, depth90_all: share of the depth at which accuracy, linear between blocks, reaches 90 % of the last

Block 0 is the image. Each half of the images is judged by what was fitted on the other (centred, one-hot targets, in
closed form), the penalty of each fit by leave-one-out, exact for ridge, over `penalties` times the mean eigenvalue.
Accuracies are percent and read as those of a regression on so few images; depths are ratios.

Source: Alain and Bengio, arXiv 1610.01644; leave-one-out: Golub, Heath and Wahba 1979.
Null: chance, see `by_chance`; for a depth, of accuracy that grows evenly from the image to the last block.
Expect: flat MLPs are there after the first third of their depth, token models later and more evenly, attention most
evenly. A model whose training has not begun falls with depth.
Cost: one pass per block over at most `images` test images, and a second or two per block.
"""

import numpy as np
import torch
from torch import Tensor

from analysis.bias.probe import Estimate, Subject, agreement, crossing, hits, over_images
from analysis.measures import depth, pixels

PROTOCOL = {"images": 2000, "components": 512, "penalties": [1e-4, 1e-3, 1e-2, 0.1, 1, 10, 100]}
UNITS = {"avg_#": "%", "all_#": "%", "avg_last": "%", "all_last": "%", "depth90_avg": "ratio", "depth90_all": "ratio"}
COST = (3, 40)
HEADLINE = ("avg_last", "all_last", "depth90_avg", "depth90_all")
TITLE = "Linear probe: how deep in the model the classes can be read off"
WORDS = {"(avg|all)_last": r"last block, \1", "depth90_(avg|all)": r"depth of 90 %, \1"}


def measure(subject: Subject) -> dict[str, Estimate]:
    """All keys of UNITS; none for a model that does not show its blocks."""
    if not (blocks := depth.count(subject)):
        return {}
    images, labels, _ = pixels.sample(subject, PROTOCOL["images"])
    predicted: dict[str, list[np.ndarray]] = {"avg": [], "all": []}
    for b in range(blocks + 1):
        maps = images.float().cpu() if b == 0 else depth.block(subject, images, b - 1)
        for way, features in (("avg", maps.mean((2, 3))), ("all", maps.flatten(1))):
            predicted[way].append(held_out(features, labels, subject.num_classes))
    result = {}
    for way, each in predicted.items():
        found = {f"{way}_{b}": agreement(one[None], labels, subject.num_classes) for b, one in enumerate(each)}
        acc = [estimate.value for estimate in found.values()]
        result |= found | {f"{way}_last": found[f"{way}_{blocks}"]}
        scores_NK = np.stack([hits(one[None], labels) for one in each], 1)
        even = float(depth90(np.linspace(acc[0], acc[-1], 101)))
        result[f"depth90_{way}"] = over_images(scores_NK, depth90, even)
    return result


def depth90(acc: np.ndarray) -> np.ndarray:
    """Where accuracies (..., K), evenly from depth 0 to 1, first reach 90 % of the last."""
    return crossing(acc, np.linspace(0, 1, acc.shape[-1]), 0.9 * acc[..., -1:])


def held_out(features_ND: Tensor, labels: np.ndarray, classes: int) -> np.ndarray:
    """The class (N,) of every image, by the ridge regression on those with numbers of the other parity."""
    even, predicted = np.arange(len(labels)) % 2 == 0, np.empty(len(labels), int)
    targets_NC = torch.eye(classes, dtype=torch.float64)[torch.from_numpy(labels)]
    for train, test in ((even, ~even), (~even, even)):
        mean = features_ND[train].mean(0)
        weights, offset = ridge(features_ND[train] - mean, targets_NC[train])
        predicted[test] = ((features_ND[test] - mean).double() @ weights + offset).argmax(1).numpy()
    return predicted


def ridge(x_ND: Tensor, y_NC: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (D, C) and offset (C,) of centred features, at the penalty of the least leave-one-out error."""
    x_ND, offset, most = x_ND.double(), y_NC.mean(0), PROTOCOL["components"]
    # The smaller of the two Gram matrices has the same eigenvalues.
    u_NK, s_K, v_KD = _svd(x_ND)
    u_NK, s_K, v_KD = u_NK[:, :most], s_K[:most], v_KD[:most]
    target_KC, power_K = u_NK.T @ (y_NC - offset), s_K**2
    best, weights = float("inf"), torch.zeros(x_ND.shape[1], y_NC.shape[1], dtype=torch.float64)
    for penalty in PROTOCOL["penalties"]:
        shrink_K = power_K / (power_K + penalty * power_K.mean())
        left_NC = y_NC - offset - u_NK @ (shrink_K[:, None] * target_KC)
        leverage_N = 1 / len(x_ND) + u_NK.square() @ shrink_K
        error = (left_NC / (1 - leverage_N)[:, None]).square().mean().item()
        if error < best:
            best, weights = error, v_KD.T @ ((shrink_K / s_K)[:, None] * target_KC)
    return weights, offset


def _svd(x_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Singular vectors and values, descending, without the null space, from the smaller Gram matrix."""
    wide = x_ND.shape[1] > len(x_ND)
    power, vectors = torch.linalg.eigh(x_ND @ x_ND.T if wide else x_ND.T @ x_ND)
    keep = power.flip(0) > power[-1].clamp(min=1e-300) * 1e-12
    s, vectors = power.flip(0)[keep].sqrt(), vectors.flip(1)[:, keep]
    if wide:
        return vectors, s, (vectors.T @ x_ND) / s[:, None]
    return x_ND @ vectors / s, s, vectors.T
