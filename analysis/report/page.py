"""What a section of the page draws from: the runs of a sweep, what was asked of them, and how each rung is called."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from markupsafe import Markup

from analysis import judges
from analysis.bias import probe_table
from analysis.compare import frames
from analysis.factorial import columns
from analysis.factorial.beside import Beside
from analysis.figures import looks
from analysis.figures.looks import Look
from analysis.probes import permutation_gap
from analysis.report import parts
from analysis.report.labels import Named, labels
from analysis.report.sentences import recorded
from analysis.report.tables import DRAWN, Shown
from analysis.typeset import quantity
from engine.data.sets import lookup
from engine.fields.claims import Family


class Section(NamedTuple):
    """What a file of sections/ gives: one or two sentences, a figure, its caption, and tables to be folded."""

    said: str = ""
    figure: Markup = Markup()
    caption: str = ""
    tables: Sequence[Shown] = ()
    files: Mapping[str, str] = {}
    """Figures that are also files, as SVG by name."""


@dataclass
class Page:
    """A sweep, to be drawn from. Rungs are called as tables call them, with their condition.

    Args:
        frame: of `frames.load`.
        results: the folder of all results; `name` is the sweep's there.
        wanted: CONTRASTS, `families`: FAMILIES, `baseline`: BASELINE, `given`: LABELS of the sweep.
        speeds: latencies, of scripts/profile_model.py.
        alone: whether there are tables and no sweep's file, so that nothing can be launched.
        beside: what other sweeps measured of these rungs.
    """

    name: str
    frame: pd.DataFrame
    results: Path
    wanted: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    families: Mapping[str, Family] = field(default_factory=dict)
    baseline: Sequence[str] = ()
    given: Mapping[str, str] = field(default_factory=dict)
    speeds: Path | None = None
    alone: bool = False
    beside: Sequence[Beside] = ()

    @cached_property
    def table(self) -> pd.DataFrame:
        """Of `frames.rungs`, all rungs."""
        return frames.rungs(self.frame)

    @property
    def finished(self) -> bool:
        return bool((self.table["n"] > 0).any())

    @cached_property
    def ranked(self) -> pd.DataFrame:
        """The finished rungs that figures show, best first: on whole images where there are any, of the data set that
        most of them are on, as accuracies on others are no ranking, and of very many the best."""
        first = self.frame.drop_duplicates("rung").set_index("rung")
        table = self.table[self.table["n"] > 0]
        whole = table["rung"].isin(first.index[first["permute"] == "none"])
        table = table[whole] if whole.any() else table
        datasets = table["rung"].map(first["dataset"])
        table = table[datasets == datasets.value_counts(sort=False).idxmax()] if len(table) else table
        return table.sort_values("acc1", ascending=False, kind="stable")[:DRAWN]

    @cached_property
    def other_datasets(self) -> list[str]:
        """Those whose finished rungs figures leave out."""
        known = self.frame.drop_duplicates("rung").set_index("rung")["dataset"]
        done = self.table.loc[self.table["n"] > 0, "rung"].map(known)
        return sorted(set(done) - set(self.ranked["rung"].map(known)))

    @property
    def order(self) -> list[str]:
        """Their names."""
        return list(self.ranked["rung"])

    @cached_property
    def values(self) -> Mapping[str, pd.Series]:
        """Accuracies of the finished runs, by rung."""
        done = self.frame[self.frame["acc1"].notna()]
        return {rung: group["acc1"] for rung, group in done.groupby("rung", sort=False)}

    @cached_property
    def _named(self) -> dict[str, Named]:
        first = self.frame.drop_duplicates("rung").to_dict("records")
        known = {row["rung"]: row["model_kwargs"] if isinstance(row["model_kwargs"], dict) else {} for row in first}
        return {
            row["rung"]: Named(row["rung"], row["name"], looks.name_of(row["model"], known[row["rung"]]))
            for row in first
        }

    @cached_property
    def _labels(self) -> dict[str, str]:
        """Of whole and of shuffled images each among themselves, as no figure mixes them."""
        permuted = self.frame.drop_duplicates("rung").set_index("rung")["permute"]
        found: dict[str, str] = {}
        names = {one.name for one in self._named.values()} | set(self._named)
        for kind in permuted.unique():
            own = [one for rung, one in self._named.items() if permuted[rung] == kind or pd.isna(kind)]
            here = {one.name for one in own} | {one.rung for one in own}
            found |= labels(own, {key: text for key, text in self.given.items() if key in here or key not in names})
        return found

    @cached_property
    def _looks(self) -> dict[str, Look]:
        return looks.looks(one.look for one in self._named.values())

    def label(self, rung: str) -> str:
        return self._labels.get(rung, rung)

    def look(self, rung: str) -> Look:
        return self._looks[self._named[rung].look]

    @cached_property
    def families_drawn(self) -> dict[str, Look]:
        """The look of each family of the figures, under its name, in the order of the legend."""
        names = dict.fromkeys(self._named[rung].look for rung in self.order)
        return {name.removeprefix("lattice "): self._looks[name] for name in names}

    def key(self, rung: str) -> str:
        """What marks it in every figure and table: the same on whole and on shuffled images."""
        names = list(dict.fromkeys(one.name for one in self._named.values()))
        return f"r{names.index(self._named[rung].name)}" if rung in self._named else ""

    @cached_property
    def keys(self) -> dict[str, str]:
        """By all names that a table may give a rung."""
        told = {rung: self.key(rung) for rung in self._named}
        return {one.name: told[rung] for rung, one in self._named.items()} | told

    @cached_property
    def asked(self) -> pd.DataFrame:
        """What the sweep was made to compare, of `columns.table`."""
        return columns.table(self.frame, self.wanted, self.families)

    @cached_property
    def probed(self) -> pd.DataFrame:
        """One row per finished run on whole images, probe and key (`probe_table.of`, `with_kept`)."""
        rows = probe_table.with_kept(probe_table.of(self.frame))
        return rows[rows["rung"].isin(self.order) & (rows["probe"] != "permutation_gap")]

    @cached_property
    def gaps(self) -> pd.DataFrame:
        """Of `permutation_gap.pairs`, of one kind of shuffle, the first of its KINDS that is there; of the sweeps
        beside this one where it has none itself."""
        pairs = permutation_gap.pairs(self.frame).dropna(subset="gap")
        elsewhere = [other.gaps.dropna(subset="gap") for other in self.beside if len(other.gaps)]
        pairs = pd.concat(elsewhere) if pairs.empty and elsewhere else pairs
        kind = next((kind for kind in permutation_gap.KINDS if (pairs["permute"] == kind).any()), "")
        return pairs[pairs["permute"] == kind]

    def names(self, rungs: Sequence[str]) -> Markup:
        """A column of rungs, each with its mark; every one can be focused."""
        line = Markup('<li tabindex="0" data-r="{}" title="{}"><span>{}</span>{}</li>')
        lines = (line.format(self.key(r), self.told(r), self.label(r), parts.icon(self.look(r))) for r in rungs)
        return Markup('<ul class="names">{}</ul>').format(parts.join(lines))

    def told(self, rung: str) -> str:
        """The whole name, where it says more than the label."""
        return "" if self.label(rung) == rung else rung

    @cached_property
    def budget(self) -> str:
        """What was trained on, for how long, at which cost and on what: the end of every caption."""
        known = self.frame[self.frame["epochs"].notna() & self.frame["rung"].isin(self.order or self.frame["rung"])]
        told = [_trained(known), _seen(known), self.machine]
        return "; ".join(filter(None, told)) + "."

    @cached_property
    def machine(self) -> str:
        """The processor, and whether it was more than one kind."""
        kinds = recorded(self.frame, "processor")
        threads = recorded(self.frame, "threads")
        if not kinds:
            return "processor not recorded"
        many = f" (and {len(kinds) - 1} more kinds)" if len(kinds) > 1 else ""
        return f"{kinds[0]}{many}" + (f", {threads[0]} threads" if len(threads) == 1 and threads[0] != "1" else "")

    def seeds(self, counts: Sequence[int]) -> str:
        """n = 5 seeds, or n = 2 to 5 seeds."""
        known = sorted({int(count) for count in counts})
        if not known:
            return "n = 0"
        return f"n = {_range([float(count) for count in known])} seed{'s' * (known[-1] != 1)}"


def _trained(known: pd.DataFrame) -> str:
    """digits, 1,297 training images, 800 steps of 32."""
    if known.empty:
        return ""
    first = known.iloc[0]
    sizes = {_size(row) for row in known.drop_duplicates("rung").to_dict("records")}
    steps = {_steps(row) for row in known.drop_duplicates("rung").to_dict("records")}
    words = [", ".join(dict.fromkeys(known["dataset"]))]
    if len(sizes) == 1 and (size := sizes.pop()):
        words.append(f"{size:,} training images")
    if len(steps) == 1 and (count := steps.pop()):
        words.append(f"{count:,} steps of {first['batch_size']:.0f}")
    return ", ".join(words)


def _size(row: Mapping[str, Any]) -> int:
    """Training images of a run, 0 where that is not known."""
    entry = lookup(str(row["dataset"]))
    of_set = getattr(entry, "train_size", 0) or 0
    if row["train_samples"] == row["train_samples"] and row["train_samples"]:
        return int(row["train_samples"])
    held = judges.count(str(row["dataset"]), float(row["holdout"])) if row["holdout"] and of_set else 0
    return of_set - (held or 0)


def _steps(row: Mapping[str, Any]) -> int:
    return int(row["epochs"]) * (_size(row) // int(row["batch_size"]))


def _seen(known: pd.DataFrame) -> str:
    """99,840 images seen × 5.00 M MACs."""
    rows = known.drop_duplicates("rung").to_dict("records")
    seen = [float(_steps(row) * int(row["batch_size"])) for row in rows]
    macs = [row["macs"] for row in rows if not math.isnan(row["macs"])]
    if not all(seen) or not macs:
        return ""
    ends = [quantity(value) for value in dict.fromkeys((min(macs), max(macs)))]
    return f"{_range(sorted(set(seen)))} images seen × {' to '.join(dict.fromkeys(ends))} MACs"


def _range(values: Sequence[float]) -> str:
    return " to ".join(f"{value:,.0f}" for value in dict.fromkeys((values[0], values[-1])))
