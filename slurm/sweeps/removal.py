"""Which attention can go, chosen how, removed how; does healing make the choice pointless; does bias change with it?

Written down before the first run. From three trained models (removal_base) 4 or all of 8 attentions are removed:

    python scripts/sweep.py launch removal_base
    python scripts/choose_layers.py removal_base --study removal -k 4 --images 5000
    git add results/removal/choices.csv           # before anything heals: it is part of the plan
    python scripts/sweep.py launch removal
    python scripts/bench/removal.py removal --speed         # times, on an idle machine
    python scripts/bench/removal.py removal                 # before and after, probes, differences

Cells: criteria {token_entropy, greedy; ablation, greedy; random_layers, two draws} x ways {drop: x <- x; double:
x <- 2x, as diluted training ends; linear: diluted into that in the first epoch of the two (published: three quarters);
distil: x <- x, and in the first half epoch the MLPs of these layers learn what the layers gave; depthwise: a 3 x 3
depthwise convolution in its place}, at 50 %; of all layers each way once. One budget for all: two epochs, 99,840 images
seen, dilution and distillation among them, one recipe, one rate, the source's seed. All other criteria (both orders of
each, cosine, first and last layers, ten draws) are measured before healing alone, by x and by 2x.

Claims, each paired by seed, mean of the draws for chance; after Holm within its family; 95 % intervals of three seeds:
- criterion: both against chance, after healing, by way, at 50 %: 10 contrasts;
- way: double, linear, distil and depthwise against drop, by criterion and share: 16 contrasts.
A difference counts as none where it lies within 0.5 points by two one-sided tests. "Undecided" is an answer, and with
three seeds a likely one: a difference must be some 2.5 deviations of a pair to be seen at all.
What follows from which outcome:
- a criterion beats chance before healing and is within 0.5 of it after: choosing is a matter of minutes of training;
- linear within 0.5 of double: the dilution buys nothing over removal at once, at this budget;
- double below drop: 2x is a harm that healing repairs, and the published end is not the better one;
- distil within 0.5 of drop: learning the layer first buys nothing over learning the task at once; above it by its whole
  interval: what the attention gave can in part be had from the token alone;
- depthwise above drop by its whole interval: what was missed is mixing between neighbours, not attention;
- R_8 of patch_shuffle nearer to 1 after healing than in the source at 50 %: the removal made the model more of a bag of
  patches; shift consistency likewise, for its dependence on places.
No seed is added after a look. Cost: at most 75 runs (equal choices are one) of
780 steps, 4 core hours; choosing 1 and the last command 4. One core of an AMD EPYC with AVX512-BF16 takes for a step
0.29 s of the whole model and, reckoned from its parts, 0.2 without four attentions; beside other work 12 to 18 s for a
pass over the test images. With removal_base 12.
"""

from collections.abc import Iterator

from engine.run import Run
from slurm.define import removal
from slurm.sweeps import removal_base

CRITERIA = ("token_entropy, greedy", "ablation, greedy")
CHANCE = tuple(f"random_layers, draw {draw}" for draw in (1, 2))
ASKED = (*CRITERIA, *CHANCE)  # what the claims are about, for scripts/bench/removal.py
SOURCES_BELOW = removal_base.BELOW  # what it takes for them to be about attention that mixes places, likewise
WAYS = ("drop", "double", "linear", "distil", "depthwise")
SHARES = (50, 100)
BUDGET = removal_base.BASE | {"epochs": 2, "lr": 5e-4, "warmup_epochs": 0.25}


def runs() -> Iterator[Run]:
    sources = list(removal_base.runs())
    yield from removal.runs("removal", sources, ASKED, SHARES, WAYS, BUDGET, dilute_epochs=1, distil_epochs=0.5)
