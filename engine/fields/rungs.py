"""Rungs and their conditions: which runs may be pooled, and which rung a name means. Needs neither pandas nor torch.

A rung is a model with its arguments (Run.rung); its seeds are pooled. Where one rung was trained in several ways, what
differs is its condition (`lr=0.004`), and tables call it by both: `convmixer_nano lr=0.004`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from engine.errors import Refusal
from engine.run import Run, unknown

# Weights to start from are told apart by what they are, not by where they lie.
NO_RECIPE = ("scheme", "model", "model_kwargs", "seed", "initial_checkpoint")
RECIPE = [field for field in Run.model_fields if field not in NO_RECIPE]
ORIGIN = "initial_identity"
DATA = ("dataset", "train_samples", "holdout", "permute")  # accuracies on different data are never compared

MANY = 5000  # runs, of which all fields take longer to compare than anybody waits for a table


def text(value: Any) -> str:
    """A field's value as tables print it; pandas makes a None NaN where others of its column are numbers or text."""
    if value is None or value != value:
        return "default"
    return f"{value:g}" if isinstance(value, float) else str(value)


def conditions(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Per run, the fields besides model, arguments and seed that tell apart what must not be pooled; "" for none.

    Args:
        rows: `rung`, the fields of RECIPE and, where there is one, `signature`. A field is named where it differs
            within a rung, or, of DATA, at all; one that follows from those already named (batch size and learning rate
            in step) adds nothing. Seeds of one run among the rows are one thing to start from.
    """
    told = [{field: text(row[field]) for field in RECIPE} for row in rows]
    _pool_origins(rows, told)
    own = _by_seed(rows)
    told = [words | ({ORIGIN: "by seed"} if words[ORIGIN] in own else {}) for words in told]
    named: list[str] = []
    for field in sorted(RECIPE, key=lambda field: field not in DATA):
        within: dict[str, set[str]] = {}
        for row, words in zip(rows, told, strict=True):
            within.setdefault("" if field in DATA else row["rung"], set()).add(words[field])
        if all(len(values) < 2 for values in within.values()):
            continue
        follows: dict[tuple[str, ...], set[str]] = {}
        for words in told:
            follows.setdefault(tuple(words[other] for other in named), set()).add(words[field])
        if not named or any(len(values) > 1 for values in follows.values()):
            named.append(field)
    return [" ".join(f"{field}={words[field]}" for field in named) for words in told]


def _by_seed(rows: Sequence[Mapping[str, Any]]) -> set[str]:
    """Runs of another study that these start from, one for each seed; none where there is no rule.

    They are no condition but what the seed stands for.
    """
    here = {f"run:{row.get('signature')}" for row in rows}
    pairs = {(str(row.get("seed")), str(row[ORIGIN])) for row in rows if str(row[ORIGIN]).startswith("run:")}
    pairs = {(seed, origin) for seed, origin in pairs if origin not in here}
    seeds, origins = ({pair[i] for pair in pairs} for i in (0, 1))
    return origins if len(seeds) == len(origins) == len(pairs) > 1 else set()


def _pool_origins(rows: Sequence[Mapping[str, Any]], told: Sequence[dict[str, str]]) -> None:
    """Call runs that start from seeds of one run, which are among the rows, as starting from the first of these."""
    place = {row["signature"]: i for i, row in enumerate(rows) if isinstance(row.get("signature"), str)}
    first: dict[tuple[str, ...], str] = {}
    settled: set[int] = set()

    def settle(i: int) -> None:
        if i in settled:
            return
        settled.add(i)
        kind, _, origin = told[i][ORIGIN].partition(":")
        if kind == "run" and origin in place:
            settle(source := place[origin])
            alike = (rows[source]["rung"], *told[source].values())
            told[i][ORIGIN] = f"run:{first.setdefault(alike, origin)}"

    for i in range(len(rows)):
        settle(i)


def names(runs: Sequence[Run]) -> dict[str, str]:
    """By signature what a table calls a run, without its seed: its rung and, where that was trained in several ways,
    its condition. Of very many runs the rung alone."""
    if len(runs) > MANY:
        return {run.signature: run.rung for run in runs}
    rows = [{**run.record(), "rung": run.rung, "signature": run.signature} for run in runs]
    ways = conditions(rows)
    return {run.signature: f"{run.rung} {way}".strip() for run, way in zip(runs, ways, strict=True)}


def resolve(weights: Mapping[str, float], rungs: Mapping[str, tuple[str, str]]) -> list[tuple[str, dict[str, float]]]:
    """The comparisons that a contrast means: per comparison its condition and the weights by rung with its condition.

    One, whose condition is "", where each name means one rung. Where no name says its condition and all its rungs were
    trained under the same several ones, one for each of these.

    Args:
        weights: by rung, with its condition or without.
        rungs: by rung with its condition, as tables print it: the rung without, and the condition.

    Raises:
        Refusal: there is no such rung, two names mean one, or a name means several and no common condition decides.
    """
    ways: dict[str, dict[str, str]] = {}  # per name, by condition, the rungs that it may mean
    for name in weights:
        found = {condition: rung for rung, (own, condition) in rungs.items() if own == name}
        ways[name] = {"": name} if name in rungs else found
        if not ways[name]:
            bare = list(dict.fromkeys(own for own, _ in rungs.values()))
            raise Refusal(unknown("rung", str(name), list(rungs) if " " in str(name) else bare))
    if all(len(found) == 1 for found in ways.values()):
        meant = [("", {name: next(iter(found.values())) for name, found in ways.items()})]
    elif len({frozenset(found) for found in ways.values()}) == 1:
        meant = [(way, {name: found[way] for name, found in ways.items()}) for way in next(iter(ways.values()))]
    else:
        name, found = next((name, found) for name, found in ways.items() if len(found) > 1)
        listed = ", ".join(map(repr, found.values()))
        raise Refusal(f"rung {name!r} was trained in {len(found)} ways; name the one that is meant: {listed}")
    for _, names in meant:
        if len(set(names.values())) < len(names):
            raise Refusal(f"two of its names mean the same rung: {', '.join(map(repr, names))}")
    return [(way, {names[name]: weight for name, weight in weights.items()}) for way, names in meant]
