"""Measure what bias trained models have: probe finished runs, or all runs of a sweep, on their test images.

Each result is kept in RUN/probes/PROBE.json with a checksum of the weights; repeating the command measures only what is
missing. Some probes draw a picture beside it, PROBE.png, and measure also the weights that a run kept on its way. The
docstring of analysis/probes/PROBE.py says what a number means. `permutation_gap` needs no measuring: it is shown where
there are runs with and without --permute of the same seed. On a cluster probes are work of the queue: name them in
PROBES of the sweep.
"""

import argparse
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from analysis import probes
from engine.cli.flags import Parser, add_debug, add_fields, run_main, show
from engine.errors import CHECKPOINT, Refusal
from engine.folder import published, store
from engine.folder.published import Study
from engine.run import How
from slurm.define.find import find
from slurm.define.sweep import Sweep
from slurm.flags import how_of
from slurm.queue.progress import duration


def main() -> None:
    given = parse()
    if given.list:
        show_list()
        return
    if not given.runs:
        raise Refusal("name the runs, or a sweep, and before --probe: python scripts/probe.py RUN... --probe shift")
    wanted = probes.names() if "all" in given.probe else list(dict.fromkeys(given.probe))
    probes.check(wanted)
    if given.against and not store.is_done(given.against):
        raise Refusal(f"--against {given.against} is not the folder of a finished run")
    folders, _, sweeps = find(given.runs)
    finished = [folder for folder in folders if store.is_done(folder)]
    if not finished:
        raise Refusal(_no_weights(folders, sweeps), CHECKPOINT)
    how = how_of(given)
    refused = measure(finished, wanted, how)
    if left := len(folders) - len(finished):
        print(f"{left} of {len(folders)} runs have not their last weights here: left out", file=sys.stderr)
    if len(refused) < len(finished):
        from analysis.bias import probe_sheets

        probe_sheets.show_all(folders, wanted)
    if given.against:
        from analysis.bias import pairs, probe_sheets

        probe_sheets.show_pairs(pairs.against(finished, given.against, how), given.against.name)
    if refused:
        count = f"{len(refused)} of {len(finished)} finished runs could not be probed"
        raise Refusal(f"{count}, the first: {refused[0]}", refused[0].code)


def _no_weights(folders: Sequence[Path], sweeps: Sequence[Sweep | Study]) -> str:
    """Why nothing can be measured: probes need weights, and a table has none."""
    for sweep in sweeps:
        if isinstance(sweep, Study):
            return f"{sweep.name} is a table alone ({sweep.table}), without weights to probe"
        if published.done(published.all_places_of([sweep])):
            train = f"python scripts/sweep.py launch {sweep.name} --published"
            return f"{sweep.name} is known from its table alone, without weights to probe; {train} trains its runs here"
    return f"none of these {len(folders)} runs is finished; train them to their end first"


def measure(folders: Sequence[Path], wanted: Sequence[str], how: How) -> list[Refusal]:
    """What is missing of each run, with the time it will take said before and the time left on the way."""
    from analysis.bias import probe_runs

    refused, todo = [], {}
    for number, folder in enumerate(folders, 1):
        try:
            todo[folder] = list(probe_runs.missing(folder, wanted))
        except Refusal as refusal:
            refused.append(_told(f"{number}/{len(folders)} {folder.name}", refusal))
    total, done, began = sum(map(len, todo.values())), 0, time.monotonic()
    expected = 0.0
    if total:
        try:
            expected = probe_runs.seconds(todo, how)
        except Refusal:  # of its first run, which says so below
            expected = math.nan
        words = "" if math.isnan(expected) else f", about {duration(expected)}"
        print(f"to measure: {total} of {len(todo) * len(wanted)} results{words}", file=sys.stderr)
    for number, (folder, names) in enumerate(todo.items(), 1):
        where = f"{number}/{len(todo)} {folder.name}"

        def tell(name: str, seconds: float, where: str = where) -> None:
            nonlocal done
            done += 1
            left = (time.monotonic() - began) / done * (total - done)
            print(f"{where}: {name} {seconds:.1f} s, {done}/{total}, about {duration(left)} left", file=sys.stderr)

        try:
            probe_runs.probe(folder, names, how, tell)
        except Refusal as refusal:
            refused.append(_told(where, refusal))
        if not names:
            print(f"{where}: already there", file=sys.stderr)
    return refused


def show_list() -> None:
    """Every probe, what it asks and what it costs."""
    from rich.table import Table

    table = Table("probe", "question", "cost", box=None, caption="a pass is one of all test images through the model")
    for name in probes.names():
        table.add_row(name, *probes.about(name))
    show(table)


def parse() -> argparse.Namespace:
    parser = Parser(prog="scripts/probe.py", description=__doc__.partition("\n\n")[0])
    parser.add_argument("runs", nargs="*", metavar="RUN", help="a run's folder, or a sweep: its name, or a .py file")
    words = "of analysis/probes/NAME.py, or all"
    parser.add_argument("--probe", "--probes", nargs="+", default=["all"], metavar="NAME", help=words)
    parser.add_argument("--list", action="store_true", help="show every probe, what it asks and what it costs")
    words = "also compare each run with this one, block by block (CKA); name a seed of the same rung as the measure"
    parser.add_argument("--against", type=Path, metavar="RUN", help=words)
    add_debug(parser)
    add_fields(parser, How, only=("data_dir", "device", "workers", "threads"))
    return parser.parse()


def _told(where: str, refusal: Refusal) -> Refusal:
    print(f"{where}: {refusal}", file=sys.stderr)
    return refusal


if __name__ == "__main__":
    run_main(main)
