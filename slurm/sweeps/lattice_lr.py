"""Which learning rate does each cell of `lattice` want?

At full length on nine tenths of the 50,000 training images, judged on the tenth held out by a hash of their index; the
test images are not touched, and neither seed is used again. The rate is the vertex of the parabola, on an axis of its
logarithm, through the best rate of seed 100 and that one's neighbours (`python scripts/rates.py lattice_lr --seeds
100`), as the best of a few rates by one seed would cost a cell 0.2 to 0.3 points at random. Where the best one is the
lowest or highest of the grid, the next goes into WIDER and the sweep is launched again. The cube has two seeds, and its
seven effects at each of the three rates are shown by `compare.py lattice_lr`. The second seed sets no rate, so that
`lattice` can begin before it is trained (decided when 20 of 84 runs were trained and none had been compared with
another). One parabola's width for all cells was the rule until seed 100 was trained: attention, whose hill is two to
three times as narrow as the others' and falls off a cliff at 0.03, would have got half of its best rate, and those that
are best at 0.003 up to 1.8 times theirs. That was changed before the first run of `lattice`.

    python scripts/sweep.py launch lattice_lr

Cost: 84 runs, and those of WIDER, as long as those of `lattice`.
"""

from collections.abc import Iterator
from itertools import product

from engine.fields.claims import Family
from engine.run import Run
from slurm.sweeps.lattice import BASE, CELLS, CUBE, MODEL, RUNGS, cube

LRS = (3e-3, 1e-2, 3e-2)
WIDER: dict[str, tuple[float, ...]] = dict.fromkeys(  # by cell
    (
        *("dense_c", "toeplitz", "toeplitz_c", "banded_c", "none", "pooling", "frozen", "two", "token_mlp", "gate"),
        *("distance", "attention", "attention_window"),
    ),
    (1e-3,),
)
SEEDS = (100, 101)  # the second for the cube alone
# The effects at one rate for all, which say whether those at the tuned ones hang on the rates.
FAMILIES = {f"cube at {lr:g}": Family(cube(lambda cell, lr=lr: f"{RUNGS[cell]} lr={lr:g}"), margin=0.5) for lr in LRS}


def runs() -> Iterator[Run]:
    for seed, (cell, kwargs) in product(SEEDS, CELLS.items()):
        if seed == SEEDS[0] or cell in CUBE.values():
            wider = WIDER.get(cell, ()) if seed == SEEDS[0] else ()
            for lr in (*LRS, *wider):
                yield Run(**BASE, holdout=0.1, model=MODEL, model_kwargs=kwargs, lr=lr, seed=seed)
