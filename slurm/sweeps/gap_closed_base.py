"""Full matrices for each channel, trained for half of the budget: what slurm/sweeps/gap_closed.py prunes.

    python scripts/sweep.py launch gap_closed_base --slots 2     # before gap_closed, whose runs start from these

Cost: 5 runs of 2,000 steps at about 0.1 s on one idle core, a quarter of an hour.
"""

from collections.abc import Iterator

from engine.run import Run
from slurm.sweeps.lattice import BASE, LR, MODEL, RUNGS

SEEDS = (0, 1, 2, 3, 4)
FLAT = {"mixer": "dense_c"}
BUDGET = BASE | {"batch_size": 125, "lr": LR[RUNGS["dense_c"]]}
HALF = BUDGET | {"epochs": 5}


def source(seed: int) -> Run:
    return Run(**HALF, model=MODEL, model_kwargs=FLAT, seed=seed)


def runs() -> Iterator[Run]:
    for seed in SEEDS:
        yield source(seed)
