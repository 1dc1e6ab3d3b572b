"""Compare any runs: accuracies with intervals over seeds, ranks, differences to a baseline, what they do not show.

Each of WHAT is a sweep's name or file, a run's folder, or a folder that holds runs' folders.
"""

import argparse
import sys
from dataclasses import fields
from pathlib import Path

from engine.cli.flags import Parser, add_debug, run_main, show
from engine.cli.numbers import percent
from engine.errors import Refusal
from engine.folder.published import Study
from slurm.define.find import find
from slurm.queue.tables import older

FORMS = ("markdown", "latex", "csv")


def main() -> None:
    given = parse()
    folders, runs, sweeps = find(given.what)
    for words in filter(None, (older(sweep) for sweep in sweeps if not isinstance(sweep, Study))):
        print(words, file=sys.stderr)

    # Imported late: pandas and SciPy take most of a second, which --help and a misspelt name need not wait for.
    from analysis.compare import assemble, frames

    frame = frames.load_found(folders, runs, sweeps)
    if from_tables := assemble.from_tables(frame):
        print(from_tables, file=sys.stderr)
    asked = assemble.Asked(**{field.name: vars(given)[field.name] for field in fields(assemble.Asked)})
    sheets, notes = assemble.sheets(frame, sweeps, asked)
    for sheet in sheets:
        if given.form:
            print(getattr(sheet, given.form)())
        else:
            show(sheet.rich())
    if not given.form:
        print(*notes, sep="\n")


def parse() -> argparse.Namespace:
    parser = Parser(prog="scripts/compare.py", description=__doc__)
    parser.add_argument("what", nargs="+", metavar="WHAT", help="sweep, run folder, or folder of run folders")
    parser.add_argument(
        "--baseline",
        metavar="RUNG",
        help="what all others are compared with (default: BASELINE of the sweep; else the first, with --fair none)",
    )
    words = "test a difference that no file asked for, and say what its rungs differ in; rungs may be added"
    parser.add_argument("--contrast", action="append", default=[], metavar="'A - B'", help=words)
    parser.add_argument("--margin", type=percent, default=0.5, help="points within which rungs count as equal")
    parser.add_argument("--fair", choices=("macs", "params", "time"), help="a table for each budget that rungs share")
    parser.add_argument("--tolerance", type=percent, default=10.0, help="for --fair: percent off the budget")
    parser.add_argument(
        "--speeds",
        type=Path,
        metavar="CSV",
        help="for --fair time (default: the sweep's speeds.csv of profile_model.py)",
    )
    parser.add_argument(
        "--samples", nargs="*", type=float, metavar="LEVEL", help="data-equivalents at these accuracies (or some)"
    )
    parser.add_argument("--scaling", action="store_true", help="fit error against training compute")
    parser.add_argument("--published", action="store_true", help="also what others report on these data, apart")
    for form in FORMS:
        parser.add_argument(f"--{form}", dest="form", action="store_const", const=form, help="print in this form")
    add_debug(parser)
    given = parser.parse()
    if given.speeds and given.fair != "time":
        raise Refusal("--speeds is for --fair time")
    return given


if __name__ == "__main__":
    run_main(main)
