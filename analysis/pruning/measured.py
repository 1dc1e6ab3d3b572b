"""A model right after pruning, before any training: how accurate, at which cost, and how local its first layer is."""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from analysis.measures import fields
from analysis.probes import first_layer
from engine import evaluate, models, rng, transfer
from engine.cost.profile import profile
from engine.data import loaders, normalize
from engine.pruning import masks, targets
from engine.run import How, Run
from engine.step import make_autocast


class Pruned(NamedTuple):
    """What is known of a start.

    Args:
        acc: accuracy in percent, in the run's own precision, on the images that the run is judged by.
        kept: share of the weights, or of the units' weights, that is not zero.
        macs: of one image, nominal: without products with zero.
        half_radius, moran: of the first layer's weights, means over units (analysis/probes/first_layer.py), or None.
    """

    acc: float
    kept: float
    macs: int
    half_radius: float | None
    moran: float | None


def measure(run: Run, how: How) -> Pruned:
    """What the run starts from, with what its criterion takes at zero; of a run that prunes nothing, the whole model.

    Also of one that rewinds: its trained weights. Raises Refusal where weights or data are not there.
    """
    device = models.pick_device(how)
    if how.threads:
        torch.set_num_threads(how.threads)
    train, val, facts = loaders.make_loaders(run, how)
    prepare = normalize.make_prepare(run, facts, device)
    rng.seed_everything(run.seed, "init")
    model = models.create(run, facts["num_classes"], len(prepare.mean)).to(device)
    transfer.load(run, model, facts["num_classes"], len(prepare.mean))
    held = masks.start(run, model, functools.partial(train.epoch, 0), prepare) or {}
    masks.Held(model, held).weights()
    found = evaluate.evaluate(model.eval(), val, prepare, make_autocast(run, device))
    data = {"img_size": run.img_size, "in_chans": len(prepare.mean), "num_classes": facts["num_classes"]}
    whole = profile(run.model, **data, **run.final_kwargs)["macs"]
    by_place = held and not masks.calibrated(run)
    uses = {target.name: target.uses for target in targets.find(model)} if by_place else {}
    gone = {name: int((~mask).sum()) * uses.get(name, 1) for name, mask in held.items() if name.endswith("weight")}
    total = sum(mask.numel() for mask in held.values())
    kept = sum(int(mask.sum()) for mask in held.values()) / total if held else 1.0
    return Pruned(found["top1"], kept, whole - sum(gone.values()), *_locality(run, model))


def _locality(run: Run, model: nn.Module) -> tuple[float | None, float | None]:
    """R50 in pixels, and Moran's I, of the weights of a flat net's first layer as the model sees its places."""
    if not isinstance(run.img_size, int) or (w_UCHW := first_layer.weights(model, run.img_size)) is None:
        return None, None
    energy = (w_UCHW[(w_UCHW != 0).any((1, 2, 3))] ** 2).sum(1)
    if not len(energy):
        return None, None
    return float(fields.half_radius(energy).mean()), float(fields.moran(energy[:, None]).mean())


def row(source: Run, run: Run, number: int, rounds: int, how: How, whole: Pruned) -> dict[str, Any]:
    """A row of prune.csv for one round; `acc_after` is left to who trains it.

    Args:
        number: of the round, from 1.
        whole: of the source.
    """
    found = measure(run, how)
    return {
        **{"source": source.signature, "model": source.rung, "by": run.prune_by, "seed": run.seed},
        **{"source_seed": source.seed, "share": run.prune_share, "round": number, "rounds": rounds},
        **{"rewind": run.prune_rewind, "kept": round(found.kept, 6), "macs": found.macs, "macs_whole": whole.macs},
        **{"acc_whole": round(whole.acc, 4), "acc_before": round(found.acc, 4), "acc_after": None},
        **{"half_radius": found.half_radius, "moran": found.moran},
        **{"half_radius_whole": whole.half_radius, "moran_whole": whole.moran},
        **{"epochs": 0, "signature": None, "initial": str(Path(run.initial_checkpoint).name)},
    }
