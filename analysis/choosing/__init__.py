"""Criteria: in which order layers lose their attention. The name is the address: `cosine` is this folder's `cosine.py`.

A criterion is a file with a docstring (the question, the formula with its constants, the source) and `COST`, what the
number is that it gives a layer and its unit; layers of low cost go first, of equal ones the lower. By what it looks at
it has one of three forms:

    sets     observe(seen) -> (B, K) per image, SKIP and value(moments) -> (R,): what a model is worth that lacks the
             attention of some layers; a layer costs `cost(whole, without)`. Can be asked again after each pick
    layers   observe(seen) -> (B, layers) and value(moments) -> (R, layers): costs of all layers, from the whole model
    orders   order(layers, draws) -> (draws, layers): costs that ask no model

`seen` is analysis/removal/passes.py's Seen, `moments` its Moments. MOMENTS is 2 where squares are wanted.
"""

import ast
from functools import cache
from pathlib import Path
from typing import Any

from engine.errors import Refusal
from engine.run import unknown

FOLDER = Path(__file__).parent
# What skipping the attention of a layer leaves of its half.
SKIPS = {
    "x": "x, as the selection was published",
    "2x": "2x, as diluted training leaves it",
    "mean": "x and the mean of what it adds, token by token",
}


def names() -> list[str]:
    """All criteria, sorted; found without importing any of them."""
    return sorted(path.stem for path in FOLDER.glob("[a-z]*.py"))


def check(wanted: list[str]) -> None:
    """Raises Refusal for a name that is no criterion, the nearest named, and for a file without what it must have."""
    for name in wanted:
        if name not in (known := names()):
            raise Refusal(unknown("criterion", name, known))
        read(name)


@cache
def read(name: str) -> dict[str, Any]:
    """COST, SKIP and the form of a criterion, from its source: importing it imports torch."""
    tree = ast.parse((FOLDER / f"{name}.py").read_text())
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    given = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in ("COST", "SKIP", "MOMENTS")
    }
    form = "orders" if "order" in defined else "sets" if "cost" in defined else "layers"
    needed = {"orders": {"order"}, "sets": {"observe", "value", "cost"}, "layers": {"observe", "value"}}[form]
    if missing := [key for key in ("COST", *(["SKIP"] if form == "sets" else [])) if key not in given]:
        raise Refusal(f"analysis/choosing/{name}.py has no {missing[0]}; analysis/choosing/__init__.py says what it is")
    if lacking := sorted(needed - defined):
        raise Refusal(f"analysis/choosing/{name}.py has no function {lacking[0]}, which a criterion of {form} needs")
    return {"form": form, **given}
