"""The cells of a sweep in other sweeps: their permutation gap there, and their accuracy in another frame.

A rung there is a rung here where the model and all arguments are the same, and one in another setting where it has all
arguments of a rung here and others beside them, the same for all: `dim 160, frame convmixer`.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import pandas as pd

from analysis.probes import permutation_gap
from engine.errors import Refusal

COLUMNS = ["rung", "seed", "value"]


class Beside(NamedTuple):
    """What another sweep measured of rungs of this one.

    `gaps` is as of `permutation_gap.pairs`; `values` are accuracies by `rung`, `seed` and `value` in the `setting`.
    Rungs are called as in this sweep, with their condition.
    """

    gaps: pd.DataFrame
    setting: str
    values: pd.DataFrame


def of(frame: pd.DataFrame, other: pd.DataFrame, name: str) -> Beside:
    """What `other`, the runs of the sweep `name`, knows of the rungs of `frame`; both of `frames.load`.

    Raises:
        Refusal: nothing, or settings that differ in more than one way, or other data.
    """
    if strange := sorted(set(other["dataset"].dropna()) - set(frame["dataset"].dropna())):
        raise Refusal(f"--beside {name}: its runs are on {strange[0]}, those of the report are not")
    here = frame[frame["permute"] == "none"].drop_duplicates("rung")
    rungs = dict(zip(here["name"], here["rung"], strict=True))
    first = other.drop_duplicates("rung").set_index("rung")["name"]
    gaps = permutation_gap.pairs(other)
    gaps = gaps.assign(rung=gaps["rung"].map(first).map(rungs)).dropna(subset="rung")
    setting, values = _elsewhere(here, other[other["permute"] == "none"], name)
    if gaps.empty and values.empty:
        raise Refusal(f"--beside {name}: none of its runs is of a rung of the report, shuffled or in another setting")
    return Beside(gaps, setting, values)


def _elsewhere(here: pd.DataFrame, other: pd.DataFrame, name: str) -> tuple[str, pd.DataFrame]:
    """The setting, and accuracies in it."""
    known = [(row.rung, row.model, _arguments(row.model_kwargs)) for row in here.itertuples()]
    own = {(model, frozenset(arguments.items())) for _, model, arguments in known}
    rows, settings = [], Counter[str]()
    for row in other.itertuples():
        arguments = _arguments(row.model_kwargs)
        inside = [one for one in known if one[1] == row.model and one[2].items() <= arguments.items()]
        if not inside or (row.model, frozenset(arguments.items())) in own:
            continue
        rung, _, less = max(inside, key=lambda one: len(one[2]))
        setting = ", ".join(f"{key} {arguments[key]}" for key in sorted(arguments.keys() - less.keys()))
        settings[setting] += 1
        rows.append((rung, row.seed, row.acc1))
    if len(settings) > 1:
        told = "; ".join(setting for setting, _ in settings.most_common(3))
        raise Refusal(f"--beside {name}: its rungs are in several settings ({told}), and one column holds one")
    return next(iter(settings), ""), pd.DataFrame(rows, columns=COLUMNS)


def _arguments(given: Any) -> dict[str, str]:
    """Arguments of a model as text, which can be compared."""
    return {key: str(value) for key, value in given.items()} if isinstance(given, Mapping) else {}
