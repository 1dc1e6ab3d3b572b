"""Which attention can go, chosen how, removed how; does healing make the choice pointless; does bias change with it?

Written down before the first run. From three trained models (removal_base) 2, 4 or all of 8 attentions are removed:

    python scripts/sweep.py launch removal_base
    mkdir -p results/removal
    python scripts/choose_layers.py results/runs/*-deit_1m-s? -k 4 --results-file results/removal/choices.csv
    git add results/removal/choices.csv           # before anything heals: it is part of the plan
    python scripts/sweep.py launch removal
    python scripts/bench/removal.py removal       # before and after, probes, differences; --speed times

Cells: criteria {token_entropy, greedy; cosine; ablation, greedy; random_layers, three draws} x ways {drop: x <- x;
double: x <- 2x, as diluted training ends; linear: diluted into that over 3.75 of the 5 epochs, three quarters, as
published; depthwise: a 3 x 3 depthwise convolution in its place} x shares 25 and 50 %; of all layers each way once.
One budget for all: five epochs, one recipe, one rate, the source's seed. All other criteria (both orders of each, first
and last layers, ten draws) are measured before healing alone, by x and by 2x.

Claims, each paired by seed, mean of the draws for chance; after Holm within its family; 95 % intervals of three seeds:
- criterion: each of the three against chance, after healing, by way and share below all: 24 contrasts;
- way: double, linear and depthwise against drop, by criterion and share: 27 contrasts.
A difference counts as none where it lies within 0.5 points by two one-sided tests. "Undecided" is an answer, and with
three seeds a likely one: a difference must be some 2.5 deviations of a pair to be seen at all.
What follows from which outcome:
- a criterion beats chance before healing and is within 0.5 of it after: choosing is a matter of an hour's training;
- linear within 0.5 of double: the dilution buys nothing over removal at once, at this budget;
- double below drop: 2x is a harm that healing repairs, and the published end is not the better one;
- depthwise above drop by its whole interval: what was missed is mixing between neighbours, not attention;
- R_8 of patch_shuffle nearer to 1 after healing than in the source at 50 %: the removal made the model more of a bag of
  patches; shift consistency likewise, for its dependence on places.
No seed is added after a look. Cost: at most 153 runs (equal choices are one) of 1,950 steps, about 6 minutes each on
one core, 15 core hours; with removal_base 18.
"""

from collections.abc import Iterator

from engine.run import Run
from slurm.define import removal
from slurm.sweeps import removal_base

PROBES = ["patch_shuffle", "shift"]
CRITERIA = ("token_entropy, greedy", "cosine", "ablation, greedy")
CHANCE = tuple(f"random_layers, draw {draw}" for draw in (1, 2, 3))
ASKED = (*CRITERIA, *CHANCE)  # what the claims are about, for scripts/bench/removal.py
WAYS = ("drop", "double", "linear", "depthwise")
SHARES = (25, 50, 100)
BUDGET = removal_base.BASE | {"epochs": 5, "lr": 5e-4, "warmup_epochs": 0.25}


def runs() -> Iterator[Run]:
    sources = list(removal_base.runs())
    yield from removal.runs("removal", sources, ASKED, SHARES, WAYS, BUDGET, dilute_epochs=3.75)
