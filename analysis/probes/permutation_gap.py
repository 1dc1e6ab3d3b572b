"""Permutation gap: what does a model lose when the pixels of all images are shuffled once, in training and test alike?

Compares finished runs that differ in `permute` alone, with the same seed, hence the same initialisation and data order:

    gap = acc(original) - acc(permuted), in points          relative = gap / (acc(original) - chance), a ratio

With `pixels` and `patches` images are augmented first, so that a crop is still a crop; with `pixels_first` they are
shuffled first, by the same shuffle, so that augmentation teaches nothing of the layout either.

Source: Tolstikhin et al., arXiv 2105.01601, section 3.4.
Null: 0, which a model whose training is invariant to the shuffle has up to the chance of training; `p_same` is that of
two one-sided t-tests that the gap lies within half a point, so small p_same is evidence for no gap. `p_holm` and
`p_same_holm` are after Holm over the rungs with the same shuffle and data: one question asked of as many rungs.
Interval: Student's over seeds; each seed draws another shuffle.
Expect: 0 for flat MLPs under `pixels` and `patches`; 0 for patchified and token MLPs and attention under `patches`,
which keeps patches whole; positive otherwise, most for convolution; more under `pixels_first`, for flat MLPs too, where
crops and flips help. On a Gaussian clone of the data (cifar10_gaussian) it is what correlations alone are worth. On
8 x 8 digits it is within a point for most. A bag of patches gains there from `pixels`: what it takes for a patch is
then a sample of the whole image.
Cost: one training per shuffle and seed.
"""

import math
from typing import Any

import pandas as pd

from analysis import stats
from engine.data.sets import lookup
from engine.run import Run

UNITS = {"pixels": "points", "patches": "points", "pixels_first": "points"}
UNITS |= {"pixels_relative": "ratio", "patches_relative": "ratio", "pixels_first_relative": "ratio"}
KINDS = ("pixels", "patches", "pixels_first")
COLUMNS = ["rung", "permute", "n", "acc1", "acc1_permuted", "gap", "gap_half", "relative", "relative_half", "p"]
COLUMNS += ["p_holm", "p_same", "p_same_holm", "n_missing"]
_SAME = [field for field in Run.model_fields if field != "permute"]


def pairs(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per pair of runs: folder (of the original), rung, seed, data (of the shuffled), permute, acc1,
    acc1_permuted, gap, relative.

    Args:
        frame: of `frames.load`. A pair with a run that is not done is a row of NaN; a permuted run without an original
            in the frame is none.
    """
    known = frame[frame["permute"].isin(["none", *KINDS])]  # not so if its args.yaml cannot be read
    keys = [tuple(map(str, values)) for values in known[_SAME].itertuples(index=False)]
    runs = list(zip(keys, known.itertuples(), strict=True))
    originals = {key: row for key, row in runs if row.permute == "none"}
    rows: list[dict[str, Any]] = []
    for key, row in runs:
        original = originals.get(key)
        if row.permute == "none" or original is None:
            continue
        entry = lookup(row.dataset)
        chance = 100 / entry.num_classes if entry else math.nan
        gap = original.acc1 - row.acc1
        rows.append(
            {
                "folder": original.folder,
                "rung": original.rung,
                "seed": row.seed,
                "data": row.data,
                "permute": row.permute,
                "acc1": original.acc1,
                "acc1_permuted": row.acc1,
                "gap": gap,
                "relative": gap / (original.acc1 - chance) if original.acc1 > chance else math.nan,
            }
        )
    columns = ["folder", "rung", "seed", "data", "permute", "acc1", "acc1_permuted", "gap", "relative"]
    return pd.DataFrame(rows, columns=columns)


def table(frame: pd.DataFrame, margin: float = stats.MARGIN) -> pd.DataFrame:
    """One row per rung and shuffle: means over n pairs, half-widths of 95 % intervals, p of gap 0, `p_same`, both also
    corrected."""
    rows, families = [], []
    for (rung, permute, data), group in pairs(frame).groupby(["rung", "permute", "data"], sort=False):
        done = group.dropna(subset="gap")
        gap, relative = stats.interval(done["gap"]), stats.interval(done["relative"])
        row = {"rung": rung, "permute": permute, "n": gap.n, "n_missing": len(group) - gap.n}
        row |= {"acc1": done["acc1"].mean(), "acc1_permuted": done["acc1_permuted"].mean()}
        row |= {"gap": gap.mean, "gap_half": gap.half, "relative": relative.mean, "relative_half": relative.half}
        rows.append({**row, "p": gap.p, "p_same": stats.equivalence(done["gap"], margin)})
        families.append(data)
    result = pd.DataFrame(rows, columns=COLUMNS)
    for test in ("p", "p_same"):
        result[f"{test}_holm"] = stats.holm_by(result[test].astype(float), families)
    return result
