"""What a model is right after its mixing was removed, before any healing; and the same of the source and of the healed.

All are judged alike, whatever they trained in: in float32, on all test images, by the probes that the bench names.
"""

import hashlib
import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from analysis import probes
from analysis.bias import probe_runs
from analysis.bias.probe import Subject
from engine import models, rng, transfer
from engine.cli import tables
from engine.data import loaders, normalize
from engine.folder import store
from engine.run import How, Run

PROBES = ("patch_shuffle", "shift")
FILE = "before.csv"


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


def of_start(run: Run, path: Path, how: How) -> dict[str, float]:
    """Headline numbers of all probes, `PROBE KEY` -> value; from the table at `path`, or measured and added to it.

    A row holds for the weights and the code of the probes that it was measured with.
    """
    file = transfer.file_of(run.initial_checkpoint)
    transfer.check(run, store.folder_of(run))
    with file.open("rb") as weights:
        digest = hashlib.file_digest(weights, "sha256").hexdigest()[:16]
    modules = {name: importlib.import_module(f"analysis.probes.{name}") for name in PROBES}
    key = {"key": key_of(run), "weights": digest, "code": "".join(map(probe_runs.code_of, modules))}
    for row in tables.read(path) if path.is_file() else ():
        if all(row.get(name) == value for name, value in key.items()):
            return {name: float(row[name]) for name in headlines() if row.get(name)}
    subject = open_start(run, how)
    found: dict[str, float] = {}
    for name, module in modules.items():
        estimates = module.measure(subject)
        found |= {f"{name} {head}": round(estimates[head].value, 6) for head in _heads(name) if head in estimates}
    path.parent.mkdir(parents=True, exist_ok=True)
    told = {"source": run.initial_identity.removeprefix("run:"), "rung": run.rung, "seed": run.seed}
    tables.append_row(path, {**key, **told, **found})
    return found


def of_folder(folder: Path, how: How) -> dict[str, float]:
    """The same of a finished run; what is missing is measured and kept in its folder."""
    probe_runs.probe(folder, PROBES, how)
    found = {}
    for name in PROBES:
        values = store.read_or_warn(probe_runs.path_of(folder, name))["values"]
        found |= {f"{name} {head}": values[head]["value"] for head in _heads(name) if head in values}
    return {key: value for key, value in found.items() if value is not None}


def headlines() -> list[str]:
    """Names of all numbers, as `PROBE KEY`."""
    return [f"{name} {head}" for name in PROBES for head in _heads(name)]


def _heads(name: str) -> Sequence[str]:
    return probes.read(name)["HEADLINE"]


def rate_of(found: dict[str, Any]) -> float:
    """Accuracy in percent."""
    return found[f"{PROBES[0]} acc"]
