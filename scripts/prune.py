"""Take weights or units from a trained run by several criteria: accuracy against sparsity, before and after healing.

    python scripts/prune.py results/runs/SIGNATURE-mlp_1m-s0 --share 0.5 0.8 0.95
    python scripts/prune.py RUN RUN RUN --by magnitude locality random --heal-epochs 5 --rounds 3 --rewind

Each criterion is a file of engine/pruning/criteria, whose docstring has its formula. Criteria of weights (magnitude,
locality, random) take the same share of every unit of the first layer of a flat net and of matrices over the tokens;
those of units (rank, norm, activation, wanda, random_units) whole hidden units of a plain MLP. Several runs are seeds
of one model: intervals are over them, and differences of criteria are paired by them. Training again is ordinary runs
among the results, so that the command can be stopped and repeated; in rounds, each starts from the one before.
"""

import argparse
import sys
from pathlib import Path

from engine.cli.flags import Parser, add_debug, add_fields, run_main, show
from engine.cli.numbers import share, whole
from engine.cli.tables import check_target, table, write
from engine.errors import CHECKPOINT, Refusal
from engine.folder import files, store
from engine.pruning import criteria, stages
from engine.run import How, Run, make_how, unknown

WEIGHTS = ["magnitude", "locality", "random"]


def main() -> None:
    given = parse()
    for name in given.by:
        if name not in criteria.names():
            raise Refusal(unknown("criterion", name, criteria.names()))
    check_target(given.results_file)
    figure = given.figure or store.results_dir() / "prune.svg"
    check_target(figure, (".svg",), "--figure")
    if (given.rounds > 1 or given.rewind) and not given.heal_epochs:
        raise Refusal("--rounds and --rewind train between two rounds; give --heal-epochs, too")
    how = make_how({key: value for key, value in vars(given).items() if key in How.model_fields})
    sources = [source(path) for path in given.run]

    from analysis.figures import draw
    from analysis.pruning import curves, figures, measured
    from engine.cli.call import train_run

    rows = []
    for path, run in sources:
        start = run.but(initial_checkpoint=str(path), prune_by=None, prune_share=0.0, prune_rewind=False)
        entire = measured.measure(start, how)
        for chain in chains(given, run, path):
            for number, each in enumerate(chain, 1):
                print(f"{run.name} {each.prune_by} {each.prune_share:g} seed {each.seed}", file=sys.stderr)
                rows.append(measured.row(run, each, number, len(chain), how, entire))
                if given.heal_epochs:
                    result = train_run(each, **how.model_dump(exclude_unset=True))
                    rows[-1] |= {"acc_after": result.acc1, "epochs": each.epochs, "signature": each.signature}
    frame = curves.table(rows)
    for sheet in (curves.sheet(frame), curves.difference_sheet(frame)):
        if sheet.rows:
            show(table([dict(zip(sheet.header, row, strict=True)) for row in sheet.rows]))
    files.write_bytes(figure, draw.standalone(figures.curves(frame)).encode())
    print(f"figure: {figure}")
    if given.results_file:
        write(given.results_file, rows)


def source(path: Path) -> tuple[Path, Run]:
    """A finished run's folder, and the run. Raises Refusal (CHECKPOINT) for any other."""
    if not store.is_done(path):
        raise Refusal(f"{path} is not the folder of a finished run; train it first", CHECKPOINT)
    return path.absolute(), store.read_run(path)


def chains(given: argparse.Namespace, run: Run, path: Path) -> list[list[Run]]:
    """The rounds of every criterion, share and draw of chance."""
    budget = {"epochs": given.heal_epochs or 1} | ({"lr": given.lr} if given.lr else {})
    found = []
    for by in given.by:
        draws = given.draws if by.startswith("random") else 1
        for gone in sorted(given.share):
            for draw in range(draws):
                own = {**stages.recipe(run, budget), "seed": run.seed + draw}
                found.append(stages.rounds(run, by, gone, given.rounds, own, rewind=given.rewind, folder=path))
    return found


def parse() -> argparse.Namespace:
    parser = Parser(prog="scripts/prune.py", description=__doc__.partition("\n\n")[0])
    parser.add_argument("run", nargs="+", type=Path, help="folder of a finished run; several: seeds of one model")
    parser.add_argument("--by", nargs="+", default=WEIGHTS, metavar="NAME", help=", ".join(criteria.names()))
    parser.add_argument(
        "--share", nargs="+", type=share, default=[0.5, 0.8, 0.9, 0.95], metavar="S", help="of what is taken"
    )
    parser.add_argument("--draws", type=whole(1), default=3, help="of chance, the seeds from the run's own on")
    parser.add_argument("--heal-epochs", type=whole(0), default=0, metavar="N", help="train again after each round")
    parser.add_argument("--lr", type=float, help="to train again with (default: the run's own)")
    parser.add_argument("--rounds", type=whole(1), default=1, help="in which the share is reached")
    parser.add_argument(
        "--rewind", action="store_true", help="train each round anew from the first weights of its seed"
    )
    parser.add_argument("--figure", type=Path, metavar="FILE", help="an .svg (default: prune.svg among the results)")
    parser.add_argument("--results-file", type=Path, help="also write a row per criterion, share and draw: .csv, .json")
    add_debug(parser)
    add_fields(parser, How, only=("data_dir", "device", "workers", "threads"))
    return parser.parse()


if __name__ == "__main__":
    run_main(main)
