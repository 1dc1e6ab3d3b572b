"""Which learning rate does each cell of `lattice_frame` want?

As `lattice_lr`, with one seed.

    python scripts/sweep.py launch lattice_frame_lr

Cost: 24 runs as long as those of `lattice_frame`.
"""

from collections.abc import Iterator

from engine.run import Run
from slurm.sweeps.lattice_frame import BASE, MODEL, SECOND
from slurm.sweeps.lattice_lr import LRS

WIDER: dict[str, tuple[float, ...]] = {}  # by cell
SEED = 100


def runs() -> Iterator[Run]:
    for cell, kwargs in SECOND.items():
        for lr in (*LRS, *WIDER.get(cell, ())):
            yield Run(**BASE, holdout=0.1, model=MODEL, model_kwargs=kwargs, lr=lr, seed=SEED)
