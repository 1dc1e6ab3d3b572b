"""Do the effects of the cube hold in a second frame, with an activation after the mixing?

Written down before the first run. The cube of `lattice` in ConvMixer's frame at 160 channels, its rates tuned anew.
There the mixer is a quarter of the MACs, not a ninth, and a linear mixer is followed by a nonlinearity: when effects of
the two frames are compared, that is said.

    python scripts/sweep.py launch lattice_frame_lr
    python scripts/sweep.py collect lattice_frame_lr
    python scripts/rates.py lattice_frame_lr      # prints the table LR below
    python scripts/sweep.py launch lattice_frame

Claims: two families, an effect counts as none within 1.0 points. "cube" is the seven effects in this frame; "frames"
asks whether they differ from those in the main frame, of whose runs the same seeds are taken (frame and width go
together). With three seeds a main effect of 0.8 is found four times in five: it confirms signs and large effects only.
An effect that is large here alone needs the activation after the mixing.
Seeds: three, no more. Cost: 24 runs of 3,900 steps; budget 500,000 images, with 9.7 MMAC (dense) 4.8e12 forward MACs.
"""

from collections.abc import Iterator
from itertools import product

from engine.fields.claims import Contrast, Family
from engine.run import Run
from slurm.sweeps.lattice import BASE, CELLS, CUBE, MODEL, cell_run, cube, rate

FRAME = {"frame": "convmixer", "dim": 160}
SECOND = {cell: CELLS[cell] | FRAME for cell in CUBE.values()}
RUNGS = {cell: Run(model=MODEL, model_kwargs=kwargs).rung for cell, kwargs in SECOND.items()}
SEEDS = (0, 1, 2)
# Peaks of lattice_frame_lr by rung, two digits; scripts/rates.py prints the table.
LR: dict[str, float] = {}


def _frames(effect: str) -> Contrast:
    here, there = cube(RUNGS.__getitem__)[effect], cube()[effect]
    less = {rung: -weight for rung, weight in there.weights.items()}
    return Contrast({**here.weights, **less}, (*here.of, "frame+dim"))


FAMILIES = {
    "cube": Family(cube(RUNGS.__getitem__), margin=1.0),
    "frames": Family({f"{effect} x frame": _frames(effect) for effect in cube()}, margin=1.0),
}


def runs() -> Iterator[Run]:
    for seed, (cell, kwargs) in product(SEEDS, SECOND.items()):
        lr = rate(LR, RUNGS[cell], "lattice_frame")
        yield Run(**BASE, model=MODEL, model_kwargs=kwargs, lr=lr, seed=seed)
        yield cell_run(cell, seed)
