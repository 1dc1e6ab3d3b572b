"""Judge runs at other sizes of image than they were trained at: a table and a figure, accuracy against test size.

For models whose weights have no places (convmixer, poolformer, ...; analysis/bias/resolution.py says what the figures
mean). Images of each size are those stored at it, else larger stored ones, shrunk as they are read.
"""

import argparse
import sys
from pathlib import Path

from engine.cli.flags import Parser, add_debug, add_fields, run_main, show
from engine.cli.numbers import size
from engine.cli.tables import check_target, write
from engine.errors import CHECKPOINT, Refusal
from engine.folder import files, store
from engine.run import How
from slurm.define.find import find
from slurm.flags import how_of


def main() -> None:
    given = parse()
    check_target(given.results_file)
    check_target(given.figure, (".svg",), "--figure")
    folders, _, _ = find(given.what)
    finished = [folder for folder in folders if store.is_done(folder)]
    if not finished:
        raise Refusal(f"none of these {len(folders)} runs is finished; train them to their end first", CHECKPOINT)
    how = how_of(given)

    from analysis.bias import resolution

    for folder in finished:
        resolution.check(run := store.read_run(folder))
        resolution.sized(run, given.img_size, how, lambda line: None)  # before any pass over the images
    rows = []
    for number, folder in enumerate(finished, 1):
        print(f"{number}/{len(finished)} {folder.name}", file=sys.stderr)
        rows += resolution.measure(folder, given.img_size, how, lambda line: print(line, file=sys.stderr))
    table = resolution.summary(rows)
    show(resolution.sheet(table).rich())
    if given.results_file:
        write(given.results_file, rows)
    if given.figure:
        from analysis.figures import bias_figures, draw

        files.write_bytes(given.figure, draw.standalone(bias_figures.resolution(table)).encode())
        print(f"figure: {given.figure}")


def parse() -> argparse.Namespace:
    parser = Parser(prog="scripts/resolution.py", description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="+", metavar="WHAT", help="sweep, run folder, or folder of run folders")
    sizes = {"type": size(4096), "nargs": "+", "required": True, "metavar": "PX"}
    parser.add_argument("--img-size", **sizes, help="sizes to judge at, as 24 32 48 or 32x64")
    parser.add_argument("--results-file", type=Path, help="write a row per run and size: .csv, .json, .md")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw the curves: .svg")
    add_debug(parser)
    add_fields(parser, How, only=("data_dir", "device", "workers", "threads"))
    return parser.parse()


if __name__ == "__main__":
    run_main(main)
