"""A trained DeiT, or another model whose layers mix tokens in a half of their own, before images of its data set, with
that half skipped in some layers; it is called attention here whichever it is."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from archs.attention.diluted import Double
from archs.attention.removed import SEVERAL
from archs.parts.layers import Residual
from engine import models, transfer
from engine.cli.validate import described
from engine.data import beton, loaders, normalize
from engine.data.augment.pipeline import Augmentation
from engine.data.loaders import FfcvLoader, Loader
from engine.data.sets import SPLITS
from engine.errors import Refusal
from engine.fields import dilution
from engine.rng import permutation
from engine.run import How, Run


class Plus(nn.Module):
    """x and a constant: what mean ablation leaves of an attention."""

    def __init__(self, mean_NC: Tensor) -> None:
        super().__init__()
        self.mean_NC = mean_NC

    def forward(self, x_BNC: Tensor) -> Tensor:
        return x_BNC + self.mean_NC.to(x_BNC.dtype)


@dataclass(frozen=True)
class Subject:
    """A model in evaluation mode, and images that can be gone through again and again in equal order."""

    model: nn.Module
    images: Callable[[], Iterator[tuple[Tensor, Tensor]]]
    """Batches of images BCHW as the model takes them, and labels (B,)."""
    num_images: int
    batch_size: int

    @property
    def layers(self) -> list[int]:
        """Those that have attention."""
        return [i for i, half in enumerate(self.halves) if isinstance(half, Residual)]

    @property
    def halves(self) -> list[nn.Module]:
        """The attention half of each layer, or what is left of it."""
        return [layer[0] for layer in self.model.stages[0]]

    @contextlib.contextmanager
    def without(self, layers: Sequence[int], skip: str, means: Mapping[int, Tensor] | None = None) -> Iterator[None]:
        """The model with the attention of these layers skipped: `x`, `2x`, or `mean` of `means`."""
        stage, kept = self.model.stages[0], self.halves
        for i in layers:
            stage[i][0] = {"x": nn.Identity, "2x": Double, "mean": lambda i=i: Plus(means[i])}[skip]()
        try:
            yield
        finally:
            for i in layers:
                stage[i][0] = kept[i]


def open_subject(checkpoint: Path, named: dict[str, Any], split: str, images: int, how: How) -> tuple[Subject, Run]:
    """The weights of a run or a file before its first `images` training images in a fixed shuffle, or validation ones.

    Raises Refusal: no weights or data there, or a model without attention that can be skipped.
    """
    path, run = described(checkpoint, named, {}, "val")
    if split == "train" and not named:  # what the run set aside is none of its training images
        run = run.but(holdout=transfer.read(path)["args"].get("holdout", 0.0))
    device = models.pick_device(how)
    if how.threads:
        torch.set_num_threads(how.threads)
    loader, facts = _loader(run, how, split, images)
    prepare = normalize.make_prepare(run, facts, device)
    in_chans = len(prepare.mean)
    model = models.create(run, facts["num_classes"], in_chans)
    check(model, run)
    transfer.load_weights(path, run, model, facts["num_classes"], in_chans, new_head=False)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for pixels, labels in loader.epoch(0):
            yield prepare(pixels), labels.to(device)

    return Subject(model.to(device).eval(), batches, loader.num_samples, run.batch_size), run


def check(model: nn.Module, run: Run) -> None:
    """Raises Refusal for a model that this cannot look into."""
    if not hasattr(model, "dilute"):
        raise Refusal(f"{run.rung} has no {dilution.apart()}")
    if model.merging:
        raise Refusal(f"{run.rung} merges tokens, so that layers see other tokens without others; leave out merge_r")
    if len(model.stages) > 1:
        raise Refusal(f"{run.rung}: {SEVERAL}")
    if not any(isinstance(layer[0], Residual) for layer in model.stages[0]):
        raise Refusal(f"{run.rung} has no attention left")


def _loader(run: Run, how: How, split: str, images: int) -> tuple[Loader, dict[str, Any]]:
    train, val, facts = loaders.make_loaders(run, how)
    of_train = split == "train" or bool(run.holdout)
    chosen = (train if split == "train" else val).indices
    chosen = np.sort(chosen[permutation(len(chosen), 0, "subset")[:images]])
    mean, std = (tuple(values) for values in normalize.channel_statistics(run, facts))
    path = beton.path_of(run.dataset, SPLITS[0 if of_train else 1], run.stored, how.data_dir)
    plain = Augmentation(run.img_size, mean, std)
    return FfcvLoader(path, run.batch_size, plain, indices=chosen, workers=how.workers), facts
