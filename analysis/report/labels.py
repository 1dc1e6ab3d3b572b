"""What each rung is called on a page: its family, and only as many words more as tell it from its kin.

Words that all rungs share are dropped; LABELS of the sweep win. The whole name is a tooltip and stands in a table.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from engine.errors import Refusal
from engine.run import unknown

SAID = {"True": "{key}", "False": "no {key}"}  # of arguments that are switches


class Named(NamedTuple):
    """A rung with its condition, as tables print it; without; and what draws it (`looks.name_of`)."""

    rung: str
    name: str
    look: str


def labels(rungs: Iterable[Named], given: Mapping[str, str]) -> dict[str, str]:
    """A label of its own for each rung, by the rung with its condition.

    Args:
        given: LABELS, by a rung with its condition or without.

    Raises:
        Refusal: a label of no rung, or one that two rungs have.
    """
    rungs = list(rungs)
    here = {key for one in rungs for key in (one.rung, one.name)}
    for key in given:
        if key not in here:
            raise Refusal(f"LABELS: {unknown('rung', key, sorted(here))}")
    found = {one.rung: given.get(one.rung, given.get(one.name, "")) for one in rungs}
    words = {one.rung: _words(one) for one in rungs}
    shared = set.intersection(*map(set, words.values())) if len(rungs) > 1 else set()
    heads: dict[str, list[str]] = {}
    for one in rungs:
        if not found[one.rung]:
            heads.setdefault(_head(one), []).append(one.rung)
    for head, kin in heads.items():
        common = set.intersection(*(set(words[rung]) for rung in kin)) | shared
        own = {rung: tuple(word for word in words[rung] if word not in common) for rung in kin}
        for rung in kin:
            found[rung] = " ".join([head, *map(_said, own[rung])])
    twice = {text for text in found.values() if list(found.values()).count(text) > 1}
    for one in rungs:
        if found[one.rung] in twice:
            if one.rung in given or one.name in given:
                raise Refusal(f"LABELS: two rungs are called {found[one.rung]!r}; {one.rung} is one of them")
            found[one.rung] = one.rung
    return found


def _head(one: Named) -> str:
    """The word that a reader knows it by."""
    if one.look == "timm":
        return one.name.partition(" ")[0].removeprefix("timm/")
    return one.look.removeprefix("lattice ")


def _words(one: Named) -> list[str]:
    """All but the head: parts of the variant, arguments, condition."""
    model, *others = one.rung.split(" ")
    variant = [] if model.startswith("timm/") else model.split("_")[1:]
    head = set(one.look.split(" "))
    told = {f"mixer={word}" for word in head} | {f"{word}=True" for word in head} | head
    return [word for word in (*variant, *others) if word not in told]


def _said(word: str) -> str:
    key, _, value = word.partition("=")
    return SAID.get(value, word).format(key=key)
