"""Loss and accuracy over a loader, or every prediction and what to do with it; always of exactly its samples."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from engine import distributed, metrics
from engine.data import beton, loaders
from engine.data.augment.shifts import Shifted, shifts
from engine.data.loaders import Loader
from engine.data.sets import SPLITS
from engine.errors import Refusal
from engine.fields.effects import AUGMENTED
from engine.folder import store
from engine.run import How, Run


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    loader: Loader,
    prepare: Callable[[Tensor], Tensor],
    autocast: Callable[[], torch.autocast],
    each: Callable[[], None] = lambda: None,
    seen: Callable[[Tensor, Tensor], None] = lambda guess, label: None,
) -> dict[str, float]:
    """Mean cross-entropy `loss` and accuracies `top1`, `top5` in percent, over every sample once, of all processes.

    Args:
        prepare: uint8 BHWC images -> the model's input.
        each: called after each batch, to show that the run is alive.
        seen: told the predicted classes and the labels of each batch, (B,) both.
    """
    training = model.training
    model.eval()
    count, sums = 0, torch.zeros(4, dtype=torch.float64)
    for images, labels in loader.epoch(0):
        x_BCHW = prepare(images)
        labels = labels.to(x_BCHW.device, non_blocking=True, copy=True)
        with autocast():
            logits = model(x_BCHW)
        logits = logits.float()
        guesses = logits.topk(min(5, logits.shape[1])).indices
        top = guesses == labels[:, None]
        seen(guesses[:, 0], labels)
        sums = sums.to(x_BCHW.device)  # and stay there: a CPU that asks for them waits for the GPU
        sums[:3] += torch.stack(
            [F.cross_entropy(logits, labels, reduction="sum"), top[:, 0].sum(), top.any(1).sum()]
        ).double()  # fmt: skip
        count += len(labels)
        each()
    model.train(training)
    assert count == loader.num_samples, f"scored {count} of {loader.num_samples} samples"
    sums[3] = count
    sums = distributed.sum_(sums.cpu())
    loss, top1, top5, _ = (sums / sums[3]).tolist()
    return {"loss": loss, "top1": 100 * top1, "top5": 100 * top5}


@torch.inference_mode()
def predict(
    model: nn.Module,
    loader: Loader,
    prepare: Callable[[Tensor], Tensor],
    autocast: Callable[[], torch.autocast],
    views: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities (N, classes), float64, and labels (N,) of every sample, in the loader's order.

    With several views the probabilities are averaged; view i is the loader's epoch i, so a loader that augments gives
    the same views at every call, whatever the batch size. One that does not gives the same image again and again.
    Memory: 8 bytes per sample and class, twice that for views.
    """
    training = model.training
    model.eval()
    total, labels = None, None
    for view in range(views):
        parts, seen = [], []
        for images, batch_labels in loader.epoch(view):
            with autocast():
                logits = model(prepare(images))
            parts.append(logits.to("cpu", torch.float64).log_softmax(1).numpy())
            seen.append(batch_labels.numpy().copy())
        logp = np.concatenate(parts)
        assert len(logp) == loader.num_samples, f"scored {len(logp)} of {loader.num_samples} samples"
        assert labels is None or (labels == np.concatenate(seen)).all(), "the order changed between two views"
        total, labels = logp if total is None else np.logaddexp(total, logp), np.concatenate(seen)
    model.train(training)
    assert total is not None
    return total - np.log(views), labels


def make_views(run: Run, how: How) -> Loader:
    """The validation images, in order, as training would see them: epoch i of this loader is view i of all of them.

    Raises Refusal for a run without augmentation, whose views are all the same.
    """
    if all(getattr(run, key) == Run.model_fields[key].default for key in AUGMENTED):
        raise Refusal("--tta averages augmented views, and this run has no augmentation; give one, such as --hflip 0.5")
    train, val, facts = loaders.make_loaders(run, how)
    path = beton.path_of(run.dataset, SPLITS[0] if run.holdout else SPLITS[1], facts["img_size"], how.data_dir)
    return loaders.FfcvLoader(
        path, run.batch_size, train.augmentation, indices=val.indices, seed=run.seed, workers=how.workers
    )  # fmt: skip


def make_shifts(run: Run, val: Loader) -> Shifted:
    """The validation images by every shift that the run's crop can give: epoch i is shift i of all of them.

    Raises Refusal for a run that crops nothing, or augments otherwise.
    """
    others = [key for key in AUGMENTED if not key.startswith("crop_")]
    if idle := [key for key in others if getattr(run, key) != Run.model_fields[key].default]:
        off = f"--{idle[0].replace('_', '-')} {Run.model_fields[idle[0]].default}"
        raise Refusal(f"--tta all is over shifts alone, and this run also has {idle[0]}; give {off}, or --tta N")
    if not run.crop_pad:
        raise Refusal("--tta all is over the shifts of --crop-pad; give one, and --crop-fill and --crop-step")
    return Shifted(val, shifts(run.img_size, run.crop_pad, run.crop_step, run.crop_fill), run.crop_fill)


def write_predictions(path: Path, logp_NC: np.ndarray, labels: np.ndarray, probabilities: bool = False) -> None:
    """A .npz of arrays, or a .csv of rows: index, label, prediction, top5 (best first) and, if asked, probabilities."""
    top = metrics.top_k(logp_NC, 5)
    index = np.arange(len(labels))
    if path.suffix == ".npz":
        arrays = {"index": index, "label": labels, "prediction": top[:, 0], "top5": top}
        if probabilities:
            arrays["probabilities"] = np.exp(logp_NC).astype(np.float32)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        store.write_bytes(path, buffer.getvalue())
        return
    rows = []
    for i, label, guesses in zip(index.tolist(), labels.tolist(), top.tolist(), strict=True):
        rows.append({"index": i, "label": label, "prediction": guesses[0], "top5": " ".join(map(str, guesses))})
        if probabilities:
            rows[-1] |= {f"p{c}": float(f"{p:.7g}") for c, p in enumerate(np.exp(logp_NC[i]).tolist())}
    store.write_bytes(path, store.csv_text(rows).encode())


def write_confusion(matrix: np.ndarray, names: Sequence[str], per_class: Path | None, confusion: Path | None) -> None:
    """The accuracy of each class, and the matrix itself with a row per label, each as a CSV if it is asked for.

    Args:
        names: of the classes; rows and columns of the matrix are headed by them.
    """
    if per_class:
        store.write_bytes(per_class, store.csv_text(metrics.per_class(matrix, names)).encode())
    if confusion:
        first = "label" if "label" not in names else "label of"
        rows = [{first: name, **dict(zip(names, row, strict=True))} for name, row in zip(names, matrix, strict=True)]
        store.write_bytes(confusion, store.csv_text(rows).encode())
