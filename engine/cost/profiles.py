"""Profiles of several models side by side: costs, then speed and memory, in one run so that they can be compared.

A model that cannot be counted or run is a row that says why, and takes nothing from the others.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch

import archs
from engine.cost import measure
from engine.cost.profile import by_module, own_shape, within, witnessed
from engine.errors import USAGE, Refusal, line_of
from engine.fields.sizes import pair, plain

Row = dict[str, Any]


class Subject(NamedTuple):
    """A model as it is to be profiled; the label names it in the rows."""

    label: str
    name: str
    shape: dict[str, int]
    """img_size, in_chans, num_classes."""
    arguments: dict[str, Any]


class Failure(NamedTuple):
    """Why a model has no costs, and the exit code."""

    line: str
    code: int


def attempt(label: str, make: Callable[[], list[Row]], failures: list[Failure]) -> list[Row]:
    """The rows of one model; or one that says why there are none, and an entry in `failures`.

    Other people's models raise whatever they like for an image that does not suit them.
    """
    try:
        return make()
    except Exception as error:
        line = line_of(error)
        failures.append(Failure(line if label in line else f"{label}: {line}", getattr(error, "code", USAGE)))
        return [{"model": label, "error": line}]


def subjects(names: Iterable[str], asked: dict[str, int | None], arguments: dict[str, Any]) -> list[Subject]:
    """Models by name, at their own size but for what is asked for. Raises Refusal for one that is unknown."""
    known = {key: value for key, value in asked.items() if value is not None}
    try:
        return [Subject(name, name, own_shape(name) | known, arguments) for name in names]
    except ValueError as error:
        raise Refusal(str(error)) from None


def within_budget(
    names: Iterable[str], kind: str, most: int, asked: dict[str, int | None], arguments: dict[str, Any]
) -> tuple[list[Row], list[str], list[Failure]]:
    """Rows of `engine.cost.profile.within`, the dearest first; their notes; and what failed."""
    failures: list[Failure] = []
    rows = [
        row
        for name in names
        for row in attempt(name, lambda name=name: within(name, kind, most, asked, arguments), failures)
    ]
    rows.sort(key=lambda row: -row.get(kind, 0))
    return rows, [row.pop("note") for row in rows if row.get("note")], failures


def by_modules(subjects: Iterable[Subject], depth: int) -> tuple[list[Row], list[str], list[Failure]]:
    """Rows of `engine.cost.profile.by_module`; no notes; and what failed."""
    failures: list[Failure] = []
    rows = [
        row
        for label, name, shape, own in subjects
        for row in attempt(label, lambda n=name, s=shape, o=own: by_module(n, depth, **s, **o), failures)
    ]
    return rows, [], failures


def side_by_side(
    subjects: Iterable[Subject],
    *,
    device: torch.device,
    speed: bool,
    batch_size: int | None,
    rounds: int,
    amp: bool,
    tell: Callable[[str], None],
) -> tuple[list[Row], list[str], list[Failure]]:
    """A row per model; what the counters miss and what could not be measured, a line each; and what failed.

    `*_ratio` is the row's figure over that of the first model that has one. `tell` gets a line per model as soon as
    its costs are known, and one when the measuring begins.
    """
    rows: list[Row] = []
    notes: list[str] = []
    failures: list[Failure] = []
    timed: list[tuple[Row, measure.Subject]] = []

    def count(subject: Subject) -> list[Row]:
        costs, accounts = witnessed(subject.name, **subject.shape, **subject.arguments)
        row = {"model": subject.label, "img_size": plain(subject.shape["img_size"]), **costs}
        differences = [f"{account.counter} {line}" for account in accounts for line in account.differences()]
        if speed:
            model = archs.create(subject.name, **subject.shape, **subject.arguments).to(device).eval()
            image = (subject.shape["in_chans"], *pair(subject.shape["img_size"]))
            found = measure.Subject(name=subject.label, model=model, image=image, device=device, amp=amp)
            found.infer(found.images(1))
            timed.append((row, found))
        notes.extend(f"{subject.label}: {line}" for line in differences if " misses " in line)
        return [row | {"differences": "; ".join(differences)}]

    for subject in subjects:
        (row,) = attempt(subject.label, lambda subject=subject: count(subject), failures)
        rows.append(row)
        tell(
            f"{subject.label}: {row['error']}"
            if "error" in row
            else f"{subject.label}: {row['params']:,} parameters, {row['macs']:,} MACs"
        )
    if timed:
        tell(f"timing {len(timed)} model{'s' * (len(timed) > 1)} in turn, {rounds} rounds")
        models = [subject for _, subject in timed]
        for subject, found in zip(models, measure.speeds(models, batch_size, rounds), strict=True):
            row = next(row for row in rows if row["model"] == subject.name and "device" not in row)
            differences = row.pop("differences", "")
            row |= found | measure.memory(subject, found["batch_size"]) | {"differences": differences}
            if row["train_peak_mb"] is None:
                notes.append(
                    f"{subject.name}: no training step at batch size {found['batch_size']}, a BatchNorm sees one value "
                    "per channel there; give --batch-size 2 or more"
                )
    for kind, ratio in (("params",) * 2, ("macs",) * 2, ("latency_ms", "latency"), ("images_per_s", "images")):
        first = next((row[kind] for row in rows if row.get(kind)), None)
        for row in rows if first else ():
            if kind in row:
                row[f"{ratio}_ratio"] = row[kind] / first
    return rows, notes, failures


def refuse_if_all(rows: list[Row], failures: list[Failure]) -> None:
    """Raise a Refusal where no model has a row of its own."""
    if failures and all("error" in row for row in rows):
        more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
        raise Refusal(failures[0].line + more, failures[0].code)
