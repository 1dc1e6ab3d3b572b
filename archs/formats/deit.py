"""Public checkpoints of DeiT: timm's, which the authors have too."""

from archs.parts.weights import State, flatten, rename


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
