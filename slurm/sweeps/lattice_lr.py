"""Which learning rate does each cell of `lattice` want?

At full length on nine tenths of the 50,000 training images, judged on the tenth held out by a hash of their index; the
test images are not touched, and neither seed is used again. Three rates; the peak is that of a parabola in the
logarithm of the rate with one curvature for all cells (`python scripts/rates.py lattice_lr --seeds 100`), as the best
of three rates by one seed would cost a cell up to 0.3 points at random. Where the peak lies outside the grid, a rate on
that side goes into WIDER and the sweep is launched again. The cube has two seeds, and its seven effects at each of the
three rates are shown by `compare.py lattice_lr`. The second seed sets no rate, so that `lattice` can begin before it is
trained (decided when 20 of 84 runs were trained and none had been compared with another).

    python scripts/sweep.py launch lattice_lr

Cost: 84 runs, and those of WIDER, as long as those of `lattice`.
"""

from collections.abc import Iterator
from itertools import product

from engine.fields.claims import Family
from engine.run import Run
from slurm.sweeps.lattice import BASE, CELLS, CUBE, MODEL, RUNGS, cube

LRS = (3e-3, 1e-2, 3e-2)
WIDER: dict[str, tuple[float, ...]] = {"two": (1e-3,), "attention": (1e-3,), "attention_window": (1e-3,)}  # by cell
SEEDS = (100, 101)  # the second for the cube alone
# The effects at one rate for all, which say whether those at the tuned ones hang on the rates.
FAMILIES = {f"cube at {lr:g}": Family(cube(lambda cell, lr=lr: f"{RUNGS[cell]} lr={lr:g}"), margin=0.5) for lr in LRS}


def runs() -> Iterator[Run]:
    for seed, (cell, kwargs) in product(SEEDS, CELLS.items()):
        if seed == SEEDS[0] or cell in CUBE.values():
            for lr in (*LRS, *WIDER.get(cell, ())):
                yield Run(**BASE, holdout=0.1, model=MODEL, model_kwargs=kwargs, lr=lr, seed=seed)
