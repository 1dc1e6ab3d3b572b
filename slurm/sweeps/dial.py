"""How strict should a convolution be held, is the best strictness inside, and does it move with the number of images?

Written down before the first run. One frame (lattice_s: 8 x 8 tokens of 4 x 4 pixels, dim 64, 4 blocks), one mixer,
M = K + (1 - s) (R - P R) for each channel: at s = 1 a depthwise convolution of 3 x 3, at s = 0 a full matrix of its own
for each channel, which holds every such convolution. Nine values of s, three numbers of images, three seeds; every run
takes 2,000 steps of 125 images, so that fewer images come more often. Beside them two ways to set s without choosing a
value: a gate that each layer learns, and an annealed one that lets the convolution go over the first half of training.

    python scripts/sweep.py launch dial --slots 2 --val-interval 250     # without it, half of the time goes into tests
    python scripts/report.py dial

Families of claims, Holm inside each, on one model of all runs on the same images; 95 % intervals:
- ends: the kernel (s = 1) over the full matrix (s = 0), for each number of images; equal within 1.0 points;
- inside: the mean of s = 0.5 to 0.95 over the mean of the two ends, for each number of images; equal within 0.5;
- ways: gate and annealed over either end, for each number of images; equal within 1.0.
The peak of each curve and how far it moves from 1,000 to 50,000 images have intervals by a bootstrap of residuals
(analysis/factorial/dose.py). What follows from which outcome:
- the peak's interval holds an end for every number of images, and "inside" is equal within 0.5: softness buys nothing
  at this budget, which is the headline;
- the peak moves down with images and its interval excludes 0: the more data, the less bias, shown within one model;
- gate within 1.0 of the better end at each number: a strictness that is learned needs no search;
- the matrix beats the kernel at 50,000 and loses at 1,000: where they cross is worth a study of its own.
Three seeds show some 1.2 points between two cells at a deviation of 0.5: smaller differences are for the "inside"
contrasts, which pool. No seed is added after a look; a diverged run is a result of its cell.

The rate goes with s, from the tuned one of the full matrix (4.2e-3) to that of the convolution (9.4e-3, both from
lattice_lr), evenly on an axis of its logarithm; gate and annealed, which are in between, have that of s = 0.5.

What was cut for the budget: tuning of any value but the ends, and of these at 2,000 steps and at fewer images, so that
"at its best rate" is not said of any cell; penalties and fixed starts, which slurm/sweeps/gap_closed.py has at one
strength; a third of the usual 6,000 steps. Cost: 99 runs of 2,000 steps at about 0.11 s on one idle core with
AVX512-BF16 (1.31 times those of `dense`, 0.085 s), 6 core hours, and half of one for tests.
"""

from collections.abc import Iterator
from typing import Any

from engine.fields.claims import Contrast, Family
from engine.fields.rungs import names
from engine.run import Run
from slurm.sweeps.lattice import BASE, LR, MODEL, RUNGS

VALUES = (0.0, 0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0)
INSIDE = (0.5, 0.7, 0.8, 0.9, 0.95)
SIZES = {1_000: 250, 5_000: 50, 50_000: 5}  # images: epochs of equal steps
SEEDS = (0, 1, 2)


def rate(strictness: float) -> float:
    """The learning rate at a strictness, two digits: that of either end at its end."""
    loose, strict = LR[RUNGS["dense_c"]], LR[RUNGS["depthwise"]]
    return float(f"{loose ** (1 - strictness) * strict**strictness:.1e}")


def dial_run(images: int, seed: int, *, annealed: bool = False, **kwargs: Any) -> Run:
    """A run of so many images; half an epoch of 50,000 is the warm-up of all."""
    epochs = SIZES[images]
    own = {"strictness_to": 0.0, "strictness_epochs": epochs / 2} if annealed else {}
    fields = BASE | {"batch_size": 125, "epochs": epochs, "warmup_epochs": epochs / 10} | own
    fields["lr"] = rate(0.5 if annealed else kwargs["strictness"])
    # All of them are the default, which is another word for the same run.
    fields |= {"train_samples": None if images == max(SIZES) else images}
    return Run(**fields, model=MODEL, model_kwargs={"mixer": "dial", "groups": 64, **kwargs}, seed=seed)


def cells(images: int, seed: int) -> dict[str, Run]:
    """By what the claims call it."""
    found = {f"s={value:g}": dial_run(images, seed, strictness=value) for value in VALUES}
    found["gate"] = dial_run(images, seed, strictness=0.5, gated=True)
    found["annealed"] = dial_run(images, seed, annealed=True, strictness=1.0)
    return found


def runs() -> Iterator[Run]:
    for seed in SEEDS:  # outside, so that every curve has an answer early
        for images in SIZES:
            yield from cells(images, seed).values()


def _families() -> dict[str, Family]:
    called = names(list(runs()))
    ends, inside, ways = {}, {}, {}
    for images in SIZES:
        at = {cell: called[run.signature] for cell, run in cells(images, SEEDS[0]).items()}
        end = {"kernel": at["s=1"], "full matrix": at["s=0"]}
        ends[f"kernel over full matrix, {images:,}"] = Contrast({end["kernel"]: 1, end["full matrix"]: -1})
        middle = {at[f"s={value:g}"]: 1 / len(INSIDE) for value in INSIDE}
        inside[f"inside over the ends, {images:,}"] = Contrast(middle | dict.fromkeys(end.values(), -0.5))
        for way in ("gate", "annealed"):
            ways |= {f"{way} over {name}, {images:,}": Contrast({at[way]: 1, rung: -1}) for name, rung in end.items()}
    return {"ends": Family(ends, margin=1.0), "inside": Family(inside, margin=0.5), "ways": Family(ways, margin=1.0)}


FAMILIES = _families()
