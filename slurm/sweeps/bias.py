"""Which bias do six models learn, beyond what they were built with: what do all probes say, and when does it come?

Written down before the first run. A flat MLP, the same behind patches, three cells of the lattice (dense, depthwise,
attention) and ConvMixer, each at the recipe of results/ladder/ on 10,000 images of CIFAR-10; every probe of
analysis/probes/ that says something of photographs, on three seeds; those that can be measured over training on seed 0,
whose weights are kept on the way:

    python scripts/sweep.py launch bias@0 --keep-epochs 0 1 2 4 7     # first: what is trained already keeps nothing
    python scripts/sweep.py launch bias
    python scripts/sweep.py launch bias_gap       # the shuffled arms and the Gaussian clone; its report has all of it
    python scripts/sweep.py collect bias bias_gap

Rates: of flat, patches and ConvMixer those that results/ladder_lr found best at this recipe; of the three cells, whose
own are still being measured on five times as many images (lattice_lr), the middle of its grid, 1e-2, for all three.
So differences between cells may be those of a rate; the probes are compared with their nulls and with the gap.
Expectations, each may turn out wrong:
- flat: Moran's I of the first layer's change far above its null at the first kept epoch, its half radius within a tenth
  of it at the end: smooth long before local; what excites its first units has half of the frequency of white noise;
- dense: geometry of the change of the mixers above 0 by its interval, half of it there before epoch 4;
- depthwise and ConvMixer: no number of the layout changes much, as they were built with it; they need high frequencies
  (accuracy at 4 cycles under two thirds of the whole), flat keeps nine tenths;
- a universal perturbation of 8/255 fools more of dense than of depthwise, and of both more than of flat;
- attention keeps most of what it can when blocks are shuffled.
"Undecided" is an answer. With three seeds, differences below some three deviations of a pair are not to be seen.
Cost: 18 runs of 780 steps, 50 to 100 seconds each on one core with AVX512-BF16, and the probes: some 200 passes over
the test images and 3 minutes, 7 to 15 minutes a run, and 3 more where weights were kept; reckoned, not measured, to be
4 core hours together.
"""

from collections.abc import Iterator
from typing import Any

from engine.run import Run
from slurm.sweeps import lattice_old
from slurm.sweeps.lattice import MODEL

PROBES = (
    "adversarial", "calibration", "cka", "corruptions", "exciting_inputs", "first_layer", "frequencies",
    "lie_derivative", "linear_probe", "patch_shuffle", "phase_amplitude", "ranks", "receptive_field", "shift", "tiling",
    "toeplitz", "universal",
)  # fmt: skip
BASE = lattice_old.BASE
CELLS: dict[str, dict[str, Any]] = {
    "flat": {"model": "bmlp_1m", "model_kwargs": {"depth": 4, "dim": 350}, "lr": 1e-3},
    "patchified": {"model": "patchmlp_1m", "model_kwargs": {"depth": 4, "dim": 352, "patch_size": 8}, "lr": 1e-3},
    "dense": {"model": MODEL, "model_kwargs": {"mixer": "dense"}, "lr": 1e-2},
    "attention": {"model": MODEL, "model_kwargs": {"mixer": "attention"}, "lr": 1e-2},
    "depthwise": {"model": MODEL, "model_kwargs": {"mixer": "depthwise"}, "lr": 1e-2},
    "convmixer": {
        "model": "convmixer_1m",
        "model_kwargs": {"depth": 4, "dim": 252, "kernel_size": 3, "patch_size": 8},
        "lr": 1e-2,
    },
}
RUNGS = {cell: Run(model=given["model"], model_kwargs=given["model_kwargs"]).rung for cell, given in CELLS.items()}
LABELS = {rung: cell for cell, rung in RUNGS.items()}
SEEDS = (0, 1, 2)


def cell_run(cell: str, seed: int, **fields: Any) -> Run:
    return Run(**(BASE | CELLS[cell] | fields), seed=seed)


def runs() -> Iterator[Run]:
    for seed in SEEDS:  # outside, so that every cell has an answer early
        yield from (cell_run(cell, seed) for cell in CELLS)
