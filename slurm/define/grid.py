"""Sweeps without a file: a grid from the command line, and the searches of slurm/define/search.py.

Such a sweep is defined by a few words, kept as RESULTS/NAME/sweep.yaml, from which `slurm.define.load.load(NAME)`
makes it again: status, collect and all else work on it by name as on any other.
"""

import hashlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.errors import Refusal
from engine.fields import values
from engine.folder import store
from engine.run import How, Run, make_run, unknown
from slurm.define.sweep import DEFINITION, MAX_RUNS, Sweep

ALIASES = {"arch": "model"}
ARGUMENT = "model_kwargs."  # model_kwargs.depth=4,8 varies an argument of the model
Cell = dict[str, Any]


def sweep_of(words: Sequence[str], fields: Mapping[str, Any]) -> Sweep:
    """Every combination of the values in `lr=1e-3,3e-3 seed=0,1,2`, above the other fields of the run.

    Seeds vary slowest, so that every cell has an answer early; otherwise the last word varies fastest. The name is
    `grid_` and a hash of the set of runs.

    Raises Refusal: an unknown key, a word that is no `key=values`, a cell that is no valid run, no cell, or too many.
    """
    axes = parse(words)
    for key in axes:
        if key in fields:
            raise Refusal(f"{key} is given by --grid and by --{key.replace('_', '-')}; leave one out")
    return define({"question": f"Grid over {', '.join(axes)}", "grid": list(words), "fields": dict(fields)}, "grid")


def define(definition: dict[str, Any], kind: str, name: str | None = None) -> Sweep:
    """The sweep of a definition: `question`, `fields` of all runs, and `grid` (words) or `cells` (fields of each).

    Raises Refusal for a cell that is no valid run, naming it.
    """
    cells = definition["cells"] if "cells" in definition else product(parse(definition["grid"]))
    found: dict[str, Run] = {}
    for cell in cells:
        run = run_of(definition["fields"], cell)
        if found.setdefault(run.signature, run) != run:
            raise Refusal(f"two different runs have the signature {run.signature}; change one a little")
    runs = tuple(found.values())
    name = name or f"{kind}_{digest(sorted(found))}"
    return Sweep(name, definition["question"], runs, len(cells) - len(runs), definition=definition)


def load(name: str) -> Sweep | None:
    """The sweep that was launched under this name without a file; None if there is none.

    Raises Refusal: its sweep.yaml was damaged, or written by a version whose defaults differ.
    """
    path = store.results_dir() / name / DEFINITION
    if not path.is_file():
        return None
    try:
        definition = read(path)
        sweep = define(definition, name.rpartition("_")[0], None if "cells" not in definition else name)
    except (KeyError, TypeError) as error:
        line = str(error).splitlines()[0]
        raise Refusal(f"{path} is damaged ({line}); repeat the command that launched it") from None
    if sweep.name != name:
        raise Refusal(f"{path} gives other runs than those it was written for; repeat the command that launched it")
    return sweep


def read(path: Path) -> dict[str, Any]:
    """The definition in a sweep.yaml. Raises Refusal for a file that is not what `define` was given."""
    try:
        return values.read(path)[0]
    except Refusal as refusal:
        raise Refusal(f"{path} is damaged ({refusal}); repeat the command that launched it") from None


def parse(words: Sequence[str]) -> dict[str, list[Any]]:
    """`lr=1e-3,3e-3` as {"lr": [0.001, 0.003]}, values as engine/fields/values.py reads them; a list is written
    [0.9,0.99].

    Raises Refusal for what is no list of values of a field of the run.
    """
    axes: dict[str, list[Any]] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            raise Refusal(f"--grid takes key=value,value and not '{word}'")
        key = field_of(key)
        if key in axes:
            raise Refusal(f"--grid names {key} twice")
        try:
            axes[key] = values.values(text, word)
        except Refusal:
            axes[key] = []
        if not axes[key]:
            raise Refusal(f"--grid {word!r}: expected values with commas between them, as lr=1e-3,3e-3")
    if not axes:
        raise Refusal("--grid is empty; give it values of a field, as lr=1e-3,3e-3")
    return axes


def field_of(key: str) -> str:
    """The field of Run that a key names. Raises Refusal, naming the nearest, where there is none."""
    key = ALIASES.get(key, key)
    if key in Run.model_fields and key != "model_kwargs":
        return key
    if key.startswith(ARGUMENT) and len(key) > len(ARGUMENT):
        return key  # the model's family says whether it has such an argument
    if key.replace("-", "_") in How.model_fields:
        raise Refusal(f"{key} changes no result, so it cannot be part of a grid; give it as a flag")
    if key.startswith("model_kwargs"):
        raise Refusal(f"'{key}' in a grid: name one argument of the model, as {ARGUMENT}depth=4,8")
    raise Refusal(unknown("key of a grid", key, [field for field in Run.model_fields if field != "model_kwargs"]))


def product(axes: Mapping[str, Sequence[Any]]) -> list[Cell]:
    """All combinations as fields of runs. Raises Refusal where there are too many."""
    count = math.prod(len(values) for values in axes.values())
    if count > MAX_RUNS:
        sizes = " x ".join(str(len(values)) for values in axes.values())
        raise Refusal(f"this grid has {sizes} = {count:,} runs; at most {MAX_RUNS:,} are taken")
    keys = sorted(axes, key=lambda key: key != "seed")  # stable: only the seed moves, to the front
    return [dict(zip(keys, values, strict=True)) for values in itertools.product(*(axes[key] for key in keys))]


def run_of(fields: Mapping[str, Any], cell: Cell) -> Run:
    """The run of a cell. Raises Refusal that names the cell."""
    plain = {key: value for key, value in cell.items() if not key.startswith(ARGUMENT)}
    arguments = {key.removeprefix(ARGUMENT): cell[key] for key in cell if key.startswith(ARGUMENT)}
    merged = {**fields, **plain}
    if arguments:
        merged["model_kwargs"] = {**(fields.get("model_kwargs") or {}), **arguments}
    try:
        return make_run(merged)
    except Refusal as refusal:
        where = " ".join(f"{key}={value}" for key, value in cell.items())
        raise Refusal(f"cell {where}: {refusal}", refusal.code) from None


def digest(value: Any) -> str:
    """Eight hex digits of what something is defined by."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]
