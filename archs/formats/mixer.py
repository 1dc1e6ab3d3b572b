"""Public checkpoints of MLP-Mixer: timm's, and the authors' Flax files, new and old."""

from archs.parts.weights import State, flatten, rename


def convert(state_dict: State) -> State:
    """timm's names, or those of the authors' Flax files, new or old; see `_from_flax`."""
    state = _from_flax(state_dict) if any("/" in key for key in state_dict) else state_dict
    state = rename(
        state,
        (r"^blocks\.(\d+)\.norm1\.", r"stages.0.\1.0.norm."),
        (r"^blocks\.(\d+)\.norm2\.", r"stages.0.\1.1.norm."),
        (r"^blocks\.(\d+)\.mlp_tokens\.", r"stages.0.\1.0.branch.mix."),
        (r"^blocks\.(\d+)\.mlp_channels\.", r"stages.0.\1.1.branch."),
    )
    return flatten(state, "stem.proj.weight")


def _from_flax(state: State) -> State:
    """timm's names and shapes: kernels there are (in, out), the stem's is (row, column, in, out).

    Old files differ in their names, put axes of length 1 around a kernel and number a block's second norm at will.
    """
    named = rename(
        state,
        (r"^embedding/", "stem/"),
        (r"^Mixer/encoder_norm/", "pre_head_layer_norm/"),
        (r"^Mixer/encoderblock_", "MixerBlock_"),
        (r"_mixing_phase_0/(kernel|bias)1$", r"_mixing/Dense_0/\1"),
        (r"_mixing_phase_0/(kernel|bias)2$", r"_mixing/Dense_1/\1"),
        (r"^MixerBlock_(\d+)/LayerNorm_0/", r"blocks.\1.norm1."),
        (r"^MixerBlock_(\d+)/LayerNorm_\d+/", r"blocks.\1.norm2."),
        (r"^MixerBlock_(\d+)/(token|channel)_mixing/", r"blocks.\1.mlp_\2s."),
        (r"Dense_0/", "fc1."),
        (r"Dense_1/", "fc2."),
        (r"^stem/", "stem.proj."),
        (r"^pre_head_layer_norm/", "norm."),
        (r"^head/", "head."),
        (r"(kernel|scale)$", "weight"),
    )
    turned = {}
    for (key, value), old in zip(named.items(), state, strict=True):
        if not old.rpartition("/")[2].startswith("kernel"):
            turned[key] = value.flatten()
        elif key == "stem.proj.weight":
            turned[key] = value.permute(3, 2, 0, 1)
        else:
            turned[key] = (value.squeeze() if value.ndim > 2 else value).T
    return turned
