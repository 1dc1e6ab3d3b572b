"""What a study's predictions say beside its accuracies, as tables: seeds and images, and shared errors."""

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from analysis.compare import contrasts
from analysis.factorial import images
from analysis.typeset import MISSING, Sheet, number
from engine.fields.claims import Family

PARTS = ("rung", "n", "deviation over seeds", "of test images", "of seeds alone")
PARTS_NOTE = (
    "points; variance over seeds = that of catching {count:,} test images at other mistakes + that of better and worse "
    "seeds, which is estimated without bias: below 0 it is shown as 0"
)
SHARED = ("contrast", "seeds of a cell agree", "the two cells agree", "lacking", "95 %")
SHARED_NOTE = (
    "agreement on which images are right, beyond what the accuracies give (Cohen's kappa); lacking: 0 where another "
    "cell is no more than another seed"
)


def right(frame: pd.DataFrame) -> dict[str, np.ndarray]:
    """By rung which images its runs got right, (seeds, N) bool: rungs of two finished runs or more, all with theirs.

    Args:
        frame: of `frames.load`.
    """
    found = {}
    for rung, rows in frame[frame["acc1"].notna()].groupby("rung", sort=False):
        each = [contrasts.right_of(row) for row in rows.itertuples()]
        if len(each) > 1 and all(one is not None and one.shape == each[0].shape for one in each):
            found[rung] = np.stack(each)
    return found


def sheets(frame: pd.DataFrame, wanted: Mapping[str, Family]) -> list[Sheet]:
    """Variances of all rungs, and the errors that two cells share, of each claim on two; none without predictions."""
    known = right(frame)
    if not known:
        return []
    made = [_parts(known)]
    pairs = {
        name: [rung for _, rung in sorted((weight, rung) for rung, weight in contrast.weights.items())]
        for family in wanted.values()
        for name, contrast in family.contrasts.items()
        if len(contrast.weights) == 2
    }
    told = {name: pair for name, pair in pairs.items() if all(rung in known for rung in pair)}
    told = {name: pair for name, pair in told.items() if len({known[rung].shape[1] for rung in pair}) == 1}
    return [*made, _shared(known, told)] if told else made


def _parts(known: Mapping[str, np.ndarray]) -> Sheet:
    splits = {rung: images.split(each) for rung, each in known.items()}
    splits["all, pooled"] = images.pooled([*splits.values()])
    counts = {each.shape[1] for each in known.values()}
    rows = [
        [
            rung,
            str(part.df + 1) if rung in known else f"{part.df} df",
            *map(_root, (part.total, part.images, part.seeds)),
        ]
        for rung, part in splits.items()
    ]
    data = pd.DataFrame([{"rung": rung, **part._asdict()} for rung, part in splits.items()])
    return Sheet("Seeds apart from test images", PARTS, rows, data, PARTS_NOTE.format(count=min(counts)))


def _root(variance: float) -> str:
    return MISSING if math.isnan(variance) else number(math.sqrt(max(variance, 0.0)), 3)


def _shared(known: Mapping[str, np.ndarray], pairs: Mapping[str, list[str]]) -> Sheet:
    rows, data = [], []
    for name, (before, after) in pairs.items():
        found = images.overlap(known[before], known[after])
        ends = f"[{number(found.lack.low, 3, '+')}, {number(found.lack.high, 3, '+')}]"
        numbers = number(found.within, 3), number(found.between, 3), number(found.lack.value, 3, "+")
        rows.append([name, *numbers, ends])
        data.append({"contrast": name, "within": found.within, "between": found.between, **found.lack._asdict()})
    return Sheet("Errors that two cells share", SHARED, rows, pd.DataFrame(data), SHARED_NOTE)
