"""What stands in place of mixing that is gone: what it computes, what it costs, how a file from before starts it."""

import importlib

import pytest
import torch
from torch import nn

import archs
from analysis.probes.receptive_field import randomise
from archs.attention.removed import Replaced, Skip
from archs.ingredients import declared
from archs.parts.convert import adapt
from archs.parts.relabeling import Relabeling
from engine.cost.profile import profile
from engine.errors import Refusal
from engine.fields import dilution
from engine.run import make_run

BOUND = ("deit_nano", "mixer_nano", "resmlp_nano", "randformer_nano", "vip_nano")
FREE = ("poolformer_nano", "s2mlp_nano", "convmixer_nano", "cyclemlp_nano_isotropic")
FAMILIES = BOUND + FREE
CONV = "depthwise"


def made(name, **given):
    torch.manual_seed(1)
    return randomise(archs.create(name, **deep(name), **given)).double().eval()


def deep(name):
    """Three layers, whatever the variant has."""
    return {"depth": [3] if isinstance(archs.defaults(name)["depth"], list) else 3}


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_skip_and_double_are_x_and_2x(name):
    """The model without a branch, computed layer by layer from the whole one."""
    whole, x_BCHW = made(name), torch.randn(3, 1, 8, 8, dtype=torch.float64)
    for replacement, factor in (("double", 2), ("skip", 1)):
        z = whole.embed(x_BCHW)
        for i, layer in enumerate(whole.stages[0]):
            z = layer[1](factor * z if i in (0, 2) else layer[0](z))
        expected = whole.head(whole.pool(whole.norm(z)))
        given = {**deep(name), "mlp_layers": [2, 0], "replacement": replacement}
        model = archs.create(name, **given).double().eval()
        state, notes = adapt(name, whole.state_dict(), model, **given)
        model.load_state_dict(state)
        assert torch.equal(model(x_BCHW), expected)
        assert len(notes) == 1 and "of layers [0, 2], where the model has none" in notes[0]


@torch.no_grad()
def test_a_mixer_works_on_the_patches_alone():
    """A 3 x 3 convolution of torch's between the patches; the class token stays what it was."""
    model = made("deit_nano", mlp_layers=[1], replacement=CONV)
    half, z_BNC = model.stages[0][1][0], torch.randn(2, 17, 32, dtype=torch.float64)
    convolution = nn.Conv2d(32, 32, 3, padding=1, groups=32, bias=False).double()
    convolution.weight.copy_(half.mixer.value("weight")[:, None])
    patches = half.norm(z_BNC)[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
    expected = z_BNC.clone()
    expected[:, 1:] += convolution(patches).flatten(2).transpose(1, 2)
    assert half(z_BNC).allclose(expected, atol=1e-12)
    without = half(z_BNC[:, 1:])  # of a model without a class token
    assert without.allclose(expected[:, 1:], atol=1e-12)
    grid = made("mixer_nano", mlp_layers=[1], replacement=CONV).stages[0][1][0]
    grid.load_state_dict(half.state_dict())
    assert grid(z_BNC[:, 1:].unflatten(1, (4, 4))).flatten(1, 2).allclose(without, atol=1e-12)


@pytest.mark.parametrize("name", BOUND)
@pytest.mark.parametrize("replacement", declared.names())
def test_every_mixer_of_the_lattice_can_stand_there_and_learns(name, replacement):
    model = archs.create(name, mlp_layers=[1], replacement=replacement)
    (half,) = (module for module in model.modules() if isinstance(module, Replaced))
    out = model.train()(torch.randn(4, 1, 8, 8))
    out.square().sum().backward()
    assert out.isfinite().all()
    if name == "deit_nano":  # Mixer's and ResMLP's heads and scales hold gradients back at the start
        model.zero_grad()
        x_BNC = torch.randn(2, 17, 32)
        (half(x_BNC) * torch.randn(2, 17, 32)).sum().backward()
        learned = list(half.mixer.parameters())
        assert not learned or any(p.grad is not None and p.grad.any() for p in learned)


def test_a_mixer_starts_as_in_the_lattice():
    torch.manual_seed(5)
    (half,) = (
        m for m in archs.create("deit_nano", mlp_layers=[1], replacement="dense").modules() if hasattr(m, "mixer")
    )
    assert half.mixer.mean_square() == pytest.approx(1 / (2 * 2))
    torch.manual_seed(5)
    again = archs.create("deit_nano", mlp_layers=[1], replacement="dense").stages[0][1][0]
    assert torch.equal(again.mixer.weight, half.mixer.weight)


@pytest.mark.parametrize("name", BOUND)
def test_a_file_from_before_starts_a_mixer_afresh_and_nothing_else(name):
    given = {**deep(name), "mlp_layers": [1], "replacement": CONV}
    whole, model = made(name), archs.create(name, **given)
    state, notes = adapt(name, whole.state_dict(), model, **given)
    assert len(notes) == 2 and "1 tensors start afresh (stages.0.1.0.mixer.weight)" in " ".join(notes)
    fresh, before = model.state_dict(), whole.state_dict()
    for key, value in state.items():
        assert torch.equal(value, (fresh if key == "stages.0.1.0.mixer.weight" else before)[key]), key
    norm = next(key for key in state if key.startswith("stages.0.1.0.norm."))
    assert torch.equal(state[norm], before[norm])  # what the mixing read
    again, notes = adapt(name, state, model, **given)
    assert not notes and all(torch.equal(again[key], state[key]) for key in state)
    del state["stages.0.1.0.mixer.weight"]  # its own file, damaged
    with pytest.raises(ValueError, match="1 missing"):
        adapt(name, state, model, **given)
    with pytest.raises(ValueError, match="missing"):  # nothing fresh is there to begin with
        archs.convert_checkpoint(name, whole.state_dict(), **given)


@pytest.mark.parametrize("name, given, params", [
    ("deit_nano", {}, -(4 * 32**2 + 6 * 32)),
    ("mixer_nano", {}, -(2 * 16 * 16 + 16 + 16 + 2 * 32)),
    ("resmlp_nano", {}, -(16**2 + 16 + 3 * 32)),
    ("deit_nano", {"replacement": CONV}, -(4 * 32**2 + 4 * 32) + 9 * 32),
    ("randformer_nano", {}, -2 * 36),
    ("s2mlp_nano", {}, -(2 * 32**2 + 4 * 32)),
    ("convmixer_nano", {}, -(9 * 96 + 3 * 96)),
])  # fmt: skip
def test_costs_are_those_of_what_is_left(name, given, params):
    """Closed forms: 4C^2 + 6C of attention, a token MLP and its norm, a matrix over tokens with its affine maps, two
    linear maps of channels and a norm, a kernel with bias and BatchNorm."""
    shape = {"img_size": 8, "in_chans": 1, "num_classes": 10}
    whole, less = (profile(name, **shape, **more) for more in ({}, {"mlp_layers": [1], **given}))
    assert less["params"] - whole["params"] == params
    assert less["macs"] < whole["macs"]


@torch.no_grad()
def test_mixing_of_other_families_is_diluted_into_the_same_end():
    for name in FAMILIES[1:]:
        model, x_BCHW = made(name), torch.randn(2, 1, 8, 8, dtype=torch.float64)
        before = model(x_BCHW)
        (half,) = model.dilute([1])
        assert model(x_BCHW).allclose(before, atol=1e-10)
        half.dilute(0)
        given = {**deep(name), "mlp_layers": [1]}
        end = archs.create(name, **given).double().eval()
        end.load_state_dict(adapt(name, model.state_dict(), end, **given)[0])
        assert end(x_BCHW).allclose(model(x_BCHW), atol=1e-10)
        with pytest.raises(ValueError, match="layer 1 has no mixing of tokens to dilute"):
            end.dilute([1])
    run = make_run({"model": "mixer_nano", "dilute_layers": "1", "dilute_epochs": 2, "epochs": 4})
    assert run.rung == "mixer_nano mlp_layers=[1]" and dilution.gone_from(run) == 2


@torch.no_grad()
def test_the_first_layer_may_go():
    for name in BOUND[1:]:
        model = made(name, mlp_layers=[0])
        found = archs.convert_checkpoint(name, model.state_dict(), **deep(name), mlp_layers=[0])
        assert found.implied["img_size"] == 8 and not found.notes


def test_no_claim_of_symmetry_is_kept_that_a_mixer_breaks():
    assert archs.symmetry("deit_nano", mlp_layers=[1], replacement=CONV) == ()
    assert archs.symmetry("deit_nano", mlp_layers=[1], replacement="dense") == ("patches",)
    order = Relabeling.of_patches((1, 8, 8), 2, tokens=torch.randperm(16))
    lines = Relabeling.of_patches((1, 8, 8), 2, tokens=torch.arange(16).unflatten(0, (4, 4)).flip(0).flatten())
    for name in BOUND:
        module = importlib.import_module(f"archs.{name.partition('_')[0]}")
        states = [archs.create(name, mlp_layers=[0], replacement=each).state_dict() for each in ("skip", CONV)]
        asked = order if "patches" in archs.symmetry(name) else lines
        assert [module.relabel(state, asked) is not None for state in states] == [True, False], name


def test_families_of_any_grid_stay_so():
    """Built for another grid and with the same weights, they compute the same; with a mixer they would not."""
    for name in FREE:
        given = {"mlp_layers": [0, 1], "replacement": "skip"}
        model, larger = made(name, **given), archs.create(name, img_size=16, **deep(name), **given).double().eval()
        larger.load_state_dict(model.state_dict())
        x_BCHW = torch.randn(2, 1, 16, 16, dtype=torch.float64)
        with torch.no_grad():
            assert torch.equal(larger(x_BCHW), model(x_BCHW)), name
        for replacement in declared.names():
            with pytest.raises(ValueError, match=f"{replacement} belongs to one grid, and this family to none; known"):
                archs.create(name, **deep(name), mlp_layers=[1], replacement=replacement)


@pytest.mark.parametrize("given, words", [
    ({"mlp_layers": [1], "replacement": "depthwize"}, "replacement 'depthwize' is unknown; close: depthwise"),
    ({"replacement": "skip"}, "give mlp_layers, too"),
    ({"mlp_layers": [0], "replacement": CONV, "merge_r": 2}, "leave out merge_r"),
    ({"mlp_layers": [7]}, "mlp_layers \\[7\\] are not among the blocks 0 to 1"),
])  # fmt: skip
def test_what_makes_no_sense_is_refused(given, words):
    with pytest.raises(ValueError, match=words):
        archs.create("deit_nano", **given)


def test_a_pyramid_keeps_its_mixing():
    """Layers are numbered, and mixers made, where all are on one grid."""
    assert archs.create("cyclemlp_nano").stages[0][0][0]
    with pytest.raises(ValueError, match="cyclemlp_nano: layers lose their mixing where all are on one grid"):
        archs.create("cyclemlp_nano", mlp_layers=[0])
    with pytest.raises(ValueError, match="this model has several"):
        archs.create("cyclemlp_nano").dilute([0])
    with pytest.raises(Refusal, match="layer 3 is not among the layers 0 to 2 of vip_nano"):
        make_run({"model": "vip_nano", "dilute_layers": "3", "dilute_epochs": 1, "epochs": 3})
    with pytest.raises(Refusal, match="gmlp_nano has no attention or other mixing of tokens in a residual of its own"):
        make_run({"model": "gmlp_nano", "dilute_layers": "1", "dilute_epochs": 1, "epochs": 3})


def test_a_dilution_leaves_no_mixer():
    fields = {"model": "deit_nano", "dilute_layers": "1", "dilute_epochs": 1, "epochs": 3}
    with pytest.raises(Refusal, match="leave out replacement skip"):
        make_run({**fields, "model_kwargs": {"mlp_layers": [0], "replacement": "skip"}})


def test_decay_spares_the_tables_of_mixers_and_positions():
    model = archs.create("deit_nano", mlp_layers=[1], replacement="attention")
    assert model.no_weight_decay() == {"cls_token", "pos_embed", "stages.0.1.0.mixer.table"}
    assert isinstance(archs.create("deit_nano", mlp_layers=[1], replacement="skip").stages[0][1][0], Skip)
