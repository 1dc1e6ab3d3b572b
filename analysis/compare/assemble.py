"""The tables of scripts/compare.py, from runs and from what their sweeps were made to compare."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from analysis import published
from analysis.compare import contrasts, exponents, fairness, frames, samples
from analysis.compare.sweeps import Sweep
from analysis.factorial import families, predicted
from analysis.typeset import Sheet
from engine.errors import Refusal
from engine.folder.published import places_of

AFTERWARDS = "What was asked afterwards: no file named it before the runs"
PLANNED = "What the sweep was made to compare"


@dataclass(frozen=True)
class Asked:
    """Which tables, by the names of the flags."""

    baseline: str | None = None
    margin: float = 0.5
    fair: str | None = None
    tolerance: float = 10.0
    speeds: Path | None = None
    samples: Sequence[float] | None = None
    scaling: bool = False
    published: bool = False
    contrast: Sequence[str] = ()


def sheets(frame: pd.DataFrame, sweeps: Sequence[Sweep], asked: Asked) -> tuple[list[Sheet], list[str]]:
    """The tables in order, and notes to them. Raises Refusal where what is asked for cannot be had from these runs.

    Args:
        frame: of `frames.load`.
    """
    here = {*frame["name"], *frame["rung"]}
    named = tuple(name for sweep in sweeps for name in sweep.baseline if name in here)
    made, notes = _differences(frame, sweeps, asked, asked.baseline or named or None)
    if asked.contrast:
        wanted = {words: contrasts.parsed(words) for words in asked.contrast}
        made.append(
            contrasts.registered_sheet(contrasts.registered(frame, wanted, asked.margin), AFTERWARDS, asked.margin)
        )
    if asked.samples is not None:
        made += samples.sheets(frame, asked.baseline or next(iter(named), None), asked.samples)
    if asked.scaling:
        made += exponents.sheets(frame)
    if asked.published:
        datasets = sorted(set(frame["dataset"].dropna()))
        if theirs := published.sheet(datasets):
            made.append(theirs)
        else:
            notes.append(f"results/published/ holds no accuracy on {', '.join(datasets)}.")
    return made, notes


def _differences(
    frame: pd.DataFrame, sweeps: Sequence[Sweep], asked: Asked, baseline: str | tuple[str, ...] | None
) -> tuple[list[Sheet], list[str]]:
    """Differences to the baseline, at each shared budget if that is asked for; planned contrasts; what is missing."""
    parts, missed = _parts(frame, sweeps, asked)
    if asked.fair:
        tables = contrasts.tables([part for _, part in parts], baseline, asked.margin)
    else:
        tables = [contrasts.against(frame, baseline, asked.margin)]
    pairs = list(zip(tables, parts, strict=True))
    made = [contrasts.sheet(table, title, asked.margin) for table, (title, _) in pairs]
    for sweep in () if asked.fair else sweeps:
        if not (sweep.contrasts or sweep.families):
            continue
        # Of its own runs: other sweeps beside it change neither names nor conditions.
        runs = frames.of_sweep(sweep)
        if sweep.contrasts:
            own = contrasts.registered(runs, sweep.contrasts, asked.margin)
            title = PLANNED if len(sweeps) == 1 else f"What {sweep.name} was made to compare"
            made.append(contrasts.registered_sheet(own, title, asked.margin))
        made += families.sheets(runs, sweep.families)
        made += predicted.sheets(runs, sweep.families) if sweep.families else []
    made += filter(None, (missed, contrasts.unfinished(frame)))
    return made, [contrasts.power_note(part, table) for table, (_, part) in pairs]


def from_tables(frame: pd.DataFrame) -> str:
    """How many runs are known from published tables and have no folder here, in a line; "" for none."""
    count = int((frame["table"] != "").sum())
    where = ", ".join(dict.fromkeys(frame.loc[frame["table"] != "", "table"]))
    return f"{count:,} of {len(frame):,} runs are read from published tables: {where}" if count else ""


def _parts(
    frame: pd.DataFrame, sweeps: Sequence[Sweep], asked: Asked
) -> tuple[list[tuple[str, pd.DataFrame]], Sheet | None]:
    """The whole ladder; or with --fair one part per budget that rungs share, and who shares none."""
    if not asked.fair:
        return [("", frame)], None
    speeds = fairness.speeds_file(places_of(sweeps), asked.speeds) if asked.fair == "time" else None
    name = sweeps[0].name if sweeps else "NAME"
    parts, missed = fairness.fair(frame, asked.fair, asked.tolerance / 100, speeds, name)
    if not parts:
        raise Refusal(f"no two rungs are of equal {asked.fair} within {asked.tolerance:g} %; raise --tolerance")
    return parts, missed
