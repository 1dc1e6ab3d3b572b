"""The softness ladder: what each rung is forced to be, as its family declares and the tests prove, and what it earns.

The declarations are read from the source of archs/FAMILY.py, because importing a family imports torch.
"""

from dataclasses import fields

import pandas as pd

import archs
from analysis.compare.frames import MISSING
from archs.parts.bias import Bias
from archs.parts.family import read

REFERENCE = "reference"  # what the table says where timm's model stands
CLAIMS = [field.name for field in fields(Bias)]
WORDS = {
    "stem": "stem",
    "receptive_field": "receptive field",
    "permutation_equivariant": "permutation equivariance",
    "shift_equivariant": "shift equivariance",
    "grid_bound": "grid bound",
}


def bias_of(model: str) -> Bias | None:
    """What the model's family declares in BIAS and, for single variants, in VARIANT_BIAS; None for a reference of timm.

    Arguments that a run gives to the model are not looked at. Raises ValueError for what is not in the zoo.
    """
    if model.startswith("timm/"):
        return None
    family, _, variant = model.partition("_")
    if family not in archs.families():
        raise ValueError(f"no architecture family '{family}'; known: {', '.join(archs.families())}")
    return read(family).bias(variant)


def table(rungs: pd.DataFrame) -> pd.DataFrame:
    """The rungs with one column per claim, as words ("reference" for timm), and what changed since the rung before."""
    told = {model: _words(model) for model in dict.fromkeys(rungs["model"])}
    words = {rung: told[model] for rung, model in zip(rungs["rung"], rungs["model"], strict=True)}
    result = rungs.assign(**{claim: [words[rung][claim] for rung in rungs["rung"]] for claim in CLAIMS})
    result["changed"] = [
        [claim for claim in CLAIMS if _differ(words[before][claim], words[rung][claim])] if before else []
        for before, rung in zip(rungs["before"], rungs["rung"], strict=True)
    ]
    return result


def _words(model: str) -> dict[str, str]:
    """The claims as words; a run that names no family of ours (its args.yaml may be unreadable) has none."""
    family = model.partition("_")[0]
    if not model.startswith("timm/") and family not in archs.families():
        return dict.fromkeys(CLAIMS, MISSING)
    if not model.startswith("timm/") and "MIXER" in read(family).tables:
        return dict.fromkeys(CLAIMS, MISSING)  # its arguments decide; `archs.difference` looks at them
    if (bias := bias_of(model)) is None:
        return dict.fromkeys(CLAIMS, REFERENCE)
    return {claim: {True: "yes", False: "no"}.get(value, value) for claim, value in vars(bias).items()}


def _differ(before: str, now: str) -> bool:
    return before != now and MISSING not in (before, now)
