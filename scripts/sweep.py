"""Plan, launch and follow a sweep: many runs that answer one question (slurm/sweeps/NAME.py, or a .py file by path).

python scripts/sweep.py plan NAME            what it would train; nothing is started
python scripts/sweep.py launch NAME          train what is missing, here or on SLURM; repeat it at any time
python scripts/sweep.py launch --grid lr=1e-3,3e-3 seed=0,1,2 --model mixer_1m --dataset cifar10
python scripts/sweep.py status NAME          how every run stands
python scripts/sweep.py logs NAME SIGNATURE  what a run said
python scripts/sweep.py resume NAME          go on with what is left, or --failed, --timeout, --cancelled
python scripts/sweep.py cancel NAME          give up runs; nothing is deleted
python scripts/sweep.py collect NAME         runs.csv, epochs.csv and probes.csv
python scripts/sweep.py repro NAME SIGNATURE the exact command of a run
python scripts/sweep.py doctor               what is there, and what to mend
"""

import argparse
import sys
from typing import Any

from analysis import probes
from engine.cli.flags import Parser, add_fields, run_main, show
from engine.errors import Refusal
from engine.fields.limits import startable
from engine.fields.values import pairs
from engine.folder import store
from engine.run import How, Run, make_how, unknown
from slurm.cluster.clusters import Resources
from slurm.define.load import load
from slurm.define.sweep import Sweep
from slurm.queue import states

HELP = {
    "plan": "show what a launch would train, and what it costs; start nothing",
    "launch": "train what is missing; on this machine then print the comparison and write the report",
    "status": "show how every run stands",
    "logs": "show what a run said and, if it died, the end of its job's log",
    "resume": "train what is left; with flags, only what failed, timed out, was cancelled or has not ended",
    "cancel": "give up runs that have not ended; what was saved is kept",
    "collect": "write runs.csv, epochs.csv and probes.csv, also half-way",
    "repro": "print the exact command of a run",
    "doctor": "show what is there for sweeps, and what to mend",
}


def main() -> int | None:
    parser = Parser(prog="scripts/sweep.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--debug", action="store_true", help="show a traceback for a mistake of the user's, too")
    commands = parser.add_subparsers(dest="command", required=True, metavar="{" + ",".join(HELP) + "}")
    for command, words in HELP.items():
        part = commands.add_parser(command, help=words, description=words)
        part.add_argument("--debug", action="store_true", help=argparse.SUPPRESS)
        if command != "doctor":
            optional = {"nargs": "?"} if command in ("plan", "launch") else {}
            part.add_argument("name", help="of slurm/sweeps/NAME.py, or the path of such a file", **optional)
        FLAGS.get(command, lambda part: None)(part)
    given = parser.parse()
    if given.command == "doctor":
        doctor()
        return None
    return COMMANDS[given.command](_sweep(given), given)


def plan(sweep: Sweep, given: argparse.Namespace) -> None:
    from slurm.define.plan import table

    show(table(sweep))
    print(f"next: python scripts/sweep.py launch {given.name or sweep.name}")


def launch(sweep: Sweep, given: argparse.Namespace) -> int | None:
    return _train(sweep, given, {"unfinished", *(["failed"] if vars(given).get("retry") else [])})


def resume(sweep: Sweep, given: argparse.Namespace) -> int | None:
    kinds = {kind for kind in ("failed", "timeout", "unfinished", "cancelled") if vars(given)[kind]}
    return _train(sweep, given, kinds or {"unfinished"}, pairs(given.set, "--set"))


def status(sweep: Sweep, given: argparse.Namespace) -> None:
    from rich.console import Console

    statuses = states.standing(sweep)
    while True:
        if given.watch and sys.stdout.isatty():
            Console().clear()
        table = states.table(sweep, statuses, given.state, given.sort)
        print(table) if isinstance(table, str) else show(table)
        if not given.watch or all(status["state"] not in states.UNFINISHED for status in statuses):
            break
        statuses = states.wait(sweep, given.watch)
    shown = {status["state"] for status in statuses}
    verb = "launch" if shown == {store.PLANNED} else "resume" if shown & {*states.UNFINISHED} else "collect"
    print(f"next: python scripts/sweep.py {verb} {given.name}")


def logs(sweep: Sweep, given: argparse.Namespace) -> None:
    from slurm.queue.logs import show as show_log

    show_log(sweep, states.find(sweep, given.signature)[1], follow=given.follow)


def cancel(sweep: Sweep, given: argparse.Namespace) -> None:
    from slurm.queue.cancel import cancel, matching

    statuses = states.standing(sweep)
    chosen = [index for index in matching(sweep.runs, given.where) if statuses[index]["state"] in states.UNFINISHED]
    if not chosen:
        print("nothing to cancel: these runs have ended")
        return
    counts = states.summary([statuses[index] for index in chosen])
    if not given.yes:
        if not sys.stdin.isatty():
            raise Refusal(f"this would cancel {counts}; add --yes")
        if input(f"cancel {counts}? [y/N] ").strip().lower() not in ("y", "yes"):
            print("nothing was cancelled")
            return
    now, later = cancel(sweep, chosen)
    print(f"{now} cancelled" + (f", {later} being trained save and leave" if later else ""))
    print(f"back again: python scripts/sweep.py resume {given.name} --cancelled")


def collect(sweep: Sweep, given: argparse.Namespace) -> None:
    from slurm.queue.collect import collect

    for path in collect(sweep):
        print(path)


def repro(sweep: Sweep, given: argparse.Namespace) -> None:
    from slurm.define.plan import repro

    print(repro(states.find(sweep, given.signature)[0]))


def doctor() -> None:
    from slurm.cluster.doctor import findings, table

    show(table(list(findings())))


def _train(sweep: Sweep, given: argparse.Namespace, kinds: set[str], overrides: dict[str, Any] | None = None) -> int:
    from slurm.launch import launch

    words = vars(given)
    how = make_how({key: value for key, value in words.items() if key in How.model_fields})
    fields = how.model_dump(mode="json", exclude_unset=True) | {"data_dir": str(how.data_dir.absolute())}
    flags = {key: value for key, value in words.items() if key in Resources.model_fields}
    statuses = launch(
        sweep,
        fields,
        cluster=given.cluster,
        slots=given.slots,
        kinds=kinds,
        flags=flags,
        overrides=overrides,
        keep_code=not given.no_snapshot,
    )
    again = given.name or sweep.name
    unprobed = sum(status.get("unprobed", False) for status in statuses)
    if unprobed:
        print(f"{unprobed} finished runs are probed by the jobs; repeat the command for the report")
    if unprobed or any(status["state"] in (store.PLANNED, store.RUNNING, store.STOPPED) for status in statuses):
        print(f"next: python scripts/sweep.py status {again} --watch 30")
        print(f"      python scripts/sweep.py logs {again} {sweep.runs[0].signature} --follow")
        print(f"      python scripts/sweep.py resume {again}")
        return 0
    _compare(sweep, how)
    if failed := sum(status["state"] == store.FAILED for status in statuses):
        look = f"python scripts/sweep.py status {again} --state failed"
        mended = f"python scripts/sweep.py resume {again} --failed"
        raise Refusal(f"{failed} of {len(statuses)} runs failed; look: {look}; when it is mended: {mended}", 1)
    return 0


def _compare(sweep: Sweep, how: How) -> None:
    """Print the table of rungs, measure the sweep's probes, write the report unless it is newer than all it shows."""
    from analysis.bias import probe_table
    from analysis.compare import frames

    frames.show(frames.rungs(frames.load(sweep.folders, sweep.runs)))
    _probe(sweep, how)
    report, shared = sweep.folder / "report.html", ("symmetry.csv", "dsd.json")
    sources = [sweep.folder / "manifest.csv", *(folder / "status.json" for folder in sweep.folders)]
    sources += [probe_table.path_of(folder, name) for folder in sweep.folders for name in sweep.probes]
    sources += [folder / name for folder in (sweep.folder, sweep.folder.parent) for name in ("speeds.csv", *shared)]
    changed = max(path.stat().st_mtime for path in sources if path.exists())
    if not report.exists() or report.stat().st_mtime <= changed:
        from analysis.report.assemble import write_report

        told = {"planned": sweep.contrasts, "baseline": sweep.baseline}
        report = write_report(sweep.name, sweep.folders, sweep.folder.parent, sweep.question, sweep.runs, **told)
    print(f"report: {report}")


def _probe(sweep: Sweep, how: How) -> None:
    """Measure the probes that the sweep's file asks for, on the finished runs that lack them."""
    from analysis.bias import probe_table

    lacking = [folder for folder in sweep.folders if probe_table.is_lacking(folder, sweep.probes)]
    if not lacking:
        return
    from analysis.bias import probe_runs

    print(f"probes: {', '.join(sweep.probes)} of {len(lacking)} runs", flush=True)
    for folder in lacking:
        try:
            probe_runs.probe(folder, sweep.probes, how)
        except Refusal as error:  # weights that were thrown away, say: the report says what it has
            print(f"probes: {folder.name}: {error}", file=sys.stderr)


def _sweep(given: argparse.Namespace) -> Sweep:
    """The sweep that is named, or that --grid spans."""
    words = vars(given)
    fields = {key: value for key, value in words.items() if key in Run.model_fields}
    if words.get("grid"):
        if given.name:
            raise Refusal(f"both a sweep, {given.name}, and --grid; leave one out")
        from slurm.define.grid import sweep_of

        if "model_kwargs" in fields:
            fields["model_kwargs"] = pairs(fields["model_kwargs"], "--model-kwargs")
        return sweep_of(words["grid"], fields)
    if fields:
        flag = "--" + next(iter(fields)).replace("_", "-")
        raise Refusal(f"{flag} goes with --grid; what a sweep trains is said in its file")
    if not given.name:
        raise Refusal("name a sweep, or give --grid field=value,value; see python scripts/sweep.py --help")
    sweep = load(given.name)
    for name in sweep.probes:  # before anything is planned, let alone trained
        if name not in (known := probes.names()):
            raise Refusal(f"PROBES of sweep {sweep.name}: {unknown('probe', name, known)}")
    return sweep


def _add_where(part: argparse.ArgumentParser) -> None:
    part.add_argument(
        "--cluster", default="auto", metavar="NAME", help="local, debug, slurm, or one of slurm/clusters.yaml"
    )
    part.add_argument("--slots", type=_count, metavar="N", help="runs at a time here (default: one per GPU, or core)")
    part.add_argument("--no-snapshot", action="store_true", help="jobs run the checkout, not a copy of it")
    add_fields(part, How)
    add_fields(part, Resources)


def _add_grid(part: argparse.ArgumentParser) -> None:
    part.add_argument(
        "--grid", nargs="+", action="extend", metavar="FIELD=VALUE,VALUE", help="instead of NAME: every combination"
    )
    add_fields(part, Run)


def _add_launch(part: argparse.ArgumentParser) -> None:
    part.add_argument("--retry", action="store_true", help="also train the runs that failed before")
    _add_where(part)
    _add_grid(part)


def _add_resume(part: argparse.ArgumentParser) -> None:
    for kind, words in (
        ("failed", "what failed"),
        ("timeout", "what the time limit stopped"),
        ("unfinished", "what has neither ended nor been cancelled (the default)"),
        ("cancelled", "what was cancelled"),
    ):
        part.add_argument(f"--{kind}", action="store_true", help=f"train {words}; several add up")
    part.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="other resources, such as mem_gb=64"
    )
    _add_where(part)


def _add_status(part: argparse.ArgumentParser) -> None:
    part.add_argument("--watch", type=_seconds, metavar="SECONDS", help="again and again, until all runs have ended")
    part.add_argument("--state", choices=states.STATES, help="only runs in this state")
    part.add_argument("--sort", choices=states.SORTS, help="by a column instead of by state")


def _add_logs(part: argparse.ArgumentParser) -> None:
    _add_signature(part)
    part.add_argument("--follow", action="store_true", help="go on until the run ends")


def _add_signature(part: argparse.ArgumentParser) -> None:
    part.add_argument("signature", help="of the run, or its beginning")


def _add_cancel(part: argparse.ArgumentParser) -> None:
    part.add_argument(
        "--where", nargs="+", action="extend", default=[], metavar="FIELD=VALUE", help="only runs with all of these"
    )
    part.add_argument("--yes", action="store_true", help="do not ask")


FLAGS = {"plan": _add_grid, "launch": _add_launch, "status": _add_status, "logs": _add_logs, "resume": _add_resume}
FLAGS |= {"cancel": _add_cancel, "repro": _add_signature}
COMMANDS = {"plan": plan, "launch": launch, "status": status, "logs": logs, "resume": resume, "cancel": cancel}
COMMANDS |= {"collect": collect, "repro": repro}


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 1")
    try:
        return startable(int(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} is {error}") from None


def _seconds(text: str) -> float:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of seconds from 1")
    return float(text)


if __name__ == "__main__":
    run_main(main, prints=not {"launch", "resume"} & {*sys.argv[1:2]})
