"""What runs cost before they are trained: parameters and MACs of a rung, and how long a run of it takes.

Nothing is built whose cost is known: from the family's EXPECTED, from the profile.json of a run of that rung, or from
what was counted for an earlier plan. What is left is built once on the meta device; only then is torch imported.
"""

import functools
import hashlib
import heapq
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
from engine.fields.sizes import Size, text
from engine.folder import published, store
from engine.run import DATA_DIR, Run
from slurm.define.sweep import Sweep

SHIPPED = Path(__file__).with_name("profiles.json")
CACHE = ".profiles.json"
NEIGHBOURS = 64  # finished runs of other sweeps, the newest, whose speed is looked at
HERE, TABLE, MACS = "runs here", "table", "MACs"  # what the length of a run was learned from
# What an image costs besides its MACs, in MACs: on one core of an Epyc, ResMLP with 420 k takes 4 times as long as MLPs
# with 30 k, which this gives; ladders of 5 M and 0.31 M lie 4 to 7 times apart (0.5 to 1.1 M), where it is little.
OVERHEAD = 100_000
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
def _facts(dataset: str, img_size: Size) -> tuple[int, int, int, int]:
    """Channels, classes, training and validation images; zeros where only the data folder could tell and does not."""
    if entry := lookup(dataset):
        return entry.in_chans, entry.num_classes, entry.train_size, entry.val_size
    # Beside the .beton files (engine/data/beton.py, which is not imported here because it needs NumPy).
    names = [DATA_DIR / f"{dataset.replace('/', '-')}_{split}_{text(img_size)}.json" for split in SPLITS]
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


@dataclass(frozen=True)
class Guess:
    """How long a whole run will take, and what that was learned from: HERE, TABLE or MACS."""

    seconds: float
    source: str


@dataclass
class Rates:
    """What training took, measured: seconds per image by shape and source, MACs/s, with the overhead of each image,
    over all shapes, by precision."""

    by_shape: dict[tuple[Shape, bool], dict[str, list[float]]] = field(default_factory=dict)
    by_precision: dict[bool, list[float]] = field(default_factory=dict)

    def add(self, run: Run, status: Status, cost: Cost) -> None:
        """Take note of a finished run: of its seconds from beginning to end, or else of its images/s."""
        seconds, rate, count = status.get("seconds"), status.get("images_per_s"), images(run)
        if per_image := seconds / count if seconds and count else 1 / rate if rate else None:
            source = TABLE if published.TABLE in status else HERE
            self.by_shape.setdefault((shape_of(run), run.amp), {}).setdefault(source, []).append(per_image)
        if rate and cost.macs:
            self.by_precision.setdefault(run.amp, []).append(rate * (cost.macs + OVERHEAD))

    def guess(self, run: Run, cost: Cost) -> Guess | None:
        """From runs of its rung here, or else in a table; otherwise by MACs from those of others; None if unknown."""
        count = images(run)
        if count is None:
            return None
        own = self.by_shape.get((shape_of(run), run.amp), {})
        for source in (HERE, TABLE):
            if source in own:
                return Guess(count * statistics.median(own[source]), source)
        if cost.macs and (others := self.by_precision.get(run.amp)):
            return Guess(count * (cost.macs + OVERHEAD) / statistics.median(others), MACS)
        return None


def rates(runs: Sequence[Run], statuses: Sequence[Status], known: dict[Shape, Cost]) -> Rates:
    """What the finished runs among these took; where there are none, the newest finished runs of other sweeps."""
    speeds = Rates()
    for run, status in zip(runs, statuses, strict=True):
        if status["state"] == store.DONE:
            speeds.add(run, status, known[shape_of(run)])
    if not speeds.by_shape:
        for folder in _newest(store.results_dir() / "runs"):
            try:
                status, profile = store.read_json(folder / "status.json"), store.read_json(folder / "profile.json")
                if status.get("state") == store.DONE:
                    speeds.add(store.read_run(folder), status, Cost(macs=profile.get("macs")))
            except (Refusal, ValueError):
                continue  # damaged, or of another version: of no use here
    return speeds


def makespan(seconds: Iterable[float], slots: int) -> float:
    """Until the last of these is done, if each begins, in this order, in the place that is free first."""
    places = [0.0] * slots
    for each in seconds:
        heapq.heapreplace(places, places[0] + each)
    return max(places)


def _newest(folder: Path) -> list[Path]:
    """Run folders, those touched last first."""
    try:
        with os.scandir(folder) as entries:
            found = sorted((-entry.stat().st_mtime, entry.path) for entry in entries if entry.is_dir())
    except OSError:
        return []
    return [Path(path) for _, path in found[:NEIGHBOURS]]


def _expected(run: Run, shape: Shape) -> dict[str, int] | None:
    """The family's own numbers, where it has them of the variant with these arguments, at its own size."""
    if run.model.startswith("timm/"):
        return None
    own = {"in_chans": 3, **archs.arguments(run.model)}
    if shape[1:] != (own["img_size"], own["in_chans"], own["num_classes"]):
        return None
    family, _, variant = run.rung.partition("_")
    tables = read(family).tables
    return {**tables["EXPECTED"], **tables.get("EXPECTED_WITH", {})}.get(variant)


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
