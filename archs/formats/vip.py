"""Public checkpoints of Vision Permutator: the authors'."""

from archs.parts.weights import State, flatten, rename

RULES = (
    (r"^patch_embed\.", "stem."),
    (r"^network\.(\d+)\.(\d+)\.norm1\.", r"stages.\1.\2.0.norm."),
    (r"^network\.(\d+)\.(\d+)\.norm2\.", r"stages.\1.\2.1.norm."),
    (r"^network\.(\d+)\.(\d+)\.attn\.", r"stages.\1.\2.0.branch."),
    (r"^network\.(\d+)\.(\d+)\.mlp\.", r"stages.\1.\2.1.branch."),
    (r"^network\.(\d+)\.proj\.", r"stages.\1.layer."),
)


def convert(state_dict: State) -> State:
    """The authors' names; stages and transitions share one numbering there as here."""
    return flatten(rename(state_dict, *RULES), "stem.proj.weight")
