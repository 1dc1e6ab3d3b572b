"""Which learning rate does each rung of `ladder` want?

Tuned on a tenth of the training images, held out by a hash of their index, with 3 of the 10 epochs and a seed of its
own; the test images are not touched. The winners are the table LR of slurm/sweeps/ladder.py.

    python scripts/sweep.py launch ladder_lr
"""

from collections.abc import Iterator
from itertools import product

from engine.run import Run
from slurm.sweeps.ladder import BASE, RUNGS

LRS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)


def runs() -> Iterator[Run]:
    recipe = BASE | {"epochs": 3, "train_samples": 9_000, "holdout": 0.1, "seed": 100}
    for (model, kwargs), lr in product(RUNGS, LRS):
        yield Run(**recipe, model=model, model_kwargs=kwargs, lr=lr)
