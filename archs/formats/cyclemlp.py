"""Public checkpoints of CycleMLP: the authors' of the B-series."""

from archs.parts.weights import State, rename


def convert(state_dict: State) -> State:
    """The authors' names of the B-series; `offset` buffers are left for `implied`."""
    state = rename(
        state_dict,
        (r"^patch_embed\.", "stem."),
        (r"^network\.(\d+)\.(\d+)\.norm1\.", r"stages.\1.\2.0.norm."),
        (r"^network\.(\d+)\.(\d+)\.norm2\.", r"stages.\1.\2.1.norm."),
        (r"^network\.(\d+)\.(\d+)\.attn\.", r"stages.\1.\2.0.branch."),
        (r"^network\.(\d+)\.(\d+)\.mlp\.", r"stages.\1.\2.1.branch."),
        (r"^network\.(\d+)\.proj\.", r"stages.\1.layer."),
    )
    return {key: value.flatten(1) if "sfc_" in key and value.ndim == 4 else value for key, value in state.items()}
