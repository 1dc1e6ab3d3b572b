"""What two models differ in, from their sources, without importing torch.

Two models of the lattice differ in axes of their mixers and in arguments of the frame. Published families differ in
their frames, which nothing here takes apart: that is said first, then claims (`Bias`) and arguments that both have.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from archs.ingredients import declared
from archs.ingredients.axes import AXES, DASH
from archs.parts import family as protocol
from archs.parts import zoo

Model = str | tuple[str, Mapping[str, Any]]
ABSENT = "-"


@dataclass(frozen=True)
class Difference:
    """One thing in which two models differ: an axis, an argument, or the frame; and its two values."""

    what: str
    a: Any
    b: Any

    def __str__(self) -> str:
        return f"{self.what}: {self.a} -> {self.b}"


def difference(a: Model, b: Model) -> list[Difference]:
    """What differs between two models, each a name or a name with arguments of `create`; [] if nothing does.

    Raises ValueError for an unknown name or argument.
    """
    (name_a, given_a), (name_b, given_b) = (_full(model) for model in (a, b))
    family_a, family_b = (_family(name) for name in (name_a, name_b))
    if family_a != family_b:
        found = [Difference("frame", _frame(family_a, given_a), _frame(family_b, given_b))]
        for ours, theirs in ((_claims(name_a), _claims(name_b)), (given_a, given_b)):
            found += _differing(ours, theirs, shared=True)
        return found
    if not _has_mixer(family_a):
        return [*_differing(_claims(name_a), _claims(name_b)), *_differing(given_a, given_b)]
    inside = {"mixer", *declared.of_mixers()}
    rest_a, rest_b = ({key: value for key, value in given.items() if key not in inside} for given in (given_a, given_b))
    return _of_mixers(given_a, given_b) + list(_differing(rest_a, rest_b))


def _of_mixers(given_a: Mapping[str, Any], given_b: Mapping[str, Any]) -> list[Difference]:
    """Axes in which two mixers differ, and the strictness of dials; the mixer where nothing else tells them apart.

    Beside a dial its own two ends count as dials, so that all that differs is how strictly the window is held; any
    other mixer is told by the axes, on which a dial below its strict end is a full matrix, and by having none.
    """
    names = (given_a["mixer"], given_b["mixer"])
    as_dials = _as_dials(given_a, given_b)
    told = [declared.read(given["mixer"]) for given in (given_a, given_b)]
    if as_dials:
        places_a, places_b = (declared.read("dial").held(given) for given in as_dials)
        strictness = [_strictness(given) for given in as_dials]
    else:
        places_a, places_b = (own.at(given) for own, given in zip(told, (given_a, given_b), strict=True))
        soft = [declared.soft(own, given) for own, given in zip(told, (given_a, given_b), strict=True)]
        strictness = [_strictness(g) if s else ABSENT for g, s in zip((given_a, given_b), soft, strict=True)]
    found = [
        Difference(axis, places_a[axis], places_b[axis])
        for axis in AXES
        if places_a[axis] != places_b[axis] and DASH not in (places_a[axis], places_b[axis])
    ]
    if strictness[0] != strictness[1]:
        found.append(Difference("strictness", *strictness))
    strict = as_dials and strictness == ["1", "1"]
    if names[0] != names[1] and not found and not strict:
        found = [Difference("mixer", *names)]  # another form of the same constraints, such as GFNet's of circulant_c
    return found


def _as_dials(given_a: Mapping[str, Any], given_b: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Both as arguments of `dial`, if one is a dial and the other one or an end of it; else []."""
    if "dial" not in (given_a["mixer"], given_b["mixer"]):
        return []
    found = []
    for given, other in ((given_a, given_b), (given_b, given_a)):
        mixer = given["mixer"]
        if mixer not in ("dial", "kernel", "depthwise", "dense", "dense_c"):
            return []
        own = {} if mixer == "dial" else {"strictness": 1 if mixer in ("kernel", "depthwise") else 0, "gated": False}
        own |= {"groups": given["dim"]} if mixer in ("depthwise", "dense_c") else {}
        # A full matrix has no window, border or geometry that could differ from the dial's.
        free = ("kernel_size", "wrap", "scrambled") if mixer in ("dense", "dense_c") else ()
        found.append({**given, **{key: other[key] for key in free}, **own})
    return found


def _strictness(given: Mapping[str, Any]) -> str:
    return f"gate({given['strictness']:g})" if given["gated"] else f"{given['strictness']:g}"


def _full(model: Model) -> tuple[str, dict[str, Any]]:
    """Name and all arguments of a model."""
    name, overrides = (model, {}) if isinstance(model, str) else model
    if name.startswith("timm/"):
        return name, dict(overrides)
    return name, {**zoo.defaults(name), **zoo.arguments(name, **overrides)}


def _family(name: str) -> str:
    return name if name.startswith("timm/") else name.partition("_")[0]


def _has_mixer(family: str) -> bool:
    return not family.startswith("timm/") and "MIXER" in protocol.read(family).tables


def _frame(family: str, given: Mapping[str, Any]) -> str:
    return f"{family} {given['frame']}" if _has_mixer(family) else family


def _claims(name: str) -> dict[str, Any]:
    """What a published family says it is forced to be; nothing of timm's models, nor of a mixer's, which has axes."""
    family, _, variant = name.partition("_")
    if name.startswith("timm/") or _has_mixer(family):
        return {}
    return asdict(protocol.read(family).bias(variant))


def _differing(a: Mapping[str, Any], b: Mapping[str, Any], shared: bool = False) -> Iterator[Difference]:
    """Keys whose values differ, those that only one has too unless only `shared` ones count."""
    for key in dict.fromkeys((*a, *b)):
        if shared and not (key in a and key in b):
            continue
        if _plain(a.get(key, ABSENT)) != _plain(b.get(key, ABSENT)):
            yield Difference(key, a.get(key, ABSENT), b.get(key, ABSENT))


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
