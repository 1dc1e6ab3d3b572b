"""Every public layout of every family computes here what its own code computes from the same weights, all random.

The references are timm's classes, and otherwise modules written out here after the authors' descriptions, whose
`state_dict` has the authors' names. What does not fit is an error that names it.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.layers import GatedMlp
from timm.models.convmixer import ConvMixer
from timm.models.mlp_mixer import Affine, MlpMixer, ResBlock, SpatialGatingBlock
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import archs
from analysis.probes.receptive_field import randomise
from tests.authors import (
    BottleneckMlp,
    GfNet,
    SharedNormMlp,
    StackMlp,
    StandardMlp,
    convmixer,
    cyclemlp,
    vip,
)

State = dict[str, Tensor]


# --- the layouts


@dataclass(frozen=True)
class Layout:
    """A foreign model, its file, our name for it and what the file cannot tell."""

    name: str
    reference: nn.Module
    given: dict[str, Any] = field(default_factory=dict)
    rewrite: Callable[[State], dict[str, Any]] = dict
    in_chans: int = 3
    implied: dict[str, Any] = field(default_factory=dict)
    img_size: int | None = 8
    pixels: int = 8


def _renamed(*rules: tuple[str, str]) -> Callable[[State], State]:
    def rewrite(state: State) -> State:
        renamed = {}
        for key, value in state.items():
            for pattern, name in rules:
                key = re.sub(pattern, name, key)
            renamed[key] = value.flatten() if key.endswith((".alpha", ".beta")) else value
        return renamed

    return rewrite


def _flax(state: State, old: bool) -> dict[str, np.ndarray]:
    """timm's Mixer in the names and shapes of the authors' files."""
    names = [("stem.proj.", "stem/"), ("norm.", "pre_head_layer_norm/"), ("head.", "head/")]
    parts = {"norm1": "LayerNorm_0", "norm2": "LayerNorm_1", "mlp_tokens": "token_mixing"}
    parts["mlp_channels"] = "channel_mixing"
    if old:
        names = [("stem.proj.", "embedding/"), ("norm.", "Mixer/encoder_norm/"), ("head.", "head/")]
        parts |= {"norm2": "LayerNorm_2", "mlp_tokens": "token_mixing_phase_0"}
        parts["mlp_channels"] = "channel_mixing_phase_0"
    file = {}
    for key, value in state.items():
        words, array = key.split("."), value.numpy()
        leaf = words[-1]
        if "norm" in words[-2]:
            leaf = leaf.replace("weight", "scale")
        elif leaf == "weight":
            leaf, array = "kernel", array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
        if words[0] == "blocks":
            part = f"{'Mixer/encoderblock' if old else 'MixerBlock'}_{words[1]}/{parts[words[2]]}"
            if words[2].startswith("norm"):
                file[f"{part}/{leaf}"] = array
            elif old:
                file[f"{part}/{leaf}{words[3][-1]}"] = array[None] if leaf == "kernel" else array
            else:
                file[f"{part}/Dense_{int(words[3][-1]) - 1}/{leaf}"] = array
        else:
            (start,) = [new for prefix, new in names if key.startswith(prefix)]
            file[start + leaf] = array
    return file


class Same(nn.Module):
    def forward(self, x: Tensor, **_: Any) -> Tensor:
        return x


def _without_attention(reference: VisionTransformer, removed: tuple[int, ...]) -> VisionTransformer:
    for i in removed:
        # x + x: what is left of a residual attention that returns its input.
        reference.blocks[i].norm1 = reference.blocks[i].attn = Same()
    return reference


SIZES = {"img_size": 8, "patch_size": 2, "num_classes": 5, "in_chans": 3}
SMALL = {"dim": 24, "depth": 2}
mixer = partial(MlpMixer, **SIZES, num_blocks=2, embed_dim=24)
resmlp = partial(mixer, block_layer=ResBlock, norm_layer=Affine, mlp_ratio=4)
gmlp = partial(mixer, block_layer=SpatialGatingBlock, mlp_layer=GatedMlp, mlp_ratio=6)
vit = partial(VisionTransformer, **SIZES, embed_dim=24, depth=3, num_heads=4)
AUTHORS_RESMLP = _renamed(
    (r"^stem\.", "patch_embed."),
    (r"\.linear_tokens\.", ".attn."),
    (r"\.mlp_channels\.", ".mlp."),
    (r"\.ls([12])$", r".gamma_\1"),
)
DEIT = {"dim": 24, "depth": 3}
SIX = {20: "batchnorm", 12: "batchnorm2", 8: "batchnorm3"}
TWELVE = {24: "batchnorm2048", 16: "batchnorm1024", 12: "batchnorm512", 8: "batchnorm256"}
WIDTHS = {6: [20, 20, 12, 12, 8], 12: [24, 24, 16, 16, 16, 16, 12, 12, 8, 8, 8]}

VIP = {"patch_size": 2, "dim": [16, 24, 24], "depth": [1, 1, 1]}
CYCLE = {"dim": [16, 24], "depth": [1, 2], "img_size": 32}
LARGER = {"img_size": None, "pixels": 32}

LAYOUTS: dict[str, Callable[[], Layout]] = {
    "mixer-timm": lambda: Layout("mixer_nano", mixer(), SMALL),
    "mixer-flax": lambda: Layout("mixer_nano", mixer(), SMALL, partial(_flax, old=False)),
    "mixer-flax-old": lambda: Layout("mixer_nano", mixer(), SMALL, partial(_flax, old=True)),
    "resmlp-timm": lambda: Layout("resmlp_nano", resmlp(), SMALL),
    "resmlp-authors": lambda: Layout("resmlp_nano", resmlp(), SMALL, AUTHORS_RESMLP),
    "gmlp-timm": lambda: Layout("gmlp_nano", gmlp(), SMALL),
    "convmixer-timm": lambda: Layout(
        "convmixer_nano", ConvMixer(24, 2, kernel_size=3, patch_size=2, num_classes=5), SMALL, img_size=None
    ),
    "convmixer-authors": lambda: Layout(
        "convmixer_nano", convmixer(24, 11, nn.ReLU), {"dim": 24, "depth": 11, "act": "relu"}, img_size=None
    ),
    "deit-timm": lambda: Layout("deit_nano", vit(), DEIT, implied={"global_pool": "token", "mlp_layers": []}),
    "deit-mean": lambda: Layout(
        "deit_nano", vit(global_pool="avg", class_token=False, fc_norm=False), DEIT, implied={"global_pool": "avg"}
    ),
    "deit-shrink": lambda: Layout("deit_nano", _without_attention(vit(), (0, 2)), DEIT, implied={"mlp_layers": [0, 2]}),
    "bmlp-authors": lambda: Layout(
        "bmlp_nano", BottleneckMlp(192, 16, 2, 3), {"dim": 16, "expansion": 3}, implied={"num_classes": 5}
    ),
    "mlp-authors": lambda: Layout("mlp_nano", StandardMlp(192, 16, 4), {"dim": 16, "depth": 4}),
    "mlp-two": lambda: Layout("mlp_two", StackMlp(64, 12, 5), {"dim": 12}, in_chans=1),
    "mlp-three": lambda: Layout("mlp_three", StackMlp(64, 12, 12, 5), {"dim": 12}, in_chans=1),
    "mlp-six": lambda: Layout("mlp_six", SharedNormMlp(192, WIDTHS[6], SIX, (2, 4)), {"dim": WIDTHS[6]}),
    "mlp-twelve": lambda: Layout("mlp_twelve", SharedNormMlp(192, WIDTHS[12], TWELVE, ()), {"dim": WIDTHS[12]}),
    "vip-authors": lambda: Layout("vip_nano", vip(), VIP),
    "cyclemlp-authors": lambda: Layout(
        "cyclemlp_b1", cyclemlp(3), CYCLE, implied={"steps": 3}, img_size=None, pixels=32
    ),
    "cyclemlp-seven-steps": lambda: Layout(
        "cyclemlp_b1", cyclemlp(7), CYCLE, implied={"steps": 7}, img_size=None, pixels=32
    ),
    "gfnet-authors": lambda: Layout("gfnet_nano", GfNet(24, 2, 4), SMALL, implied={"pos_embed": True}),
}


def _images(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def _logits(name: str, file: dict[str, Any], x: Tensor, **given: Any) -> Tensor:
    """Of our model, made as the file implies and loaded strictly."""
    checkpoint = archs.convert_checkpoint(name, file, **given)
    model = archs.create(name, **{**given, **checkpoint.implied}).double().eval()
    model.load_state_dict(checkpoint.state_dict, strict=True)
    with torch.no_grad():
        return model(x)


def _make(layout: str) -> tuple[Layout, dict[str, Any]]:
    made = LAYOUTS[layout]()
    kept = {key: value.clone() for key, value in made.reference.state_dict().items() if key.endswith(".offset")}
    randomise(made.reference).load_state_dict(kept, strict=False)
    made.reference.double().eval()
    return made, made.rewrite(made.reference.state_dict())


@pytest.mark.proves("public checkpoints load and compute the same")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_computes_the_same(layout):
    made, file = _make(layout)
    x = _images(3, made.in_chans, made.pixels, made.pixels)
    with torch.no_grad():
        expected = made.reference(x)
    assert expected.std() > 1e-3
    found = _logits(made.name, file, x, **made.given)
    assert ((found - expected).norm() / expected.norm()).item() < 1e-12


@pytest.mark.proves("public checkpoints load and compute the same")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_the_file_implies_is_said(layout):
    made, file = _make(layout)
    implied = archs.convert_checkpoint(made.name, file, **made.given).implied
    expected = {"num_classes": 5, "in_chans": made.in_chans, **made.implied}
    expected |= {"img_size": made.img_size} if made.img_size else {}
    assert {key: implied.get(key) for key in expected} == expected


@pytest.mark.proves("public checkpoints load and compute the same")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_key_too_many_or_too_few_is_named(layout):
    made, file = _make(layout)
    with pytest.raises(ValueError, match=rf"{made.name}: .* 1 left over \(head_dist\.weight\)"):
        archs.convert_checkpoint(made.name, {**file, "head_dist.weight": torch.zeros(3)}, **made.given)
    bias = next(key for key, value in file.items() if value.shape == (5,))
    with pytest.raises(ValueError, match=r"1 missing \(head\.bias\)"):
        archs.convert_checkpoint(made.name, {key: file[key] for key in file if key != bias}, **made.given)


# --- wrappings


def _mixer() -> tuple[State, Tensor, Tensor]:
    made, file = _make("mixer-timm")
    x = _images(2, 3, 8, 8)
    with torch.no_grad():
        return file, x, made.reference(x)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"model": state, "epoch": 3},
        lambda state: {"state_dict": state, "args": None, "metric": 1.0},
        lambda state: {"state_dict_ema": state},
        lambda state: {"model": {"state_dict": state}},
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {"model": {f"module._orig_mod.{key}": value for key, value in state.items()}},
        lambda state: {f"opt/target/{key}": value for key, value in _flax(state, old=False).items()},
    ],
)
def test_wrappings_are_taken_off(wrap):
    file, x, expected = _mixer()
    assert torch.allclose(_logits("mixer_nano", wrap(file), x, **SMALL), expected, rtol=1e-12)


def test_trained_weights_come_before_their_average():
    file, x, expected = _mixer()
    average = {key: value * 0 for key, value in file.items()}
    found = _logits("mixer_nano", {"model_ema": average, "model": file}, x, **SMALL)
    assert torch.allclose(found, expected, rtol=1e-12)


def test_a_file_without_weights_says_where_they_were_looked_for():
    with pytest.raises(ValueError, match="no weights found: 'epoch' is a int; looked under state_dict, model"):
        archs.convert_checkpoint("mixer_nano", {"epoch": 3})


# --- our own


@pytest.mark.proves("implied and resize: own weights at other sizes and channels")
@pytest.mark.parametrize("name", [f"{family}_nano" for family in archs.families()] + ["mlp_two", "mlp_six"])
def test_our_own_layout_passes_through(name):
    model = randomise(archs.create(name))
    checkpoint = archs.convert_checkpoint(name, model.state_dict())
    archs.create(name, **checkpoint.implied).load_state_dict(checkpoint.state_dict, strict=True)
    assert all(torch.equal(value, checkpoint.state_dict[key]) for key, value in model.state_dict().items())
    own = archs.arguments(name)
    assert all(own.get(key, value) == value for key, value in checkpoint.implied.items())


def _exported(**kwargs: Any) -> dict[str, Any]:
    model = randomise(archs.create("convmixer_nano", num_classes=7, **kwargs))
    args = {"model": "convmixer_nano", "model_kwargs": kwargs, "img_size": 8, "lr": 0.1}
    return {"arch": "convmixer_nano", "args": args, "state_dict": model.state_dict(), "epoch": 2}


def test_a_file_of_a_run_says_how_its_model_was_made():
    implied = archs.convert_checkpoint("convmixer_nano", _exported(depth=2, act="relu")).implied
    assert implied == {"depth": 2, "act": "relu", "img_size": 8, "num_classes": 7, "in_chans": 1}
    with pytest.raises(ValueError, match="the weights are those of act=relu, not gelu; set act=relu"):
        archs.convert_checkpoint("convmixer_nano", _exported(act="relu"), act="gelu")
    with pytest.raises(ValueError, match="the file holds the weights of convmixer_nano, not of mixer_nano"):
        archs.convert_checkpoint("mixer_nano", _exported())


# --- what does not fit


def test_what_does_not_fit_is_counted_and_five_are_named():
    file, _, _ = _mixer()
    with pytest.raises(ValueError, match=r"12 left over \((stages\.0\.1\.\S+, ){5}\.\.\.\)"):
        archs.convert_checkpoint("mixer_nano", file, dim=24, depth=1)
    with pytest.raises(ValueError, match=r"12 missing \((stages\.0\.2\.\S+, ){5}\.\.\.\)$"):
        archs.convert_checkpoint("mixer_nano", file, dim=24, depth=3)
    with pytest.raises(
        ValueError, match=r"model: 21 of another shape \(stem\.proj\.weight \(24, 12\) for \(32, 12\), "
    ):
        archs.convert_checkpoint("mixer_nano", file, depth=2)


def test_an_override_that_the_file_belies_is_refused():
    file, _, _ = _mixer()
    with pytest.raises(ValueError, match="the weights are those of num_classes=5, not 7; set num_classes=5"):
        archs.convert_checkpoint("mixer_nano", file, **SMALL, num_classes=7)


def test_attention_left_in_layers_that_have_none_is_left_out_and_said():
    """The authors' loader ignores it in silence."""
    _, file = _make("deit-timm")
    found = archs.convert_checkpoint("deit_nano", file, **DEIT, mlp_layers=[0])
    assert not any(key.startswith("stages.0.0.0.") for key in found.state_dict)
    assert found.notes[0].startswith("left out 6 tensors of the file (stages.0.0.0.branch.proj.bias, ")


def test_offsets_that_are_no_cycle_are_refused():
    made, file = _make("cyclemlp-authors")
    key = "network.2.1.attn.sfc_w.offset"
    for wrong in (file[key].flip(1), _make("cyclemlp-seven-steps")[1][key]):
        with pytest.raises(ValueError, match=r"stages\.2\.1\.0\.branch\.sfc_w\.offset is not the cycle"):
            archs.convert_checkpoint(made.name, {**file, key: wrong}, **made.given)
    with pytest.raises(ValueError, match="the weights are those of steps=3, not 7; set steps=3"):
        archs.convert_checkpoint(made.name, file, **made.given, steps=7)


def test_a_batchnorm_without_a_layer_is_left_over():
    made, file = _make("mlp-six")
    extra = {f"batchnorm4.{leaf}": torch.ones(99) for leaf in ("weight", "bias")}
    with pytest.raises(ValueError, match=r"2 left over \(batchnorm4\.weight, batchnorm4\.bias\)"):
        archs.convert_checkpoint(made.name, {**file, **extra}, **made.given)


def test_models_of_timm_keep_their_names():
    reference = randomise(timm.create_model("resnet10t", num_classes=7, in_chans=1)).double().eval()
    x = _images(2, 1, 32, 32)
    file = {"state_dict": {f"module.{key}": value for key, value in reference.state_dict().items()}}
    assert archs.convert_checkpoint("timm/resnet10t", file).implied == {"num_classes": 7, "in_chans": 1}
    with torch.no_grad():
        assert torch.equal(_logits("timm/resnet10t", file, x), reference(x))


def test_an_unknown_name_names_the_nearest():
    with pytest.raises(ValueError, match="mixer_s16"):
        archs.convert_checkpoint("mixer_s61", {})
