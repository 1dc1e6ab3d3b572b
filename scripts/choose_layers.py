"""Ask a trained DeiT which of its layers can lose their attention, by several criteria, and print how to train so.

    python scripts/choose_layers.py RUN -k 3
    python scripts/choose_layers.py removal_base --study removal -k 4      # all runs of a sweep, for another to read
    python scripts/choose_layers.py FILE --model deit_s16 --dataset imagenet --criterion token_entropy head_entropy

Each criterion is a file of analysis/choosing, whose docstring has its formula. The order is greedy (asked again after
each pick) and once (each layer alone); its stability is over bootstraps of the images, and over seeds where several
checkpoints are named. Nothing is trained. --skip says what skipping an attention leaves of its half: the selection was
published with x, the training makes it 2x.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from analysis import choosing
from engine.cli.flags import Parser, add_debug, add_fields, run_main, show
from engine.cli.numbers import whole
from engine.cli.tables import check_target, write
from engine.cli.validate import FOREIGN
from engine.errors import DATA, Refusal
from engine.folder import files, store
from engine.run import How, Run, make_how
from slurm.define import load, removal

IMAGES = 130 * 256  # as published


def main() -> None:
    given = parse()
    choosing.check(given.criterion)
    checkpoints = named(given.checkpoint, by_name=bool(given.study))
    if given.study:
        given.results_file = given.results_file or removal.table(given.study)[1]
        given.figure = given.figure or given.results_file.with_name("choice.svg")
        given.results_file.parent.mkdir(parents=True, exist_ok=True)
    check_target(given.results_file)
    figure = given.figure or store.results_dir() / "choice.svg"
    check_target(figure, (".svg",), "--figure")
    given.skip = list(dict.fromkeys(given.skip))
    how = make_how({key: value for key, value in vars(given).items() if key in How.model_fields})
    foreign = {key: vars(given)[key] for key in FOREIGN if key in vars(given)}

    from analysis.figures import draw, removal_figures
    from analysis.removal import asking, sheets
    from analysis.removal.subject import open_subject

    found, rows = [], []
    for path, told in checkpoints.items():
        subject, run = open_subject(path, foreign, given.split, given.images, how)
        k = given.layers or max(1, round(len(subject.layers) / 4))
        if k > len(subject.layers):
            raise Refusal(f"-k {k}: {path} has attention in {len(subject.layers)} layers")
        if found and found[0][0].layers != subject.layers:
            raise Refusal(
                f"{path} has attention in other layers than {next(iter(checkpoints))}; compare like with like"
            )
        settings = {"estimate": given.estimate, "skip": given.skip, "resamples": given.resamples}
        print(f"{path}: {asking.takes(subject, given.criterion, k, **settings)}", file=sys.stderr)
        found.append(asking.rankings(subject, given.criterion, k, **settings))
        rows += sheets.rows(told, found[-1], k)
    print(*sheets.meanings(given.criterion, given.skip), sep="\n")
    for path, rankings in zip(checkpoints, found, strict=True):
        print(f"\n{path}")
        for table in (sheets.costs(rankings, k), sheets.stability(rankings, k), sheets.correlation(rankings)):
            show(table)
    if len(found) > 1:
        show(sheets.over_checkpoints(found, k))
    over = f"{given.resamples} bootstraps of {subject.num_images} images"
    files.write_bytes(figure, draw.standalone(removal_figures.choices(found[0], k, over)).encode())
    print(f"figure: {figure}")
    if given.results_file:
        write(given.results_file, rows)
    if given.study:
        print(f"choices: {given.results_file}; commit it, then: python scripts/sweep.py plan {given.study}")
        return
    answer = found[0][0]
    words = f"to train without the attention of {answer.chosen(k)} ({answer.label}):"
    print(words, sheets.train_line(next(iter(checkpoints)), run, answer.chosen(k), None), sep="\n")


def named(words: Sequence[str], *, by_name: bool) -> dict[Path, str]:
    """Each checkpoint, and what its rows call it: its path, or the name of its run's folder wherever that lies.

    Raises Refusal for a sweep whose runs are not finished.
    """
    found = {}
    for word in words:
        if word not in load.names() and not word.endswith(".py"):
            folder = Path(word).parent if Path(word).suffix else Path(word)
            found[Path(word)] = folder.name if by_name else word
            continue
        for folder in load.load(word).folders:
            if not store.is_done(folder):
                raise Refusal(f"{folder} is not finished; it comes first: python scripts/sweep.py launch {word}", DATA)
            found[folder] = folder.name if by_name else str(folder)
    return found


def parse() -> argparse.Namespace:
    parser = Parser(prog="scripts/choose_layers.py", description=__doc__.partition("\n\n")[0])
    words = "a run's folder or file, a public file, or a sweep: all its runs; several: seeds of one model"
    parser.add_argument("checkpoint", nargs="+", help=words)
    parser.add_argument("--study", metavar="NAME", help="write the choices where the sweep NAME reads them")
    parser.add_argument("-k", "--layers", type=whole(1), metavar="K", help="layers to choose (default: a quarter)")
    names = choosing.names()
    default = ["token_entropy", *(name for name in names if name != "token_entropy")]
    parser.add_argument("--criterion", nargs="+", default=default, metavar="NAME", help="of analysis/choosing/NAME.py")
    parser.add_argument("--estimate", choices=("greedy", "once", "both"), default="both", help="again after each pick?")
    words = "what a skipped attention leaves; both give rankings of their own"
    parser.add_argument("--skip", nargs="+", choices=("x", "2x"), default=["x"], help=words)
    parser.add_argument("--split", choices=("train", "val"), default="train", help="images to look at, as they are")
    parser.add_argument("--images", type=whole(2), default=IMAGES, help="at most so many, of a fixed shuffle")
    parser.add_argument("--resamples", type=whole(0), default=100, help="bootstraps of the images")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="an .svg (default: choice.svg among the results)")
    parser.add_argument("--results-file", type=Path, help="also write a row per criterion and layer: .csv, .json, .md")
    add_debug(parser)
    add_fields(parser, Run, only=FOREIGN)
    add_fields(parser, How, only=("data_dir", "device", "workers", "threads"))
    return parser.parse()


if __name__ == "__main__":
    run_main(main)
