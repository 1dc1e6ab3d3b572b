"""What runs cost before they are trained: parameters and MACs of a rung, images per second on this kind of machine.

Nothing is built whose cost is known: from the family's EXPECTED, from the profile.json of a run of that rung, or from
what was counted for an earlier plan. What is left is built once on the meta device; only then is torch imported.
"""

import functools
import hashlib
import importlib.metadata
import json
import os
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import archs
from archs.parts.family import read
from engine.data.sets import SPLITS, lookup
from engine.errors import Refusal
from engine.folder import store
from engine.run import DATA_DIR, Run
from slurm.define.sweep import Sweep

SHIPPED = Path(__file__).with_name("profiles.json")
CACHE = ".profiles.json"
NEIGHBOURS = 64  # finished runs of other sweeps, the newest, whose speed is looked at
FORWARD = 1 / 3  # cost of evaluating an image, of that of training on it

Shape = tuple[str, int, int, int]
"""Run.rung, image size, channels, classes: what parameters and MACs follow from."""
Status = dict[str, Any]


@dataclass(frozen=True)
class Cost:
    """Of one image: parameters of the model, MACs of a forward pass. None is not known."""

    params: int | None = None
    macs: int | None = None


def costs(runs: Sequence[Run], folders: Sequence[Path]) -> dict[Shape, Cost]:
    """The cost of every shape of these runs. Raises Refusal, naming the rung, for a model that cannot be built."""
    found, runs_of = {}, {}
    for run, folder in zip(runs, folders, strict=True):
        runs_of.setdefault(shape_of(run), []).append((run, folder))
    cache = _read(SHIPPED) | _read(store.results_dir() / CACHE)
    counted = {}
    for shape, pairs in runs_of.items():
        run, key = pairs[0][0], _key(shape)
        cost = _expected(run, shape) or cache.get(key) or _measured(folder for _, folder in pairs)
        if cost is None and 0 not in shape[1:] and (cost := _count(run, shape)):
            counted[key] = cost
        found[shape] = Cost(cost["params"], cost["macs"]) if cost else Cost()
    if counted:
        _remember(counted)
    return found


@functools.cache
def _facts(dataset: str, img_size: int | None) -> tuple[int, int, int, int]:
    """Channels, classes, training and validation images; zeros where only the data folder could tell and does not."""
    if entry := lookup(dataset):
        return entry.in_chans, entry.num_classes, entry.train_size, entry.val_size
    # Beside the .beton files (engine/data/beton.py, which is not imported here because it needs NumPy).
    names = [DATA_DIR / f"{dataset.replace('/', '-')}_{split}_{img_size}.json" for split in SPLITS]
    train, val = (_read(path) for path in names)
    return len(train.get("mean", ())), train.get("num_classes", 0), train.get("samples", 0), val.get("samples", 0)


def shape_of(run: Run) -> Shape:
    in_chans, num_classes, *_ = _facts(run.dataset, run.img_size)
    return run.rung, run.img_size or 0, in_chans, num_classes


def rungs(sweep: Sweep) -> list[tuple[str, str, dict[str, int], dict[str, Any]]]:
    """Each rung once, as its runs are trained: its label, model, shape and arguments.

    Raises Refusal where the classes of the data are not known yet.
    """
    found = {}
    for run in sweep.runs:
        _, img_size, in_chans, num_classes = shape_of(run)
        if not in_chans * num_classes * img_size:
            words = f"the data of {sweep.name} are not written yet, so their classes are not known; make_beton.py does"
            raise Refusal(words)
        shape = {"img_size": img_size, "in_chans": in_chans, "num_classes": num_classes}
        found.setdefault(run.rung, (run.rung, run.model, shape, run.final_kwargs))
    return list(found.values())


def images(run: Run) -> float | None:
    """Images that a run trains on, those that it evaluates counted by their cost; None where that is not known."""
    _, _, train, val = _facts(run.dataset, run.img_size)
    if not train:
        return None
    held = run.holdout * train
    train = min(run.train_samples or train - held, train - held)
    return run.epochs * (train + FORWARD * (held or val))


@dataclass
class Rates:
    """Speeds of training, measured: images/s by shape, and MACs/s over all shapes, each at its precision."""

    by_shape: dict[tuple[Shape, bool], list[float]] = field(default_factory=dict)
    by_precision: dict[bool, list[float]] = field(default_factory=dict)

    def add(self, run: Run, images_per_s: float | None, cost: Cost) -> None:
        if images_per_s:
            self.by_shape.setdefault((shape_of(run), run.amp), []).append(images_per_s)
            if cost.macs:
                self.by_precision.setdefault(run.amp, []).append(images_per_s * cost.macs)

    def seconds(self, run: Run, cost: Cost) -> float | None:
        """How long a run will take: from runs of its rung, otherwise by MACs from those of others; None if unknown."""
        count = images(run)
        if count is None:
            return None
        if own := self.by_shape.get((shape_of(run), run.amp)):
            return count / statistics.median(own)
        if cost.macs and (others := self.by_precision.get(run.amp)):
            return count * cost.macs / statistics.median(others)
        return None


def rates(runs: Sequence[Run], statuses: Sequence[Status], known: dict[Shape, Cost]) -> Rates:
    """Speeds of the finished runs among these; where there are none, of the newest finished runs of other sweeps."""
    speeds = Rates()
    for run, status in zip(runs, statuses, strict=True):
        if status["state"] == store.DONE:
            speeds.add(run, status.get("images_per_s"), known[shape_of(run)])
    if not speeds.by_shape:
        for folder in _newest(store.results_dir() / "runs"):
            try:
                status, profile = store.read_json(folder / "status.json"), store.read_json(folder / "profile.json")
                if status.get("state") == store.DONE:
                    speeds.add(store.read_run(folder), status.get("images_per_s"), Cost(macs=profile.get("macs")))
            except (Refusal, ValueError):
                continue  # damaged, or of another version: of no use here
    return speeds


def _newest(folder: Path) -> list[Path]:
    """Run folders, those touched last first."""
    try:
        with os.scandir(folder) as entries:
            found = sorted((-entry.stat().st_mtime, entry.path) for entry in entries if entry.is_dir())
    except OSError:
        return []
    return [Path(path) for _, path in found[:NEIGHBOURS]]


def _expected(run: Run, shape: Shape) -> dict[str, int] | None:
    """The family's own numbers, where the run has the variant as it is, at its own size."""
    if run.final_kwargs or run.model.startswith("timm/"):
        return None
    own = {"in_chans": 3, **archs.arguments(run.model)}
    if shape[1:] != (own["img_size"], own["in_chans"], own["num_classes"]):
        return None
    family, _, variant = run.model.partition("_")
    return read(family).tables["EXPECTED"][variant]


def _measured(folders: Iterable[Path]) -> dict[str, int] | None:
    """From the profile.json of the first run that has one."""
    for folder in folders:
        if profile := _read(folder / "profile.json"):
            return profile
    return None


def _count(run: Run, shape: Shape) -> dict[str, int] | None:
    """Build the model and count; None where torch is not installed, as on a login node that only submits."""
    print(f"counting {run.rung} ...", file=sys.stderr, flush=True)
    try:
        from engine.cost.profile import profile
    except ImportError as error:
        print(f"not counted: {error}", file=sys.stderr, flush=True)
        return None

    _, img_size, in_chans, num_classes = shape
    try:
        found = profile(run.model, img_size=img_size, in_chans=in_chans, num_classes=num_classes, **run.final_kwargs)
    except ValueError as error:
        raise Refusal(str(error)) from None
    return {"params": found["params"], "macs": found["macs"]}


def _key(shape: Shape) -> str:
    """Where a count is kept: it holds for one state of the zoo, or one version of timm."""
    rung, img_size, in_chans, num_classes = shape
    code = f"timm {importlib.metadata.version('timm')}" if rung.startswith("timm/") else _zoo()
    return f"{rung}, {in_chans} x {img_size} px, {num_classes} classes, {code}"


@functools.cache
def _zoo() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(archs.__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return f"zoo {digest.hexdigest()[:8]}"


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; {} where it is missing or damaged: everything here can be done without."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _remember(counted: dict[str, dict[str, int]]) -> None:
    """Add to the cache of the results folder; one that cannot be written is done without."""
    path = store.results_dir() / CACHE
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        store.write_json(path, _read(path) | counted, durable=False)
    except (OSError, Refusal):
        return
