"""Write the report of a sweep: RESULTS/NAME/report.html, one self-contained page. Prints its path as the last line."""

import sys
from pathlib import Path

from engine.cli.flags import Parser, run_main
from engine.folder import published, store

TABLES = ("text", "markdown", "latex", "csv")


def main() -> None:
    parser = Parser(prog="scripts/report.py", description=__doc__.partition(":")[0] + ".")
    parser.add_argument(
        "name", help="the sweep: slurm/sweeps/NAME.py, a path to such a file, or results/NAME/ with tables"
    )
    parser.add_argument("--table", choices=TABLES, help="print the table of rungs, too")
    parser.add_argument(
        "--speeds", type=Path, metavar="CSV", help="latencies, of profile_model.py (default: RESULTS/NAME/speeds.csv)"
    )
    parser.add_argument(
        "--beside",
        nargs="+",
        default=[],
        metavar="SWEEP",
        help="other sweeps of the same rungs, shuffled or in another frame, say: columns of the first figure",
    )
    parser.add_argument("--debug", action="store_true", help="show a traceback for a mistake of the user's, too")
    given = parser.parse()

    from slurm.define.find import named
    from slurm.queue.tables import older

    found = named(given.name)
    results = store.results_dir().absolute()
    study = found if isinstance(found, published.Study) else None
    if not study and (words := older(found)):
        print(words, file=sys.stderr)

    # Imported late: pandas and matplotlib take most of a second, which --help and a misspelt name need not wait for.
    from analysis.compare import frames
    from analysis.report.assemble import write_report

    if given.table:
        table = frames.rungs(frames.of_sweep(found))
        if given.table == "text":
            frames.show(table)
        else:
            write = {"markdown": frames.markdown, "latex": frames.latex, "csv": frames.table_csv}[given.table]
            print(write(table))
    others = {other.name: frames.of_sweep(other) for other in map(named, given.beside)}
    told = {"planned": found.contrasts, "families": found.families, "baseline": found.baseline}
    told |= {"labels": found.labels, "study": study, "beside": others}
    print(write_report(found.name, found.folders, results, found.question, found.runs, given.speeds, **told))


if __name__ == "__main__":
    run_main(main)
