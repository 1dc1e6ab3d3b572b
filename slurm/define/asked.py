"""What a sweep's file asks of its runs, CONTRASTS, FAMILIES, BASELINE, LABELS: checked before anything is trained."""

import math
from collections.abc import Collection
from typing import Any

from engine.errors import Refusal
from engine.fields import claims, rungs
from engine.run import Run, unknown
from slurm.define.sweep import Sweep


def contrasts(given: Any, runs: Collection[Run]) -> dict[str, dict[str, float]]:
    """CONTRASTS, checked. Raises Refusal for a rung that the sweep lacks or has in several ways, and for weights that
    compare nothing."""
    if not isinstance(given, dict) or not all(isinstance(weights, dict) for weights in given.values()):
        raise Refusal("CONTRASTS must map names to {rung: weight}")
    known = _rungs(runs) if given else {}
    for name, weights in given.items():
        _weights(weights, known, f"CONTRASTS {name!r}")
    return {str(name): {rung: float(weight) for rung, weight in weights.items()} for name, weights in given.items()}


def _weights(weights: Any, known: dict[str, tuple[str, str]], where: str) -> list[tuple[str, dict[str, float]]]:
    """What the rungs mean, of `rungs.resolve`, for weights that compare something."""
    try:
        meant = rungs.resolve(weights, known)
    except Refusal as error:
        raise Refusal(f"{where}: {error}") from None
    numbers = [weight for weight in weights.values() if _is_weight(weight)]
    if not weights or len(numbers) < len(weights) or abs(sum(numbers)) > 1e-9:
        raise Refusal(f"{where}: the weights must have the sum 0 and none be 0, as in {{better: 1, worse: -1}}")
    return meant


def families(given: Any, runs: Collection[Run]) -> dict[str, claims.Family]:
    """FAMILIES, checked. Raises Refusal as `contrasts`, and for a contrast that is not what it claims to be."""
    if not isinstance(given, dict) or not all(isinstance(family, claims.Family) for family in given.values()):
        raise Refusal("FAMILIES must map names to engine.fields.claims.Family")
    known, first = (_rungs(runs), examples(runs)) if given else ({}, {})
    made = {}
    for name, family in given.items():
        if not _is_weight(family.margin) or family.margin < 0 or not family.contrasts:
            raise Refusal(f"FAMILIES {name!r} needs contrasts, and a margin above 0")
        checked = {}
        for label, contrast in family.contrasts.items():
            where = f"FAMILIES {name!r}, {label!r}"
            if len(meant := _weights(contrast.weights, known, where)) > 1:
                ways = ", ".join(way for way, _ in meant)
                raise Refusal(f"{where}: its rungs were trained in {len(meant)} ways; name one with each rung: {ways}")
            checked[str(label)] = claims.Contrast(meant[0][1], tuple(contrast.of))
            try:
                claims.check(checked[str(label)], first)
            except Refusal as error:
                raise Refusal(f"{where}: {error}") from None
        made[str(name)] = claims.Family(checked, float(family.margin))
    return made


def stopping(given: Any) -> tuple[tuple[float, str], ...]:
    """STOPPING, checked: pairs of a deviation and of what follows up to it, the last one without an end."""
    pairs = tuple(tuple(pair) for pair in given)
    limits = [pair[0] for pair in pairs]
    if pairs and not (limits == sorted(limits) and limits[-1] == math.inf and all(len(pair) == 2 for pair in pairs)):
        raise Refusal(
            f"STOPPING must rise to math.inf, as in ((0.4, 'enough'), (math.inf, 'more')), and is {short(given)}"
        )
    return pairs


def _is_weight(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value != 0


def baseline(given: Any, runs: Collection[Run]) -> tuple[str, ...]:
    """BASELINE, checked. Raises Refusal for a rung that the sweep lacks."""
    names = (given,) if isinstance(given, str) else given
    if not isinstance(names, tuple | list) or not all(isinstance(name, str) for name in names):
        raise Refusal(f"BASELINE must be the name of a rung, or several, and is {short(given)}")
    known = _rungs(runs) if names else {}
    for name in names:
        if name not in known and name not in {own for own, _ in known.values()}:
            raise Refusal(f"BASELINE: {unknown('rung', name, list(known))}")
    return tuple(names)


def labels(given: Any, runs: Collection[Run]) -> dict[str, str]:
    """LABELS, checked. Raises Refusal for a rung that the sweep lacks, and for two rungs of one label."""
    if not isinstance(given, dict) or not all(isinstance(text, str) and text.strip() for text in given.values()):
        raise Refusal(f"LABELS must map rungs to what they are called, and is {short(given)}")
    known = _rungs(runs) if given else {}
    for name in given:
        if name not in known and name not in {own for own, _ in known.values()}:
            raise Refusal(f"LABELS: {unknown('rung', str(name), list(known))}")
    twice = [text for text in given.values() if list(given.values()).count(text) > 1]
    if twice:
        raise Refusal(f"LABELS: two rungs are called {twice[0]!r}")
    return {str(name): text for name, text in given.items()}


def examples(runs: Collection[Run]) -> dict[str, dict[str, Any]]:
    """By rung as tables print it, the fields of the first of its runs."""
    rows = [{**run.record(), "rung": run.rung, "signature": run.signature} for run in runs]
    found: dict[str, dict[str, Any]] = {}
    for row, condition in zip(rows, rungs.conditions(rows), strict=True):
        found.setdefault(f"{row['rung']} {condition}".strip(), row | {"condition": condition})
    return found


def short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _rungs(runs: Collection[Run]) -> dict[str, tuple[str, str]]:
    """By rung as tables print it: the rung without its condition, and the condition."""
    return {rung: (row["rung"], row["condition"]) for rung, row in examples(runs).items()}


def table(sweep: Sweep) -> Any:
    """Each contrast with what differs between its two sides, from - to +; None where the sweep asks for none."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    known = _rungs(sweep.runs)
    plain = [
        (f"{name} ({way})" if way else name, "", claims.Contrast(weights))
        for name, given in sweep.contrasts.items()
        for way, weights in rungs.resolve(given, known)
    ]
    of_families = [
        (name, f"{label}, ± {family.margin:g}", contrast)
        for label, family in sweep.families.items()
        for name, contrast in family.contrasts.items()
    ]
    if not plain and not of_families:
        return None
    shown = Table(title="what it was made to compare", title_justify="left", box=SIMPLE_HEAD)
    for heading in ("contrast", "family, margin", "claims", "differs in"):
        shown.add_column(heading, overflow="fold")
    first = examples(sweep.runs)
    for name, label, contrast in (*plain, *of_families):
        cells = (name, label, " x ".join(contrast.of) or "-", claims.told(contrast, first))
        shown.add_row(*map(Text, cells))
    return shown
