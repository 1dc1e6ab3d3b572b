"""Augmentation policies by their names in timm: RandAugment, AutoAugment, TrivialAugment.

`parse` says what a name means and refuses a misspelt one; it imports nothing heavy. `table` writes a policy as rows of
numbers, from which `augment.choose` draws. Operations, magnitudes and probabilities are those of timm's
auto_augment.py (RandAugment, AutoAugment) and torchvision's autoaugment.py (TrivialAugment, CIFAR-10's policy).

Deviations: always bilinear (timm draws bilinear or bicubic, torchvision takes the nearest) and always filled with the
mean colour (torchvision: black); keeping 0 bits gives black, which Pillow 13 refuses to do.
"""

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from engine.fields.sizes import Size, pair

if TYPE_CHECKING:
    import numpy as np

FORMS = (
    "rand-m9-n2-mstd0.5-inc1 (timm's RandAugment; also p0.5 mmax10 tweights), trivial or ta_wide (TrivialAugment), "
    "autoaug, original, originalr, v0, v0r (timm's AutoAugment; each also -mstd0.5), cifar10 (AutoAugment's for CIFAR)"
)
_KEYS = {"m": r"\d+", "n": r"[1-9]|1\d", "p": r"[01]|0?\.\d+|1\.0", "mstd": r"\d+\.?\d*|\.\d+", "mmax": r"\d+"}
_RAND_KEYS = {**_KEYS, "inc": r"[01]", "t": r"weights"}
_AUTO = ("autoaug", "original", "originalr", "v0", "v0r")
_TRIVIAL = ("trivial", "ta_wide")
BINS = -1.0  # in place of a deviation: TrivialAugment's 31 equally likely magnitudes


@dataclass(frozen=True)
class Policy:
    """What a name says. `std` is that of the magnitude (0 fixed, inf uniform up to it, BINS)."""

    kind: str
    magnitude: float = 10.0
    layers: int = 2
    prob: float = 0.5
    std: float = 0.0
    magnitude_max: float = 10.0
    increasing: bool = False
    weighted: bool = False


class Argument(NamedTuple):
    """argument = base +- whole(slope * level), clipped to low..high, with the level from 0 to 1."""

    op: str
    base: float = 0.0
    slope: float = 0.0
    signed: bool = False
    whole: int = 0
    """0 as it is, 1 cut to an integer, 2 rounded to one."""
    low: float = -math.inf
    high: float = math.inf


def parse(aa: str) -> Policy:
    """The policy of a name. Raises ValueError with the valid forms."""
    kind, *parts = aa.split("-")
    if kind in (*_TRIVIAL, "cifar10") and not parts:
        return Policy(kind, layers=1, std=BINS) if kind in _TRIVIAL else Policy(kind)
    keys = _RAND_KEYS if kind == "rand" else {"mstd": _KEYS["mstd"]} if kind in _AUTO else None
    if keys is None:
        raise ValueError(f"unknown augmentation '{aa}'; valid: {FORMS}")
    found: dict[str, str] = {}
    for part in parts:
        key = next((key for key, value in keys.items() if re.fullmatch(f"{key}(?:{value})", part)), None)
        if key is None or key in found:
            raise ValueError(f"'{part}' in augmentation '{aa}' is unknown or given twice; valid: {FORMS}")
        found[key] = part[len(key) :]
    std = float(found.get("mstd", 0))
    return Policy(
        kind,
        magnitude=float(found.get("m", 10)),
        layers=int(found.get("n", 2)),
        prob=float(found.get("p", 0.5)),
        std=math.inf if kind == "rand" and std > 100 else std,
        magnitude_max=float(found.get("mmax", 10)) or 10.0,
        increasing=found.get("inc") == "1",
        weighted="t" in found,
    )


def canonical(aa: str) -> str:
    """The one spelling of a policy: parts in a fixed order, and none that says what holds anyway. Raises as `parse`.

    rand-inc1-m9-n2 is rand-m9-inc1; ta_wide is trivial and autoaug is original.
    """
    policy, own = parse(aa), Policy("")
    kind = {"ta_wide": "trivial", "autoaug": "original"}.get(policy.kind, policy.kind)
    if kind in (*_TRIVIAL, "cifar10"):
        return kind
    numbers = {
        "m": (policy.magnitude, own.magnitude),
        "n": (policy.layers, own.layers),
        "p": (policy.prob, own.prob),
        "mstd": (min(policy.std, 101), own.std),
        "mmax": (policy.magnitude_max, own.magnitude_max),
    }
    parts = [
        key + (f"{value:.9f}".rstrip("0").rstrip(".")) for key, (value, usual) in numbers.items() if value != usual
    ]
    return "-".join([kind, *parts, *["inc1"] * policy.increasing, *["tweights"] * policy.weighted])


def table(policy: Policy, img_size: Size) -> "tuple[np.ndarray, np.ndarray]":
    """Rows (R, L, 9) of op, probability, magnitude 0..10, base, slope, signed, whole, low, high; weights (R,) or (0,).

    One row is drawn per layer, or, where L > 1, one for all layers. Weights are for a draw without replacement.
    """
    import numpy as np  # not at the top: --help names the policies and needs no arrays

    weights = np.zeros(0)
    if policy.kind == "rand":
        from timm.data import auto_augment as timm_policies

        names = timm_policies.rand_augment_choices("weights" if policy.weighted else "", policy.increasing)
        if policy.weighted:
            weights = np.array([*names.values()], float)
            if policy.layers > len(weights):
                raise ValueError(f"n{policy.layers} operations cannot be drawn from {len(weights)} without replacement")
        arguments = _timm(img_size)
        rows = [[(arguments[name], policy.prob, policy.magnitude)] for name in names]
    elif policy.kind in _TRIVIAL:
        rows = [[(argument, 1.0, 10.0)] for argument in _TRIVIAL_WIDE]
    elif policy.kind == "cifar10":
        from torchvision.transforms.autoaugment import AutoAugment, AutoAugmentPolicy

        arguments = _torchvision(img_size)
        policies = AutoAugment(AutoAugmentPolicy.CIFAR10).policies
        rows = [[(arguments[name], prob, 10 * (level or 0) / 9) for name, prob, level in row] for row in policies]
    else:
        from timm.data import auto_augment as timm_policies

        arguments = _timm(img_size)
        policies = timm_policies.auto_augment_policy("original" if policy.kind == "autoaug" else policy.kind)
        rows = [[(arguments[op.name], op.prob, op.magnitude) for op in row] for row in policies]
    from engine.data.augment.photometric import OPS

    numbers = [[[OPS.index(argument.op), prob, level, *argument[1:]] for argument, prob, level in row] for row in rows]
    return np.array(numbers, float), weights


def _timm(img_size: Size) -> dict[str, Argument]:
    """timm's LEVEL_TO_ARG. Where a level of 10 or more would pass the end of a range, timm's own limits."""
    height, width = pair(img_size)
    enhance = {
        name + suffix: Argument(name, *numbers)
        for name in ("Color", "Contrast", "Brightness", "Sharpness")
        for suffix, numbers in (("", (0.1, 1.8)), ("Increasing", (1.0, 0.9, True, 0, 0.1)))
    }
    return {
        **enhance,
        **{name: Argument(name) for name in ("AutoContrast", "Equalize", "Invert")},
        "Rotate": Argument("Rotate", 0, 30, True),
        "Posterize": Argument("Posterize", 0, 4, False, 1),
        "PosterizeIncreasing": Argument("Posterize", 4, -4, False, 1, 0),
        "PosterizeOriginal": Argument("Posterize", 4, 4, False, 1),
        "Solarize": Argument("Solarize", 0, 256, False, 1, 0, 256),
        "SolarizeIncreasing": Argument("Solarize", 256, -256, False, 1, 0, 256),
        "SolarizeAdd": Argument("SolarizeAdd", 0, 110, False, 1, 0, 128),
        "ShearX": Argument("ShearX", 0, 0.3, True),
        "ShearY": Argument("ShearY", 0, 0.3, True),
        "TranslateXRel": Argument("TranslateX", 0, 0.45 * width, True),
        "TranslateYRel": Argument("TranslateY", 0, 0.45 * height, True),
    }


def _torchvision(img_size: Size) -> dict[str, Argument]:
    """The space of torchvision's AutoAugment; its moves are in whole pixels."""
    height, width = pair(img_size)
    return {
        **{name: Argument(name) for name in ("AutoContrast", "Equalize", "Invert")},
        **{name: Argument(name, 1, 0.9, True) for name in ("Brightness", "Color", "Contrast", "Sharpness")},
        "Rotate": Argument("Rotate", 0, 30, True),
        "Posterize": Argument("Posterize", 8, -4, False, 2),
        "Solarize": Argument("Solarize", 255, -255),
        "ShearX": Argument("ShearX", 0, 0.3, True),
        "ShearY": Argument("ShearY", 0, 0.3, True),
        "TranslateX": Argument("TranslateX", 0, 150 / 331 * width, True, 1),
        "TranslateY": Argument("TranslateY", 0, 150 / 331 * height, True, 1),
    }


_TRIVIAL_WIDE = (
    Argument("Identity"),
    Argument("ShearX", 0, 0.99, True),
    Argument("ShearY", 0, 0.99, True),
    Argument("TranslateX", 0, 32, True, 1),
    Argument("TranslateY", 0, 32, True, 1),
    Argument("Rotate", 0, 135, True),
    *(Argument(name, 1, 0.99, True) for name in ("Brightness", "Color", "Contrast", "Sharpness")),
    Argument("Posterize", 8, -6, False, 2),
    Argument("Solarize", 255, -255),
    Argument("AutoContrast"),
    Argument("Equalize"),
)
