"""Convert a data set to .beton files, both splits, with a JSON of settings and checksum beside each.

The raw files are torchvision's download under --raw-dir or, where that folder holds train/CLASS/*.png and
val/CLASS/*.png (CIFAR: test/), that image folder. digits needs neither. The folders of train name and number the
classes, for val too. A file that is there already is kept; if the raw files have changed since, that is refused.

Any folder of images is a data set, --dataset imagefolder/NAME: splits are found by their usual names (training, valid,
validation, test); of CLASS/*.png alone, or of train alone, a tenth is kept for validation, chosen by a hash of the
names, or as much as --val-split says.

Also: --info says what a file, or all files of a data set, hold; --verify FILE checks a .beton from end to end and draws
a sheet of its images; --adopt FILE takes over one that FFCV wrote elsewhere, such as those of Scaling MLPs, for one
--split of --dataset.
"""

from pathlib import Path

from engine.cli.flags import Parser, run_main
from engine.cli.numbers import share, size, whole
from engine.data import splits
from engine.data.sets import DATASETS, SPLITS, check_folders, lookup
from engine.errors import DATA, Refusal
from engine.run import DATA_DIR

WRITE_MODES = ("raw", "jpg", "smart", "proportion")
LARGEST_SIZE, MOST_WORKERS = 4096, 1024


def main() -> None:
    given = make_parser().parse()
    if given.verify:
        from engine.data.verify import verify

        for line in verify(given.verify):
            print(line)
        return
    if given.info:
        from engine.data.verify import about

        for line in about(given.info, given.data_dir):
            print(line)
        return
    if given.dataset is None:
        raise Refusal("name a --dataset, or a file to --verify, or one for --info")
    try:
        dataset = lookup(given.dataset)
    except ValueError as error:
        raise Refusal(str(error)) from None
    if given.img_size is not None and given.max_resolution is not None:
        raise Refusal("--img-size cuts to one shape, --max-resolution keeps the aspect: give one of them")
    known = (given.max_resolution, given.img_size, dataset.img_size if dataset else None)
    img_size = next((each for each in known if each is not None), None)
    if img_size is None:
        raise Refusal("an image folder needs the size to store, --img-size N or --img-size HxW (or --max-resolution N)")
    from engine.data.write import Settings, adopt, write

    if given.adopt:
        if len(given.splits) != 1:
            raise Refusal("--adopt takes over one file: say which split it is, --splits train or --splits val")
        print(adopt(given.adopt, given.dataset, given.splits[0], img_size, given.data_dir))
        return
    try:
        settings = Settings(
            write_mode=given.write_mode,
            quality=given.quality,
            smart_threshold=given.smart_threshold,
            compress_probability=given.compress_probability,
            keep_aspect=given.max_resolution is not None,
            subset=given.subset,
            val_split=_val_split(dataset is None, given.raw_dir, given.val_split),
        )
    except ValueError as error:
        raise Refusal(str(error)) from None
    try:
        check_folders(given.dataset, given.splits, given.raw_dir)
    except ValueError as error:
        raise Refusal(str(error), DATA) from None
    for split in dict.fromkeys(given.splits):
        print(write(given.dataset, split, img_size, given.raw_dir, given.data_dir, settings, workers=given.workers))


def _val_split(own: bool, raw_dir: Path, asked: float | None) -> float | None:
    """The share of the training images that validates; None where they have a folder, as those of the table have."""
    if not own:
        if asked is not None:
            raise ValueError("--val-split is for an image folder of yours; a data set of the table has its own split")
        return None
    if not raw_dir.is_dir():
        return asked
    share = splits.share_of(raw_dir, asked)
    val = splits.folder_of(raw_dir, "val")
    if share is None and val.name != "val":
        print(f"{val} validates")
    for name in splits.left_alone(raw_dir):
        print(f"{raw_dir / name} is left alone: another folder holds the images of that split")
    return share


def make_parser() -> Parser:
    parser = Parser(prog="scripts/make_beton.py", description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", help=f"{', '.join(DATASETS)}, or imagefolder/NAME")
    parser.add_argument(
        "--img-size",
        type=size(LARGEST_SIZE),
        help="pixels of the stored images, 32, or 32x64 (default: the data set's own)",
    )
    parser.add_argument(
        "--max-resolution",
        type=whole(1, LARGEST_SIZE),
        help="store the whole image instead, its longer side at most this",
    )
    parser.add_argument("--raw-dir", type=Path, default=DATA_DIR / "raw", help="image folder, or where to download to")
    parser.add_argument("--data-dir", type=Path, default=DATA_DIR, help="folder of the .beton files")
    parser.add_argument("--splits", "--split", nargs="+", default=SPLITS, choices=SPLITS, help="which to convert")
    parser.add_argument(
        "--val-split", type=share, metavar="SHARE", help="of an image folder without validation images (default: 0.1)"
    )
    parser.add_argument("--subset", type=whole(1), help="only so many images of each split, a fixed random choice")
    parser.add_argument("--write-mode", default="raw", choices=WRITE_MODES, help="pixels, JPEGs, or some of each")
    parser.add_argument("--quality", type=whole(1, 100), default=90, help="of JPEGs")
    parser.add_argument(
        "--smart-threshold", type=whole(0), help="for smart: JPEG where pixels take more bytes than this"
    )
    parser.add_argument("--compress-probability", type=float, default=0.5, help="for proportion: share of JPEGs")
    parser.add_argument("-j", "--workers", type=whole(1, MOST_WORKERS), default=2, help="threads that decode images")
    parser.add_argument("--verify", type=Path, metavar="FILE", help="check a .beton and draw a sheet of its images")
    parser.add_argument("--info", metavar="FILE|NAME", help="what a .beton holds, or all files of a data set")
    parser.add_argument("--adopt", type=Path, metavar="FILE", help="take over a .beton that FFCV wrote elsewhere")
    return parser


if __name__ == "__main__":
    run_main(main, prints=False)
