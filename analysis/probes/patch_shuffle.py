"""Patch shuffle: how much of a model's accuracy needs the layout of the image?

The image is cut into k x k blocks, which are put in random order, another one for each image and draw:

    R_k = (acc_k - chance) / (acc - chance)        chance = 100 / classes
    area = integral of R_k over log k, from R_1 = 1 to the largest k, as a mean height
    consistency_k: share of the shuffled images that are classified as the whole ones
    acc_quadrant_k and so on: blocks stay in their quadrant of the image; layout is lost at small scale only

k is 2, 4 and 8, where it divides the image into blocks of two pixels or more. R and area are ratios, 1 where layout
does not count; acc and consistency are percent. R is NaN for a model that is not better than chance.

Source: Zhang and Zhu, arXiv 1905.09797; Naseer et al., arXiv 2105.10497.
Null: chance, see `by_chance`, hence about 0 for R; for the area that of R_k = 0 for all k > 1, which R_1 = 1 lifts.
Expect: bag of patches 1 exactly, as long as a block is whole patches; models with a mean over tokens above flat ones,
attention most, but on 8 x 8 digits not the token MLPs; a patchified flat MLP equals the flat one: patches without token
structure buy no tolerance.
Cost: `draws` passes per k and per quadrant_k, and 1.
"""

from collections.abc import Iterator

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from analysis.bias.probe import Estimate, Subject, View, agreement, by_chance, hits, over_images
from engine.data.augment.pipeline import uniform_numpy
from engine.rng import derive

PROTOCOL = {"blocks": [2, 4, 8], "draws": 2, "seed": 0}
UNITS = {"acc": "%", "acc_#": "%", "consistency_#": "%", "R_#": "ratio", "area": "ratio"}
UNITS |= {"acc_quadrant_#": "%", "consistency_quadrant_#": "%", "R_quadrant_#": "ratio"}
COST = (11, 0)
HEADLINE = ("acc", "R_2", "R_4", "R_8", "area")
COLUMN = "R_2"
TITLE = "Patch shuffle: accuracy kept when k × k blocks of the image change places"
WORDS = {"acc": "accuracy", "R_2": "quarters shuffled", r"R_(\d+)": r"\1 × \1 blocks shuffled", "area": "kept, mean"}


def measure(subject: Subject) -> dict[str, Estimate]:
    """All keys of UNITS that the image's size allows."""
    cuts = [k for k in PROTOCOL["blocks"] if subject.img_size % k == 0 and subject.img_size // k > 1]
    ways = {f"{k}": (k, False) for k in cuts} | {f"quadrant_{k}": (k, True) for k in cuts if k > 2}
    predicted, labels = subject.classify(lambda x_BCHW, index: _views(x_BCHW, index, ways))
    plain, classes = predicted["plain"], subject.num_classes
    shuffled = {way: np.stack([predicted[way, draw] for draw in range(PROTOCOL["draws"])]) for way in ways}
    result = {"acc": agreement(plain[None], labels, classes)}
    result |= {f"acc_{way}": agreement(views, labels, classes) for way, views in shuffled.items()}
    result |= {f"consistency_{way}": agreement(views, plain, classes) for way, views in shuffled.items()}

    def retained(means: np.ndarray) -> np.ndarray:
        """R (..., K) from accuracies (..., 1 + K), the first without a shuffle."""
        above = means - 100 / classes
        return above[..., 1:] / np.where(above[..., :1] > 0, above[..., :1], np.nan)

    hits_N, base = hits(plain[None], labels), result["acc"].value
    for way, views in shuffled.items():
        null = retained(np.array([base, by_chance(views, labels, classes)]))[0]
        scores_N2 = np.stack([hits_N, hits(views, labels)], 1)
        result[f"R_{way}"] = over_images(scores_N2, lambda means: retained(means)[..., 0], float(null))
    if cuts:
        scores_NK = np.stack([hits_N, *(hits(shuffled[f"{k}"], labels) for k in cuts)], 1)
        nothing = float(area(np.zeros(len(cuts)), cuts))
        result["area"] = over_images(scores_NK, lambda means: area(retained(means), cuts), nothing)
    return result


def area(R_K: np.ndarray, cuts: list[int]) -> np.ndarray:
    """Mean height of R over log k by the trapezoidal rule, from R_1 = 1; R (..., K) at the K cuts."""
    log_k = np.log([1, *cuts])
    return np.trapezoid(np.concatenate([np.ones_like(R_K[..., :1]), R_K], -1), log_k, axis=-1) / log_k[-1]


def shuffle_blocks(x_BCHW: Tensor, k: int, order_BK: Tensor) -> Tensor:
    """The image whose block i of k x k, counted row by row, is block order[i] of x; an order for each image."""
    blocks = rearrange(x_BCHW, "b c (k h) (l w) -> b (k l) c h w", k=k, l=k)
    each = torch.arange(len(blocks), device=blocks.device)[:, None]
    return rearrange(blocks[each, order_BK.to(blocks.device)], "b (k l) c h w -> b c (k h) (l w)", k=k)


def orders(index: np.ndarray, k: int, draw: int, within_quadrant: bool = False) -> Tensor:
    """A random order of the k*k blocks for each image, (B, k*k), of its number alone."""
    key = derive(PROTOCOL["seed"], "patch_shuffle", k, draw)
    noise_BK = np.stack([uniform_numpy(key, index, block) for block in range(k * k)], 1)
    if not within_quadrant:
        return torch.from_numpy(noise_BK.argsort(1))
    row, column = np.divmod(np.arange(k * k), k)
    quadrant = 2 * (row >= k // 2) + (column >= k // 2)
    # Sorted by quadrant, then by noise: the places of a quadrant get its own blocks in random order.
    places, blocks_BK = quadrant.argsort(kind="stable"), (quadrant + noise_BK).argsort(1)
    order_BK = np.empty_like(blocks_BK)
    order_BK[:, places] = blocks_BK
    return torch.from_numpy(order_BK)


def _views(x_BCHW: Tensor, index: np.ndarray, ways: dict[str, tuple[int, bool]]) -> Iterator[View]:
    yield "plain", x_BCHW
    for way, (k, within) in ways.items():
        for draw in range(PROTOCOL["draws"]):
            yield (way, draw), shuffle_blocks(x_BCHW, k, orders(index, k, draw, within))
