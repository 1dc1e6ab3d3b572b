"""Public checkpoints of ResMLP: the authors' and timm's."""

from archs.parts.weights import State, flatten, rename


def convert(state_dict: State) -> State:
    """The authors' names, and timm's, whose affine vectors are (1, 1, C)."""
    state = rename(
        state_dict,
        (r"^patch_embed\.", "stem."),
        (r"^blocks\.(\d+)\.norm1\.", r"stages.0.\1.0.norm."),
        (r"^blocks\.(\d+)\.norm2\.", r"stages.0.\1.1.norm."),
        (r"^blocks\.(\d+)\.(attn|linear_tokens)\.", r"stages.0.\1.0.branch.mix."),
        (r"^blocks\.(\d+)\.(mlp|mlp_channels)\.", r"stages.0.\1.1.branch."),
        (r"^blocks\.(\d+)\.(gamma_|ls)1$", r"stages.0.\1.0.scale.gamma"),
        (r"^blocks\.(\d+)\.(gamma_|ls)2$", r"stages.0.\1.1.scale.gamma"),
    )
    state = {key: value.flatten() if key.endswith((".alpha", ".beta")) else value for key, value in state.items()}
    return flatten(state, "stem.proj.weight")
