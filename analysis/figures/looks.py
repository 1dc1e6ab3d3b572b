"""How a family looks in every figure and sweep: one hue and one shape, from a fixed table.

The hue says the kind of mixing, the shape the family. To a colour-blind reader three sets of hues look alike (simulated
after Machado, Oliveira and Fernandes 2009): {flat, convolution}, {matrix, shifts} and {none, local or shared,
attention}. Within such a set no shape is used twice. Cells of the lattice, which is one family, are told apart by
their mixer; a dot in the middle says that a mark is one of them. What the table does not know is drawn in ink.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import archs

KINDS = {  # hue on light and on dark paper, and what it stands for
    "flat": ("#94700a", "#dcb64a", "flat"),
    "none": ("#66707d", "#a9b3c0", "no learned mixing"),
    "matrix": ("#1f6fc4", "#74b3f7", "matrix over tokens"),
    "places": ("#0b7f70", "#45c7b2", "local or shared matrix"),
    "shifts": ("#7c4bc0", "#bd9bf2", "shifts and filters"),
    "conv": ("#c42f2f", "#ff8078", "convolution"),
    "attention": ("#b8307f", "#f58ac6", "attention"),
    "reference": ("#1d1d1b", "#e9e6e1", "reference"),
}
VERDICTS = {  # of a contrast, on light and on dark paper
    "gain": ("#0b62b0", "#6cb2ff"),
    "loss": ("#c2410c", "#ff9466"),
    "undecided": ("#77736c", "#9b978f"),
}
ALIKE = ({"flat", "conv"}, {"matrix", "shifts"}, {"none", "places", "attention"}, {"reference"})


class Look(NamedTuple):
    """`dotted` is a cell of the lattice."""

    kind: str
    shape: str
    dotted: bool = False


FAMILIES = {
    **{"mlp": ("flat", "circle"), "bmlp": ("flat", "square"), "patchmlp unshared": ("flat", "diamond")},
    **{"patchmlp": ("flat", "up"), "convmixer": ("conv", "down")},
    **{"identityformer": ("none", "circle"), "poolformer": ("none", "square"), "randformer": ("none", "diamond")},
    **{"banded": ("places", "down"), "toeplitz": ("places", "plus"), "bandedtoeplitz": ("places", "cross")},
    **{"deit": ("attention", "star"), "deit set": ("attention", "up")},
    **{"resmlp": ("matrix", "circle"), "mixer": ("matrix", "square"), "gmlp": ("matrix", "diamond")},
    **{"vip": ("matrix", "up"), "cyclemlp": ("shifts", "star"), "gfnet": ("shifts", "down")},
    **{"s2mlp": ("shifts", "plus"), "timm": ("reference", "hourglass")},
}
MIXERS = {
    **{"kernel": ("conv", "circle"), "depthwise": ("conv", "square"), "scrambled": ("conv", "diamond")},
    **{"circulant_c": ("conv", "up"), "toeplitz": ("conv", "plus"), "toeplitz_c": ("conv", "cross")},
    **{"toeplitz_projected": ("conv", "down"), "shift": ("conv", "star")},
    **{"dense": ("matrix", "circle"), "dense_c": ("matrix", "square"), "two": ("matrix", "diamond")},
    **{"token_mlp": ("matrix", "up"), "gate": ("matrix", "down"), "axial": ("matrix", "plus")},
    **{"frozen": ("matrix", "cross"), "monarch": ("matrix", "star")},
    **{"none": ("none", "circle"), "pooling": ("none", "square"), "average": ("none", "up")},
    **{"banded": ("places", "down"), "banded_c": ("places", "diamond"), "distance": ("attention", "plus")},
    **{"attention": ("attention", "star"), "attention_window": ("attention", "cross")},
    **{"set_attention": ("attention", "hourglass"), "dial": ("conv", "hourglass")},
    **{"dense_from_kernel": ("matrix", "hourglass"), "dense_from_impulse": ("reference", "diamond")},
}
TABLE = {name: Look(*look) for name, look in FAMILIES.items()}
TABLE |= {f"lattice {name}": Look(*look, dotted=True) for name, look in MIXERS.items()}
MARKED = ("unshared", "set", "frozen", "scrambled")  # variants and arguments that make a family's member another idea


def _star(spikes: int, outer: float, inner: float) -> list[tuple[float, float]]:
    radii, count = (outer, inner), 2 * spikes
    turns = [(radii[i % 2], math.pi * (2 * i / count - 0.5)) for i in range(count)]
    return [(round(r * math.cos(turn), 2), round(r * math.sin(turn), 2)) for r, turn in turns]


_PLUS = [(-1.8, -5.2), (1.8, -5.2), (1.8, -1.8), (5.2, -1.8), (5.2, 1.8), (1.8, 1.8)]
_PLUS += [(-x, -y) for x, y in _PLUS]
SHAPES = {  # corners about 0, y down; of equal weight to the eye
    "circle": [
        (round(4.6 * math.cos(i * math.pi / 16), 2), round(4.6 * math.sin(i * math.pi / 16), 2)) for i in range(32)
    ],
    "square": [(-4.1, -4.1), (4.1, -4.1), (4.1, 4.1), (-4.1, 4.1)],
    "diamond": [(0, -5.8), (5.8, 0), (0, 5.8), (-5.8, 0)],
    "up": [(0, -5.2), (5.3, 4), (-5.3, 4)],
    "down": [(0, 5.2), (5.3, -4), (-5.3, -4)],
    "plus": _PLUS,
    "cross": [(round((x - y) / 2**0.5, 2), round((x + y) / 2**0.5, 2)) for x, y in _PLUS],
    "star": _star(5, 6.2, 2.7),
    "hourglass": [(-4.6, -5), (4.6, -5), (-4.6, 5), (4.6, 5)],
}


def name_of(model: str, arguments: Mapping[str, Any]) -> str:
    """What a model is in the table: its family, with a variant that is another idea; of the lattice its mixer."""
    if model.startswith("timm/"):
        return "timm"
    family, *variant = model.split("_")
    marks = [word for word in MARKED if word in variant or arguments.get(word) is True]
    if family == "lattice":
        return f"lattice {marks[0] if marks else arguments.get('mixer') or archs.defaults(model)['mixer']}"
    return " ".join([family, *marks[:1]])


def looks(names: Iterable[str]) -> dict[str, Look]:
    """The look of each name; of strangers, sorted, one in ink that no other of them has, as long as there are some."""
    names = list(dict.fromkeys(names))
    free = [Look("reference", shape, dotted) for dotted in (False, True) for shape in SHAPES if shape != "hourglass"]
    free = [look for look in free if look not in TABLE.values()]
    strangers = sorted(name for name in names if name not in TABLE)
    given = {name: free[place % len(free)] for place, name in enumerate(strangers)}
    return {name: TABLE.get(name) or given[name] for name in names}


def symbols() -> str:
    """Every shape as an SVG symbol to be used by its name, and by `dotted-NAME`."""
    parts = []
    for name, corners in SHAPES.items():
        path = "M" + "L".join(f"{x:g},{y:g}" for x, y in corners) + "z"
        parts.append(f'<path id="{name}" d="{path}"/>')
        parts.append(f'<g id="dotted-{name}"><path d="{path}"/><circle class="dot" r="1.7"/></g>')
    return "".join(parts)


def css(dark: bool) -> str:
    """The hues as declarations of CSS variables."""
    return " ".join(f"--{name}: {pair[dark]};" for name, pair in (KINDS | VERDICTS).items())
