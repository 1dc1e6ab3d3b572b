"""The zoo as timm's own: `import archs.timm_zoo`, and every variant is `timm.create_model("softmlp_FAMILY_VARIANT")`.

timm's scripts, feature extractors, exporters and savers then take them as any model of theirs. A variant's default_cfg
(archs/parts/config.py) says what it was made for; weights that were trained otherwise say so themselves
(scripts/export_model.py writes such a folder). There are no weights to download.

Features are BHWC (`output_fmt` is NHWC), but those of `forward_intermediates` and `features_only`, which are BCHW.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from archs.parts import zoo
from archs.parts.backbone import Backbone
from archs.parts.config import config, of_model

PREFIX = "softmlp_"
# What timm's scripts give every model, with the value that asks for nothing.
IDLE = {"drop_rate": 0.0}


def _build(
    name: str,
    drop_path_rate: float = 0.0,
    global_pool: str | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **given: Any,
) -> Backbone:
    """`archs.create` by timm's words. Raises TypeError for an argument that the model has not, as timm's do."""
    given = {key: value for key, value in given.items() if key not in IDLE or value != IDLE[key]}
    given |= {"drop_path": drop_path_rate} if drop_path_rate else {}
    known = zoo.defaults(name).keys()
    if unknown := sorted(given.keys() - known):
        raise TypeError(f"{PREFIX}{name} has no argument '{unknown[0]}'; it takes: {', '.join(sorted(known))}")
    with torch.device(device) if device is not None else nullcontext():
        model = zoo.create(name, **given)
    if global_pool is not None and global_pool != model.global_pool:
        model.reset_classifier(model.num_classes, global_pool)
    return model.to(dtype) if dtype is not None else model


def _last_three(name: str, given: Mapping[str, Any]) -> tuple[int, ...]:
    """The blocks whose features are taken unless others are asked for; all where there are fewer."""
    own = {key: value for key, value in given.items() if key in zoo.defaults(name)}
    with torch.device("meta"):
        depth = len(zoo.create(name, **own).blocks())
    if not depth:
        raise ValueError(f"{PREFIX}{name} has no blocks to take features of")
    return tuple(range(-min(depth, 3), 0))


def _register(name: str) -> None:
    def entry(pretrained: bool = False, **given: Any) -> nn.Module:
        if pretrained and not (given.get("pretrained_cfg") or given.get("pretrained_cfg_overlay")):
            raise ValueError(f"{PREFIX}{name} has no published weights here; load a file of yours: --checkpoint FILE")
        features = {"feature_cls": "getter", **given.pop("feature_cfg", {})}
        if given.get("features_only") and "out_indices" not in {**given, **features}:
            features["out_indices"] = _last_three(name, given)
        model = build_model_with_cfg(partial(_build, name), PREFIX + name, pretrained, feature_cfg=features, **given)
        if isinstance(model, Backbone):  # and no feature extractor
            model.pretrained_cfg.update(of_model(model))
        return model

    entry.__name__, entry.__module__ = PREFIX + name, __name__
    register_model(entry)


default_cfgs = generate_default_cfgs({PREFIX + name: config(zoo.defaults(name)) for name in zoo.list_archs()})
for _name in zoo.list_archs():
    _register(_name)
