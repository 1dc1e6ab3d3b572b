"""Measure what bias trained models have: probe finished runs, or all runs of a sweep, on their test images.

Each result is kept in RUN/probes/PROBE.json with a checksum of the weights; repeating the command measures only what is
missing. The docstring of analysis/probes/PROBE.py says what a number means. `permutation_gap` needs no measuring: it is
shown where there are runs with and without --permute of the same seed.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from analysis.probes import names
from engine.cli.flags import Parser, add_fields, run_main, show
from engine.errors import CHECKPOINT, Refusal
from engine.folder import store
from engine.run import How, make_how, unknown


def main() -> None:
    given = parse()
    if not given.runs:
        raise Refusal("name the runs, or a sweep, and before --probe: python scripts/probe.py RUN... --probe shift")
    for name in given.probe:
        if name not in names():
            raise Refusal(unknown("probe", name, names()))
    folders = list(dict.fromkeys(folder for word in given.runs for folder in folders_of(word)))
    finished = [folder for folder in folders if store.is_done(folder)]
    if not finished:
        raise Refusal(f"none of these {len(folders)} runs is finished; train them to their end first", CHECKPOINT)
    how = make_how({key: value for key, value in vars(given).items() if key in How.model_fields})

    from analysis.bias import probe_runs

    refused = []
    for number, folder in enumerate(finished, 1):
        try:
            measured = probe_runs.probe(folder, given.probe, how)
        except Refusal as refusal:
            print(f"{number}/{len(finished)} {folder.name}: {refusal}", file=sys.stderr)
            refused.append(refusal)
            continue
        print(f"{number}/{len(finished)} {folder.name}: {', '.join(measured) or 'already there'}", file=sys.stderr)
    if left := len(folders) - len(finished):
        print(f"{left} of {len(folders)} runs are not finished: left out", file=sys.stderr)
    if len(refused) < len(finished):
        print_tables(folders, given.probe)
    if refused:
        count = f"{len(refused)} of {len(finished)} finished runs could not be probed"
        raise Refusal(f"{count}, the first: {refused[0]}", refused[0].code)


def parse() -> argparse.Namespace:
    parser = Parser(prog="scripts/probe.py", description=__doc__.partition("\n\n")[0])
    parser.add_argument("runs", nargs="*", metavar="RUN", help="a run's folder, or a sweep: its name, or a .py file")
    parser.add_argument("--probe", nargs="+", default=names(), metavar="NAME", help="of analysis/probes/NAME.py")
    parser.add_argument("--debug", action="store_true", help="show a traceback for a mistake of the user's, too")
    add_fields(parser, How, only=("data_dir", "device", "workers", "threads"))
    return parser.parse()


def folders_of(word: str) -> list[Path]:
    """The run folder of that path, or the folders of a sweep's runs."""
    if (Path(word) / "args.yaml").is_file():
        return [Path(word)]
    if "/" in word and not word.endswith(".py"):
        raise Refusal(f"{word} is not the folder of a run: it has no args.yaml")
    from slurm.define.load import load

    return load(word).folders


def print_tables(folders: list[Path], wanted: list[str]) -> None:
    """A table per probe with a row per rung, and the permutation gap where there are pairs of runs for it."""
    from rich.markup import escape
    from rich.table import Table

    from analysis.bias import probe_table
    from analysis.compare import frames
    from analysis.probes import permutation_gap
    from analysis.typeset import number, plus_minus, probability

    summary = probe_table.summary(probe_table.load(folders))
    for name in wanted:
        rows = summary[summary["probe"] == name]
        headline = [key for key in probe_table.headline(name) if key in set(rows["key"])]
        note = (
            "value ± 95 % interval over seeds, or [its ends]; of two seeds (both), of one [over test images]; the null"
        )
        table = Table("rung", "n", *headline, title=name, caption=note, box=None)
        for rung, group in rows.groupby("rung", sort=False):
            cells = {row.key: text(row, probe_table.unit_of(name, row.key)) for row in group.itertuples()}
            table.add_row(escape(rung), f"{group['n'].max()}", *(cells.get(key, "–") for key in headline))
        show(table)
    gaps = permutation_gap.table(frames.load(folders))
    if not len(gaps):
        return
    words = ("rung", "shuffled", "n", "accuracy", "of shuffled", "gap, points", "relative gap", "p no gap", "p same")
    note = "± 95 % interval over seeds, of two both in brackets; p same: of a gap of half a point or more (TOST); "
    note += "both after Holm over the rungs with the same shuffle"
    table = Table(*words, title="permutation_gap", caption=note, box=None)
    for row in gaps.itertuples():
        numbers = (number(row.acc1), number(row.acc1_permuted), plus_minus(row.gap, row.gap_half, row.n, "+"))
        numbers += (plus_minus(row.relative, row.relative_half, row.n, "+"),)
        numbers += (probability(row.p_holm), probability(row.p_same_holm))
        count = f"{row.n} of {row.n + row.n_missing}" if row.n_missing else f"{row.n}"
        table.add_row(escape(row.rung), row.permute, count, *numbers)
    show(table)


def text(row: Any, unit: str) -> str:
    """64.8 ± 1.2, null 10.1; a ratio has a digit more."""
    from analysis.typeset import estimate, number

    digits = 2 if unit == "ratio" else 1
    return f"{estimate(row.value, row.low, row.high, row.n, digits)}, null {number(row.null, digits)}"


if __name__ == "__main__":
    run_main(main)
