"""Criteria: which weights or units of a trained model go first. The name is the address: `magnitude` is `magnitude.py`.

A criterion is a file with a docstring (the question, the formula, the source) and one function; a high score stays:

    weights   score(target, generator) -> (U, P, C)         target: engine/pruning/targets.py, equal shares of each unit
    units     score(layers, generator) -> one (units,) each  layers: engine/pruning/units.py, equal shares of each layer

The argument's name tells which of the two. What is zero already goes before all others.
"""

import ast
from functools import cache
from pathlib import Path

from engine.errors import Refusal

FOLDER = Path(__file__).parent
FORMS = {"target": "weights", "layers": "units"}


def names() -> list[str]:
    """All criteria, sorted; found without importing any of them."""
    return sorted(path.stem for path in FOLDER.glob("[a-z]*.py"))


@cache
def form(name: str) -> str:
    """`weights` or `units`, from a criterion's source. Raises Refusal for a file without such a function."""
    tree = ast.parse((FOLDER / f"{name}.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == "score":
            given = [argument.arg for argument in node.args.args]
            if len(given) == 2 and given[0] in FORMS and given[1] == "generator":
                return FORMS[given[0]]
    raise Refusal(
        f"engine/pruning/criteria/{name}.py has no score(target, generator) or score(layers, generator); "
        "engine/pruning/criteria/__init__.py says what a criterion is"
    )
