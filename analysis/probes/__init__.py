"""Probes: what bias a model has. The name is the address: probe `shift` is `shift.py` of this folder.

A probe that runs on a trained run is a file with a docstring and what `MUST` lists; `MAY` says what else it can have,
and analysis/bias/probe.py does the rest. It may also have `draw(subject)`, which gives the bytes of a PNG, kept beside
the numbers, or None. The docstring says the question, the formula, the source, what to expect and what it costs. A
probe is a pure function of the model and the images: on random weights it measures what the architecture is forced to
be; on a model that it cannot speak of, `measure` gives {}. `permutation_gap` compares finished runs, `equivariance`
wants random weights in float64: they have neither PROTOCOL nor HEADLINE, which is how they are told apart.
"""

import ast
import difflib
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from engine.errors import Refusal
from engine.run import unknown

MUST = {
    "PROTOCOL": "a dict of the settings that decide its numbers, kept with them",
    "UNITS": "a dict of the unit of each key; `#` stands for a number in a key",
    "HEADLINE": "a tuple of the keys that a table shows",
    "measure": "a function measure(subject) that gives {key: Estimate}: value, null and interval",
}
MAY = {
    "TITLE": "a string, the title of its figure in the report",
    "WORDS": "a dict of patterns of keys and what they are called in that figure",
    "COST": "a tuple of two numbers: forward passes over the test images (a backward one counts two), further seconds",
    "OVER_TRAINING": "a bool, whether it is also measured at each epoch whose weights the run kept",
    "COLUMN": "a string, the key beside the contrasts of a report; # stands for an eighth of the image's side",
}
FUNCTIONS = {"measure": "the subject", "draw": "the subject"}
FORMS = {"PROTOCOL": dict, "UNITS": dict, "HEADLINE": tuple, "TITLE": str, "WORDS": dict, "COST": tuple}
FORMS |= {"OVER_TRAINING": bool, "COLUMN": str}
FOLDER = Path(__file__).parent
# Numbers that are shown over training where nobody names others: of the layout that weights have learned.
EMERGING = ("moran_signed_change", "half_radius_change", "recovered_change", "geometry_change", "local_change")
EMERGING += ("tiling_change", "effective_stem_change", "effective_tokens_change", "frequency_first", "radius_last")
CLOSE = 0.7  # of 1, how alike a misspelt name is


def names() -> list[str]:
    """Probes that run on a trained run, sorted; found without importing any of them."""
    return sorted(
        path.stem
        for path in FOLDER.glob("[a-z]*.py")
        if re.search(r"^(PROTOCOL|HEADLINE)\b", path.read_text(), re.MULTILINE)
    )


def check(wanted: Iterable[str], where: str = "") -> None:
    """Raises Refusal for a name that is no probe, the nearest named, and for a probe's file with a mistake."""
    for name in wanted:
        if name not in (known := names()):
            if (FOLDER / f"{name}.py").is_file():
                raise _wrong(name, "has neither PROTOCOL nor HEADLINE: it is no probe of a trained run")
            raise Refusal(f"{where}: {unknown('probe', name, known)}" if where else unknown("probe", name, known))
        read(name)


@cache
def read(name: str) -> dict[str, Any]:
    """The constants of MUST and MAY that a probe's file has, from its source: importing it imports torch.

    Raises Refusal, in one line, for what is missing, misspelt or of another form.
    """
    try:
        tree = ast.parse((FOLDER / f"{name}.py").read_text())
    except SyntaxError as error:
        raise _wrong(name, f"is not Python: {error.msg}, line {error.lineno}") from None
    found: dict[str, Any] = {}
    functions, others = {}, []
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        key = getattr(target, "id", "")
        if isinstance(node, ast.FunctionDef):
            functions[node.name] = node
        elif key in FORMS and isinstance(node, ast.AugAssign) and isinstance(node.op, ast.BitOr):
            found[key] = found.get(key, {}) | _literal(name, key, node.value)
        elif key in FORMS:
            found[key] = _literal(name, key, node.value)
        elif key:
            others.append(key)
    for key, words in MUST.items():
        if key not in (functions if key == "measure" else found):
            close = difflib.get_close_matches(key, functions if key == "measure" else others, 1, CLOSE)
            raise _wrong(name, f"has no {key}, {words}" + (f"; is it '{close[0]}'?" if close else ""))
    for key in others:
        if close := difflib.get_close_matches(key, MAY.keys() - found.keys(), 1, CLOSE):
            raise _wrong(name, f"has '{key}'; is it {close[0]}, {MAY[close[0]]}?")
    for key in functions.keys() & FUNCTIONS:
        given = functions[key].args
        if len(given.posonlyargs + given.args) - len(given.defaults) != 1 or None in given.kw_defaults:
            raise _wrong(name, f"has {key}({ast.unparse(given)}); it must take one argument, {FUNCTIONS[key]}")
    _check(name, ast.get_docstring(tree), found)
    return found


def about(name: str) -> tuple[str, str]:
    """The question that a probe asks, the first line of its docstring without its name, and what it costs, in words."""
    question = ast.get_docstring(ast.parse((FOLDER / f"{name}.py").read_text())).splitlines()[0]
    found = read(name)
    if "COST" not in found:
        return question.partition(": ")[2] or question, "not said"
    passes, more = found["COST"]
    words = [f"{passes:g} passes"] * bool(passes) + [f"{more:g} s"] * bool(more)
    again = ", and at each epoch kept" * found.get("OVER_TRAINING", False)
    return question.partition(": ")[2] or question, (" and ".join(words) or "nothing") + again


def unit(name: str, key: str) -> str:
    """The unit of a probe's key, of the UNITS in its file. Raises Refusal for a key that has none."""
    units = _units(name)
    known = key if key in units else re.sub(r"\d+", "#", key)
    if known not in units:
        raise _wrong(name, f"measures '{key}', which has no unit; UNITS has {', '.join(units)}")
    return units[known]


def words(name: str, key: str) -> str:
    """What a key is called, of the WORDS in the probe's file."""
    patterns = read(name).get("WORDS", {}).items()
    return next((re.sub(pattern, text, key) for pattern, text in patterns if re.fullmatch(pattern, key)), key)


@cache
def _units(name: str) -> dict[str, str]:
    """UNITS, also of `permutation_gap`, which is no probe of one run."""
    if name in names():
        return read(name)["UNITS"]
    body = ast.parse((FOLDER / f"{name}.py").read_text()).body
    return next(
        ast.literal_eval(node.value)
        for node in body
        if getattr(getattr(node, "targets", [None])[0], "id", "") == "UNITS"
    )


def _check(name: str, words: str | None, found: dict[str, Any]) -> None:
    """Raises Refusal for a form that MUST and MAY do not describe."""
    if not words:
        raise _wrong(name, "has no docstring; say the question, the formula, the source, what to expect and the cost")
    for key, value in found.items():
        if not isinstance(value, FORMS[key]):
            raise _wrong(name, f"has {key} = {value!r}; it must be {(MUST | MAY)[key]}")
    for key in ("UNITS", "WORDS"):
        if not all(isinstance(text, str) for pair in found.get(key, {}).items() for text in pair):
            raise _wrong(name, f"has {key} that maps other things than strings to strings")
    for key in found["HEADLINE"]:
        if not isinstance(key, str) or not {key, re.sub(r"\d+", "#", key)} & found["UNITS"].keys():
            raise _wrong(name, f"has {key!r} in HEADLINE, which has no unit; UNITS has {', '.join(found['UNITS'])}")
    cost = found.get("COST", (0, 0))
    if len(cost) != 2 or not all(isinstance(number, (int, float)) and number >= 0 for number in cost):
        raise _wrong(name, f"has COST = {cost!r}; it must be {MAY['COST']}")


def _literal(name: str, key: str, node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise _wrong(name, f"computes {key}; write it out, as it is read without running the file") from None


def _wrong(name: str, words: str) -> Refusal:
    return Refusal(f"analysis/probes/{name}.py {words}")
