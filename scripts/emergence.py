"""When does structure emerge in training, and does it predict the permutation gap? Of runs that scripts/probe.py saw.

Over training: runs trained with --keep-epochs 0 1 2 4 ..., and the probes that measure each of these epochs. The
permutation gap: pairs of runs with and without --permute of the same seed. analysis/bias/emergence.py says how.
"""

from pathlib import Path

from analysis.probes import EMERGING
from engine.cli.flags import Parser, add_debug, run_main, show
from engine.errors import CHECKPOINT, Refusal
from slurm.define.find import find


def main() -> None:
    parser = Parser(prog="scripts/emergence.py", description=__doc__.partition("\n\n")[0])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, or a sweep: its name, or its file")
    parser.add_argument("--keys", nargs="+", default=EMERGING, metavar="KEY", help="numbers of probes to show")
    parser.add_argument("--figure", type=Path, metavar="FILE.svg", help="also draw them over training")
    add_debug(parser)
    given = parser.parse()
    folders, runs, sweeps = find(given.runs)

    from rich.markup import escape
    from rich.table import Table

    from analysis.bias import emergence
    from analysis.compare import frames
    from analysis.figures.draw import standalone
    from analysis.typeset import number
    from engine.folder.store import write_bytes

    loaded = frames.load_found(folders, runs, sweeps)
    frame, ranked = emergence.over_training(loaded), emergence.against_gap(loaded, lambda _, key: key in given.keys)
    frame = frame[frame["key"].isin(given.keys)]
    if frame.empty and ranked.empty:
        raise Refusal(
            f"nothing to show of these {len(loaded)} runs; train with --keep-epochs 0 1 2 4, or with and without "
            f"--permute on {emergence.LEAST} rungs or more, then measure: python scripts/probe.py RUN...",
            CHECKPOINT,
        )
    if len(frame):
        words = "onset: the epoch at which half of what is above the null at the end is there; - where none is"
        table = Table("rung", "number", "n", "first", "last", "null", "onset", title="over training", caption=words)
        for row in emergence.onsets(frame).itertuples():
            numbers = (number(each, 2) for each in (row.first, row.last, row.null, row.onset))
            table.add_row(escape(row.rung), row.key, f"{row.n}", *numbers)
        show(table)
        if given.figure:
            write_bytes(given.figure, standalone(emergence.figure(frame, given.keys)).encode())
    if len(ranked):
        words = "Spearman's rank correlation over runs, with its 95 % interval over rungs"
        table = Table("number", "with gap of", "rho", "runs", "rungs", title="and the permutation gap", caption=words)
        for row in ranked.itertuples():
            rho = f"{number(row.rho, 2)} ({number(row.low, 2)}, {number(row.high, 2)})"
            table.add_row(row.key, row.gap, rho, f"{row.runs}", f"{row.rungs}")
        show(table)


if __name__ == "__main__":
    run_main(main)
