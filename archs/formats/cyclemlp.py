"""Public checkpoints of CycleMLP: the authors' of the B-series."""

from archs.formats.vip import RULES
from archs.parts.weights import State, rename


def convert(state_dict: State) -> State:
    """The names of the B-series' authors, whose code is the Permutator's; `offset` buffers are left for `implied`."""
    state = rename(state_dict, *RULES)
    return {key: value.flatten(1) if "sfc_" in key and value.ndim == 4 else value for key, value in state.items()}
