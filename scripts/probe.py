"""Measure what bias trained models have: probe finished runs, or all runs of a sweep, on their test images.

Each result is kept in RUN/probes/PROBE.json with a checksum of the weights; repeating the command measures only what is
missing. The docstring of analysis/probes/PROBE.py says what a number means. `permutation_gap` needs no measuring: it is
shown where there are runs with and without --permute of the same seed.
"""

import argparse
import sys
from pathlib import Path

from analysis import probes
from engine.cli.flags import Parser, add_debug, add_fields, run_main
from engine.errors import CHECKPOINT, Refusal
from engine.folder import store
from engine.run import How
from slurm.flags import how_of


def main() -> None:
    given = parse()
    if not given.runs:
        raise Refusal("name the runs, or a sweep, and before --probe: python scripts/probe.py RUN... --probe shift")
    probes.check(given.probe)
    folders = list(dict.fromkeys(folder for word in given.runs for folder in folders_of(word)))
    finished = [folder for folder in folders if store.is_done(folder)]
    if not finished:
        raise Refusal(f"none of these {len(folders)} runs is finished; train them to their end first", CHECKPOINT)
    how = how_of(given)

    from analysis.bias import probe_runs, probe_sheets

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
        probe_sheets.show_all(folders, given.probe)
    if refused:
        count = f"{len(refused)} of {len(finished)} finished runs could not be probed"
        raise Refusal(f"{count}, the first: {refused[0]}", refused[0].code)


def parse() -> argparse.Namespace:
    parser = Parser(prog="scripts/probe.py", description=__doc__.partition("\n\n")[0])
    parser.add_argument("runs", nargs="*", metavar="RUN", help="a run's folder, or a sweep: its name, or a .py file")
    parser.add_argument("--probe", nargs="+", default=probes.names(), metavar="NAME", help="of analysis/probes/NAME.py")
    add_debug(parser)
    add_fields(parser, How, only=("data_dir", "device", "workers", "threads"))
    return parser.parse()


def folders_of(word: str) -> list[Path]:
    """The run folder of that path, or the folders of a sweep's runs."""
    if (Path(word) / "args.yaml").is_file():
        return [Path(word)]
    if "/" in word and not word.partition("@")[0].endswith(".py"):
        raise Refusal(f"{word} is not the folder of a run: it has no args.yaml")
    from slurm.define.load import load

    return load(word).folders


if __name__ == "__main__":
    run_main(main)
