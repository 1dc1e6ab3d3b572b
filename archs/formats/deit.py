"""Public checkpoints of DeiT: timm's, which the authors have too, and those of the removal of attention.

The removal's training (arXiv 2404.05657; sihaoevery/lambda_vit, main_lambda.py) keeps its options and epoch beside the
weights, `args` and `epoch`. Its files hold the attention of all layers, also where it was diluted, until they are
"shrunk". The weights alone do not tell, so those options are read.
"""

import ast
from collections.abc import Mapping
from typing import Any

from archs.parts.weights import State, flatten, rename

DILUTED_FROM = 299  # the epoch in which lambda is 0, in all published code


def convert(state_dict: State) -> State:
    """timm's names, which the authors of DeiT and of the removal have too."""
    state = rename(
        state_dict,
        (r"^patch_embed\.", "stem."),
        (r"^blocks\.(\d+)\.norm1\.", r"stages.0.\1.0.norm."),
        (r"^blocks\.(\d+)\.norm2\.", r"stages.0.\1.1.norm."),
        (r"^blocks\.(\d+)\.attn\.", r"stages.0.\1.0.branch."),
        (r"^blocks\.(\d+)\.mlp\.", r"stages.0.\1.1.branch."),
    )
    state |= {key: state[key].flatten(0, -2) for key in ("cls_token", "pos_embed") if key in state}
    return flatten(state, "stem.proj.weight")


def said(file: Mapping[str, Any]) -> dict[str, Any]:
    """`mlp_layers` of a file of the removal's training, by its options; {} for any other.

    Raises ValueError for one of an epoch in which the attention was not gone yet.
    """
    options = file.get("args")
    options = options if isinstance(options, Mapping) else getattr(options, "__dict__", {})
    diluted, done = (_layers(options.get(key)) for key in ("prune_layer", "done_layer"))
    epoch = file.get("epoch")
    if diluted and isinstance(epoch, int) and epoch < DILUTED_FROM:
        raise ValueError(
            f"the file is of epoch {epoch} of a dilution of layers {diluted}, their attention is still at "
            f"lambda {1 - epoch / DILUTED_FROM:.3f}; take a file of epoch {DILUTED_FROM} or later"
        )
    return {"mlp_layers": sorted({*diluted, *done})} if diluted or done else {}


def _layers(option: Any) -> list[int]:
    """The layers of an option, which is a list or Python's text of one."""
    try:
        found = ast.literal_eval(option) if isinstance(option, str) else option
    except (SyntaxError, ValueError):
        return []
    return sorted(found) if isinstance(found, (list, tuple)) and all(isinstance(i, int) for i in found) else []
