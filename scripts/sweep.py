"""Plan, launch and follow a sweep: many runs that answer one question (slurm/sweeps/NAME.py, or a .py file by path).

python scripts/sweep.py plan NAME            what it would train; nothing is started
python scripts/sweep.py launch NAME          train what is missing, here or on SLURM; repeat it at any time
python scripts/sweep.py launch --grid lr=1e-3,3e-3 seed=0,1,2 --model mixer_1m --dataset cifar10
python scripts/sweep.py status NAME          how every run stands
python scripts/sweep.py logs NAME SIGNATURE  what a run said
python scripts/sweep.py resume NAME          go on with what is left, or --failed, --timeout, --cancelled
python scripts/sweep.py cancel NAME          give up runs; nothing is deleted
python scripts/sweep.py finish NAME          probe, collect and report what has ended so far
python scripts/sweep.py collect NAME         runs.csv, epochs.csv, probes.csv, emergence.csv and predictions.npz
python scripts/sweep.py clean NAME           remove what neither a table nor a resume needs
python scripts/sweep.py repro NAME SIGNATURE the exact command of a run
python scripts/sweep.py doctor               what is there, and what to mend
"""

import argparse
import sys
from typing import Any

from analysis import probes
from engine.cli.flags import run_main, show
from engine.errors import Refusal
from engine.fields.values import pairs
from engine.folder import store
from engine.folder.published import Study
from engine.run import How
from slurm import flags
from slurm.define import find
from slurm.define.sweep import Sweep
from slurm.queue import states
from slurm.queue.tables import older


def main() -> int | None:
    given = flags.parser(__doc__).parse()
    if given.command == "doctor":
        return doctor()
    if given.command == "status" and isinstance(study := find.named(given.name), Study):
        return states.show_tables(study, given.state, given.sort)
    sweep = flags.named(given)
    probes.check(sweep.probes, f"PROBES of sweep {sweep.name}")  # before anything is planned, let alone trained
    if given.command not in ("logs", "repro", "clean") and (words := older(sweep)):
        print(words, file=sys.stderr)
    return COMMANDS[given.command](sweep, given)


def plan(sweep: Sweep, given: argparse.Namespace) -> None:
    from slurm.define import asked
    from slurm.define.plan import table

    show(table(sweep, given.slots or 1))
    if made_for := asked.table(sweep):
        show(made_for)
    print(f"next: python scripts/sweep.py launch {given.name or sweep.name}")


def launch(sweep: Sweep, given: argparse.Namespace) -> int:
    more = {"failed": given.retry, "published": given.published}
    return train(sweep, given, {"unfinished", *(kind for kind in more if more[kind])})


def resume(sweep: Sweep, given: argparse.Namespace) -> int:
    kinds = {kind for kind in flags.RESUMED if vars(given)[kind]}
    return train(sweep, given, kinds or {"unfinished"})


def train(sweep: Sweep, given: argparse.Namespace, kinds: set[str]) -> int:
    from slurm.launch import launch

    how, overrides = flags.how_of(given), pairs(vars(given).get("set", ()), "--set")
    where = flags.where_of(given, how)
    again = given.name or sweep.name
    later = flags.finish_words(again, how) if given.finish else ()
    where |= {"overrides": overrides, "keep_code": not given.no_snapshot, "rule": given.escalate}
    statuses = launch(sweep, kinds=kinds, finish=later, **where)
    if given.wait:
        from slurm.escalate import may_grow
        from slurm.wait import until_ended

        statuses = until_ended(sweep)
        while given.escalate and may_grow(sweep, statuses, given.escalate):
            launch(sweep, kinds={"memory"}, finish=later, **where)
            statuses = until_ended(sweep)
        return end(sweep, how, again, statuses)
    unprobed = sum(status.get("unprobed", False) for status in statuses)
    if unprobed:
        print(f"{unprobed} finished runs are probed by the jobs; repeat the command for the report")
    if unprobed or any(status["state"] in (store.PLANNED, store.RUNNING, store.STOPPED) for status in statuses):
        print(f"next: python scripts/sweep.py status {again} --watch 30")
        print(f"      python scripts/sweep.py logs {again} {sweep.runs[0].signature} --follow")
        print(f"      python scripts/sweep.py resume {again}")
        return 0
    return end(sweep, how, again, statuses)


def finish(sweep: Sweep, given: argparse.Namespace) -> int:
    return end(sweep, flags.how_of(given), given.name, states.standing(sweep), tables=True)


def end(sweep: Sweep, how: How, again: str, statuses: list[dict[str, Any]], tables: bool = False) -> int:
    """The table of rungs, the report, and the sweep as tables. Raises Refusal (1) where runs failed or are left."""
    from analysis.report.finish import finish

    print(f"report: {finish(sweep, how)}")
    if tables:
        from slurm.queue.collect import collect

        print(*collect(sweep), sep="\n")
    if failed := sum(status["state"] == store.FAILED for status in statuses):
        look = f"python scripts/sweep.py status {again} --state failed"
        mended = f"python scripts/sweep.py resume {again} --failed"
        raise Refusal(f"{failed} of {len(statuses)} runs failed; look: {look}; when it is mended: {mended}", 1)
    if left := sum(status["state"] in states.UNFINISHED for status in statuses):
        resume = f"python scripts/sweep.py resume {again}"
        raise Refusal(f"{left} of {len(statuses)} runs are left ({states.summary(statuses)}); go on: {resume}", 1)
    return 0


def status(sweep: Sweep, given: argparse.Namespace) -> None:
    statuses = states.show(sweep, given.state, given.sort, given.watch)
    shown = {status["state"] for status in statuses}
    left = shown & {*states.UNFINISHED}
    verb = "launch" if shown == {store.PLANNED} else "resume" if left else "collect"
    if left and left <= {store.RUNNING, states.QUEUED}:  # all goes its way
        print(f"next: python scripts/sweep.py status {given.name} --watch 30")
    else:
        print(f"next: python scripts/sweep.py {verb} {given.name}")


def logs(sweep: Sweep, given: argparse.Namespace) -> None:
    from slurm.queue.logs import show as show_log

    show_log(sweep, states.find(sweep, given.signature)[1], follow=given.follow)


def cancel(sweep: Sweep, given: argparse.Namespace) -> None:
    from slurm.queue.cancel import cancel, unfinished

    chosen, counts = unfinished(sweep, given.where)
    if not chosen:
        print("nothing to cancel: these runs have ended")
        return
    if not agreed(given, f"cancel {counts}"):
        print("nothing was cancelled")
        return
    now, later = cancel(sweep, chosen)
    print(f"{now} cancelled" + (f", {later} being trained save and leave" if later else ""))
    print(f"back again: python scripts/sweep.py resume {given.name} --cancelled")


def clean(sweep: Sweep, given: argparse.Namespace) -> None:
    from slurm.clean import find, remove, size

    found = {kind: paths for kind, paths in find(sweep, given.what).items() if paths}
    if not found:
        print(f"nothing to remove of {', '.join(given.what)}: what is there is still needed")
        return
    told = ", ".join(f"{kind} ({len(paths)}, {size(paths) / 1e6:,.1f} MB)" for kind, paths in found.items())
    if not agreed(given, f"remove {told}"):
        print("nothing was removed")
        return
    for paths in found.values():
        remove(paths)
    print(f"removed {told}")


def agreed(given: argparse.Namespace, what: str) -> bool:
    """Whether the user wants it, by --yes or when asked. Raises Refusal where there is nobody to ask."""
    if not given.yes and not sys.stdin.isatty():
        raise Refusal(f"this would {what}; add --yes")
    return given.yes or input(f"{what}? [y/N] ").strip().lower() in ("y", "yes")


def collect(sweep: Sweep, given: argparse.Namespace) -> None:
    from slurm.queue.collect import collect

    print(*collect(sweep), sep="\n")


def repro(sweep: Sweep, given: argparse.Namespace) -> None:
    from slurm.define.plan import repro

    print(repro(states.find(sweep, given.signature)[0]))


def doctor() -> None:
    from slurm.cluster.doctor import findings, table

    show(table(list(findings())))


COMMANDS = {
    command.__name__: command for command in (plan, launch, status, logs, resume, cancel, finish, collect, clean, repro)
}

if __name__ == "__main__":
    run_main(main, prints=not {"launch", "resume"} & {*sys.argv[1:2]})
