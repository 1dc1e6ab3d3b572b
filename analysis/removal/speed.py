"""How fast a model is without its mixing: images a second, and against the whole model, with tokens merged and not.

What a layer costs does not depend on which one it is, so one model stands for all with as many layers gone in the same
way; where tokens are merged it does, a little, as they merge in the layers that are kept. Timed in turn, each model
beside the whole one.
"""

from collections.abc import Sequence
from functools import partial
from statistics import median, quantiles
from typing import Any

import torch

import archs
from engine.cost.measure import Subject, in_turn, timed
from engine.cost.profile import profile
from engine.fields import dilution
from engine.run import Run

BATCHES = (1, 8, 64)
ROUNDS = 9
SHARE = 0.5  # of all tokens that are merged away where they are


def merge_r(num_tokens: int, attending: int) -> int:
    """Tokens to merge in each layer with attention so that SHARE of all are gone at the end."""
    return max(1, round(SHARE * num_tokens / attending))


def costs(run: Run, num_classes: int, in_chans: int) -> dict[str, int]:
    """Parameters and MACs of the model that a run ends with."""
    shape = {"img_size": run.img_size, "in_chans": in_chans, "num_classes": num_classes}
    found = profile(run.model, **shape, **run.final_kwargs)
    return {"params": found["params"], "macs": found["macs"]}


def measure(
    run: Run, num_classes: int, in_chans: int, *, amp: bool, batches: Sequence[int] = BATCHES
) -> list[dict[str, Any]]:
    """A row per batch size and merging: images a second of the whole model and of the run's, and their ratio.

    Merging is left out where the model has none, or no attention is left.
    """
    shape = {"img_size": run.img_size, "in_chans": in_chans, "num_classes": num_classes}
    gone = ("mlp_layers", "replacement")
    kwargs = {"whole": {k: v for k, v in run.final_kwargs.items() if k not in gone}, "less": run.final_kwargs}
    full = {**archs.defaults(run.model), **run.final_kwargs}
    attending, rows = dilution.num_layers(full) - len(full["mlp_layers"]), []
    tokens = (run.img_size // run.patch_size) ** 2
    can_merge = "merge_r" in full and attending and full["replacement"] in ("double", "skip")
    for merging in (False, True) if can_merge else (False,):
        more = {
            "whole": {"merge_r": merge_r(tokens, dilution.num_layers(full))} if merging else {},
            "less": {"merge_r": merge_r(tokens, attending)} if merging else {},
        }
        models = [archs.create(run.model, **shape, **{**kwargs[each], **more[each]}).eval() for each in kwargs]
        image, device = (in_chans, run.img_size, run.img_size), torch.device("cpu")
        subjects = [Subject(name=run.model, model=each, image=image, device=device, amp=amp) for each in models]
        for batch in batches:
            x_BCHW = subjects[0].images(batch)
            seconds = in_turn([timed(partial(each.infer, x_BCHW)) for each in subjects], ROUNDS)
            low, middle, high = quantiles([a / b for a, b in zip(*seconds, strict=True)], n=4, method="inclusive")
            rates = {
                "images_per_s_whole": batch / median(seconds[0]),
                "images_per_s": batch / median(seconds[1]),
            }
            speed = {"speedup": middle, "speedup_q1": low, "speedup_q3": high}
            rows.append({"batch_size": batch, "merged": merging, **rates, **speed})
    return rows
