"""What a model is right after its mixing was removed, before any healing; and the same of the source and of the healed.

All are judged alike, whatever they trained in: in float32, accuracy on all test images, and where it is asked for the
probes that the bench names, on IMAGES of them, the same for all. A number holds for the weights and the code of the
probes that it was measured with. Where the weights are not here, as in a clone, the row of the table counts if it was
measured by this code and goes back to the same weights of the source.
"""

import hashlib
import importlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from analysis import probes
from analysis.bias import probe_runs
from analysis.bias.probe import Subject
from engine import models, rng, transfer
from engine.cli import tables
from engine.data import loaders, normalize
from engine.errors import CHECKPOINT, Refusal
from engine.folder import store
from engine.run import How, Run

PROBES = ("patch_shuffle", "shift")
IMAGES = 2000  # on all 10,000 of CIFAR-10 the probes' passes would take longer than a short healing
FILE = "before.csv"
ACC = "acc"


def open_start(run: Run, how: How) -> Subject:
    """The model that a run would start from had it lost all its mixing at once, before the test images.

    What starts afresh is what the run itself starts with. Raises Refusal: no weights or data there.
    """
    ended = run.but(holdout=0.0).ended
    device = models.pick_device(how)
    if how.threads:
        torch.set_num_threads(how.threads)
    _, loader, facts = loaders.make_loaders(ended, how)
    mean, std = normalize.channel_statistics(ended, facts)
    rng.seed_everything(run.seed, "init")
    model = models.create(ended, facts["num_classes"], len(mean))
    transfer.load(ended, model, facts["num_classes"], len(mean))
    places = normalize.places(ended)
    model = model if places is None else probe_runs.Rearranged(model, places)
    images = probe_runs.Images(loader, normalize.Normalize(mean, std, device))
    return Subject(model.to(device).eval(), images, run.img_size, facts["num_classes"], run.patch_size)


def key_of(run: Run) -> str:
    """What decides the numbers of a start: the source's weights, the model that is left, the seed of what is fresh."""
    words = [run.initial_identity, run.rung, run.dataset, run.img_size, run.permute, run.seed]
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:12]


def of_start(run: Run, path: Path, how: How, probed: bool, origin: str) -> dict[str, float]:
    """`acc`, and headline numbers of all probes, `PROBE KEY` -> value; from the table at `path`, or added to it.

    Args:
        probed: whether the probes are wanted, too.
        origin: of the source's weights, from `of_source`.

    Raises:
        Refusal (CHECKPOINT): the source's weights are neither here nor is the start in the table.
    """
    file, key = transfer.file_of(run.initial_checkpoint), key_of(run)
    if not file.is_file():
        if found := _told(path, key, origin, probed):
            return found
        raise Refusal(
            f"{path} has no row of {run.rung}, seed {run.seed}, and {file} is not here to measure it", CHECKPOINT
        )
    transfer.check(run, store.folder_of(run))
    told = {"source": run.initial_identity.removeprefix("run:"), "rung": run.rung, "seed": run.seed}
    return _measured(path, key, file, origin, told, lambda: open_start(run, how), probed)


def of_source(signature: str, folder: Path, path: Path, how: How) -> tuple[dict[str, float], str]:
    """The same of a finished run that others start from, and what its weights are called in the table.

    Raises Refusal (CHECKPOINT): it is neither finished here nor in the table.
    """
    if store.is_done(folder):
        origin = _digest(probe_runs.weights_of(folder))
        return _of_folder(folder, path, how, origin), origin
    for row in _rows(path):
        if row["key"] == signature and row["weights"] == row.get("origin"):
            return _values(row), row["origin"]
    raise Refusal(f"{folder} is not finished: it comes first", CHECKPOINT)


def of_run(run: Run, path: Path, how: How, origin: str) -> dict[str, float]:
    """The same of a run that started from these weights; {} where it is neither finished here nor in the table."""
    folder = store.folder_of(run)
    if store.is_done(folder):
        return _of_folder(folder, path, how, origin)
    return _told(path, run.signature, origin, probed=True)


def _of_folder(folder: Path, path: Path, how: How, origin: str) -> dict[str, float]:
    run, file = store.read_run(folder), probe_runs.weights_of(folder)
    told = {"source": "", "rung": run.rung, "seed": run.seed}
    return _measured(path, run.signature, file, origin, told, lambda: probe_runs.open_run(folder, how), True)


def _digest(file: Path) -> str:
    with file.open("rb") as weights:
        return hashlib.file_digest(weights, "sha256").hexdigest()[:16]


def _rows(path: Path) -> list[dict[str, str]]:
    """What was measured by the code of today."""
    code = "".join(map(probe_runs.code_of, PROBES))
    return [row for row in tables.read(path) if row.get("code") == code] if path.is_file() else []


def _values(row: dict[str, str]) -> dict[str, float]:
    return {name: float(row[name]) for name in (ACC, *headlines()) if row.get(name)}


def _told(path: Path, key: str, origin: str, probed: bool, weights: str | None = None) -> dict[str, float]:
    """Of the first row that says so; {} where there is none."""
    for row in _rows(path):
        if (row["key"], row.get("origin")) == (key, origin) and row["weights"] == (weights or row["weights"]):
            found = _values(row)
            if len(found) > 1 or not probed:
                return found
    return {}


def _measured(
    path: Path,
    key: str,
    file: Path,
    origin: str,
    told: dict[str, Any],
    opened: Callable[[], Subject],
    probed: bool,
) -> dict[str, float]:
    digest = _digest(file)
    if found := _told(path, key, origin, probed, digest):
        return found
    found = {name: round(value, 6) for name, value in _numbers(opened(), probed).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    own = {"key": key, "weights": digest, "origin": origin, "code": "".join(map(probe_runs.code_of, PROBES))}
    tables.append_row(path, {**own, **told, **dict.fromkeys(headlines()), **found})
    return found


def _numbers(subject: Subject, probed: bool) -> dict[str, float]:
    predicted, labels = subject.classify(lambda x_BCHW, index: iter([("plain", x_BCHW)]))
    found = {ACC: 100 * float(np.mean(predicted["plain"] == labels))}
    if probed:
        count = min(IMAGES, len(labels))
        some = replace(subject, images=probe_runs.Images(subject.images.loader.part(count), subject.images.prepare))
        for name in PROBES:
            estimates = importlib.import_module(f"analysis.probes.{name}").measure(some)
            values = {head: estimates[head].value for head in _heads(name) if head in estimates}
            found |= {f"{name} {head}": value for head, value in values.items() if math.isfinite(value)}
    return found


def headlines() -> list[str]:
    """Names of all numbers of probes, as `PROBE KEY`; accuracy is that of all images."""
    return [f"{name} {head}" for name in PROBES for head in _heads(name)]


def _heads(name: str) -> Sequence[str]:
    return [head for head in probes.read(name)["HEADLINE"] if head != ACC]
