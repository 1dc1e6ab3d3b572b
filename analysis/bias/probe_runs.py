"""Probe finished runs and keep each result in RUN/probes/NAME.json; analysis/bias/probe_table.py reads them.

A result holds for these weights and this code; repeating a command measures only what is missing or has changed. A
probe with OVER_TRAINING is measured at every epoch whose weights the run kept (How.keep_epochs), too: `epochs` of the
file has the values of each.
Probes compute in float32 even where the run used bfloat16, because its rounding would count as inconsistency; so the
plain accuracy may differ from the run's in the last images.
"""

import ast
import hashlib
import importlib
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from analysis import probes
from analysis.bias.probe import Estimate, Rearranged, Subject
from analysis.bias.probe_table import path_of
from engine import models, rng, transfer
from engine.data import loaders, normalize
from engine.errors import CHECKPOINT, OUTPUT, Refusal
from engine.fields import sizes
from engine.folder import epochs, store
from engine.run import How


class Images:
    """The batches of a loader, standardised, as often as they are asked for; its length is in images."""

    def __init__(self, loader: loaders.Loader, prepare: Callable[[Tensor], Tensor]) -> None:
        self.loader, self.prepare = loader, prepare

    def __len__(self) -> int:
        return self.loader.num_samples

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in self.loader.epoch(0):
            yield self.prepare(images), labels


class Opened:
    """A finished run: the subject that its last weights are, or those of an epoch, before its test images.

    Raises Refusal: the run has no weights that can be used (CHECKPOINT), or its data are missing (DATA).
    """

    def __init__(self, folder: Path, how: How) -> None:
        given = store.read_run(folder).but(holdout=0.0)
        run = given.ended
        self.folder, self.run, self.device = folder, run, models.pick_device(how)
        self.is_whole = run == given
        if how.threads:
            torch.set_num_threads(how.threads)
        _, loader, self.facts = loaders.make_loaders(run, how)
        self.mean, self.std = normalize.channel_statistics(run, self.facts)
        self.images = Images(loader, normalize.Normalize(self.mean, self.std, self.device))
        self.start = self._start()

    def subject(self, epoch: int | None = None) -> Subject:
        """At the end of the run, or after so many epochs."""
        path = weights_of(self.folder) if epoch is None else epochs.path_of(self.folder, epoch)
        side, classes = math.gcd(*sizes.pair(self.run.img_size)), self.facts["num_classes"]
        known = {"start": self.start, "mean": self.mean, "std": self.std, "dataset": self.run.dataset}
        return Subject(self._model(path), self.images, side, classes, self.run.patch_size, **known)

    def _model(self, path: Path) -> nn.Module:
        model = self._fresh()
        classes, chans = self.facts["num_classes"], len(self.mean)
        transfer.load_weights(path, self.run, model, classes, chans, new_head=False)
        return self._placed(model)

    def _fresh(self) -> nn.Module:
        """As the run made it, from its seed."""
        rng.seed_everything(self.run.seed, "init")
        return models.create(self.run, self.facts["num_classes"], len(self.mean))

    def _placed(self, model: nn.Module) -> nn.Module:
        if (places := normalize.places(self.run)) is not None:
            model = Rearranged(model, places)
        return model.to(self.device).eval().requires_grad_(False)

    def _start(self) -> nn.Module | None:
        """The weights kept after 0 epochs, else rebuilt from the seed.

        None where those came from a file not there, or were of a model with attention that is gone at the end.
        """
        if not self.is_whole:
            return None
        if (path := epochs.path_of(self.folder, 0)).is_file():
            return self._model(path)
        model = self._fresh()
        if self.run.initial_checkpoint is not None:
            try:
                transfer.load(self.run, model, self.facts["num_classes"], len(self.mean))
            except Refusal:
                return None
        return self._placed(model)


def open_run(folder: Path, how: How) -> Subject:
    """The last weights of a finished run before the test images of its data set, whatever it was validated on."""
    return Opened(folder, how).subject()


def weights_of(folder: Path) -> Path:
    """The last weights of a run. Raises Refusal (CHECKPOINT) where there are none."""
    path = transfer.file_of(folder)
    if not path.is_file():
        raise Refusal(f"{folder} has no {path.name}: it is no finished run; train it to its end first", CHECKPOINT)
    return path


def kept(folder: Path) -> list[int]:
    """The epochs after which the run kept its weights, ascending."""
    found = (re.fullmatch(r"weights-epoch-(\d+)\.pth\.tar", path.name) for path in folder.glob("weights-epoch-*"))
    return sorted(int(match[1]) for match in found if match)


def missing(folder: Path, wanted: Sequence[str]) -> dict[str, dict[str, str]]:
    """The wanted probes that are not there for the run's weights and this code, and what those are.

    Raises Refusal (CHECKPOINT) for a run without weights.
    """
    probes.check(wanted)
    with weights_of(folder).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    found = {}
    for name in wanted:
        key, before = {"weights_sha256": digest, "code": code_of(name)}, store.read_or_warn(path_of(folder, name))
        over = probes.read(name).get("OVER_TRAINING", False)
        if not key.items() <= before.items() or (over and kept(folder) != list(map(int, before.get("epochs", {})))):
            found[name] = key
    return found


def seconds(todo: Mapping[Path, Sequence[str]], how: How) -> float:
    """About how long these probes of these runs will take, from COST of their files and a pass of the first run.

    Other runs are taken to need as much longer as they have MACs.
    """
    if not (todo := {folder: names for folder, names in todo.items() if names}):
        return 0.0
    first_run = next(iter(todo))
    open_run(first_run, how)  # what only the first one waits for is not counted, nor is the first batch
    began, count = time.monotonic(), 0
    subject = open_run(first_run, how)
    opening = time.monotonic() - began
    with torch.inference_mode():
        for x_BCHW, _ in subject.images:
            subject.model(x_BCHW).sum().item()
            began, count = (time.monotonic(), 0) if not count else (began, count + len(x_BCHW))
            if count and time.monotonic() - began > 1:
                break
            count = count or 1
    a_pass = (time.monotonic() - began) * len(subject.images) / count
    macs = {folder: store.read_or_warn(folder / "profile.json").get("macs") or 0 for folder in todo}
    first, total = next(iter(macs.values())), 0.0
    for folder, names in todo.items():
        total += opening
        for name in names:
            found = probes.read(name)
            passes, more = found.get("COST", (0.0, 0.0))
            times = 1 + len(kept(folder)) * found.get("OVER_TRAINING", False)
            total += times * (passes * a_pass * (macs[folder] / first if first else 1.0) + more)
    return total


def probe(
    folder: Path, wanted: Sequence[str], how: How, tell: Callable[[str, float], None] = lambda name, seconds: None
) -> list[str]:
    """Measure the wanted probes of a run that are not there for its weights yet; returns which it measured.

    Args:
        tell: is told the name of each probe that is done, and how long it took.
    """
    todo = missing(folder, wanted)
    opened = Opened(folder, how) if todo else None
    for name, key in todo.items():
        began = time.monotonic()
        module, subject = importlib.import_module(f"analysis.probes.{name}"), opened.subject()
        record = {"probe": name, **key, "protocol": module.PROTOCOL, "units": module.UNITS}
        record |= {"images": len(subject.images), "values": _values(name, module.measure(subject))}
        if probes.read(name).get("OVER_TRAINING"):
            at = {str(epoch): opened.subject(epoch) for epoch in kept(folder)}
            record["epochs"] = {epoch: _values(name, module.measure(each)) for epoch, each in at.items()}
        picture = module.draw(subject) if hasattr(module, "draw") else None
        path = path_of(folder, name)
        try:
            path.parent.mkdir(exist_ok=True)
        except OSError as error:
            raise Refusal(f"cannot write {path.parent}: {error.strerror}", OUTPUT) from None
        if picture is not None:
            store.write_bytes(path.with_suffix(".png"), picture)
        store.write_json(path, record)
        tell(name, time.monotonic() - began)
    return list(todo)


def _values(name: str, estimates: Mapping[str, Estimate]) -> dict[str, dict[str, float | None]]:
    """What a probe measured, as JSON holds it. Raises Refusal for a key without a unit."""
    for key in estimates:
        probes.unit(name, key)
    fields = {key: estimate._asdict() for key, estimate in estimates.items()}
    return {key: {field: _plain(number) for field, number in each.items()} for key, each in fields.items()}


def code_of(name: str) -> str:
    """Eight hex digits of what a probe's numbers follow from: its file and those of analysis/bias/, measures/ and
    probes/ that it imports, directly or not, but for their words, those of a figure too."""
    digest = hashlib.sha256()
    for module in _sources(f"analysis.probes.{name}"):
        tree = ast.parse(_file(module).read_text())
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
                del node.body[0]
        tree.body = [node for node in tree.body if not _is_shown(node)]
        digest.update(ast.dump(tree).encode())
    return digest.hexdigest()[:8]


def _sources(first: str) -> list[str]:
    """The module and those of the three rooms that it imports, each once, in the order of the alphabet."""
    found, left = set(), [first]
    while left:
        found.add(module := left.pop())
        for node in ast.walk(ast.parse(_file(module).read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("analysis."):
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
                left += [each for each in names if each not in found and _file(each).is_file()]
    return sorted(each for each in found if re.match(r"analysis\.(bias|measures|probes)\.", each))


def _file(module: str) -> Path:
    """Of analysis.ROOM.NAME; what is no file of these rooms is none."""
    *_, room, name = module.split(".")
    return (probes.FOLDER if room == "probes" else probes.FOLDER.parent / room) / f"{name}.py"


def _is_shown(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in probes.MAY


def _plain(number: float) -> float | None:
    """Rounded far below any interval, so that files do not differ in their last bits; JSON knows no NaN."""
    return round(float(number), 9) if math.isfinite(number) else None
