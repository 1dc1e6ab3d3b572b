"""What the probes share: the model and images that they look at, one pass of many views, the interval and the null.

Pure functions of a model and its images, which need not come from a run.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from analysis import stats
from engine.rng import derive

RESAMPLES = 2000
View = tuple[Hashable, Tensor]


class Estimate(NamedTuple):
    """A value, the ends of its 95 % interval over test images, and what it would be without the effect."""

    value: float
    low: float
    high: float
    null: float


@dataclass(frozen=True)
class Subject:
    """What a probe looks at.

    Args:
        model: images BCHW -> logits (B, num_classes), in evaluation mode.
        img_size: pixels of a square; of an oblong image the side of the largest squares that tile it.
        images: batches of images BCHW as the model takes them and labels (B,); can be iterated again, in equal order.
        patch_size: pixels; None for a model without patches.
        start: the model as its training began, in evaluation mode; None where that cannot be had.
        mean, std: per channel on the 0..255 scale, by which the images are standardised; by default they are 0..1.
        dataset: its name in Run; "" where it has none.
    """

    model: nn.Module
    images: Iterable[tuple[Tensor, Tensor]]
    img_size: int
    num_classes: int
    patch_size: int | None = None
    start: nn.Module | None = None
    mean: Sequence[float] = (0.0,)
    std: Sequence[float] = (255.0,)
    dataset: str = ""

    @torch.inference_mode()
    def classify(
        self, views: Callable[[Tensor, np.ndarray], Iterator[View]]
    ) -> tuple[dict[Hashable, np.ndarray], np.ndarray]:
        """Predicted class (N,) of every image in every view, and labels (N,), in one pass over the images.

        Args:
            views: gives the views of a batch x_BCHW, by key; the numbers of its images (B,) say what to draw for each,
                so that what is drawn does not depend on the batch size.
        """
        predicted: dict[Hashable, list[np.ndarray]] = {}
        labels, count = [], 0
        for x_BCHW, y in self.images:
            for key, view_BCHW in views(x_BCHW, np.arange(count, count + len(y))):
                predicted.setdefault(key, []).append(self.model(view_BCHW).argmax(1).cpu().numpy())
            labels.append(y.cpu().numpy().copy())  # a loader may overwrite its batch
            count += len(y)
        return {key: np.concatenate(parts) for key, parts in predicted.items()}, np.concatenate(labels)


class Rearranged(nn.Module):
    """A model behind the fixed shuffle of pixels that its run had (`Run.permute`): it takes the original image.

    So a probe moves what people see, and the shuffle belongs to the classifier.
    """

    def __init__(self, model: nn.Module, places: np.ndarray) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("places", torch.from_numpy(places))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.model(self.arrange(x_BCHW))

    def arrange(self, x_BCHW: Tensor) -> Tensor:
        """The image as the model itself reads it."""
        return x_BCHW.flatten(2)[..., self.places].view(x_BCHW.shape)


def hits(predicted_VN: np.ndarray, target_N: np.ndarray) -> np.ndarray:
    """Share of the views of each image (N,) whose prediction is the target, in percent."""
    return 100 * (predicted_VN == target_N).mean(0)


def by_chance(predicted_VN: np.ndarray, target_N: np.ndarray, num_classes: int) -> float:
    """What the mean of `hits` would be with predictions and targets paired at random, in percent.

    The mean of the permutation null in closed form, sum over c of P(predicted = c) P(target = c) (Cohen 1960).
    """
    targets = np.bincount(target_N, minlength=num_classes)
    predicted = np.mean([np.bincount(row, minlength=num_classes) for row in predicted_VN], 0)
    return float(100 * (predicted @ targets) / len(target_N) ** 2)


def agreement(predicted_VN: np.ndarray, target_N: np.ndarray, num_classes: int) -> Estimate:
    """Share of the predictions of all views that are the target, in percent; null: as they would be by chance."""
    null = by_chance(predicted_VN, target_N, num_classes)
    return over_images(hits(predicted_VN, target_N)[:, None], lambda means: means[..., 0], null)


def over_images(scores_NK: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], null: float) -> Estimate:
    """A statistic of the means of K scores per image, with its bootstrap interval (BCa) over the images.

    Args:
        statistic: means (..., K) -> values (...); NaN where it is undefined.
    """
    # Images with equal scores are one cell of a multinomial: the same draw, far fewer numbers.
    cells_UK, counts_U = np.unique(scores_NK, axis=0, return_counts=True)
    N = len(scores_NK)
    rng = np.random.Generator(np.random.Philox(derive(0, "probe")))
    drawn = np.concatenate([rng.multinomial(N, counts_U / N, 100) @ cells_UK for _ in range(RESAMPLES // 100)]) / N
    total_K = counts_U @ cells_UK
    without_U = statistic((total_K - cells_UK) / (N - 1))
    influence_U = (N - 1) * (counts_U @ without_U / N - without_U)
    bounds = stats.bca(float(statistic(total_K / N)), statistic(drawn), [np.repeat(influence_U, counts_U)])
    return Estimate(bounds.value, bounds.low, bounds.high, null)


def crossing(values: np.ndarray, places: Sequence[float], level: np.ndarray) -> np.ndarray:
    """Where values (..., K) at these ascending places, linear between them, first reach a level (..., 1), (...).

    The first place if they begin above it. The level must be reached at some place.
    """
    first = (values >= level).argmax(-1)[..., None]
    before = np.maximum(first - 1, 0)
    low, high = (np.take_along_axis(values, at, -1) for at in (before, first))
    share = np.where(high > low, (level - low) / np.where(high > low, high - low, 1), 1)
    places = np.asarray(places, float)
    return (places[before] + share * (places[first] - places[before]))[..., 0]
