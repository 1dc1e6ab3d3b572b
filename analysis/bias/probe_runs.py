"""Probe finished runs and keep each result in RUN/probes/NAME.json; analysis/bias/probe_table.py reads them.

A result holds for these weights and this code; repeating a command measures only what is missing or has changed.
Probes compute in float32 even where the run used bfloat16, because its rounding would count as inconsistency; so the
plain accuracy may differ from the run's in the last images.
"""

import ast
import hashlib
import importlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn

from analysis import probes
from analysis.bias import probe as shared
from analysis.bias.probe import Subject
from analysis.bias.probe_table import path_of
from engine import models, transfer
from engine.data import loaders, normalize
from engine.errors import CHECKPOINT, OUTPUT, Refusal
from engine.fields import sizes
from engine.folder import store
from engine.run import How


class Rearranged(nn.Module):
    """A model behind the fixed shuffle of pixels that its run had (`Run.permute`): it takes the original image.

    So a probe moves what people see, and the shuffle belongs to the classifier.
    """

    def __init__(self, model: nn.Module, places: np.ndarray) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("places", torch.from_numpy(places))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.model(x_BCHW.flatten(2)[..., self.places].view(x_BCHW.shape))


class Images:
    """The batches of a loader, standardised, as often as they are asked for; its length is in images."""

    def __init__(self, loader: loaders.Loader, prepare: Callable[[Tensor], Tensor]) -> None:
        self.loader, self.prepare = loader, prepare

    def __len__(self) -> int:
        return self.loader.num_samples

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in self.loader.epoch(0):
            yield self.prepare(images), labels


def open_run(folder: Path, how: How) -> Subject:
    """The last weights of a finished run before the test images of its data set, whatever it was validated on.

    Raises Refusal: the run has no weights that can be used (CHECKPOINT), or its data are missing (DATA).
    """
    run = store.read_run(folder).but(holdout=0.0).ended
    device = models.pick_device(how)
    if how.threads:
        torch.set_num_threads(how.threads)
    _, loader, facts = loaders.make_loaders(run, how)
    mean, std = normalize.channel_statistics(run, facts)
    model = models.create(run, facts["num_classes"], len(mean))
    transfer.load_weights(weights_of(folder), run, model, facts["num_classes"], len(mean), new_head=False)
    if (places := normalize.places(run)) is not None:
        model = Rearranged(model, places)
    images = Images(loader, normalize.Normalize(mean, std, device))
    side = math.gcd(*sizes.pair(run.img_size))
    return Subject(model.to(device).eval(), images, side, facts["num_classes"], run.patch_size)


def weights_of(folder: Path) -> Path:
    """The last weights of a run. Raises Refusal (CHECKPOINT) where there are none."""
    path = transfer.file_of(folder)
    if not path.is_file():
        raise Refusal(f"{folder} has no {path.name}: it is no finished run; train it to its end first", CHECKPOINT)
    return path


def probe(folder: Path, wanted: Sequence[str], how: How) -> list[str]:
    """Measure the wanted probes of a run that are not there for its weights yet; returns which it measured."""
    probes.check(wanted)
    modules = {name: importlib.import_module(f"analysis.probes.{name}") for name in wanted}
    with weights_of(folder).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    keys = {name: {"weights_sha256": digest, "code": code_of(module)} for name, module in modules.items()}
    missing = [name for name in wanted if not keys[name].items() <= store.read_or_warn(path_of(folder, name)).items()]
    subject = open_run(folder, how) if missing else None
    for name in missing:
        estimates = modules[name].measure(subject)
        for key in estimates:
            probes.unit(name, key)  # refused before anything is written
        values = {
            key: {field: _plain(number) for field, number in estimate._asdict().items()}
            for key, estimate in estimates.items()
        }
        try:
            (folder / "probes").mkdir(exist_ok=True)
        except OSError as error:
            raise Refusal(f"cannot write {folder / 'probes'}: {error.strerror}", OUTPUT) from None
        head = {"probe": name, **keys[name], "protocol": modules[name].PROTOCOL, "units": modules[name].UNITS}
        store.write_json(path_of(folder, name), {**head, "images": len(subject.images), "values": values})
    return missing


def code_of(module: ModuleType) -> str:
    """Eight hex digits of what a probe's numbers follow from: its file and analysis/bias/probe.py, but for their words,
    those of a figure too."""
    digest = hashlib.sha256()
    for path in (module.__file__, shared.__file__):
        tree = ast.parse(Path(path).read_text())
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
                del node.body[0]
        tree.body = [node for node in tree.body if not _is_shown(node)]
        digest.update(ast.dump(tree).encode())
    return digest.hexdigest()[:8]


def _is_shown(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in probes.MAY


def _plain(number: float) -> float | None:
    """Rounded far below any interval, so that files do not differ in their last bits; JSON knows no NaN."""
    return round(float(number), 9) if math.isfinite(number) else None
