"""Results as values, for a notebook or a script of yours: tables as pandas, predictions as NumPy, a probe on any model.

    from analysis.notebook import exciting, predictions, probe, run, table

What has a folder of this scheme on this machine is read from it, the rest from published tables; mistakes are
Refusals, in one line.
"""

import contextlib
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from analysis import probes, published
from analysis.compare import frames
from engine.cli import tables
from engine.errors import CHECKPOINT, DATA, Refusal
from engine.folder import predictions as recorded
from engine.folder import published as rows
from engine.folder import store
from engine.folder.predictions import Predictions
from engine.run import SCHEME, unknown

if TYPE_CHECKING:
    from torch import Tensor, nn

    from analysis.bias.probe import Estimate, Subject

KINDS = ("runs", "epochs", "probes")


def table(study: str | Path, kind: str = "runs") -> pd.DataFrame:
    """A study as a table: one row per run (`runs`), epoch (`epochs`) or number of a probe (`probes`).

    Args:
        study: a sweep's name, as `lattice`; or a folder of runs' folders, whose `runs` are then read.

    Rows of runs come from the folders that are here, else from results/NAME/runs.csv; a run that is not done has no
    `acc1`. results/README.md says what the columns are. Raises Refusal for a study that has neither (DATA).
    """
    if kind not in KINDS:
        raise Refusal(unknown("kind of table", kind, KINDS))
    folder = Path(study)
    if kind == "runs" and folder.is_dir() and (inside := sorted(path.parent for path in folder.glob("*/args.yaml"))):
        return frames.load(inside)
    place = _place(str(study), f"{kind}.csv" if kind != "runs" else "")
    if kind != "runs":
        return tables.read_frame(place / f"{kind}.csv")
    listed = _listed(place)
    folders = [store.results_dir() / "runs" / name for name in listed]
    if any(store.scheme_of(path) == SCHEME for path in folders):
        return frames.load(folders, studies=rows.all_places(store.results_dir(), str(study)))
    if not (place / rows.RUNS).is_file():
        raise Refusal(
            f"{place} lists {len(listed)} runs, of which none is here; python scripts/sweep.py launch {study}"
        )
    return tables.read_frame(place / rows.RUNS)


def run(signature: str) -> pd.Series:
    """What is known of one run: the row of `table` of its folder or, without one here, of a published table.

    Args:
        signature: eight hex digits, as many of them as tell the run apart, or the path of its folder.

    Raises Refusal for none, or several (DATA).
    """
    folder, found = folder_of(signature), {}
    if not folder or store.scheme_of(folder) != SCHEME:  # which a table may still tell
        for study, row in _published(folder.name[:8] if folder else signature):
            found.setdefault(row["signature"], (study, row))
    if folder and not found:
        return frames.load([folder]).iloc[0].rename(folder.name)
    (study, _), *others = found.values() or [_nowhere(signature)]
    if others:
        raise Refusal(f"'{signature}' begins {len(found)} runs, {', '.join([*found][:3])} ...; give more digits", DATA)
    frame, whole = tables.read_frame(study / rows.RUNS), next(iter(found))
    return frame[frame["signature"] == whole].iloc[0].rename(f"{study.name}/{signature}")


def predictions(signature: str) -> Predictions:
    """What a run predicted of each validation image: `prediction` and `label`, (N,) both, `right`, `acc1`.

    Raises Refusal for a run that is not known (DATA), or whose predictions are not kept (CHECKPOINT).
    """
    folder, whole = folder_of(signature), str(run(signature)["signature"])
    if folder and (found := recorded.read(folder)):
        return found
    for study in dict.fromkeys(study for study, _ in _published(whole)):
        if found := published.predictions(study).get(whole):
            return found
    words = f"scripts/validate.py {folder} --predictions {folder}/{recorded.FILE} writes them" if folder else ""
    raise Refusal(f"the predictions of {signature} are not kept; {words or 'train it here'}", CHECKPOINT)


def probe(
    name: str,
    model: "nn.Module",
    images: "np.ndarray | Tensor",
    labels: "np.ndarray | Tensor",
    *,
    num_classes: int | None = None,
    patch_size: int | None = None,
    batch_size: int = 256,
) -> "dict[str, Estimate]":
    """A probe of analysis/probes/ on any classifier: values with their 95 % intervals over the images.

    Args:
        model: images (B, C, H, W) -> logits (B, classes); it is asked in evaluation mode, and left as it was.
        images: as the model takes them, normalised, (N, C, H, W).
        labels: (N,), from 0.
        num_classes: by default as many as the model puts out.
        patch_size: pixels; where the model has patches, `shift` looks for their period.

    Raises Refusal for a probe that is not there, or arrays that do not fit each other or the model.
    """
    import importlib

    probes.check([name])
    with _before(model, images, labels, num_classes, patch_size, batch_size) as subject:
        return importlib.import_module(f"analysis.probes.{name}").measure(subject)


def exciting(
    model: "nn.Module",
    images: "np.ndarray | Tensor",
    module: str = "",
    units: "list[int] | None" = None,
) -> "tuple[Tensor, np.ndarray, np.ndarray]":
    """The images that excite units of a module most (analysis/probes/exciting_inputs.py), of any classifier.

    Args:
        images: as the model takes them, (N, C, H, W): what is found lies as far from their mean as they do.
        module: its name in `model.named_modules()`; "" is the model, whose units are the classes.
        units: channels of what the module puts out; by default 16 of all.

    Returns:
        what was found, (U, C, H, W); what the units give of it, (U,); and of the images, (N, U).

    Raises Refusal for a module that is not there, or puts out no units.
    """
    import torch

    from analysis.probes.exciting_inputs import excited

    with _before(model, images, np.zeros(len(images), int)) as subject:
        try:
            return excited(subject, model, module, torch.cat([x_BCHW for x_BCHW, _ in subject.images]), units)
        except ValueError as error:
            raise Refusal(str(error)) from None


@contextlib.contextmanager
def _before(
    model: "nn.Module",
    images: "np.ndarray | Tensor",
    labels: "np.ndarray | Tensor",
    num_classes: int | None = None,
    patch_size: int | None = None,
    batch_size: int = 256,
) -> "Iterator[Subject]":
    """The model before its images, in evaluation mode until the end of the block."""
    import torch

    from analysis.bias.probe import Subject

    x_NCHW, y_N = torch.as_tensor(images).float(), torch.as_tensor(labels).long()
    if x_NCHW.ndim != 4 or y_N.shape != x_NCHW.shape[:1] or not len(y_N):
        raise Refusal(f"images are (N, C, H, W) and labels (N,), not {(*x_NCHW.shape,)} and {(*y_N.shape,)}")
    training, device = model.training, next((each.device for each in model.parameters()), torch.device("cpu"))
    model.eval()
    try:
        with torch.inference_mode():
            logits = model(x_NCHW[:1].to(device))
        if logits.ndim != 2 or len(logits) != 1:
            raise Refusal(f"the model puts out {(*logits.shape,)} for one image, not (1, classes)")
        classes = num_classes or logits.shape[1]
        if int(y_N.min()) < 0 or int(y_N.max()) >= classes:
            raise Refusal(f"labels are {int(y_N.min())} to {int(y_N.max())}, of {classes} classes")
        batches = [(x.to(device), y) for x, y in zip(x_NCHW.split(batch_size), y_N.split(batch_size), strict=True)]
        yield Subject(model, batches, math.gcd(*x_NCHW.shape[2:]), classes, patch_size)
    finally:
        model.train(training)


def _places(study: str) -> list[Path]:
    return rows.places(store.results_dir(), study)


def _place(study: str, file: str) -> Path:
    """The folder of a study that has this file or, for "", its runs. Raises Refusal (DATA), the nearest study named."""
    wanted = (file,) if file else (rows.RUNS, "manifest.csv")
    for place in _places(study):
        if any((place / name).is_file() for name in wanted):
            return place
    known = sorted({path.parent.name for name in wanted for root in _roots() for path in root.glob(f"*/{name}")})
    what = f"study with {wanted[0]}" if file else "study"
    raise Refusal(unknown(what, study, known), DATA)


def _roots() -> list[Path]:
    return list(dict.fromkeys((store.results_dir().absolute(), store.ROOT / "results")))


def _listed(place: Path) -> list[str]:
    """The folders of a study's runs, by its manifest or its table."""
    for name in ("manifest.csv", rows.RUNS):
        if (place / name).is_file():
            return [row["folder"] for row in tables.read(place / name, ("folder",))]
    return []


def folder_of(signature: str) -> Path | None:
    """The run's folder on this machine. Raises Refusal (DATA) where several begin so."""
    if (Path(signature) / "args.yaml").is_file():
        return Path(signature)
    if not signature or not set(signature) <= set("0123456789abcdef"):
        raise Refusal(f"'{signature}' is no signature, which is eight hex digits, nor the folder of a run", DATA)
    found = sorted(path.parent for path in (store.results_dir() / "runs").glob(f"{signature}*/args.yaml"))
    if len(found) > 1:
        raise Refusal(f"'{signature}' begins {', '.join(path.name for path in found[:3])} ...; give more digits", DATA)
    return found[0] if found else None


def _published(signature: str) -> Iterable[tuple[Path, dict]]:
    """The rows of all published tables whose signature begins so, with their study's folder."""
    for root in _roots():
        for path in sorted(root.glob(f"*/{rows.RUNS}")):
            yield from ((path.parent, row) for row in rows.read(path) if row["signature"].startswith(signature))


def _nowhere(signature: str) -> tuple[Path, dict]:
    where = store.results_dir() / "runs"
    raise Refusal(f"no run '{signature}' in {where} nor in a table of results/", DATA)
