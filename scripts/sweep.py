"""Plan, launch and follow a sweep: many runs that answer one question (slurm/sweeps/NAME.py, or a .py file by path).

python scripts/sweep.py plan NAME       what it would train; nothing is started
python scripts/sweep.py launch NAME     train what is missing, then compare; repeat it after whatever stopped it
python scripts/sweep.py status NAME     how every run stands
python scripts/sweep.py collect NAME    runs.csv and epochs.csv
"""

import argparse
from typing import Any, get_args

from engine import store
from engine.cli import Parser, add_fields, run_main
from engine.errors import Refusal
from engine.run import How, make_how
from slurm import launch, progress
from slurm.collect import collect
from slurm.sweep import Sweep, load

STATES = (store.PLANNED, store.RUNNING, store.STOPPED, store.FAILED, store.DONE)


def main() -> None:
    parser = Parser(prog="scripts/sweep.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--debug", action="store_true", help="show a traceback for a mistake of the user's, too")
    commands = parser.add_subparsers(dest="command", required=True, metavar="{plan,launch,status,collect}")
    for command, words in (
        ("plan", "show what a launch would train; start nothing"),
        ("launch", "train what is missing, then print the comparison and write the report"),
        ("status", "show how every run stands"),
        ("collect", "write runs.csv and epochs.csv"),
    ):
        part = commands.add_parser(command, help=words, description=words)
        part.add_argument("--debug", action="store_true", help=argparse.SUPPRESS)
        part.add_argument("name", help="of slurm/sweeps/NAME.py, or the path of such a file")
        if command == "status":
            part.add_argument("--state", choices=STATES, help="only runs in this state")
        if command == "launch":
            part.add_argument("--cluster", choices=get_args(launch.Cluster), default="auto", help="auto is local")
            part.add_argument(
                "--slots", type=_count, metavar="N", help="runs at a time (default: one per GPU, or core)"
            )
            part.add_argument("--retry", action="store_true", help="also train the runs that failed before")
            add_fields(part, How)
    given = parser.parse()
    sweep = load(given.name)
    COMMANDS[given.command](sweep, given)


def plan(sweep: Sweep, given: argparse.Namespace) -> None:
    _print(progress.plan_table(sweep))
    print(f"next: python scripts/sweep.py launch {given.name}")


def train(sweep: Sweep, given: argparse.Namespace) -> None:
    how = make_how({key: value for key, value in vars(given).items() if key in How.model_fields})
    fields = how.model_dump(mode="json", exclude_unset=True) | {"data_dir": str(how.data_dir.absolute())}
    statuses = launch.launch(sweep, fields, cluster=given.cluster, slots=vars(given).get("slots"), retry=given.retry)
    _compare(sweep)
    if failed := sum(status["state"] == store.FAILED for status in statuses):
        look = f"python scripts/sweep.py status {given.name} --state failed"
        raise Refusal(f"{failed} of {len(statuses)} runs failed; look: {look}; mended: launch with --retry", 1)


def status(sweep: Sweep, given: argparse.Namespace) -> None:
    _print(progress.status_table(sweep, given.state))
    print(f"next: python scripts/sweep.py launch {given.name}, which trains what is missing and compares")


def tables(sweep: Sweep, given: argparse.Namespace) -> None:
    for path in collect(sweep):
        print(path)


COMMANDS = {"plan": plan, "launch": train, "status": status, "collect": tables}


def _compare(sweep: Sweep) -> None:
    """Print the table of rungs; write the report unless it is newer than every run."""
    from analysis import compare

    compare.show(compare.rungs(compare.load(sweep.folders, sweep.runs)))
    report = sweep.folder / "report.html"
    sources = [sweep.folder / "manifest.csv", *(folder / "status.json" for folder in sweep.folders)]
    changed = max(path.stat().st_mtime for path in sources if path.exists())
    if not report.exists() or report.stat().st_mtime <= changed:
        from analysis.report import write_report

        report = write_report(sweep.name, sweep.folders, sweep.folder.parent, sweep.question, sweep.runs)
    print(f"report: {report}")


def _print(table: Any) -> None:
    """In full width where the output is not a terminal."""
    from rich.console import Console

    console = Console(highlight=False)
    (console if console.is_terminal else Console(highlight=False, width=240)).print(table)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 1")
    return int(text)


if __name__ == "__main__":
    run_main(main)
