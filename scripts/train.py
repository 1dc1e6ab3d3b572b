"""Train one model on one data set; repeat the command to resume it, or to see that it is done.

Every flag is a field of Run (engine/run.py) or of How; -c reads the same fields from YAML, and a run's args.yaml is
such a file. Results: RESULTS/runs/SIGNATURE-MODEL-sSEED/ (engine/folder/store.py describes it).
"""

from engine.cli.console import add_flags, train_here
from engine.cli.flags import Parser, collect, run_main


def main() -> None:
    parser = Parser(prog="scripts/train.py", description=__doc__.splitlines()[0])
    add_flags(parser)
    given = parser.parse()
    train_here(given, *collect(given))


if __name__ == "__main__":
    run_main(main, prints=False)
