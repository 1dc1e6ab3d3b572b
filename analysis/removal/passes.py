"""One pass over the images for each set of skipped layers, remembered; and what passes leave of the images.

Criteria follow from moments over images, so that a bootstrap of images needs no pass of its own: each pass adds up the
moments with the counts of all resamples beside those of the images themselves. Nothing is kept of single images.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from analysis import choosing
from analysis.removal.subject import Subject
from engine.rng import derive


class Seen(NamedTuple):
    """What a criterion may look at of one batch."""

    pooled: Tensor
    """(B, C): what the head reads."""
    logits: Tensor
    labels: Tensor
    cosine: Tensor
    """(B, layers): mean over tokens of the cosine of input and output of each attention; of the whole model only."""


@dataclass
class Moments:
    """Weighted sums over images of what was observed, (R, K) float64: a row per resample, the first of the images."""

    count: int
    shift: Tensor
    """(K,): subtracted before squaring, so that deviations lose no digits."""
    first: Tensor
    second: Tensor | None

    @property
    def mean(self) -> Tensor:
        return self.first / self.count + self.shift

    def deviation(self, ddof: int) -> Tensor:
        """Standard deviation over images with the divisor N - ddof."""
        centred = self.second - self.first**2 / self.count
        return (centred.clamp(min=0) / (self.count - ddof)).sqrt()


def counts(num_images: int, resamples: int) -> np.ndarray:
    """(1 + resamples, N) uint8: how often each image is drawn; the first row is the images themselves, once each."""
    rng = np.random.Generator(np.random.Philox(derive(0, "choose layers")))
    drawn = [rng.multinomial(num_images, np.full(num_images, 1 / num_images)) for _ in range(resamples)]
    return np.stack([np.ones(num_images, int), *drawn]).astype(np.uint8)


class Passes:
    """Values of criteria without the attention of a set of layers, each set passed over at most once.

    Args:
        criteria: names, of those that look at a model.
        skip: `x` or `2x`, for criteria that leave it open.
    """

    def __init__(self, subject: Subject, criteria: Sequence[str], skip: str, resamples: int) -> None:
        self.subject, self.skip = subject, skip
        self.modules = {name: importlib.import_module(f"analysis.choosing.{name}") for name in criteria}
        self.counts_RN = torch.from_numpy(counts(subject.num_images, resamples))
        self.done = 0
        """Passes so far."""
        self._known: dict[tuple[frozenset[int], str], dict[str, Tensor]] = {}
        self._shifts: dict[str, Tensor] = {}
        self._means: dict[int, Tensor] = {}

    def skip_of(self, name: str) -> str:
        """How this criterion skips."""
        own = choosing.read(name).get("SKIP", "given")
        return self.skip if own == "given" else own

    def values(self, name: str, layers: Sequence[int] = ()) -> Tensor:
        """(1 + resamples, ...): what the criterion says without the attention of these layers."""
        key = frozenset(layers), self.skip_of(name) if layers else ""
        if key not in self._known:
            self._known[key] = self._pass(*key)
        return self._known[key][name]

    def whole(self) -> dict[str, Tensor]:
        """Of the whole model, all criteria at once."""
        return {name: self.values(name) for name in self.modules}

    @torch.inference_mode()
    def _pass(self, layers: frozenset[int], skip: str) -> dict[str, Tensor]:
        """Sum up for every criterion that skips so."""
        self.done += 1
        wanted = {
            name: module
            for name, module in self.modules.items()
            if not layers or (self.skip_of(name) == skip and choosing.read(name)["form"] == "sets")
        }
        moments: dict[str, Moments] = {}
        with self.subject.without(sorted(layers), skip or "x", self._means):
            begin = 0
            for x_BCHW, labels in self.subject.images():
                seen = self._look(x_BCHW, labels, whole=not layers)
                weights_RB = self.counts_RN[:, begin : begin + len(labels)].double()
                begin += len(labels)
                for name, module in wanted.items():
                    self._add(moments, name, module, module.observe(seen).double().cpu(), weights_RB)
        if not layers:
            self._means = {i: total / self.subject.num_images for i, total in self._means.items()}
        return {name: module.value(moments[name]) for name, module in wanted.items()}

    def _add(self, moments: dict[str, Moments], name: str, module: object, seen_BK: Tensor, weights_RB: Tensor) -> None:
        shift = self._shifts.setdefault(name, seen_BK.mean(0))
        centred, squares = seen_BK - shift, module.MOMENTS == 2
        first, second = weights_RB @ centred, weights_RB @ centred**2 if squares else None
        if name not in moments:
            moments[name] = Moments(self.subject.num_images, shift, first, second)
        else:
            moments[name].first += first
            if squares:
                moments[name].second += second

    def _look(self, x_BCHW: Tensor, labels: Tensor, whole: bool) -> Seen:
        """Of the whole model also what goes into each attention half and comes out of it."""
        cosines: list[Tensor] = []
        hooks = []

        def note(layer: int, given: Tensor, out: Tensor) -> None:
            cosines.append(torch.cosine_similarity(given.double(), out.double(), dim=-1).flatten(1).mean(1))
            added_NC = (out - given).double().sum(0)
            self._means[layer] = self._means[layer] + added_NC if layer in self._means else added_NC

        if whole:
            for i in self.subject.layers:
                half = self.subject.halves[i]
                hooks.append(half.register_forward_hook(lambda _, given, out, i=i: note(i, given[0], out)))
        model = self.subject.model
        try:
            pooled = model.forward_head(model.forward_features(x_BCHW), pre_logits=True)
            logits = model.head(pooled)
        finally:
            for hook in hooks:
                hook.remove()
        return Seen(pooled, logits, labels, torch.stack(cosines, 1) if cosines else pooled[:, :0])
