"""Public checkpoints of GFNet: the authors' of the isotropic variants."""

from archs.parts.weights import State, flatten, rename


def convert(state_dict: State) -> State:
    """The authors' names of the isotropic variants, whose positions are (1, N, C)."""
    state = rename(
        state_dict,
        (r"^patch_embed\.", "stem.0."),
        (r"^pos_embed$", "stem.1.pos_embed"),
        (r"^blocks\.(\d+)\.norm1\.", r"stages.0.\1.norm."),
        (r"^blocks\.(\d+)\.filter\.", r"stages.0.\1.branch.0."),
        (r"^blocks\.(\d+)\.norm2\.", r"stages.0.\1.branch.1."),
        (r"^blocks\.(\d+)\.mlp\.", r"stages.0.\1.branch.2."),
    )
    positions, spectrum = (state.get(key) for key in ("stem.1.pos_embed", "stages.0.0.branch.0.complex_weight"))
    if positions is not None and spectrum is not None:
        state["stem.1.pos_embed"] = positions.reshape(len(spectrum), -1, positions.shape[-1])
    return flatten(state, "stem.0.proj.weight")
