"""Tune a recipe per model on held-out training images: which learning rate and weight decay each one wants.

python scripts/tune.py --arch mixer_s16 bmlp_1m --dataset cifar10 --grid lr=1e-4,1e-3,1e-2 weight_decay=0,0.05
python scripts/tune.py --arch mixer_1m --dataset cifar10 --search random --grid lr=1e-4:1e-2 --trials 20

The runs are a sweep, which scripts/sweep.py status, logs, cancel and collect know by its name. On SLURM the command
returns at once; with --search optuna it waits for each round, and goes on to the end. Repeat it to go on after whatever
stopped it. It ends with the best cell of each model, a map of all, and the line to train with. The test images are not
touched.
"""

import argparse
from typing import Any

from engine.cli.flags import Parser, add_config, add_debug, add_fields, run_main
from engine.cli.numbers import whole
from engine.cli.repro import command
from engine.errors import Refusal
from engine.fields.values import pairs
from engine.run import How, Run, make_how, read_yaml
from slurm.cluster.clusters import Resources
from slurm.define import search, tune
from slurm.define.search import Search
from slurm.define.sweep import Sweep
from slurm.flags import add_place, where_of

HOLDOUT = 0.1


def main() -> None:
    given = parse()
    asked, how = search_of(given)
    where = where_of(given, how)

    def train(sweep: Sweep) -> list[dict[str, Any]]:
        from slurm.launch import launch

        # Rounds are judged by folders; cells by whatever has them as done.
        kinds = ("unfinished", "published") if asked.kind == "optuna" else ("unfinished",)
        return launch(sweep, retry=given.retry, kinds=kinds, **where)

    # With optuna each round is asked for when the one before has ended, also on a cluster.
    sweep, statuses = tune.search(asked, tune.waiting(train, is_live) if asked.kind == "optuna" else train)
    rows = tune.outcomes(asked, sweep, statuses)

    from analysis.compare import tuned

    found = tuned.tell(sweep, rows, asked.models, list(asked.space), asked.ranges)
    runs = {run.signature: run for run in sweep.runs}
    print("\ntrain with (all training images, judged on the test set):")
    for win in found:
        best = runs[win.signature]
        line = best.but(holdout=0.0, epochs=given.train_epochs or best.epochs)
        print(f"  {command(line, how.model_dump(mode='json', exclude_unset=True))}")
    if left := sum(row["state"] not in ("done", "failed", "cancelled") for row in rows):
        print(f"{len(rows) - left} of {len(rows)} runs have ended; when the others have, repeat the command")
        print(f"next: python scripts/sweep.py status {sweep.name} --watch 30")


def parse() -> argparse.Namespace:
    parser = Parser(prog="scripts/tune.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_config(parser)
    parser.add_argument(
        "--arch", "--model", dest="models", nargs="+", metavar="NAME", help="models (default: the recipe's)"
    )
    words = f"lr=1e-4,1e-3 for a list, lr=1e-4:1e-2 for a log-uniform range (default: {' '.join(search.GRID)})"
    parser.add_argument("--grid", nargs="+", action="extend", metavar="FIELD=VALUES", help=words)
    parser.add_argument("--search", choices=search.SEARCHES, default="grid", help="how the space is searched")
    parser.add_argument(
        "--trials", type=whole(1), default=27, metavar="N", help="per model, not for grid (default: 27)"
    )
    parser.add_argument("--search-seed", type=int, default=0, metavar="N", help="of what is drawn (default: 0)")
    parser.add_argument("--train-epochs", type=whole(1), metavar="N", help="of the printed command (default: as tuned)")
    parser.add_argument("--retry", action="store_true", help="also train the runs that failed before")
    add_place(parser)
    add_debug(parser)
    add_fields(parser, Run, [key for key in Run.model_fields if key != "model"])
    add_fields(parser, How)
    add_fields(parser, Resources, title="on SLURM: what each job asks for")
    return parser.parse()


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


def is_live(sweep: Sweep) -> bool | None:
    """Whether jobs of a sweep wait or run on SLURM; None where it does not answer."""
    from slurm.cluster import submit

    found = submit.live(sweep)
    return None if found is None else bool(found)


if __name__ == "__main__":
    run_main(main, prints=False)
