"""Draw the data set of the probe `shape_bias`: twelve silhouettes in twelve textures, as an image folder.

Class k is shape k filled with texture k (--cue both), or told by one of the two alone, the other being drawn at random
(--cue shape, --cue texture): a control that a model can learn each. Then store and train, under a name that begins with
shapes:

    python scripts/make_shapes.py data/shapes
    python scripts/make_beton.py --dataset imagefolder/shapes --raw-dir data/shapes --img-size 32
    python scripts/train.py --dataset imagefolder/shapes --model mixer_1m
    python scripts/probe.py results/runs/... --probe shape_bias

The same command draws the same pixels.
"""

import shutil
from pathlib import Path

from analysis.measures import shapes
from engine.cli.flags import Parser, run_main
from engine.cli.numbers import whole
from engine.errors import OUTPUT, Refusal


def main() -> None:
    given = make_parser().parse()
    if given.folder.exists():
        raise Refusal(f"{given.folder} is there already; name another folder, or remove it", OUTPUT)
    import numpy as np
    from PIL import Image

    part = given.folder.with_name(given.folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    for split, per_class in (("train", given.per_class), ("val", given.val_per_class)):
        drawn = shapes.pictures(given.cue, split, per_class, given.img_size, given.seed)
        for number, (label, shape, texture, image) in enumerate(drawn):
            path = part / split / f"{label:02d}" / f"{number % per_class:05d}-{shape:02d}-{texture:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.round(255 * image).astype(np.uint8)).save(path)
    part.rename(given.folder)
    counts = f"{12 * given.per_class} images to train on, {12 * given.val_per_class} to test"
    print(f"{given.folder}: {counts}, cue {given.cue}")


def make_parser() -> Parser:
    parser = Parser(prog="scripts/make_shapes.py", description=__doc__.partition("\n\n")[0])
    parser.add_argument("folder", type=Path, help="to make; it gets train/CLASS/*.png and val/CLASS/*.png")
    parser.add_argument("--cue", choices=shapes.CUES, default="both", help="what tells the class")
    parser.add_argument("--img-size", type=whole(8, 1024), default=32, metavar="N", help="pixels a side")
    parser.add_argument("--per-class", type=whole(1), default=400, metavar="N", help="training images of each class")
    parser.add_argument("--val-per-class", type=whole(1), default=80, metavar="N", help="test images of each class")
    parser.add_argument("--seed", type=whole(0), default=0, metavar="N", help="of the drawing")
    return parser


if __name__ == "__main__":
    run_main(main)
