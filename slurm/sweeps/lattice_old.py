"""Of the 9.6 points from banded Toeplitz to ConvMixer on the ladder, how many are the kernel, the frame, the width?

Written down before the first run. That step (results/ladder/: a kernel per channel) changed frame and width with the
kernel. Here it is taken apart at its own budget: patches of 8, so 16 tokens, 10,000 images, and the recipe of the
ladder to the last field, clipping at 1 included. One kernel or one per channel, in the frame of ResMLP at 96 channels,
of ConvMixer at 96, and of ConvMixer at 248 (5 MMAC, as on the ladder).

    python scripts/sweep.py launch lattice_old_lr
    python scripts/sweep.py collect lattice_old_lr
    python scripts/rates.py lattice_old_lr        # prints the table LR below
    python scripts/sweep.py launch lattice_old

Claims: one family, an effect counts as none within 1.0 points. If frame and width together have their lower limit above
4.8 points, the step was the frame. `lattice`, on other data and tokens, cannot withdraw that claim by itself.
Seeds: five, no more. Cost: 30 runs of 780 steps, 40 seconds each; budget 100,000 images, with 5 MMAC 5e11 forward MACs.
"""

from collections.abc import Iterator
from itertools import product

from engine.fields.claims import Contrast, Family
from engine.run import Run
from slurm.sweeps import lattice
from slurm.sweeps.lattice import MODEL, rate

BASE = lattice.BASE | {"train_samples": 10_000, "clip_grad": 1.0}  # that of results/ladder/
FRAMES = {
    "resmlp 96": {"frame": "resmlp", "dim": 96},
    "convmixer 96": {"frame": "convmixer", "dim": 96},
    "convmixer 248": {"frame": "convmixer", "dim": 248},
}
MIXERS = ("kernel", "depthwise")
CELLS = {
    f"{mixer}, {frame}": {"mixer": mixer, "patch_size": 8, **kwargs}
    for (frame, kwargs), mixer in product(FRAMES.items(), MIXERS)
}
RUNGS = {cell: Run(model=MODEL, model_kwargs=kwargs).rung for cell, kwargs in CELLS.items()}
SEEDS = (0, 1, 2, 3, 4)
# Peaks of lattice_old_lr by rung, two digits; scripts/rates.py prints the table.
LR: dict[str, float] = {
    "lattice_s dim=96 frame=resmlp mixer=kernel patch_size=8": 1.6e-2,
    "lattice_s dim=96 frame=resmlp mixer=depthwise patch_size=8": 1.5e-2,
    "lattice_s dim=96 frame=convmixer mixer=kernel patch_size=8": 2.1e-2,
    "lattice_s dim=96 frame=convmixer mixer=depthwise patch_size=8": 2.5e-2,
    "lattice_s dim=248 frame=convmixer mixer=kernel patch_size=8": 4.7e-3,
    "lattice_s dim=248 frame=convmixer mixer=depthwise patch_size=8": 1.4e-2,
}


def _step(by_cell: dict[str, float], of: tuple[str, ...]) -> Contrast:
    """A contrast by cell."""
    return Contrast({RUNGS[cell]: weight for cell, weight in by_cell.items()}, of)


def _kernel(frame: str, weight: float = 1.0) -> dict[str, float]:
    """What a kernel per channel gains in a frame."""
    return {f"depthwise, {frame}": weight, f"kernel, {frame}": -weight}


def _frames(after: str, before: str) -> dict[str, float]:
    """What a frame gains over another, mean over both kernels."""
    sides = ((after, 0.5), (before, -0.5))
    return {f"{mixer}, {frame}": weight for mixer in MIXERS for frame, weight in sides}


RESMLP, NARROW, WIDE = FRAMES
STEPS = {
    "kernel per channel in ResMLP's frame": _step(_kernel(RESMLP), ("channels",)),
    "kernel per channel in ConvMixer's, 96": _step(_kernel(NARROW), ("channels",)),
    "kernel per channel in ConvMixer's, 248": _step(_kernel(WIDE), ("channels",)),
    "frame": _step(_frames(NARROW, RESMLP), ("frame",)),
    "width": _step(_frames(WIDE, NARROW), ("dim",)),
    "frame and width": _step(_frames(WIDE, RESMLP), ("frame+dim",)),
    "kernel x frame": _step(_kernel(NARROW) | _kernel(RESMLP, -1), ("channels", "frame")),
    "kernel x width": _step(_kernel(WIDE) | _kernel(NARROW, -1), ("channels", "dim")),
    "the whole step": _step({f"depthwise, {WIDE}": 1, f"kernel, {RESMLP}": -1}, ("channels+frame+dim",)),
}
FAMILIES = {"old step": Family(STEPS, margin=1.0)}


def runs() -> Iterator[Run]:
    for seed, (cell, kwargs) in product(SEEDS, CELLS.items()):
        lr = rate(LR, RUNGS[cell], "lattice_old")
        yield Run(**BASE, model=MODEL, model_kwargs=kwargs, lr=lr, seed=seed)
