"""Convert a data set to .beton files, both splits, with a JSON of settings and checksum beside each.

The raw files are torchvision's download under --raw-dir or, where that folder holds train/CLASS/*.png and
val/CLASS/*.png (CIFAR: test/), that image folder. digits needs neither.
"""

from pathlib import Path

from engine.cli import Parser, run_main
from engine.datasets import DATASETS, SPLITS, lookup
from engine.errors import Refusal
from engine.run import DATA_DIR


def main() -> None:
    parser = Parser(prog="scripts/make_beton.py", description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", required=True, help=f"{', '.join(DATASETS)}, or imagefolder/NAME")
    parser.add_argument("--img-size", type=int, help="pixels of the stored squares (default: the data set's own)")
    parser.add_argument("--raw-dir", type=Path, default=DATA_DIR / "raw", help="image folder, or where to download to")
    parser.add_argument("--data-dir", type=Path, default=DATA_DIR, help="folder of the .beton files")
    parser.add_argument("-j", "--workers", type=int, default=2, help="threads that decode images")
    given = parser.parse()
    try:
        dataset = lookup(given.dataset)
    except ValueError as error:
        raise Refusal(str(error)) from None
    img_size = given.img_size or (dataset.img_size if dataset else None)
    if img_size is None or not 1 <= img_size <= 4096:
        raise Refusal(f"--img-size {given.img_size}: an image folder needs the size of the squares to store, 1 to 4096")
    from engine.beton import write

    for split in SPLITS:
        path = write(given.dataset, split, img_size, given.raw_dir, given.data_dir, workers=given.workers)
        print(path)


if __name__ == "__main__":
    run_main(main)
