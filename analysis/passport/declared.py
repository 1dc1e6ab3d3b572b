"""What its family says of a model: claims about the map, axes of the token mixer, relabelings that training cannot see.

Only models of this zoo declare anything. The relabelings are measured (analysis/bias/symmetry.py), on the smallest
member of the family that claims the same, of the lattice with the same mixer.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

import archs
from analysis.bias import signatures, symmetry
from analysis.compare.ladder import WORDS, bias_of
from archs.ingredients import declared
from archs.ingredients.axes import MEANING
from archs.parts.family import read
from engine.cli import tables
from engine.errors import Refusal
from engine.folder import store

UNKNOWN = "not known: this module declares no relabeling, and no rule here moves its weights"


@dataclass(frozen=True)
class Declared:
    """Claims by their words, axes by name, and the gap of each relabeling; `why` says what is not known."""

    claims: dict[str, str] = field(default_factory=dict)
    axes: dict[str, str] = field(default_factory=dict)
    gaps: dict[str, float] = field(default_factory=dict)
    measured_on: str = ""
    opt: str = ""
    why: str = ""

    @property
    def passing(self) -> list[str]:
        return [group for group, gap in self.gaps.items() if symmetry.verdict(gap) == "pass"]


def of(name: str, arguments: dict[str, Any], opt: str = "adamw") -> Declared:
    """Of a model by its name, "" for none; its arguments as `archs.create` takes them."""
    if not name or name.startswith("timm/"):
        return Declared(why=UNKNOWN)
    family = name.partition("_")[0]
    claims, axes = said(name, arguments)
    small, kinds = signatures.stand_in(name), signatures.kinds(name, arguments)
    if small is not None and symmetry.declared(name, **arguments) != symmetry.declared(small, **kinds):
        small = None
    if small is None:
        return Declared(claims, axes, why=f"not known: no small member of {family} claims the same symmetry as {name}")
    text = " ".join([small, *(f"{key}={value}" for key, value in kinds.items())])
    try:
        gaps = _kept(text, opt) or symmetry.table([small], [opt], **kinds)[0]
    except Refusal as refusal:
        return Declared(claims, axes, why=f"not known: {refusal}")
    return Declared(claims, axes, {group: float(gaps[group]) for group in symmetry.GROUPS}, text, opt)


def said(name: str, arguments: dict[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """Claims of a family of this zoo by their words; of a mixer of the lattice instead where it stands on each axis."""
    family = name.partition("_")[0]
    if "MIXER" in read(family).tables:
        given = {**archs.defaults(name), **arguments}
        return {}, {axis: value for axis, value in declared.read(given["mixer"]).at(given).items() if axis in MEANING}
    return {WORDS[key]: _word(value) for key, value in asdict(bias_of(name)).items()}, {}


def _kept(text: str, opt: str) -> dict[str, Any] | None:
    """The row of results/symmetry.csv, which scripts/symmetry.py measured."""
    path = signatures.kept(store.results_dir(), "symmetry.csv")
    rows = tables.read(path, ["model", "opt", *symmetry.GROUPS]) if path else []
    return next((row for row in rows if (row["model"], row["opt"]) == (text, opt)), None)


def _word(value: Any) -> str:
    return {True: "yes", False: "no"}.get(value, value) if isinstance(value, bool) else str(value)
