"""Evaluate weights on the validation split of a data set: those a run left behind, or a public checkpoint.

A file of ours says what it is; for any other give --model, --model-kwargs, --dataset and --img-size. Its pixels are
standardised as the data set's entry says, whatever its authors did.

Printed are loss (mean negative log-likelihood), top1, top5 and ece (expected calibration error of 15 bins), the last
three in percent. With --tta N these are of the mean probability of N augmented views, as in Scaling MLPs (N = 100); the
plain image is not one of them. View i of an image is what training with the run's augmentation and seed would see of it
in epoch i, so repeating the command repeats the figures.
"""

import argparse
import math
from pathlib import Path
from typing import Any

from engine.cli import tables
from engine.cli.flags import Parser, add_fields, run_main
from engine.errors import CHECKPOINT, Refusal
from engine.fields.values import pairs
from engine.folder import files
from engine.run import How, Run, make_how, make_run

FOREIGN = ("model", "model_kwargs", "dataset", "img_size")
VIEWS = ("scale", "ratio", "aa", "color_jitter", "reprob", "remode", "crop_pad", "hflip")
# What counts of the run that left the weights.
JUDGED = (*FOREIGN, "stored_size", "batch_size", "seed", "holdout", "permute", "amp", "amp_dtype", *VIEWS)


def main() -> None:
    given = parse()
    fields = vars(given)
    changes = {key: fields[key] for key in ("batch_size", "stored_size", *VIEWS) if key in fields}
    if not given.tta and (idle := [key for key in VIEWS if key in changes]):
        raise Refusal(f"--{idle[0].replace('_', '-')} is for the views of --tta N; leave it out")
    tables.check_target(given.results_file, (".csv", ".json"))
    tables.check_target(given.predictions, (".npz", ".csv"), "--predictions")
    tables.check_target(given.per_class, (".csv",), "--per-class")
    tables.check_target(given.confusion, (".csv",), "--confusion")
    written = [path for path in (given.results_file, given.predictions, given.per_class, given.confusion) if path]
    if twice := [path for path in written if written.count(path) > 1 and not files.is_stream(path)]:
        raise Refusal(f"{twice[0]} is named for two results; give each a file of its own")
    how = make_how({key: value for key, value in fields.items() if key in How.model_fields})

    import torch

    from engine import evaluate, metrics, transfer
    from engine.data import loaders, normalize
    from engine.models import create, pick_device
    from engine.step import make_autocast

    path = transfer.file_of(given.checkpoint)
    named = {key: fields[key] for key in FOREIGN if key in fields}
    run = described(path, transfer.read(path).get("args"), named).but(**changes)
    if given.split == "val":
        run = run.but(holdout=0.0)
    elif not run.holdout:
        raise Refusal("--split holdout: this run was trained without --holdout")
    device = pick_device(how)
    if how.threads:
        torch.set_num_threads(how.threads)
    _, loader, facts = loaders.make_loaders(run, how)
    if given.tta:
        loader = evaluate.make_views(run, how)
    prepare = normalize.make_prepare(run, facts, device)
    in_chans = len(prepare.mean)
    model = create(run, facts["num_classes"], in_chans).to(device)
    transfer.load_weights(path, run, model, facts["num_classes"], in_chans, new_head=False)
    logp, labels = evaluate.predict(model, loader, prepare, make_autocast(run, device), given.tta or 1)

    sets = metrics.read_real(given.real, file_names(run, given.raw_dir), labels) if given.real else None
    row = {"model": run.rung, "dataset": run.dataset, "samples": len(labels)}
    row |= {**({"tta": given.tta} if given.tta else {}), **metrics.judge(logp, labels, given.temperature, sets)}
    print(
        "  ".join(f"{key} {value:.4f}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items())
    )
    if given.results_file:
        tables.append_row(given.results_file, {**row, "checkpoint": str(path)})
    if given.predictions:
        evaluate.write_predictions(given.predictions, logp, labels, given.probabilities)
    if given.per_class or given.confusion:
        matrix = metrics.confusion(labels, metrics.top_k(logp, 1)[:, 0], facts["num_classes"])
        evaluate.write_confusion(matrix, given.per_class, given.confusion)


def parse() -> argparse.Namespace:
    parser = Parser(prog="scripts/validate.py", description=__doc__.splitlines()[0])
    parser.add_argument(
        "checkpoint",
        type=Path,
        help="a run's folder, its last.pth.tar or model_best.pth.tar, or a file in a public layout",
    )
    parser.add_argument("--tta", type=count, metavar="N", help="mean probability of N augmented views of each image")
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
    add_fields(parser, Run, only=(*FOREIGN, "batch_size", "stored_size", *VIEWS))
    add_fields(parser, How, only=("data_dir", "device", "workers", "threads"))
    return parser.parse()


def described(path: Path, args: Any, named: dict[str, Any]) -> Run:
    """The run that a file of ours holds, or that the flags describe."""
    if isinstance(args, dict) and "model" in args:
        if named:
            raise Refusal(f"{path} says what it is; leave out --{next(iter(named)).replace('_', '-')}")
        # Weights of another scheme, or that began from a file which is gone, can be judged all the same.
        return make_run({key: args[key] for key in JUDGED if key in args}, where=str(path))
    if {"model", "dataset"} <= named.keys():
        return make_run({**named, "model_kwargs": pairs(named.get("model_kwargs", []), "--model-kwargs")})
    raise Refusal(f"{path} is not the weights of a run of ours: say --model NAME --dataset NAME", CHECKPOINT)


def file_names(run: Run, raw_dir: Path | None) -> list[str] | None:
    """Names of the validation images in the order of the .beton."""
    if raw_dir is None:
        return None
    from engine.data.sets import read_raw

    try:
        return [str(name) for name, _ in read_raw(run.dataset, "val", raw_dir).samples]
    except (ValueError, AttributeError) as error:
        raise Refusal(f"--raw-dir {raw_dir}: {error}") from None


def count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 1")
    return int(text)


def temperature(text: str) -> float | str:
    try:
        value = text if text == "fit" else float(text)
    except ValueError:
        value = 0.0
    if value != "fit" and not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}' is neither a number above 0 nor 'fit'")
    return value


if __name__ == "__main__":
    run_main(main)
