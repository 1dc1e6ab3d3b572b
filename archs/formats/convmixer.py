"""Public checkpoints of ConvMixer: timm's and the authors'."""

import re

from archs.parts.weights import State, flatten, rename


def convert(state_dict: State) -> State:
    """timm's names, and the authors' `nn.Sequential`, whose head has the number depth + 5."""
    state = state_dict
    if "0.weight" in state:
        depth = sum(re.fullmatch(r"\d+\.0\.fn\.0\.weight", key) is not None for key in state)
        state = rename(
            state,
            (rf"^{depth + 5}\.", "head."),
            (r"^([02])\.", r"stem.\1."),
            (r"^(\d+)\.", lambda number: f"blocks.{int(number[1]) - 3}."),
        )
    state = rename(
        state,
        (r"^stem\.0\.", "stem.0.proj."),
        (r"^stem\.2\.", "stem.1.layer.1."),
        (r"^blocks\.(\d+)\.0\.fn\.", r"stages.0.\1.0.branch.layer."),
        (r"^blocks\.(\d+)\.1\.", r"stages.0.\1.1.layer.0."),
        (r"^blocks\.(\d+)\.3\.", r"stages.0.\1.1.layer.2."),
    )
    return flatten(state, "stem.0.proj.weight")
