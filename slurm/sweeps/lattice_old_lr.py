"""Which learning rate does each cell of `lattice_old` want?

At full length on 10,000 of the training images, judged on the tenth of all that a hash of their index holds out; the
test images are not touched and the seed is not used again. The peak is read as for `lattice_lr`.

    python scripts/sweep.py launch lattice_old_lr

Cost: 21 runs of 780 steps, 40 seconds each.
"""

from collections.abc import Iterator

from engine.run import Run
from slurm.sweeps.lattice import MODEL
from slurm.sweeps.lattice_lr import LRS
from slurm.sweeps.lattice_old import BASE, CELLS

WIDER: dict[str, tuple[float, ...]] = {  # by cell
    "kernel, convmixer 96": (1e-1,),
    "depthwise, convmixer 96": (1e-1,),
    "kernel, convmixer 248": (1e-3,),
}
SEED = 100


def runs() -> Iterator[Run]:
    for cell, kwargs in CELLS.items():
        for lr in (*LRS, *WIDER.get(cell, ())):
            yield Run(**BASE, holdout=0.1, model=MODEL, model_kwargs=kwargs, lr=lr, seed=SEED)
