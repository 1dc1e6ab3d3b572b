"""Shape or texture: which of the two do the six models of `bias` go by, when both tell the class?

Written down before the first run. Twelve silhouettes in twelve textures, 400 pictures of each class. Trained where
both cues say the same class, the models are asked by the probe shape_bias with pictures in which they differ. As a
control that a model can learn each cue alone, the same runs where only one of them tells the class (seed 0).

    for cue in both shape texture; do python scripts/make_shapes.py data/shapes_$cue --cue $cue; done
    for cue in both shape texture; do
        python scripts/make_beton.py --dataset imagefolder/shapes_$cue --img-size 32 \\
            --raw-dir data/shapes_$cue; done
    python scripts/sweep.py launch bias_shapes
    python scripts/report.py bias_shapes

Expectations, each may turn out wrong: the attention of this budget, a bag of patches, is nearest to texture alone
(shape_bias below 10); flat above depthwise, as it sees the whole silhouette at once; depthwise above ConvMixer, whose
patches hold a texture whole. A model that does not learn a cue alone (control below 50 %) is said to be unable, not
unwilling. "Undecided" is an answer. Differences need some three deviations of a pair to be seen at three seeds.
Cost: 30 runs of 370 steps, 20 to 60 seconds each on one core, and some seconds of the probe each.
"""

from collections.abc import Iterator

from engine.run import Run
from slurm.sweeps.bias import CELLS, RUNGS, SEEDS, cell_run

PROBES = ("shape_bias",)
CUES = {"both": SEEDS, "shape": SEEDS[:1], "texture": SEEDS[:1]}
LABELS = {
    f"{RUNGS[cell]} dataset=imagefolder/shapes_{cue}": cell if cue == "both" else f"{cell}, {cue} alone"
    for cell in CELLS
    for cue in CUES
}


def runs() -> Iterator[Run]:
    for cue, seeds in CUES.items():
        for seed in seeds:
            for cell in CELLS:
                yield cell_run(cell, seed, dataset=f"imagefolder/shapes_{cue}", train_samples=None, img_size=32)
