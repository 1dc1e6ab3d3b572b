"""Evaluate weights on the validation split of a data set: those a run left behind, or a public checkpoint.

A file of ours says what it is; for any other give --model, --model-kwargs, --dataset and --img-size. Its pixels are
standardised as the data set's entry says, whatever its authors did. Tokens of a deit are merged with --model-kwargs
merge_r=8 merge_start=1, for any file; the row then says whether it was trained so. --img-size judges a run of ours at
another size of image, where its weights allow it; scripts/resolution.py draws the curve.

Printed are loss (mean negative log-likelihood), then in percent top1, top5, balanced (the mean accuracy of the classes,
however many images each has) and ece (expected calibration error of 15 bins). --per-class and --confusion write tables
of the classes, by name. With --tta N these are of the mean probability of N augmented views, as in Scaling MLPs
(N = 100); the plain image is not one of them. View i of an image is what training with the run's augmentation and seed
would see of it in epoch i, so repeating the command repeats the figures. --tta all takes every shift of --crop-pad,
--crop-step and --crop-fill once: `--tta all --crop-pad 16 --crop-fill wrap --crop-step 4` averages 32 px images over
all 64 shifts by whole patches of 4. The row then has the MACs of all views of an image.
"""

import argparse
import sys
from pathlib import Path

from engine.cli import tables
from engine.cli.flags import Parser, add_fields, run_main
from engine.cli.numbers import temperature, views
from engine.cli.validate import FOREIGN, class_names, cost, described, file_names, merging, predict, resized
from engine.errors import Refusal
from engine.fields.effects import AUGMENTED
from engine.folder import files
from engine.run import How, Run, make_how


def main() -> None:
    given = parse()
    fields = vars(given)
    changes = {key: fields[key] for key in ("batch_size", "stored_size", *AUGMENTED) if key in fields}
    if not given.tta and (idle := [key for key in AUGMENTED if key in changes]):
        raise Refusal(f"--{idle[0].replace('_', '-')} is for the views of --tta N; leave it out")
    tables.check_target(given.results_file, (".csv", ".json"))
    tables.check_target(given.predictions, (".npz", ".csv"), "--predictions")
    tables.check_target(given.per_class, (".csv",), "--per-class")
    tables.check_target(given.confusion, (".csv",), "--confusion")
    written = [path for path in (given.results_file, given.predictions, given.per_class, given.confusion) if path]
    if twice := [path for path in written if written.count(path) > 1 and not files.is_stream(path)]:
        raise Refusal(f"{twice[0]} is named for two results; give each a file of its own")
    how = make_how({key: value for key, value in fields.items() if key in How.model_fields})

    from engine import evaluate, metrics
    from engine.data.ensure import settled

    named = {key: fields[key] for key in FOREIGN if key in fields}
    path, run = described(given.checkpoint, named, changes, given.split)
    if "stored_size" not in changes:
        run = settled(run, how.data_dir, lambda line: print(line, file=sys.stderr))
    logp, labels = predict(path, run, how, given.tta)
    sets = metrics.read_real(given.real, file_names(run, given.raw_dir), labels) if given.real else None
    row = {
        "model": run.rung,
        **merging(path, run),
        **resized(path, run),
        "dataset": run.dataset,
        "samples": len(labels),
    }
    row |= {**cost(run, given.tta, logp.shape[1]), **metrics.judge(logp, labels, given.temperature, sets)}
    print(
        *(f"{key} {value:.4f}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()),
        sep="  ",
    )
    if given.results_file:
        tables.append_row(given.results_file, {**row, "checkpoint": str(path)})
    if given.predictions:
        evaluate.write_predictions(given.predictions, logp, labels, given.probabilities)
    if given.per_class or given.confusion:
        matrix = metrics.confusion(labels, metrics.top_k(logp, 1)[:, 0], logp.shape[1])
        evaluate.write_confusion(matrix, class_names(run, how), given.per_class, given.confusion)


def parse() -> argparse.Namespace:
    parser = Parser(prog="scripts/validate.py", description=__doc__.splitlines()[0])
    parser.add_argument(
        "checkpoint",
        type=Path,
        help="a run's folder, its last.pth.tar or model_best.pth.tar, or a file in a public layout",
    )
    parser.add_argument(
        "--tta", type=views, metavar="N", help="mean probability of N augmented views of each image; all: of its shifts"
    )
    parser.add_argument(
        "--temperature", type=temperature, metavar="T", help="also scale by T; 'fit': by what fits the other half"
    )
    parser.add_argument("--real", type=Path, metavar="FILE", help="real.json: also the ImageNet-ReaL accuracy")
    parser.add_argument("--raw-dir", type=Path, help="for --real: the image folder that the .beton was written from")
    parser.add_argument("--split", choices=("val", "holdout"), default="val", help="holdout: what --holdout set aside")
    parser.add_argument(
        "--results-file", type=Path, help="add the figures to this CSV, or .json; several processes may at once"
    )
    parser.add_argument(
        "--predictions", type=Path, metavar="FILE", help="write index, label, prediction, top5: .npz, .csv"
    )
    parser.add_argument("--probabilities", action="store_true", help="write the probabilities there, too")
    parser.add_argument(
        "--per-class", type=Path, metavar="FILE", help="write accuracy and precision of each class: .csv"
    )
    parser.add_argument(
        "--confusion", type=Path, metavar="FILE", help="write the confusion matrix, a row per label: .csv"
    )
    add_fields(parser, Run, only=(*FOREIGN, "batch_size", "stored_size", *AUGMENTED))
    add_fields(parser, How, only=("data_dir", "device", "workers", "threads"))
    return parser.parse()


if __name__ == "__main__":
    run_main(main)
