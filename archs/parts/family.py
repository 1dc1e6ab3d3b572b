"""What a family's file must and may hold, its only reader, and one clear error for each mistake.

A family is one file, `archs/FAMILY.py`. Tables are literals, so that listing and checking names reads the source and
never imports torch (seconds saved in every `--help`, plan and status).
"""

import ast
import difflib
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn, get_args, get_type_hints

from archs.parts.bias import Bias

ARCHS = Path(__file__).resolve().parent.parent

MUST = {
    "SOURCE": "text: paper, table and code",
    "BIAS": "Bias(...), what the architecture is forced to be, measured on random weights",
    "VARIANTS": "variant -> arguments of `build`; nano, 1m and 5m are among them",
    "EXPECTED": "variant -> {'params': exactly, 'macs': exactly, of one image of the variant's own size}",
    "SYMMETRY": "groups of relabelings to which its training is blind, words of analysis/bias/symmetry.py",
    "block": "(dim, grid, drop_path=0.0, ...) -> the module x_BHWC -> x_BHWC that the paper is about",
    "build": "(*, img_size, num_classes, in_chans, dim, depth, ...) -> Backbone with fresh weights",
    "init": "(model) -> the same model, initialised as its authors do; `build` ends with it",
    "relabel": "(state_dict, relabeling) -> weights that do to relabeled images what these do; None: not known",
}
MAY = {
    "VARIANT_BIAS": "variant -> fields of Bias that differ from BIAS",
    "VARIANT_SYMMETRY": "variant -> groups, in place of SYMMETRY",
    "EXPECTED_WITH": "variant and arguments, as a run's name tells them -> the same as EXPECTED",
    "MIXER": "argument of `build` that names a file of archs/mixing/; it decides SYMMETRY, `relabel` takes `given`",
    "WEIGHTLESS": "arguments of `build` on which no weight depends, so that weights may be used with others",
    "INERT": "patterns of parameters that get no gradient, with the reason in a comment",
    "DROP_PATH": "'ramp' or 'constant': rates of stochastic depth over the blocks, where `build` takes drop_path",
    "RATIO": "argument of `build` that widens hidden layers, to meet a budget that whole widths miss",
    "SQUARE_IMAGES": "True if images must be square",
    "LOADS_ON_ANY_GRID": "True if weights bound to places have one shape on every grid",
    "AT_64_PX": "arguments of `build` for images of 64 px, where those for 32 px do not fit",
    "width_step": "(given) -> what widths must be multiples of, from the other arguments of `build`; without it, 1",
    "nominal_macs": "(counted, given) -> MACs without the products with weights that are always zero",
    "implied": "(state_dict, own) -> arguments of `build` that the shapes of weights tell; without it, `weights.frame`",
    "leftover": "(state_dict, own) -> keys of a file that the model has no use for, and why they may be there",
    "afresh": "(keys, state_dict, own) -> those of the model's keys that a file may lack, because they start afresh",
    "resize": "(state_dict, grid_from, grid_to) -> weights bound to places, carried to another grid",
}
LITERAL = {"BIAS": False} | {key: True for key in (*MUST, *MAY) if key.isupper() and key != "BIAS"}
ALWAYS = ("img_size", "num_classes", "in_chans", "dim", "depth")  # of `build`
NEAR = 0.8  # a misspelling's least likeness to what was meant


class FamilyError(ValueError):
    """A mistake in a family's file: one line that names the file, the name and the remedy."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A family as its source tells it."""

    tables: Mapping[str, Any]
    """The literal tables; BIAS as a dict."""
    arguments: Mapping[str, str]
    """Argument of `build` -> its annotation, "" without one."""
    defaults: Mapping[str, Any]
    """Argument of `build` -> its default, of those that are literals."""

    def bias(self, variant: str) -> Bias:
        """What the variant claims."""
        return replace(Bias(**self.tables["BIAS"]), **self.tables.get("VARIANT_BIAS", {}).get(variant, {}))

    def symmetry(self, variant: str) -> tuple[str, ...]:
        """The groups that the variant claims."""
        return tuple(self.tables.get("VARIANT_SYMMETRY", {}).get(variant, self.tables["SYMMETRY"]))


def names(folder: Path | None = None) -> list[str]:
    """Family names, one per file, sorted. Raises FamilyError for a file whose name none can be."""
    found = sorted(path.stem for path in (folder or ARCHS).glob("*.py") if path.stem != "__init__")
    for name in found:
        if "_" in name:
            _fail(
                name, "has an underscore, and a model's name is FAMILY_VARIANT", f"rename it {name.replace('_', '')}.py"
            )
    return found


def read(family: str, folder: Path | None = None) -> Source:
    """The family, from its source. Raises FamilyError for the first mistake in it."""
    return _read(family, folder or ARCHS)


@functools.cache
def _read(family: str, folder: Path) -> Source:
    fail = functools.partial(_fail, family)
    try:
        tree = ast.parse((folder / f"{family}.py").read_text(encoding="utf-8"))
    except SyntaxError as error:
        fail(f"is no Python, line {error.lineno}: {error.msg}", "mend it")
    there = dict(_defined(tree))
    read_here = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    _check_names(family, there, read_here)
    tables = {key: _literal(family, key, there[key]) for key in LITERAL if key in there}
    for node in tree.body:
        target = (
            node.target
            if isinstance(node, ast.AugAssign)
            else node.targets[0]
            if isinstance(node, ast.Assign)
            else None
        )
        changed = getattr(getattr(target, "value", target), "id", "")
        if changed in LITERAL and there[changed] is not getattr(node, "value", None):
            fail(f"changes {changed} in line {node.lineno}", "write the table as one literal: it is read, not imported")
    if not isinstance(there["build"], ast.FunctionDef):
        fail("has a `build` that is no function of this file", f"def build(*, {', '.join(ALWAYS)}, ...)")
    arguments, defaults, required = _build(family, there["build"].args)
    source = Source(tables=tables, arguments=arguments, defaults=defaults)
    _check_tables(family, source, required)
    _check_claims(family, tables)
    return source


def _fail(family: str, mistake: str, remedy: str) -> NoReturn:
    raise FamilyError(f"archs/{family}.py {mistake}; {remedy}")


def _defined(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """Names at the file's top level, each with its value or definition; imported ones too."""
    for node in tree.body:
        if isinstance(node, ast.Assign):
            yield from ((target.id, node.value) for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and node.value and isinstance(node.target, ast.Name):
            yield node.target.id, node.value
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name, node
        elif isinstance(node, ast.ImportFrom):
            yield from ((alias.asname or alias.name, node) for alias in node.names)


def _check_names(family: str, there: Mapping[str, ast.AST], read_here: set[str]) -> None:
    """What must be there is, and what looks as if it were meant to be is spelt right."""
    loose = [
        name
        for name, node in there.items()
        if not name.startswith("_") and name not in {**MUST, **MAY, **dict.fromkeys(read_here)}
        if not isinstance(node, ast.ImportFrom | ast.ClassDef)
    ]
    for name, meaning in MUST.items():
        if name not in there:
            meant = _near(name, loose)
            _fail(family, f"has no {name}", f"call its {meant} so" if meant else f"add it: {meaning}")
    for name in loose:
        if meant := _near(name, MAY):
            _fail(family, f"has {name}, which nobody reads", f"call it {meant}, or _{name} if it is the file's own")


def _near(name: str, known: Sequence[str] | Mapping[str, str]) -> str | None:
    """The name that is meant, whatever its case."""
    found = difflib.get_close_matches(name.upper(), [each.upper() for each in known], n=1, cutoff=NEAR)
    return next((each for each in known if found and each.upper() == found[0]), None)


def _literal(family: str, key: str, node: ast.AST) -> Any:
    try:
        if LITERAL[key]:
            return ast.literal_eval(node)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Bias" and not node.args:
            return {keyword.arg: ast.literal_eval(keyword.value) for keyword in node.keywords}
    except ValueError:
        pass
    remedy = "write it out: it is read, not imported" if LITERAL[key] else "BIAS = Bias(...) of plain values by name"
    return _fail(family, f"has a {key} that is no literal", remedy)


def _build(family: str, given: ast.arguments) -> tuple[dict[str, str], dict[str, Any], list[str]]:
    """Arguments of `build` with their annotations, the literal defaults, and those without a default."""
    if given.kwarg or given.vararg:
        each = f"**{given.kwarg.arg}" if given.kwarg else f"*{given.vararg.arg}"
        _fail(family, f"has a `build` with {each}, which swallows a misspelling", "name every argument")
    if positional := [*given.posonlyargs, *given.args]:
        _fail(family, f"has a `build` with a positional {positional[0].arg}", "def build(*, ...)")
    arguments, defaults, required = {}, {}, []
    for argument, default in zip(given.kwonlyargs, given.kw_defaults, strict=True):
        arguments[argument.arg] = ast.unparse(argument.annotation) if argument.annotation else ""
        try:
            defaults |= {argument.arg: ast.literal_eval(default)} if default else {}
        except ValueError:
            continue  # an expression
        required += [] if default else [argument.arg]
    for name in ALWAYS:
        if name not in arguments:
            _fail(family, f"has a `build` without {name}", f"every family's takes {', '.join(ALWAYS)}")
    return arguments, defaults, required


def _check_tables(family: str, source: Source, required: Sequence[str]) -> None:
    """Variants are the same in both tables, and name what `build` takes."""
    fail, tables, accepted = functools.partial(_fail, family), source.tables, source.arguments
    if differing := sorted(tables["VARIANTS"].keys() ^ tables["EXPECTED"].keys()):
        lacking = "EXPECTED" if differing[0] in tables["VARIANTS"] else "VARIANTS"
        fail(f"has no {differing[0]!r} in {lacking}", "VARIANTS and EXPECTED have the same keys")
    for variant, costs in tables["EXPECTED"].items():
        if not isinstance(costs, dict) or costs.keys() != {"params", "macs"}:
            fail(f"has EXPECTED[{variant!r}] = {costs!r}", "it is {'params': ..., 'macs': ...}")
    settings = {f"VARIANTS[{variant!r}]": given for variant, given in tables["VARIANTS"].items()}
    for where, given in {**settings, "AT_64_PX": tables.get("AT_64_PX", {})}.items():
        for key in given.keys() - accepted.keys():
            fail(f"has {key!r} in {where}, which `build` does not take", f"it takes {', '.join(accepted)}")
    for where, given in settings.items():
        if missing := [key for key in required if key not in given]:
            fail(f"has no {missing[0]!r} in {where}", "`build` has no default for it")
    if (ratio := tables.get("RATIO", "dim")) not in accepted:
        fail(f"has RATIO = {ratio!r}, which `build` does not take", f"it takes {', '.join(accepted)}")
    if ("DROP_PATH" in tables) != ("drop_path" in accepted):
        fail("has DROP_PATH or a `build` with drop_path, and not both", f"DROP_PATH is {MAY['DROP_PATH']}")
    if tables.get("DROP_PATH", "ramp") not in ("ramp", "constant"):
        fail(f"has DROP_PATH = {tables['DROP_PATH']!r}", "it is 'ramp' or 'constant'")


def _check_claims(family: str, tables: Mapping[str, Any]) -> None:
    """Claims are of variants that are there, about fields that are there."""
    hints = get_type_hints(Bias)
    for key in ("VARIANT_BIAS", "VARIANT_SYMMETRY"):
        for variant in tables.get(key, {}).keys() - tables["VARIANTS"].keys():
            _fail(family, f"has {variant!r} in {key}, which is no variant", f"known: {', '.join(tables['VARIANTS'])}")
    claims = {"BIAS": tables["BIAS"]}
    claims |= {f"VARIANT_BIAS[{variant!r}]": own for variant, own in tables.get("VARIANT_BIAS", {}).items()}
    for where, fields in claims.items():
        for field, value in fields.items():
            if field not in hints:
                _fail(family, f"has {field!r} in {where}, which is no field of Bias", f"fields: {', '.join(hints)}")
            values = (True, False) if hints[field] is bool else get_args(hints[field])
            if value not in values:
                _fail(family, f"has {field}={value!r} in {where}", f"it is one of {', '.join(map(repr, values))}")
    if missing := [field for field in hints if field not in tables["BIAS"]]:
        _fail(family, f"has no {missing[0]!r} in BIAS", f"fields: {', '.join(hints)}")
    groups = {"SYMMETRY": tables["SYMMETRY"], "INERT": tables.get("INERT", ())}
    for key, value in {**groups, **tables.get("VARIANT_SYMMETRY", {})}.items():
        if isinstance(value, str):
            where = key if key in groups else f"VARIANT_SYMMETRY[{key!r}]"
            _fail(family, f"has {where} = {value!r}, a text", f"it is a tuple: ({value!r},)")
