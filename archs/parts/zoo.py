"""The zoo. A name is an address: `mixer_s16` is `VARIANTS["s16"]` of `archs/mixer.py`; `timm/NAME` is timm's model.

A family is one file (archs/parts/family.py says what it holds); there is no registry. Names and arguments are checked
against the source, without importing torch.
"""

import difflib
import fnmatch
import functools
import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from archs.ingredients import declared
from archs.parts import family as protocol
from archs.parts import sizes

if TYPE_CHECKING:
    from torch import nn


def families() -> list[str]:
    """Family names, one per file, sorted."""
    return protocol.names()


def list_archs(pattern: str = "*") -> list[str]:
    """Names `family_variant` that match a shell pattern, by family, then in the order of its table."""
    names = [f"{family}_{variant}" for family in families() for variant in variants(family)]
    return fnmatch.filter(names, pattern)


def variants(family: str) -> dict[str, dict[str, Any]]:
    """The family's VARIANTS table: variant -> arguments of `build`."""
    return protocol.read(family).tables["VARIANTS"]


def arguments(name: str, **overrides: Any) -> dict[str, Any]:
    """What `build` gets for `name`.

    Raises ValueError for an unknown name or argument, naming the nearest, and for a size that makes no sense.
    """
    family, _, variant = name.partition("_")
    known = variants(family) if _is_family(family) else {}
    if variant not in known:
        names = list_archs()
        close = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names[:3]
        raise ValueError(f"unknown model '{name}'; close: {', '.join(close)}; all: python scripts/list_models.py")
    accepted = protocol.read(family).arguments
    for key in overrides:
        if key not in accepted:
            close = difflib.get_close_matches(key, accepted, n=1, cutoff=0.3)
            hint = f"did you mean '{close[0]}'? " if close else ""
            raise ValueError(f"{name} has no argument '{key}'; {hint}it takes: {', '.join(sorted(accepted))}")
    given = {**known[variant], **fitted(name, overrides)}
    if mixer := protocol.read(family).tables.get("MIXER"):
        _refuse(name, protocol.read(family).defaults | given, mixer, overrides)
    return given


def _refuse(name: str, given: Mapping[str, Any], argument: str, overrides: Mapping[str, Any]) -> None:
    """What the token mixer that `argument` names does not take."""
    try:
        declared.refuse(given[argument], overrides)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def symmetry(name: str, **overrides: Any) -> tuple[str, ...]:
    """Groups of relabelings to which the model's training is declared to be blind; without torch."""
    family, _, variant = name.partition("_")
    source = protocol.read(family)
    if overrides.get("start", "default") != "default":  # of a flat net: in another order a start that is never drawn
        return ()
    if "MIXER" in source.tables:
        return declared.groups({**source.defaults, **arguments(name, **overrides)})
    if (instead := overrides.get("replacement")) in declared.names():
        own = {**protocol.read("lattice").defaults, **defaults(name), "mixer": instead}
        return tuple(group for group in source.symmetry(variant) if group in declared.groups(own))
    return source.symmetry(variant)


def fitted(name: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides in the form that `build` wants, so that 0 and [0] are one value; those of timm's models as they are.

    Raises ValueError for a size that makes no sense.
    """
    family = name.partition("_")[0]
    try:
        return sizes.fit(family, overrides) if overrides and _is_family(family) else dict(overrides)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def defaults(name: str) -> dict[str, Any]:
    """All that `build` takes for `name` where nothing is given: the literal defaults, the variant's arguments above."""
    given = arguments(name)
    return {**protocol.read(name.partition("_")[0]).defaults, **given}


def create(
    name: str,
    *,
    img_size: int | tuple[int, int] | None = None,
    num_classes: int | None = None,
    in_chans: int | None = None,
    **overrides: Any,
) -> "nn.Module":
    """Build a model with fresh weights.

    Args:
        name: `family_variant`, or `timm/NAME` for a model of timm.
        img_size: pixels; None is the variant's own, likewise `num_classes` (0: no head, as timm has it) and `in_chans`.
        overrides: arguments of the family's `build`, or of `timm.create_model`.

    Raises:
        ValueError: unknown name or argument (the nearest valid one is named), or an image the patches do not tile.
    """
    given = {"img_size": img_size, "num_classes": num_classes, "in_chans": in_chans}
    given = {key: value for key, value in given.items() if value is not None}
    if name.startswith("timm/"):
        return _create_timm(name.removeprefix("timm/"), given, overrides)
    full = {**defaults(name), **arguments(name, **given, **overrides)}
    headless = full["num_classes"] == 0
    try:
        family = importlib.import_module(f"archs.{name.partition('_')[0]}")
        model = family.build(**{**full, **({"num_classes": 1} if headless else {})})
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    if headless:
        model.reset_classifier(0)
    from archs.parts import config  # not at the top: it needs torch

    model.default_cfg = model.pretrained_cfg = config.config(full)
    model.input_size = model.default_cfg["input_size"]
    return model


def _create_timm(name: str, given: dict[str, Any], overrides: dict[str, Any]) -> "nn.Module":
    import timm

    if "drop_path" in overrides:
        overrides = {**overrides, "drop_path_rate": overrides["drop_path"]}
        del overrides["drop_path"]
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.4)
        raise ValueError(f"timm has no model '{name}'; close: {', '.join('timm/' + near for near in close) or 'none'}")
    try:
        return timm.create_model(name, **given, **overrides)
    except TypeError as error:
        # A fully convolutional model of timm takes any image and has no such argument.
        if "img_size" not in str(error):
            raise ValueError(f"timm/{name}: {error}") from error
    given.pop("img_size", None)
    try:
        return timm.create_model(name, **given, **overrides)
    except TypeError as error:
        raise ValueError(f"timm/{name}: {error}") from error


@functools.cache
def _is_family(name: str) -> bool:
    """Remembered: a sweep of 10,000 runs asks 20,000 times, and each look at the folder costs 0.1 ms."""
    return name in families()
