"""Do local and shared mixers owe anything to the order of the patches, apart from that of the pixels inside them?

Written down before the first run. The six cells of the cube that see the order of the patches, on images whose patches
are shuffled (and the pixels inside them, all patches alike, which the stem cannot see), after augmentation. Dense and
dense_c lose exactly nothing by symmetry, so they are not trained; `lattice` has the kernel in scrambled places, which
is the kernel on shuffled patches. What lattice_gap loses beyond this is what the stem owes to the layout.

    python scripts/sweep.py launch lattice_patches

Claims: two families, an effect counts as none within 1.0 points. "lost" is the gap of each cell; "gap" asks what each
ingredient adds to it, along the seven edges between the six cells.
Seeds: three, no more. Cost: 18 runs as long as those of `lattice`, whose runs on whole images are taken.
"""

from collections.abc import Iterator
from itertools import product

from engine.fields.claims import Contrast, Family
from engine.run import Run
from slurm.sweeps.lattice import CUBE, RUNGS, cell_run, edges

SEEDS = (0, 1, 2)
KINDS = ("none", "patches")
SEEING = [cell for cell in CUBE.values() if cell not in ("dense", "dense_c")]


def _name(cell: str, kind: str) -> str:
    return f"{RUNGS[cell]} permute={kind}"


def _gaps(name: str) -> Contrast:
    whole, shuffled = (edges(lambda cell, kind=kind: _name(cell, kind))[name] for kind in KINDS)
    less = {rung: -weight for rung, weight in shuffled.weights.items()}
    return Contrast({**whole.weights, **less}, (*whole.of, "permute"))


LOST = {cell: Contrast({_name(cell, "none"): 1, _name(cell, "patches"): -1}, ("permute",)) for cell in SEEING}
BETWEEN = [name for name in edges() if not name.startswith("dense")]
FAMILIES = {"lost": Family(LOST, margin=1.0), "gap": Family({name: _gaps(name) for name in BETWEEN}, margin=1.0)}


def runs() -> Iterator[Run]:
    for seed, kind, cell in product(SEEDS, KINDS, SEEING):
        yield cell_run(cell, seed, permute=kind)
