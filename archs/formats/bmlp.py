"""Public checkpoints of Inverted-bottleneck MLP on raw pixels: the authors'."""

from archs.parts.weights import State, rename


def convert(state_dict: State) -> State:
    """The authors' names."""
    return rename(
        state_dict,
        (r"^linear_in\.", "stem.proj."),
        (r"^layernorms\.(\d+)\.", r"stages.0.\1.norm."),
        (r"^blocks\.(\d+)\.block\.0\.", r"stages.0.\1.branch.fc1."),
        (r"^blocks\.(\d+)\.block\.2\.", r"stages.0.\1.branch.fc2."),
        (r"^linear_out\.", "head."),
    )
