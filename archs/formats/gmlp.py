"""Public checkpoints of gMLP: timm's; the authors published none."""

from archs.parts.weights import State, flatten, rename


def convert(state_dict: State) -> State:
    """timm's names; the authors published no weights."""
    state = rename(
        state_dict,
        (r"^blocks\.(\d+)\.norm\.", r"stages.0.\1.norm."),
        (r"^blocks\.(\d+)\.mlp_channels\.fc1\.", r"stages.0.\1.branch.0."),
        (r"^blocks\.(\d+)\.mlp_channels\.gate\.norm\.", r"stages.0.\1.branch.2.norm."),
        (r"^blocks\.(\d+)\.mlp_channels\.gate\.proj\.", r"stages.0.\1.branch.2.spatial.mix."),
        (r"^blocks\.(\d+)\.mlp_channels\.fc2\.", r"stages.0.\1.branch.3."),
    )
    return flatten(state, "stem.proj.weight")
