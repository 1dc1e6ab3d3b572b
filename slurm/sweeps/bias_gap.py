"""What does each model of `bias` owe to the layout of the pixels, and which probe tells so beforehand?

Written down before the first run. The models of `bias` on whole images; on images whose pixels are shuffled after
augmentation, and before it, by the same shuffle of each seed; and on the Gaussian clone of the data, which has the
correlations of each class and no edges or objects. The gap is the accuracy on whole images less that on shuffled ones.

    python scripts/make_beton.py --dataset cifar10_gaussian
    python scripts/sweep.py launch bias           # first: whole images, with all probes
    python scripts/sweep.py launch bias_gap

Claims: two families, each corrected within itself; an effect counts as none within 1.0 points. "lost" is what a model
loses when pixels are shuffled after augmentation; "order" what it loses more when they are shuffled before it, so that
crops and flips, too, know nothing of the layout.
Expectations, each may turn out wrong:
- lost: none for flat, which is blind to the order of pixels by symmetry; then in this order patchified, attention,
  dense, depthwise, ConvMixer, the last above 10 points;
- order: at least a point for flat and patchified, which the crops help without any bias of their own;
- clone: the first layer of flat is as smooth there as on photographs (Moran's I of the change within a tenth), as
  correlations alone make it so, and not more local (half radius of the change at its null); the geometry of dense
  remains, too. Where locality is found on the clone, it is no sign of edges;
- shuffled pixels: the geometry of dense is at its null;
- the gap over the 18 runs on whole images is ranked by accuracy on images of 4 cycles and less (frequencies, low_4:
  rho below 0), by accuracy on images moved by 4 pixels (shift, acc_4: above 0) and by the radius of what excites the
  last block (exciting_inputs, radius_last: below 0). These three were named beforehand; of the others the report says
  how many would be found by chance.
Six models are few: a rank correlation has an interval over models, and only a strong one is clear of 0.
What was cut, after 24 of 72 runs and before any was compared: what excites the units of runs on shuffled pixels and on
the clone (exciting_inputs), of which no claim speaks; runs on whole images have it from `bias`.
Seeds: three, no more. Cost: 54 runs besides those of `bias`, 50 to 100 seconds each, and half a minute of probes a run
on one core, reckoned to be 1.7 core hours.
"""

from collections.abc import Iterator
from itertools import product

from engine.fields.claims import Contrast, Family
from engine.run import Run
from slurm.sweeps.bias import CELLS, RUNGS, SEEDS, cell_run

PROBES = ("first_layer", "tiling", "toeplitz")  # of weights: what was learned of the layout
CLONE = "cifar10_gaussian"
KINDS = ("none", "pixels", "pixels_first")
ARMS = (*({"dataset": "cifar10", "permute": kind} for kind in KINDS), {"dataset": CLONE, "permute": "none"})


def _name(cell: str, dataset: str, permute: str) -> str:
    return f"{RUNGS[cell]} dataset={dataset} permute={permute}"


def _loss(cell: str, before: str, after: str) -> Contrast:
    return Contrast({_name(cell, "cifar10", before): 1, _name(cell, "cifar10", after): -1}, ("permute",))


FAMILIES = {
    "lost": Family({cell: _loss(cell, "none", "pixels") for cell in CELLS}, margin=1.0),
    "order": Family({cell: _loss(cell, "pixels", "pixels_first") for cell in CELLS}, margin=1.0),
}
LABELS = {_name(cell, "cifar10", "none"): cell for cell in CELLS}
LABELS |= {_name(cell, "cifar10", kind): f"{cell}, {kind}" for cell, kind in product(CELLS, KINDS[1:])}
LABELS |= {_name(cell, CLONE, "none"): f"{cell}, clone" for cell in CELLS}


def runs() -> Iterator[Run]:
    for seed, arm, cell in product(SEEDS, ARMS, CELLS):
        yield cell_run(cell, seed, **arm)
