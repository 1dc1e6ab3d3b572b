"""Public checkpoints of Plain MLPs on raw pixels: the authors', of Scaling MLPs and of the rank-pruning study."""

import re

from archs.parts.weights import State, rename


def convert(state_dict: State) -> State:
    """The authors' names, of Scaling MLPs and of the three ways of the rank-pruning study."""
    if "fc_last.weight" in state_dict:
        return _from_shared_norms(state_dict)
    # Linear k of a stack has the number 2k; the last one is the head.
    stack = [int(key.split(".")[1]) for key in state_dict if key.startswith("linear_relu_stack.")]
    return rename(
        state_dict,
        (rf"^linear_relu_stack\.{max(stack, default=0)}\.", "head."),
        (r"^linear_relu_stack\.0\.", "stem.0.proj."),
        (r"^linear_relu_stack\.(\d+)\.", lambda number: f"stages.0.{int(number[1]) // 2 - 1}.0."),
        (r"^linear_in\.", "stem.0.proj."),
        (r"^layernorms\.(\d+)\.", r"stages.0.\1.0."),
        (r"^layers\.(\d+)\.", r"stages.0.\1.2."),
        (r"^linear_out\.", "head."),
    )


def _from_shared_norms(state: State) -> State:
    """`six`, whose layers 1 and 3 have a skip, and `twelve`: each BatchNorm goes to every layer of its width."""
    skips = (2, 4) if "batchnorm.weight" in state else ()
    linears = sorted(int(key[2:-7]) for key in state if re.fullmatch(r"fc\d+\.weight", key))
    body = {k: f"stages.0.{k - 2}{'.branch' if k in skips else ''}" if k > 1 else "stem" for k in linears}
    rules = [(rf"^fc{k}\.", f"{place}.{'0' if k > 1 else '0.proj'}.") for k, place in body.items()]
    converted = rename(state, *rules, (r"^fc_last\.", "head."))
    for key in [key for key in state if key.startswith("batchnorm")]:
        norm, _, leaf = key.rpartition(".")
        width = len(state[f"{norm}.weight"]) if f"{norm}.weight" in state else None
        layers = [place for k, place in body.items() if len(state[f"fc{k}.weight"]) == width]
        if layers:
            value = converted.pop(key)
            converted |= {f"{place}.2.layer.{leaf}": value for place in layers}
    return converted
