"""Has a study enough seeds? Prints the residual deviation of its runs, what its rule says of it, and no effect."""

from engine.cli.flags import Parser, add_debug, run_main
from slurm.define.load import load


def main() -> None:
    parser = Parser(prog="scripts/seeds.py", description=__doc__)
    parser.add_argument("name", help="the sweep: slurm/sweeps/NAME.py, or a path to such a file")
    add_debug(parser)
    sweep = load(parser.parse().name)

    # Imported late: pandas and SciPy take most of a second, which --help and a misspelt name need not wait for.
    from analysis.compare import frames
    from analysis.factorial import deviation

    found = deviation.look(frames.of_sweep(sweep), sweep.name)
    print(*deviation.told(found, sweep.stopping), sep="\n")


if __name__ == "__main__":
    run_main(main)
