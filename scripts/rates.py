"""The learning rate of each rung by a tuning sweep: its peaks, and the table LR to paste into the study's file.

Reads RESULTS/NAME/runs.csv, which scripts/sweep.py collect writes.
"""

from engine.cli.flags import Parser, add_debug, run_main, show
from engine.folder import store
from slurm.define.seeds import parse


def main() -> None:
    parser = Parser(prog="scripts/rates.py", description=__doc__)
    parser.add_argument("name", help="the tuning sweep, as lattice_lr")
    parser.add_argument("--seeds", type=parse, metavar="0-9", help="from the runs of these seeds alone (default: all)")
    add_debug(parser)
    given = parser.parse()
    name = given.name

    # Imported late: pandas and SciPy take most of a second, which --help need not wait for.
    from analysis.factorial import rates

    peaks = rates.fit(rates.load(store.results_dir() / name / "runs.csv", name, given.seeds))
    show(rates.sheet(peaks).rich())
    print(rates.literal(peaks))


if __name__ == "__main__":
    run_main(main)
