"""What does each ingredient between a plain MLP and a convolution buy on CIFAR-10, at equal MACs and parameters?

The ladder of token mixing in one frame and one recipe: 8 x 8 patches of 32 x 32 images, so 16 tokens, four blocks. At
5 M multiply-adds the rungs on tokens have some 0.31 M parameters, so that they meet both budgets within 13 %; the flat
rungs, whose parameters equal their MACs, stand there twice, at 5 MMAC and at 0.31 M parameters. `resmlp`, `banded`,
`toeplitz` and `bandedtoeplitz` are the two by two of locality and sharing. Each rung is also trained on images whose
pixels are shuffled, all alike, after augmentation: what it loses there is what it owed to the layout (permutation gap).

    python scripts/sweep.py launch ladder_lr      # tunes the learning rate of each rung on held-out training images
    python scripts/sweep.py launch ladder

Cost: 164 runs of 780 steps of 128, about half a minute each on one core with AVX512-BF16, and as long again for the
probes, which go through the test images 38 times.
Answer (results/LOG.md, tables in results/ladder/): bottleneck blocks, patches and shared weights each gain, 46.0 to
51.7 %; one kernel per channel gains most, 58.8 %; between them token mixing gains nothing at equal MACs that 0.31 M
flat parameters on patches do not have (50.2 %). Shuffling the pixels costs flat MLPs nothing, token mixing some 7
points, convolution 14 (three seeds). After 780 steps attention is a bag of patches.
"""

from collections.abc import Iterator
from itertools import product

from engine.run import Run

FRAME = {"patch_size": 8, "depth": 4}
MACS = (
    ("mlp_1m", {"depth": 4, "dim": 876}),
    ("bmlp_1m", {"depth": 4, "dim": 350}),
    ("patchmlp_1m_unshared", FRAME | {"dim": 352}),
    ("patchmlp_1m", FRAME | {"dim": 352}),
    ("identityformer_1m", FRAME | {"dim": 96}),
    ("poolformer_1m", FRAME | {"dim": 96}),
    ("randformer_1m", FRAME | {"dim": 95}),
    ("resmlp_1m", FRAME | {"dim": 95}),
    ("mixer_1m", FRAME | {"dim": 91}),
    ("gmlp_1m", FRAME | {"dim": 88}),
    ("vip_1m", {"patch_size": 8, "depth": [4], "dim": [88], "mlp_ratio": 2.76}),
    ("cyclemlp_1m_isotropic", {"patch_size": 8, "depth": [4], "dim": [76], "mlp_ratio": 4.44}),
    ("banded_1m", FRAME | {"dim": 95}),
    ("toeplitz_1m", FRAME | {"dim": 95}),
    ("bandedtoeplitz_1m", FRAME | {"dim": 95}),
    ("gfnet_1m", FRAME | {"dim": 96}),
    ("convmixer_1m", FRAME | {"kernel_size": 3, "dim": 252}),
    ("deit_1m", FRAME | {"num_heads": 2, "dim": 72, "mlp_ratio": 4.56}),
)
PARAMS = (
    ("mlp_1m", {"depth": 4, "dim": 93}),
    ("bmlp_1m", {"depth": 4, "dim": 62}),
    ("patchmlp_1m_unshared", FRAME | {"dim": 96, "expansion": 3.95}),
    ("patchmlp_1m", FRAME | {"dim": 80, "expansion": 6.0}),
)
RUNGS = MACS + PARAMS
SEEDS = (0, 1, 2, 3, 4)
GAP_SEEDS = (0, 1, 2)
PROBES = ("shift", "patch_shuffle")
BASE = {
    "dataset": "cifar10",
    "train_samples": 10_000,
    "epochs": 10,
    "batch_size": 128,
    "opt": "adamw",
    "opt_betas": (0.9, 0.95),
    "weight_decay": 0.05,
    "clip_grad": 1.0,
    "warmup_epochs": 0.5,
    "crop_pad": 4,
    "hflip": 0.5,
    "amp": True,
}
# Winners of ladder_lr, in the order of RUNGS.
LR = (3e-4, 1e-3, 1e-3, 1e-3, 1e-2, 3e-2, 1e-2, 3e-2, 3e-2, 1e-2, 1e-2, 1e-2, 3e-2, 3e-2, 3e-2, 1e-2, 1e-2, 3e-3)
LR += (3e-3, 1e-2, 3e-3, 1e-2)

FLAT, BMLP, UNSHARED, SHARED, _, _, _, RESMLP, MIXER, GMLP, VIP, _, BANDED, TOEPLITZ, BOTH, _, CONV, DEIT = (
    Run(model=model, model_kwargs=kwargs).rung for model, kwargs in MACS
)
BASELINE = tuple(Run(model=model, model_kwargs=kwargs).rung for model, kwargs in (MACS[0], PARAMS[0]))  # plain MLPs
# Of the plan that was there before the first run (results/LOG.md says what was changed). The difference is always the
# second name less the first.
CONTRASTS = {
    "bottleneck blocks: mlp to bmlp": {BMLP: 1, FLAT: -1},
    "patches: bmlp to unshared patchmlp": {UNSHARED: 1, BMLP: -1},
    "the same weights for all patches: unshared to shared patchmlp": {SHARED: 1, UNSHARED: -1},
    "mixing tokens and channels in turn: patchmlp to resmlp": {RESMLP: 1, SHARED: -1},
    "an MLP across tokens: resmlp to mixer": {MIXER: 1, RESMLP: -1},
    "gating: resmlp to gmlp": {GMLP: 1, RESMLP: -1},
    "rows and columns: resmlp to vip": {VIP: 1, RESMLP: -1},
    "locality alone: resmlp to banded": {BANDED: 1, RESMLP: -1},
    "sharing alone: resmlp to toeplitz": {TOEPLITZ: 1, RESMLP: -1},
    "sharing where there is locality: banded to bandedtoeplitz": {BOTH: 1, BANDED: -1},
    "locality where there is sharing: toeplitz to bandedtoeplitz": {BOTH: 1, TOEPLITZ: -1},
    "a kernel per channel: bandedtoeplitz to convmixer": {CONV: 1, BOTH: -1},
    "weights from the image: resmlp to deit": {DEIT: 1, RESMLP: -1},
    "locality x sharing": {BOTH: 1, BANDED: -1, TOEPLITZ: -1, RESMLP: 1},
}


def runs() -> Iterator[Run]:
    tuned = list(zip(RUNGS, LR, strict=True))
    for seed, ((model, kwargs), lr) in product(SEEDS, tuned):
        yield Run(**BASE, model=model, model_kwargs=kwargs, lr=lr, seed=seed)
    for seed, ((model, kwargs), lr) in product(GAP_SEEDS, tuned[: len(MACS)]):
        yield Run(**BASE, model=model, model_kwargs=kwargs, lr=lr, seed=seed, permute="pixels")
