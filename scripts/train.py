"""Train one model on one data set; repeat the command to resume it, or to see that it is done.

Every flag is a field of Run (engine/run.py) or of How; -c reads the same fields from YAML, and a run's args.yaml is
such a file. Results: RESULTS/runs/SIGNATURE-MODEL-sSEED/ (engine/store.py describes it).
"""

import logging
from pathlib import Path

from engine import store
from engine.cli import Parser, add_config, add_fields, collect, run_main
from engine.errors import Refusal
from engine.run import How, Run


def main() -> None:
    parser = Parser(prog="scripts/train.py", description=__doc__.splitlines()[0])
    add_config(parser)
    parser.add_argument("--output", type=Path, default=store.results_dir(), help="folder of all results")
    parser.add_argument("--experiment", help="folder under --output, instead of runs/SIGNATURE-MODEL-sSEED")
    parser.add_argument("--debug", action="store_true", help="show a traceback for a mistake of the user's, too")
    add_fields(parser, Run)
    add_fields(parser, How)
    given = parser.parse()
    run, how = collect(given)
    folder = experiment(given.output, given.experiment) if given.experiment else store.folder_of(run, given.output)

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    from engine.beton import ensure
    from engine.signals import CODES, Stop
    from engine.train import preflight, train

    preflight(run)
    store.make_folder(run, folder)
    ensure(run.dataset, run.img_size, how.data_dir)
    with Stop().on(CODES) as stop:
        train(run, folder, how, stop)
    status = store.read_status(folder)
    print(f"done: acc1 {status['acc1']:.2f} (best {status['best_acc1']:.2f}) after {run.epochs} epochs")
    print(f"results: {folder}")


def experiment(output: Path, name: str) -> Path:
    if name.startswith((".", "-", "/")) or ".." in Path(name).parts or "%" in name or len(name) > 200 or "\n" in name:
        raise Refusal(f"--experiment {name!r} is no name for a folder; use letters, digits, - and _")
    return output / name


if __name__ == "__main__":
    run_main(main)
