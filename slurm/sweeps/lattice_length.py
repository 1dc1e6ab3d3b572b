"""Is what locality, sharing and kernels per channel buy a head start that longer training takes back?

Written down before the first run. Four corners of the cube of `lattice` at 3 and at 30 epochs, at the rates tuned for
10, whose runs are taken. An effect that shrinks with length is a head start and no bias that lasts: the budget belongs
into every sentence on it.

    python scripts/sweep.py launch lattice_length

Claims: one family, an effect counts as none within 1.0 points; locality and sharing change together between these
corners.
Seeds: two, no more. Cost: 16 runs, of 1,170 and of 11,700 steps; budget 150,000 and 1.5 million images, with 9.6 MMAC
(dense) 1.4e12 and 1.4e13 forward MACs.
"""

from collections.abc import Iterator
from itertools import product

from engine.fields.claims import Contrast, Family
from engine.run import Run
from slurm.sweeps.lattice import RUNGS, cell_run

CORNERS = {(False, False): "dense", (False, True): "dense_c", (True, False): "kernel", (True, True): "depthwise"}
AXES = ("reach+places", "channels")
EPOCHS = (3, 10, 30)
SEEDS = (0, 1)


def _growth(axes: tuple[int, ...]) -> Contrast:
    """How much larger an effect is after the longest training than after the shortest."""
    weights = {}
    for levels, cell in CORNERS.items():
        weight = 1.0 if len(axes) == 2 else 0.5
        for axis in axes:
            weight *= 1 if levels[axis] else -1
        weights |= {f"{RUNGS[cell]} epochs={EPOCHS[-1]}": weight, f"{RUNGS[cell]} epochs={EPOCHS[0]}": -weight}
    return Contrast(weights, (*(AXES[axis] for axis in axes), "epochs"))


GROWTH = {
    "locality and sharing, 30 epochs less 3": _growth((0,)),
    "kernels per channel, 30 epochs less 3": _growth((1,)),
    "their interaction, 30 epochs less 3": _growth((0, 1)),
}
FAMILIES = {"length": Family(GROWTH, margin=1.0)}


def runs() -> Iterator[Run]:
    for seed, epochs, cell in product(SEEDS, EPOCHS, CORNERS.values()):
        yield cell_run(cell, seed, epochs=epochs)
