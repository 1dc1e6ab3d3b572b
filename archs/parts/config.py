"""What timm calls a model's default_cfg: the image it was made for, its statistics, its first and its last layer."""

from collections.abc import Mapping
from typing import Any

import torch

from archs.parts.backbone import Backbone, pair

# Mean and deviation on the 0..1 scale, by size and channels: of scikit-learn's digits and CIFAR-10, whose variants are
# of these sizes, as engine/data/sets.py has them on the 0..255 scale; all others are of ImageNet's.
STATISTICS = {
    (8, 1): ((77.878 / 255,), (95.818 / 255,)),
    (32, 3): ((125.307 / 255, 122.950 / 255, 113.865 / 255), (62.993 / 255, 62.089 / 255, 66.705 / 255)),
}
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CROPPED = 96  # pixels from which on images are cropped from larger ones, as timm does


def config(own: Mapping[str, Any]) -> dict[str, Any]:
    """default_cfg of a model from all arguments of its `build`; `of_model` says what only the model knows."""
    (height, width), chans = pair(own["img_size"]), own["in_chans"]
    mean, std = STATISTICS.get((height, chans), IMAGENET)
    return {
        "num_classes": own["num_classes"],
        "input_size": (chans, height, width),
        "fixed_input_size": True,
        "pool_size": None,
        "crop_pct": 0.875 if height >= CROPPED else 1.0,
        "interpolation": "bicubic" if height >= CROPPED else "bilinear",
        "mean": mean[:chans],
        "std": std[:chans],
        "classifier": "head",
    }


def of_model(model: Backbone) -> dict[str, Any]:
    """What a default_cfg says of a model as it was built: `first_conv` reads the image, `pool_size` is the last map."""
    key = next(key for key, _ in model.named_parameters() if key.startswith("stem.") and key.endswith("weight"))
    chans, height, width = model.input_size
    if info := model.feature_info:
        pool_size = height // info[-1]["reduction"], width // info[-1]["reduction"]
    else:
        pool_size = model.grid(torch.empty(1, chans, height, width, device="meta"))
    return {"first_conv": key.removesuffix(".weight"), "pool_size": pool_size}
