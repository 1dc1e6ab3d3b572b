"""How much of what each ingredient buys is owed to the layout of the pixels?

Written down before the first run. The cube of `lattice` on images whose pixels are shuffled, all of a seed alike, after
augmentation. The gap of a cell is its accuracy on whole images less that on shuffled ones; the claims are the seven
effects of the cube on the gap. An ingredient that is a bias to the layout loses more there; one that only makes
training easier does not. Rates are those tuned on whole images.

    python scripts/sweep.py launch lattice_gap

Claims: one family, corrected over seven; an effect counts as none within 1.0 points (with three seeds one of 0.95 is
found four times in five). Each is the interaction of ingredients with the shuffle, within blocks of seed and shuffle,
as a seed draws the order of the pixels, too.
Seeds: three, no more. Cost: 24 runs as long as those of `lattice`, whose runs on whole images are taken.
"""

from collections.abc import Iterator
from itertools import product

from engine.fields.claims import Contrast, Family
from engine.run import Run
from slurm.sweeps.lattice import CUBE, RUNGS, cell_run, cube

SEEDS = (0, 1, 2)
KINDS = ("none", "pixels")


def _gap(effect: str) -> Contrast:
    whole, shuffled = (cube(lambda cell, kind=kind: f"{RUNGS[cell]} permute={kind}")[effect] for kind in KINDS)
    less = {rung: -weight for rung, weight in shuffled.weights.items()}
    return Contrast({**whole.weights, **less}, (*whole.of, "permute"))


FAMILIES = {"gap": Family({f"{effect}, gap": _gap(effect) for effect in cube()}, margin=1.0)}


def runs() -> Iterator[Run]:
    for seed, kind, cell in product(SEEDS, KINDS, CUBE.values()):
        yield cell_run(cell, seed, permute=kind)
