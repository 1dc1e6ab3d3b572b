"""Token mixers as their sources tell them, without importing torch: names, arguments, axes; one clear error a mistake.

A mixer's file, `archs/mixing/NAME.py`, holds AXES, a literal of the axes on which it is not at the default, and the
class `Mixing(dim, grid, start, *, ...)`, whose arguments behind the star are the mixer's own and have the names and
defaults of `archs.lattice.build`. Two more follow from the axes: `scrambled` where geometry can matter, `frozen` where
all numbers are learned weights of M.
"""

import ast
import difflib
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from archs.ingredients.axes import AXES, DASH, dashed, symmetry
from archs.parts.family import ARCHS, FamilyError

MIXING = ARCHS / "mixing"
CLASS = "Mixing"
FROM_AXES = ("scrambled", "frozen")


@dataclass(frozen=True, kw_only=True)
class Declared:
    """A mixer as its source tells it."""

    name: str
    axes: Mapping[str, str]
    """All axes, before arguments have their say."""
    arguments: tuple[str, ...]
    """Of `Mixing`, behind the star."""

    @property
    def takes(self) -> tuple[str, ...]:
        """The arguments of `lattice.build` that this mixer has."""
        more = ("scrambled",) if dashed(self.axes)["geometry"] != DASH else ()
        more += ("frozen",) if (self.axes["learned"], self.axes["projected"]) == ("yes", "no") else ()
        return (*self.arguments, *more)

    def at(self, given: Mapping[str, Any]) -> dict[str, str]:
        """Where the mixer stands with these arguments of `lattice.build`, dashes included.

        A dial that is not at its strict end reads all, with each place's own weights: what it is held to is `held`.
        """
        return self._at(given, {"reach": "all", "places": "own"} if soft(self, given) else {})

    def held(self, given: Mapping[str, Any]) -> dict[str, str]:
        """As `at`, of a dial as if it stood at its strict end."""
        return self._at(given, {})

    def _at(self, given: Mapping[str, Any], instead: Mapping[str, str]) -> dict[str, str]:
        axes = {**self.axes, **instead}
        for argument, axis, value in (
            ("wrap", "border", "wrap"),
            ("scrambled", "geometry", "scrambled"),
            ("frozen", "learned", "no"),
        ):
            if argument in self.takes and given[argument]:
                axes[axis] = value
        window = "reach" if axes["reach"] == "window" else "start" if axes["start"] != "random" else None
        for argument, axis in (("kernel_size", window), ("hidden", "form")):
            if argument in self.arguments and axis is not None:
                axes[axis] = f"{axes[axis]}({given[argument]})"
        for argument in ("groups", "num_heads"):
            if argument in self.arguments:
                count = given[argument]
                axes["channels"] = "one" if count == 1 else "each" if count == given["dim"] else f"groups({count})"
        return dashed(axes)


def names(folder: Path | None = None) -> list[str]:
    """Mixers, one per file, sorted."""
    return sorted(path.stem for path in (folder or MIXING).glob("*.py") if path.stem != "__init__")


def read(name: str, folder: Path | None = None) -> Declared:
    """The mixer of this name. Raises ValueError for an unknown one, FamilyError for a mistake in its file."""
    return _read(str(name), folder or MIXING)


@functools.cache
def _read(name: str, folder: Path) -> Declared:
    if name not in (known := names(folder)):
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known
        raise ValueError(f"mixer '{name}' is unknown; close: {', '.join(close)}; each is a file of archs/mixing/")
    tree = ast.parse((folder / f"{name}.py").read_text(encoding="utf-8"))
    there = {node.targets[0].id: node.value for node in tree.body if isinstance(node, ast.Assign)}
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    if "AXES" not in there:
        _fail(name, "has no AXES", "add it: the axes on which the mixer is not at the default, AXES = {} if on none")
    try:
        own = ast.literal_eval(there["AXES"])
    except ValueError:
        _fail(name, "has an AXES that is no literal", "write it out: it is read, not imported")
    for axis, value in own.items():
        if axis not in AXES:
            near = difflib.get_close_matches(axis, AXES, n=1, cutoff=0.0)[0]
            _fail(name, f"has the axis {axis!r} in AXES", f"did you mean {near!r}? axes: {', '.join(AXES)}")
        if value not in AXES[axis]:
            _fail(name, f"has {axis}={value!r} in AXES", f"it is one of {', '.join(AXES[axis])}")
    if CLASS not in classes:
        _fail(name, f"has no class {CLASS}", f"class {CLASS}(Mixer), of archs/ingredients/mixer.py")
    init = next((node for node in classes[CLASS].body if getattr(node, "name", "") == "__init__"), None)
    if init is None:
        _fail(name, f"has a {CLASS} without __init__", "def __init__(self, dim, grid, start, *, ...): it is read")
    arguments = tuple(argument.arg for argument in init.args.kwonlyargs)
    return Declared(name=name, axes={axis: values[0] for axis, values in AXES.items()} | own, arguments=arguments)


def _fail(name: str, mistake: str, remedy: str) -> NoReturn:
    raise FamilyError(f"archs/mixing/{name}.py {mistake}; {remedy}")


def soft(mixer: Declared, given: Mapping[str, Any]) -> bool:
    """Whether it is a dial that is not at its strict end, or may leave it."""
    return "strictness" in mixer.arguments and (given["strictness"] < 1 or given["gated"])


@functools.cache
def of_mixers() -> frozenset[str]:
    """Arguments of `lattice.build` that only some mixers have. Remembered, as a sweep asks for each of its runs."""
    return frozenset(argument for name in names() for argument in read(name).takes)


def refuse(mixer: str, overrides: Mapping[str, Any]) -> None:
    """Raises ValueError for an argument that the mixer has not, and for an unknown mixer."""
    takes = read(mixer).takes
    for key in overrides:
        if key in of_mixers() and key not in takes:
            raise ValueError(f"mixer {mixer} has no {key}; it has: {', '.join(takes) or 'no arguments'}")


def groups(given: Mapping[str, Any]) -> tuple[str, ...]:
    """The symmetries of `archs.lattice` with these arguments of `build`, words of analysis/bias/symmetry.py."""
    if given["stem"] == "pixels":
        return ("pixels", "rotation")
    of_mixer = symmetry(read(given["mixer"]).held(given))
    if given["stem"] == "unshared" and of_mixer == ("patches",):
        return ("patches_own",)
    return ("within", *of_mixer)
