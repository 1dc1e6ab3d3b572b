"""The flags of sweep.py and tune.py, and what they ask for: which sweep, and where it is trained, with what."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.cli.flags import Parser, add_debug, add_fields
from engine.cli.numbers import processes, whole
from engine.errors import Refusal
from engine.fields.values import pairs
from engine.run import How, Run, make_how
from slurm import clean, escalate
from slurm.cluster.clusters import Resources
from slurm.define.grid import sweep_of
from slurm.define.load import load
from slurm.define.seeds import MARK, parse, told
from slurm.define.sweep import Sweep
from slurm.queue import probing, states

HELP = {
    "plan": "show what a launch would train, and what it costs; start nothing",
    "launch": "train what is missing; on this machine then print the comparison and write the report",
    "status": "show how every run stands",
    "logs": "show what a run said and, if it died, the end of its job's log",
    "resume": "train what is left; with flags, only what failed, timed out, was cancelled or has not ended",
    "cancel": "give up runs that have not ended; what was saved is kept",
    "finish": "probe what lacks it, collect, print the comparison and write the report, of what has ended so far",
    "collect": "write runs.csv, epochs.csv, probes.csv, emergence.csv and predictions.npz, also half-way",
    "clean": "remove what neither a table nor a resume needs, and say what that frees",
    "repro": "print the exact command of a run",
    "doctor": "show what is there for sweeps, and what to mend",
}
LONG = ("plan", "launch", "resume")  # commands whose usage would fill a screen
RESUMED = {
    "failed": "what failed",
    "timeout": "what the time limit stopped",
    "unfinished": "what has neither ended nor been cancelled (the default)",
    "cancelled": "what was cancelled",
    "published": "what a published table alone has as done",
    "memory": "what failed for lack of memory, as far as that is known",
}


def parser(description: str) -> Parser:
    """Of scripts/sweep.py: a command, and the flags of each."""
    made = Parser(
        prog="scripts/sweep.py", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_debug(made)
    commands = made.add_subparsers(dest="command", required=True, metavar="{" + ",".join(HELP) + "}")
    for command, words in HELP.items():
        usage = "%(prog)s [NAME] [flags, in groups below]" if command in LONG else None
        part = commands.add_parser(command, help=words, description=words, usage=usage)
        part.add_argument("--debug", action="store_true", help=argparse.SUPPRESS)
        if command != "doctor":
            optional = {"nargs": "?"} if command in ("plan", "launch") else {}
            words = "of slurm/sweeps/NAME.py, or the path of such a file; NAME@0-9 is the same with these seeds"
            part.add_argument("name", help=words, **optional)
            if optional:
                part.add_argument(
                    "--seeds", type=parse, metavar="0-9", help="NAME@0-9: each run with these seeds instead"
                )
        FLAGS.get(command, lambda part: None)(part)
    return made


def named(given: argparse.Namespace) -> Sweep:
    """The sweep that is named, or that --grid spans. Raises Refusal for none, for both, and as `load`."""
    words = vars(given)
    if seeds := words.get("seeds"):
        if words.get("grid"):
            words["grid"] = [*words["grid"], f"seed={','.join(map(str, seeds))}"]
        elif given.name:
            given.name = f"{given.name.partition(MARK)[0]}{MARK}{told(seeds)}"
    fields = {key: value for key, value in words.items() if key in Run.model_fields}
    if words.get("grid"):
        if given.name:
            raise Refusal(f"both a sweep, {given.name}, and --grid; leave one out")
        if "model_kwargs" in fields:
            fields["model_kwargs"] = pairs(fields["model_kwargs"], "--model-kwargs")
        return sweep_of(words["grid"], fields)
    if fields:
        flag = "--" + next(iter(fields)).replace("_", "-")
        raise Refusal(f"{flag} goes with --grid; what a sweep trains is said in its file")
    if not given.name:
        raise Refusal("name a sweep, or give --grid field=value,value; see python scripts/sweep.py --help")
    return load(given.name)


def how_of(given: argparse.Namespace) -> How:
    """What is given of the fields of How."""
    return make_how({key: value for key, value in vars(given).items() if key in How.model_fields})


def where_of(given: argparse.Namespace, how: How) -> dict[str, Any]:
    """The arguments of slurm.launch.launch that say where and with what."""
    fields = how.model_dump(mode="json", exclude_unset=True) | {"data_dir": str(how.data_dir.absolute())}
    flags = {key: value for key, value in vars(given).items() if key in Resources.model_fields}
    return {"how": fields, "cluster": given.cluster, "slots": given.slots, "flags": flags}


def finish_words(name: str, how: How) -> list[str]:
    """The command of `--finish`, wherever it runs. A sweep's file is named by its whole path."""
    named = str(Path(name).absolute()) if name.partition(MARK)[0].endswith(".py") else name
    given = how.model_dump(mode="json", exclude_unset=True, include={*probing.FLAGS} - {"device"})
    given["data_dir"] = str(how.data_dir.absolute())
    return ["finish", named, *(word for key, value in given.items() for word in (_flag(key), str(value)))]


def _flag(key: str) -> str:
    return "--" + key.replace("_", "-")


def add_place(part: argparse._ActionsContainer) -> None:
    part.add_argument(
        "--cluster", default="auto", metavar="NAME", help="local, debug, slurm, or one of slurm/clusters.yaml"
    )
    part.add_argument(
        "--slots", type=processes, metavar="N", help="runs at a time here (default: one per GPU, or core)"
    )


def _add_where(part: argparse.ArgumentParser) -> None:
    where = part.add_argument_group("where it is trained")
    add_place(where)
    where.add_argument("--no-snapshot", action="store_true", help="jobs run the checkout, not a copy of it")
    words = "on SLURM return when all jobs have ended, with table and report; the exit code says whether all are done"
    where.add_argument("--wait", action="store_true", help=words)
    words = "memory by measured peaks, and after a death from too little FACTOR times as much; with --wait by itself"
    where.add_argument("--escalate", type=escalate.parse, metavar="mem_gb=FACTOR:LIMIT", help=words)
    words = "on SLURM also submit a job that runs `finish` when all others have ended, however they did"
    where.add_argument("--finish", action="store_true", help=words)
    add_fields(part, How)
    add_fields(part, Resources, title="on SLURM: what each job asks for, above the sweep and slurm/clusters.yaml")


def _add_grid(part: argparse.ArgumentParser) -> None:
    title = "a sweep without a file: --grid, and what all of its runs have in common"
    words = "instead of NAME: every combination"
    part.add_argument_group(title).add_argument(
        "--grid", nargs="+", action="extend", metavar="FIELD=VALUE,VALUE", help=words
    )
    add_fields(part, Run, title="fields of the runs of --grid")


def _add_plan(part: argparse.ArgumentParser) -> None:
    part.add_argument("--slots", type=processes, metavar="N", help="runs at a time that the time left is for")
    _add_grid(part)


def _add_launch(part: argparse.ArgumentParser) -> None:
    part.add_argument("--retry", action="store_true", help="also train the runs that failed before")
    part.add_argument("--published", action="store_true", help=f"also train {RESUMED['published']}")
    _add_where(part)
    _add_grid(part)


def _add_resume(part: argparse.ArgumentParser) -> None:
    for kind, words in RESUMED.items():
        part.add_argument(f"--{kind}", action="store_true", help=f"train {words}; several add up")
    words = "other resources, such as mem_gb=64"
    part.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help=words)
    _add_where(part)


def _add_status(part: argparse.ArgumentParser) -> None:
    seconds = whole(1, what="number of seconds")
    part.add_argument("--watch", type=seconds, metavar="SECONDS", help="again and again, until all runs have ended")
    part.add_argument("--state", choices=states.STATES, help="only runs in this state")
    part.add_argument("--sort", choices=states.SORTS, help="by a column instead of by state")


def _add_signature(part: argparse.ArgumentParser) -> None:
    part.add_argument("signature", help="of the run, or its beginning")


def _add_logs(part: argparse.ArgumentParser) -> None:
    _add_signature(part)
    part.add_argument("--follow", action="store_true", help="go on until the run ends")


def _add_finish(part: argparse.ArgumentParser) -> None:
    add_fields(part, How, only=probing.FLAGS)


def _add_clean(part: argparse.ArgumentParser) -> None:
    words = "checkpoints of done runs, their model_best.pth.tar, folders of jobs that have ended (default: all three)"
    part.add_argument("--what", nargs="+", choices=clean.KINDS, default=clean.KINDS, help=words)
    _add_yes(part)


def _add_yes(part: argparse.ArgumentParser) -> None:
    part.add_argument("--yes", action="store_true", help="do not ask")


def _add_cancel(part: argparse.ArgumentParser) -> None:
    words = "only runs with all of these"
    part.add_argument("--where", nargs="+", action="extend", default=[], metavar="FIELD=VALUE", help=words)
    _add_yes(part)


FLAGS: dict[str, Callable[[argparse.ArgumentParser], None]] = {
    "plan": _add_plan,
    "launch": _add_launch,
    "status": _add_status,
    "logs": _add_logs,
    "resume": _add_resume,
    "finish": _add_finish,
    "clean": _add_clean,
    "cancel": _add_cancel,
    "repro": _add_signature,
}
