"""What the report says of bias: the one that is built in (symmetry signature, exact) and the learned one (probes)."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

import archs
from analysis import probes as known
from analysis.bias import probe_table, symmetry
from analysis.figures import bias_figures
from analysis.probes import permutation_gap
from analysis.report.tables import Shown, limited, shown
from analysis.typeset import MISSING, Sheet, count_text, estimate, number, plus_minus, probability
from archs.parts.family import read
from engine.cli import tables
from engine.errors import DATA, Refusal
from engine.folder import store

MARKS = {"pass": "●", "fail": "○", "undetermined": "?"}
PROBE_NOTE = (
    "mean over n seeds ± half its 95 % interval, or [its ends] where it is lopsided; of two seeds both in brackets; of "
    "one [the interval over test images]; chance: what guessing would give"
)
GAP_NOTE = "gap: accuracy on whole images less that of the same seed trained and tested on shuffled ones, points; "
GAP_NOTE += "p same: of a gap of half a point or more (TOST); both after Holm over the rungs with the same shuffle"


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
    results/symmetry.csv does not hold, another optimizer say, is measured and kept in RESULTS/NAME/symmetry.csv.
    """
    columns = ["name", "model", "family", "opt", "model_kwargs"]
    pairs = frame[columns].drop_duplicates(["name", "opt"]).dropna(subset="opt")
    nano, needed = {}, []
    for row in pairs.itertuples():
        small, own_kinds = stand_in(row.model), kinds(row.model, row.model_kwargs)
        text = small and " ".join([small, *(f"{key}={value}" for key, value in own_kinds.items())])
        nano[text] = (small, own_kinds)
        needed.append((text, row.opt))
    shipped, own = kept(results, "symmetry.csv"), results / name / "symmetry.csv"
    found = {**_read(own), **(_read(shipped) if shipped else {})}
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
    used = {path for path in (shipped, own) if path and _read(path).keys() & set(needed)}
    sources = ["results/symmetry.csv"] * (shipped in used) + [f"results/{name}/symmetry.csv"] * (own in used)
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


def symmetry_table(rows: list[dict[str, Any]]) -> Shown | None:
    """The signature as a table: a mark per group, the gap behind it as its tooltip."""
    if not any(row["gaps"] for row in rows):
        return None
    several = len({row["opt"] for row in rows}) > 1
    others = any(row["stand_in"] not in ("", row["rung"]) for row in rows)
    groups = [group.replace("_", " ") for group in symmetry.GROUPS]
    header = ["rung", *["optimizer"] * several, *groups, "relabelings", *["measured on"] * others]
    align = "l" * (1 + several) + "c" * len(groups) + "r" + "l" * others
    cells, tips, data = [], [], []
    for row in rows:
        gaps = [row["gaps"].get(group) for group in symmetry.GROUPS]
        marks = [MISSING if gap is None else MARKS[symmetry.verdict(gap)] for gap in gaps]
        size = MISSING if math.isnan(row["log10_size"]) else f"10^{row['log10_size']:.1f}"
        head, tail = [row["rung"], *[row["opt"]] * several], [row["stand_in"] or MISSING] * others
        cells.append([*head, *marks, size, *tail])
        said = ["" if gap is None else f"gap {gap:.0e}" for gap in gaps]
        tips.append([*[""] * len(head), *said, "", *[""] * others])
        data.append({"rung": row["rung"], "opt": row["opt"], **row["gaps"], "log10_size": row["log10_size"]})
    note = (
        "● same to rounding, ○ not, – not measured: a reference, or a variant that no nano member of its family stands "
    )
    note += "for; relabelings: how many orders of the numbers of a small image the permutations among these groups make"
    sheet = Sheet("Symmetry signature", tuple(header), cells, pd.DataFrame(data), note, align=align.replace("c", "l"))
    return shown("symmetry", sheet, align=align, tips=tips)


def probes(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[tuple[str, str, str, Shown]]]:
    """What was measured (`probe_table.summary`) on models of whole images; per probe name, title, figure and table.

    The table has the models of shuffled images, too; the figure only where there are no others.
    """
    summary, sections = probe_table.summary(probe_table.of(frame)), []
    summary = summary[summary["probe"] != "permutation_gap"]
    families = frame.drop_duplicates("rung").set_index("rung")["family"]
    whole = set(frame.loc[frame["permute"] == "none", "rung"]) or set(frame["rung"])
    for name in known.names():
        rows = summary[summary["probe"] == name]
        keys = [key for key in known.read(name)["HEADLINE"] if key in set(rows["key"])]
        if not keys or rows["value"].isna().all():
            continue
        title = known.read(name).get("TITLE", name.replace("_", " "))
        units = {key: known.unit(name, key) for key in keys}
        titles = {key: f"{_words(name, key)}, {unit}".removesuffix(", ratio") for key, unit in units.items()}
        picture = bias_figures.probe_bars(
            limited(rows[rows["rung"].isin(whole)], "rung"), titles, units, families.to_dict(), f"probe-{name}", title
        )
        sections.append((name, title, picture, shown(f"probe-{name}", _probe_sheet(name, rows, units))))
    return summary[summary["rung"].isin(whole)], sections


def _words(name: str, key: str) -> str:
    patterns = known.read(name).get("WORDS", {}).items()
    return next((re.sub(pattern, words, key) for pattern, words in patterns if re.fullmatch(pattern, key)), key)


def _probe_sheet(name: str, rows: pd.DataFrame, units: dict[str, str]) -> Sheet:
    cells = []
    for rung, group in rows.groupby("rung", sort=False):
        by_key = {row.key: row for row in group.itertuples()}
        texts = [_estimate(by_key[key], unit) if key in by_key else MISSING for key, unit in units.items()]
        cells.append([rung, str(int(group["n"].max())), *texts])
    header = ("rung", "n", *(f"{key}, {unit}" for key, unit in units.items()))
    return Sheet(f"Probe {name}", header, cells, rows, PROBE_NOTE)


def _estimate(row: Any, unit: str) -> str:
    if math.isnan(row.value):
        return MISSING
    digits = 1 if unit in ("%", "points") else 2
    return f"{estimate(row.value, row.low, row.high, row.n, digits)}, chance {number(row.null, digits)}"


def permutation(frame: pd.DataFrame) -> tuple[str, Shown] | None:
    """The permutation gap as figure and table; None where no run was trained on shuffled images beside a whole one."""
    table = permutation_gap.table(frame)
    if not (table["n"] > 0).any():
        return None
    names_of = frame.drop_duplicates("rung").set_index("rung")[["name", "family"]]
    table = table.assign(rung=table["rung"].map(names_of["name"]), family=table["rung"].map(names_of["family"]))
    cells = [
        [
            *(row.rung, row.permute, count_text(row)),
            *(number(row.acc1), number(row.acc1_permuted), plus_minus(row.gap, row.gap_half, row.n, "+")),
            plus_minus(row.relative, row.relative_half, row.n, "+"),
            *(probability(row.p_holm), probability(row.p_same_holm)),
        ]
        for row in table.itertuples()
    ]
    header = ("rung", "shuffled", "n", "accuracy, %", "of shuffled, %", "gap, points", "relative gap", "p", "p same")
    sheet = Sheet("Permutation gap", header, cells, table, GAP_NOTE, align="ll")
    return bias_figures.gaps(limited(table, "rung"), frame["family"]), shown("gap", sheet)
