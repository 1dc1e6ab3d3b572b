"""Tune a recipe per model on held-out training images: which learning rate and weight decay each one wants.

python scripts/tune.py --arch mixer_s16 bmlp_1m --dataset cifar10 --grid lr=1e-4,1e-3,1e-2 weight_decay=0,0.05
python scripts/tune.py --arch mixer_1m --dataset cifar10 --search random --grid lr=1e-4:1e-2 --trials 20

The runs are a sweep, which scripts/sweep.py status, logs, cancel and collect know by its name. On SLURM the command
returns at once; with --search optuna it waits for each round, and goes on to the end. Repeat it to go on after whatever
stopped it. It ends with the best cell of each model, a map of all, and the line to train with. The test images are not
touched.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.cli.flags import Parser, add_config, add_fields, run_main, show
from engine.cli.repro import command
from engine.errors import Refusal
from engine.fields.limits import startable
from engine.fields.values import pairs
from engine.folder import store
from engine.run import How, Run, make_how, read_yaml
from slurm.cluster.clusters import Resources
from slurm.define import search, tune
from slurm.define.search import Search
from slurm.define.sweep import Sweep

HOLDOUT = 0.1


def main() -> int | None:
    given = parse()
    asked, how = search_of(given)
    train = train_by(given, how)
    if asked.kind == "optuna":  # each round is asked for when the one before has ended, also on a cluster
        train = tune.waiting(train, is_live)
    sweep, statuses = tune.search(asked, train)
    rows = tune.outcomes(asked, sweep, statuses)
    code = tell(asked, sweep, rows, given.train_epochs, how)
    if left := sum(row["state"] not in ("done", "failed", "cancelled") for row in rows):
        print(f"{len(rows) - left} of {len(rows)} runs have ended; when the others have, repeat the command")
        print(f"next: python scripts/sweep.py status {sweep.name} --watch 30")
        return 0
    return code


def parse() -> argparse.Namespace:
    parser = Parser(prog="scripts/tune.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_config(parser)
    parser.add_argument(
        "--arch", "--model", dest="models", nargs="+", metavar="NAME", help="models (default: the recipe's)"
    )
    words = f"lr=1e-4,1e-3 for a list, lr=1e-4:1e-2 for a log-uniform range (default: {' '.join(search.GRID)})"
    parser.add_argument("--grid", nargs="+", action="extend", metavar="FIELD=VALUES", help=words)
    parser.add_argument("--search", choices=search.SEARCHES, default="grid", help="how the space is searched")
    parser.add_argument("--trials", type=int, default=27, metavar="N", help="per model, not for grid (default: 27)")
    parser.add_argument("--search-seed", type=int, default=0, metavar="N", help="of what is drawn (default: 0)")
    parser.add_argument("--train-epochs", type=int, metavar="N", help="of the printed command (default: as tuned)")
    parser.add_argument("--retry", action="store_true", help="also train the runs that failed before")
    parser.add_argument("--cluster", default="auto", metavar="NAME", help="local, debug, slurm, or of clusters.yaml")
    parser.add_argument("--slots", type=int, metavar="N", help="runs at a time here (default: one per GPU, or core)")
    parser.add_argument("--debug", action="store_true", help="show a traceback for a mistake of the user's, too")
    add_fields(parser, Run, [key for key in Run.model_fields if key != "model"])
    add_fields(parser, How)
    add_fields(parser, Resources)
    given = parser.parse()
    for flag in ("trials", "slots", "train_epochs"):
        if (value := getattr(given, flag)) is not None and value < 1:
            raise Refusal(f"--{flag.replace('_', '-')} {value} is not a whole number from 1")
    try:
        startable(given.slots or 1)
    except ValueError as error:
        raise Refusal(f"--slots {given.slots} is {error}") from None
    return given


def search_of(given: argparse.Namespace) -> tuple[Search, How]:
    """What is asked for: flags above the recipe of -c, and a holdout unless one is given."""
    words = vars(given)
    fields = read_yaml(words["config"]) if "config" in words else {}
    named = [fields.pop("model")] if "model" in fields else []
    if not (models := given.models or named):
        raise Refusal("say which models to tune: --arch NAME ..., or a recipe (-c) that names one")
    flags = {key: value for key, value in words.items() if key in Run.model_fields or key in How.model_fields}
    if "model_kwargs" in flags:
        flags["model_kwargs"] = pairs(flags["model_kwargs"], "--model-kwargs")
    space = given.grid or (search.GRID if given.search == "grid" else search.RANGES)
    # A recipe may well set what is tuned; a flag that does contradicts it.
    tuned = {key.partition("=")[0] for key in space} - flags.keys()
    fields = {"holdout": HOLDOUT, **{key: value for key, value in fields.items() if key not in tuned}, **flags}
    how = make_how({key: fields.pop(key) for key in list(fields) if key in How.model_fields})
    asked = Search(tuple(dict.fromkeys(models)), fields, tuple(space), given.search, given.trials, given.search_seed)
    return asked, how


def train_by(given: argparse.Namespace, how: How) -> Callable[[Sweep], list[dict[str, Any]]]:
    fields = how.model_dump(mode="json", exclude_unset=True) | {"data_dir": str(how.data_dir.absolute())}
    resources = {key: value for key, value in vars(given).items() if key in Resources.model_fields}

    def train(sweep: Sweep) -> list[dict[str, Any]]:
        from slurm.launch import launch

        where = {"cluster": given.cluster, "slots": given.slots, "flags": resources}
        return launch(sweep, fields, retry=given.retry, **where)

    return train


def is_live(sweep: Sweep) -> bool | None:
    """Whether jobs of a sweep wait or run on SLURM; None where it does not answer."""
    from slurm.cluster import submit

    found = submit.live(sweep)
    return None if found is None else bool(found)


def tell(asked: Search, sweep: Sweep, rows: list[dict[str, Any]], epochs: int | None, how: How) -> int:
    """Print the winners and write tuning.csv and the maps beside the sweep's files."""
    import pandas as pd

    from analysis.compare import judges, tuning
    from analysis.figures import draw

    axes, space = list(asked.space), asked.space
    ranges = {key: (span.low, span.high) for key, span in space.items() if isinstance(span, search.Range)}
    table = tuning.cells(rows, axes)
    found = tuning.winners(table, axes, ranges)
    if not found:
        raise Refusal(f"no run has finished; look: python scripts/sweep.py status {sweep.name}", 1)
    kind = judges.kind(pd.Series([run.holdout for run in sweep.runs]))
    show(tuning.sheet(found, kind).rich())
    for win in found:
        print(*(f"{win.model}: {edge}" for edge in win.edges), sep="\n", end="\n" if win.edges else "")
    (sweep.folder / "figures").mkdir(parents=True, exist_ok=True)
    store.write_bytes(sweep.folder / "tuning.csv", table.to_csv(index=False).encode())
    for model in asked.models:
        if svg := tuning.heat_map(table, model, axes, kind):
            path = sweep.folder / "figures" / f"tuning-{model.replace('/', '-')}.svg"
            store.write_bytes(path, draw.standalone(svg).encode())
            print(f"map: {_shown(path)}")
    runs = {run.signature: run for run in sweep.runs}
    print("\ntrain with (all training images, judged on the test set):")
    for win in found:
        best = runs[win.signature]
        print(f"  {command(best.but(holdout=0.0, epochs=epochs or best.epochs), _how(how))}")
    return 0


def _how(how: How) -> dict[str, Any]:
    """What was given of it, to be given again."""
    return how.model_dump(mode="json", exclude_unset=True)


def _shown(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


if __name__ == "__main__":
    run_main(main, prints=False)
