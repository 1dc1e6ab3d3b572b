"""What trained weights do on the validation images: accuracy, and the probes of analysis/probes.

Of a run what probes measured is kept in its folder and read from there, exactly as scripts/probe.py has it; what is
missing is measured by the same code and kept. Of any other module nothing is kept.
"""

import importlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from analysis import probes
from analysis.bias import probe_runs
from analysis.bias.probe import Estimate, agreement
from analysis.bias.probe_table import path_of
from analysis.passport.holder import Holder
from engine.errors import Refusal, line_of
from engine.folder import store
from engine.run import How

USUAL = ("shift", "patch_shuffle", "frequencies", "calibration")
"""Probes of any logits, a minute of one core for a small network on a thousand images."""


@dataclass(frozen=True)
class Learned:
    """Accuracy on so many images, and the values of each probe by its keys; `failed` says why one has none."""

    acc1: Estimate | None = None
    images: int = 0
    of_record: float | None = None
    """The run's own accuracy, percent."""
    values: dict[str, dict[str, Estimate]] = field(default_factory=dict)
    kept: tuple[str, ...] = ()
    """Probes that were read from the run's folder."""
    failed: dict[str, str] = field(default_factory=dict)
    why: str = ""
    """What was not measured, and the command that does it."""


def wanted(names: Sequence[str]) -> list[str]:
    """The probes of a command's words; `all`, `none`, or by default the usual ones. Raises Refusal for another."""
    if "none" in names:
        return []
    found = probes.names() if "all" in names else list(dict.fromkeys(names)) or list(USUAL)
    probes.check(found)
    return found


def missing(holder: Holder, names: Sequence[str]) -> list[str]:
    """Those that must be measured. Without trained weights before images there is nothing to measure."""
    if not (holder.trained and holder.subject):
        return []
    return list(probe_runs.missing(holder.asked.folder, names)) if holder.run else list(names)


def seconds(names: Sequence[str], a_pass: float) -> float:
    """About how long these take; a pass is one of all images."""
    costs = [probes.read(name).get("COST", (0, 0)) for name in names]
    return sum(passes * a_pass + more for passes, more in costs)


def measure(
    holder: Holder, names: Sequence[str], how: How, tell: Callable[[str], None] = print, why: str = ""
) -> Learned:
    """Accuracy and these probes; `why` is said where there is nothing to measure."""
    if not (holder.trained and holder.subject):
        return Learned(why=why)
    subject = holder.subject
    predicted, labels = subject.classify(lambda x_BCHW, index: iter([("plain", x_BCHW)]))
    acc1 = agreement(predicted["plain"][None], labels, subject.num_classes)
    tell(f"accuracy {acc1.value:.1f} % on {len(labels):,} images")
    if holder.run:
        return _of_run(holder, names, how, tell, acc1, len(labels))
    values, failed = {}, {}
    for name in names:
        began = time.monotonic()
        try:
            values[name] = importlib.import_module(f"analysis.probes.{name}").measure(subject)
        except Exception as error:  # a module that one probe cannot ask, other people's above all, spoils no other
            failed[name] = f"not known: {type(error).__name__}: {line_of(error)}"
        tell(f"{name} {time.monotonic() - began:.1f} s")
    return Learned(acc1, len(labels), None, *_sorted(values, failed))


def _of_run(
    holder: Holder, names: Sequence[str], how: How, tell: Callable[[str], None], acc1: Estimate, count: int
) -> Learned:
    """With what the run's folder holds beside these."""
    folder, failed = holder.asked.folder, {}
    there = [name for name in probes.names() if path_of(folder, name).is_file()]
    stale = probe_runs.missing(folder, there)
    fresh = [name for name in names if name not in there or name in stale]
    for name in fresh:
        try:
            probe_runs.probe(folder, [name], how, lambda name, seconds: tell(f"{name} {seconds:.1f} s"))
        except Refusal as refusal:
            failed[name] = f"not known: {refusal}"
    shown = [name for name in probes.names() if (name in there and name not in stale) or name in names]
    values = {name: _estimates(store.read_json(path_of(folder, name))) for name in shown if name not in failed}
    for name in stale:
        if name not in names:
            failed[name] = (
                f"not shown: measured on other weights or by older code; scripts/probe.py {folder} --probe {name}"
            )
    found, _, failed = _sorted(values, failed)
    own = store.read_status(folder).get("acc1")
    kept = tuple(name for name in found if name not in fresh)
    return Learned(acc1, count, own, found, kept, failed)


def _sorted(
    values: dict[str, dict[str, Estimate]], failed: dict[str, str]
) -> tuple[dict[str, dict[str, Estimate]], tuple[str, ...], dict[str, str]]:
    """Probes that found nothing to measure in this module are among what failed."""
    empty = {name: "says nothing of a module of this kind" for name, each in values.items() if not each}
    return {name: each for name, each in values.items() if each}, (), failed | empty


def _estimates(record: dict[str, Any]) -> dict[str, Estimate]:
    return {
        key: Estimate(*(math.nan if each.get(part) is None else each[part] for part in Estimate._fields))
        for key, each in record.get("values", {}).items()
    }
