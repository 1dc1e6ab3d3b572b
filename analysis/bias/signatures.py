"""The symmetry signature of every rung of a sweep: from the kept tables, measured where these do not hold it."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

import archs
from analysis.bias import symmetry
from archs.parts.family import read
from engine.cli import tables
from engine.errors import DATA, Refusal
from engine.folder import store


def kept(results: Path, name: str) -> Path | None:
    """A file of measurements that belong to no sweep: of these results, or what the repository ships."""
    return next((path for folder in (results, store.ROOT / "results") if (path := folder / name).is_file()), None)


def self_test(results: Path) -> dict[str, Any]:
    """The verdict of scripts/selftest.py, {} without one."""
    path = kept(results, "dsd.json")
    verdict = store.read_or_warn(path) if path else {}
    return verdict if isinstance(verdict.get("tasks"), list) and "passed" in verdict else {}


def stand_in(model: str) -> str | None:
    """The nano member of the model's family that claims the same symmetry; None for a reference of timm."""
    family, _, variant = model.partition("_")
    if family not in archs.families():
        return None
    known = archs.list_archs(f"{family}_nano*")
    claimed = symmetry.declared(model)
    wanted = [f"{family}_{'_'.join(['nano', *variant.split('_')[1:]])}", *known]
    return next((name for name in wanted if name in known and symmetry.declared(name) == claimed), None)


def kinds(model: str, given: Any) -> dict[str, Any]:
    """The arguments of a run's model that its stand-in must have, too: where a mixer is one, all that are no sizes."""
    family = model.partition("_")[0]
    if not isinstance(given, Mapping) or family not in archs.families() or "MIXER" not in read(family).tables:
        return {}
    return {key: given[key] for key in sorted(given) if isinstance(given[key], str | bool)}


def symmetries(frame: pd.DataFrame, results: Path, name: str) -> tuple[list[dict[str, Any]], str]:
    """One row per rung and optimizer, in order, and where the numbers are from.

    A row has rung, family, opt, stand_in, gaps (group -> gap; {} for a reference), passing and log10_size. What
    results/symmetry.csv does not hold, another optimizer say, is measured and kept in RESULTS/NAME/symmetry.csv. A
    family that is gone is measured as what it is now.
    """
    columns = ["name", "model", "family", "opt", "model_kwargs", "equivalent"]
    pairs = frame[columns].drop_duplicates(["name", "opt"]).dropna(subset="opt")
    nano, needed = {}, []
    for row in pairs.itertuples():
        is_gone = row.family not in archs.families() and bool(row.equivalent)
        given = row.equivalent if is_gone else {"model": row.model, "model_kwargs": row.model_kwargs}
        small, own_kinds = stand_in(given["model"]), kinds(given["model"], given["model_kwargs"])
        text = small and " ".join([small, *(f"{key}={value}" for key, value in own_kinds.items())])
        nano[text] = (small, own_kinds)
        needed.append((text, row.opt))
    shipped, own = kept(results, "symmetry.csv"), results / name / "symmetry.csv"
    committed = store.ROOT / "results" / name / "symmetry.csv"
    found = {**_read(committed), **_read(own), **(_read(shipped) if shipped else {})}
    fresh = [pair for pair in dict.fromkeys(needed) if pair[0] and pair not in found]
    if fresh:
        found |= _measure([(*pair, *nano[pair[0]]) for pair in fresh], own)
    rows = []
    for row, (model, opt) in zip(pairs.itertuples(), needed, strict=True):
        record = found.get((model, opt), {}) if model else {}
        gaps = {group: float(record[group]) for group in symmetry.GROUPS if record.get(group, "") != ""}
        rows.append(
            {
                **{"rung": row.name, "family": row.family, "opt": opt, "stand_in": model or "", "gaps": gaps},
                "passing": [group for group, gap in gaps.items() if symmetry.verdict(gap) == "pass"],
                "log10_size": record["log10_size"] if record else math.nan,
            }
        )
    used = {path for path in (shipped, own, committed) if path and _read(path).keys() & set(needed)}
    is_own = bool({own, committed} & used)
    sources = ["results/symmetry.csv"] * (shipped in used) + [f"results/{name}/symmetry.csv"] * is_own
    return rows, " and ".join(sources)


def _read(path: Path) -> dict[tuple[str | None, str], dict[str, str]]:
    if not path.is_file():
        return {}
    numbers = (*symmetry.GROUPS, "log10_size")
    rows = tables.read(path, ["model", "opt", *numbers])
    for row in rows:
        try:
            row |= {key: float(row[key]) if row[key] else "" for key in numbers}
        except ValueError as error:
            raise Refusal(f"{path}, {row['model']}: {error}", DATA) from None
    return {(row["model"], row["opt"]): row for row in rows}


def _measure(
    pairs: Sequence[tuple[str, str, str, Mapping[str, Any]]], path: Path
) -> dict[tuple[str | None, str], dict[str, str]]:
    """Measure these models under these optimizers, and add them to the file; what diverges has no row.

    Args:
        pairs: what the file calls the model, the optimizer, the model's name and its arguments.
    """
    rows: list[dict[str, Any]] = list(_read(path).values())
    for text, opt, model, given in pairs:
        try:
            rows += [{**row, "model": text} for row in symmetry.table([model], [opt], **given)]
        except Refusal:
            continue
    if rows:
        store.write_bytes(path, store.csv_text(rows).encode())
    return _read(path)
