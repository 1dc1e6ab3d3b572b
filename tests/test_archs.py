"""The contract that every name of the zoo keeps. Exceptions are declared in the family, never here."""

import ast
import fnmatch
import importlib
import inspect
import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from timm.layers import DropPath
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import archs
from analysis.probes.receptive_field import randomise
from archs.backbone import Backbone

NAMES = archs.list_archs()
NANO = [f"{family}_nano" for family in archs.families()]


def _family(name: str):
    return importlib.import_module(f"archs.{name.partition('_')[0]}")


def _expected(name: str) -> dict[str, int]:
    return _family(name).EXPECTED[name.partition("_")[2]]


SMALL = [name for name in NAMES if _expected(name)["params"] < 300_000]
DROPPING = [name for name in NANO if "drop_path" in inspect.signature(_family(name).build).parameters]


def _images(name: str, batch: int = 2, img_size: int | None = None, in_chans: int | None = None) -> torch.Tensor:
    own = archs.arguments(name)
    size = img_size or own["img_size"]
    shape = (batch, in_chans or own.get("in_chans", 3), size, size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def _cost(name: str, **given: object) -> tuple[int, int]:
    """Parameters and MACs at batch 1. On the meta device attention is counted, on a CPU it would not be."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model = archs.create(name, **given).eval()
        own = archs.arguments(name, **given)
        model(torch.empty(1, own.get("in_chans", 3), own["img_size"], own["img_size"]))
    return sum(parameter.numel() for parameter in model.parameters()), counter.get_total_flops() // 2


# --- closed forms: (params, macs); n tokens, c channels, k classes, p pixels in a patch


def _frame(own: dict, norm: int) -> tuple[int, int, int, int]:
    """Tokens, channels, and the params and MACs of stem, final norm and head."""
    n, c, k = (own["img_size"] // own["patch_size"]) ** 2, own["dim"], own["num_classes"]
    p = own["in_chans"] * own["patch_size"] ** 2
    return n, c, p * c + c + norm * c + c * k + k, n * p * c + c * k


def _mixer(**own: int) -> tuple[int, int]:
    n, c, params, macs = _frame(own, norm=2)
    s, d = c // 2, 4 * c
    params += own["depth"] * (2 * n * s + s + n + 2 * c * d + d + c + 4 * c)
    return params, macs + own["depth"] * (2 * n * s * c + 2 * n * c * d)


def _resmlp(**own: int) -> tuple[int, int]:
    n, c, params, macs = _frame(own, norm=2)
    params += own["depth"] * (n * n + n + 8 * c * c + 11 * c)
    return params, macs + own["depth"] * (n * n * c + 8 * n * c * c)


def _gmlp(**own: int) -> tuple[int, int]:
    n, c, params, macs = _frame(own, norm=2)
    params += own["depth"] * (9 * c * c + 15 * c + n * n + n)
    return params, macs + own["depth"] * (9 * n * c * c + 3 * n * n * c)


def _convmixer(**own: int) -> tuple[int, int]:
    n, c, params, macs = _frame(own, norm=2)
    area = own["kernel_size"] ** 2
    params += own["depth"] * (c * area + c * c + 6 * c)
    return params, macs + own["depth"] * n * (c * area + c * c)


def _deit(**own: int) -> tuple[int, int]:
    n, c, params, macs = _frame(own, norm=2)
    removed, t = len(own.get("mlp_layers", ())), n + 1
    params += own["depth"] * (12 * c * c + 13 * c) - removed * (4 * c * c + 6 * c) + (n + 2) * c
    macs += own["depth"] * 8 * t * c * c + (own["depth"] - removed) * (4 * t * c * c + 2 * t * t * c)
    return params, macs


def _trunk(own: dict) -> tuple[int, int]:
    w, e, k = own["dim"], own.get("expansion", 4), own["num_classes"]
    params = own["depth"] * (2 * e * w * w + (e + 1) * w + 2 * w) + w * k + k
    return int(params), int(own["depth"] * 2 * e * w * w + w * k)


def _bmlp(**own: int) -> tuple[int, int]:
    params, macs = _trunk(own)
    stem = own["in_chans"] * own["img_size"] ** 2 * own["dim"]
    return params + stem + own["dim"], macs + stem


def _patchmlp(**own: int) -> tuple[int, int]:
    params, macs = _trunk(own)
    n, p = (own["img_size"] // own["patch_size"]) ** 2, own["in_chans"] * own["patch_size"] ** 2
    each = own["dim"] // n
    return params + (p + 1) * each * (1 if own.get("shared", True) else n), macs + n * p * each


def _mlp(**own: int) -> tuple[int, int]:
    widths = own["dim"] if isinstance(own["dim"], list) else [own["dim"]] * own["depth"]
    sizes = [own["in_chans"] * own["img_size"] ** 2, *widths, own["num_classes"]]
    macs = sum(a * b for a, b in pairwise(sizes))
    norms = {"norm_gelu_linear": widths[:-1], "linear_relu": [], "linear_relu_norm": set(widths)}
    return macs + sum(sizes[1:]) + 2 * sum(norms[own.get("layer", "norm_gelu_linear")]), macs


CLOSED_FORMS = {
    "mixer": _mixer,
    "resmlp": _resmlp,
    "gmlp": _gmlp,
    "convmixer": _convmixer,
    "deit": _deit,
    "bmlp": _bmlp,
    "patchmlp": _patchmlp,
    "mlp": _mlp,
}


# --- tables and sizes


@pytest.mark.parametrize("family", archs.families())
def test_tables_are_complete_literals(family):
    tree = ast.parse(Path(_family(family).__file__).read_text())
    tables = {node.targets[0].id: node.value for node in tree.body if isinstance(node, ast.Assign)}
    assert ast.literal_eval(tables["EXPECTED"]).keys() == ast.literal_eval(tables["VARIANTS"]).keys()
    assert {"nano", "1m", "5m"} <= ast.literal_eval(tables["VARIANTS"]).keys()
    assert ast.literal_eval(tables["SOURCE"]) and _family(family).__doc__


@pytest.mark.parametrize("name", NAMES)
def test_params_and_macs_are_as_expected(name):
    assert _cost(name) == (_expected(name)["params"], _expected(name)["macs"])


@pytest.mark.parametrize("name", [name for name in NAMES if name.partition("_")[0] in CLOSED_FORMS])
def test_closed_form_agrees(name):
    """Counted by hand from the papers' formulas, without any module."""
    own = {"in_chans": 3, **archs.arguments(name)}
    assert CLOSED_FORMS[name.partition("_")[0]](**own) == (_expected(name)["params"], _expected(name)["macs"])


@pytest.mark.parametrize(
    ("name", "given", "params"),
    [
        ("bmlp_b6_w512", {"num_classes": 10}, 18_901_514),
        ("bmlp_b12_w1024", {"num_classes": 1000}, 114_358_248),
        ("bmlp_b12_w512", {"num_classes": 10, "img_size": 32}, 26_787_338),
        ("resmlp_b24_8", {"patch_size": 16}, 115_736_776),
        ("mixer_b16", {"num_classes": 21843}, 75_908_739),
        ("deit_ti16", {"mlp_layers": (0, 2, 4, 6)}, 5_122_984),
        ("deit_s16", {"mlp_layers": (0, 2, 4, 6)}, 19_682_152),
        ("deit_b16", {"mlp_layers": (0, 1, 3, 4, 6, 9)}, 72_384_232),
    ],
)
def test_published_sizes_with_other_arguments(name, given, params):
    assert _cost(name, **given)[0] == params


@pytest.mark.parametrize(("size", "low", "high"), [("nano", 25e3, 41e3), ("1m", 0.8e6, 1.2e6), ("5m", 4e6, 6e6)])
def test_rungs_of_one_size_are_comparable(size, low, high):
    for family in archs.families():
        assert low <= _expected(f"{family}_{size}")["params"] <= high, family


# --- the contract


@pytest.mark.parametrize("name", SMALL)
def test_logits_and_features_have_their_shapes(name):
    model = archs.create(name).eval()
    own = archs.arguments(name)
    assert model(_images(name)).shape == (2, own["num_classes"])
    assert isinstance(model, Backbone)
    features = model.features(_images(name))
    patch = own.get("patch_size", own["img_size"])
    on_grid = (own["img_size"] // patch, own["img_size"] // patch)
    assert tuple(features.shape[:3]) in ((2, *on_grid), (2, 1, 1))
    assert features.shape[3] == model.head.in_features


@pytest.mark.parametrize("name", NANO)
@pytest.mark.parametrize("in_chans", [1, 3])
def test_other_channels_classes_and_size(name, in_chans):
    size = archs.arguments(name)["img_size"] // 2
    model = archs.create(name, in_chans=in_chans, num_classes=7, img_size=size).eval()
    assert model(_images(name, img_size=size, in_chans=in_chans)).shape == (2, 7)


@pytest.mark.parametrize("name", NANO)
def test_images_need_not_be_square(name):
    size = archs.arguments(name)["img_size"]
    model = archs.create(name, img_size=(size, size // 2)).eval()
    assert model(torch.randn(2, 1, size, size // 2)).shape == (2, 10)


@pytest.mark.parametrize("name", SMALL)
def test_gradient_reaches_every_parameter_but_the_inert(name):
    model = randomise(archs.create(name)).double().eval()
    logits = model(_images(name).double())
    logits.square().sum().backward()
    norms = {key: parameter.grad.norm().item() for key, parameter in model.named_parameters()}
    inert = getattr(_family(name), "INERT", ())
    largest = max(norms.values())
    for key, norm in norms.items():
        if any(fnmatch.fnmatch(key, pattern) for pattern in inert):
            assert norm < 1e-12 * largest, f"{key} is declared inert, yet its gradient is {norm / largest:.0e}"
        else:
            assert norm > 1e-9 * largest, f"{key} gets no gradient"
    for pattern in inert:
        assert fnmatch.filter(norms, pattern), f"INERT names nothing: {pattern}"


@pytest.mark.parametrize("name", NANO)
def test_unknown_argument_names_the_nearest(name):
    with pytest.raises(ValueError, match="no argument 'depht'; did you mean 'depth'"):
        archs.create(name, depht=3)


def test_unknown_name_names_the_nearest():
    with pytest.raises(ValueError, match=re.escape("mixer_s16")):
        archs.create("mixer_s61")


@pytest.mark.parametrize("name", [name for name in NANO if "patch_size" in archs.arguments(name)])
def test_image_that_patches_do_not_tile_names_the_nearest(name):
    with pytest.raises(ValueError, match="img_size 9 is not a multiple of patch_size 2; nearest: 8, 10"):
        archs.create(name, img_size=9)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("deit_nano", {"num_heads": 3}, "dim 32 is not a multiple of num_heads 3"),
        ("deit_nano", {"mlp_layers": [2]}, "blocks 0 to 1"),
        ("deit_nano", {"global_pool": "max"}, "known: token, avg"),
        ("convmixer_nano", {"act": "silu"}, "known: gelu, relu"),
        ("patchmlp_nano", {"dim": 50}, "nearest: 48, 64"),
        ("mlp_nano", {"layer": "relu"}, "known: norm_gelu_linear, linear_relu, linear_relu_norm"),
        ("mlp_nano", {"dim": [8, 8]}, "dim has 2 widths, depth is 3"),
        ("mlp_six", {"skips": [2]}, "layer 2 has no input as wide as its output"),
    ],
)
def test_wrong_value_is_a_value_error(name, given, message):
    with pytest.raises(ValueError, match=message):
        archs.create(name, **given)


@pytest.mark.parametrize("name", SMALL)
def test_bfloat16_autocast_runs_and_is_finite(name):
    model = archs.create(name)
    with torch.autocast("cpu", torch.bfloat16):
        loss = nn.functional.cross_entropy(model(_images(name)), torch.zeros(2, dtype=torch.long))
    loss.backward()
    assert loss.isfinite() and all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("name", SMALL)
def test_evaluation_is_deterministic(name):
    given = {"drop_path": 0.5} if name in DROPPING else {}
    model, x = randomise(archs.create(name, **given)).eval(), _images(name)
    assert torch.equal(model(x), model(x))
    assert torch.allclose(model(x)[:1], model(x[:1]), rtol=1e-4, atol=1e-5), "images of a batch see each other"


@pytest.mark.parametrize("name", DROPPING)
def test_drop_path_takes_effect_in_training_only(name):
    x = _images(name, batch=16)
    with_drop, without = randomise(archs.create(name, drop_path=0.5)), randomise(archs.create(name))
    assert not torch.equal(with_drop.train()(x), with_drop.train()(x))
    assert torch.equal(without.train()(x), without.train()(x))
    with_drop.load_state_dict(without.state_dict())
    assert torch.equal(with_drop.eval()(x), without.eval()(x))


@pytest.mark.parametrize("name", DROPPING)
def test_drop_path_is_a_ramp_or_constant_as_in_the_source(name):
    model = archs.create(name, drop_path=0.3, depth=3)
    rates = [{m.drop_prob for m in block.modules() if isinstance(m, DropPath)} for block in model.blocks()]
    constant = name.partition("_")[0] in ("resmlp", "gmlp")
    assert rates == ([{0.3}, {0.3}, {0.3}] if constant else [set(), {0.15}, {0.3}])


def test_convmixer_keeps_one_memory_layout():
    """BHWC is channels_last seen from BCHW, so convolutions between permutes copy nothing."""
    model = archs.create("convmixer_nano").eval()
    seen = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(
                lambda _, given, out: seen.extend(
                    tensor.is_contiguous(memory_format=torch.channels_last) for tensor in (given[0], out)
                )
            )
    features = model.features(_images("convmixer_nano"))
    assert len(seen) == 12 and all(seen) and features.is_contiguous()


@pytest.mark.parametrize(("name", "modules"), [("mlp_six", 3), ("mlp_twelve", 4)])
def test_rank_pruning_layers_of_one_width_share_a_batchnorm(name, modules):
    with torch.device("meta"):
        model = archs.create(name)
    uses = sum(isinstance(m, nn.BatchNorm2d) for _, m in model.named_modules(remove_duplicate=False))
    assert (sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()), uses) == (
        modules,
        archs.arguments(name)["depth"],
    )


def test_deit_spares_its_embeddings_from_weight_decay():
    model = archs.create("deit_nano")
    assert model.no_weight_decay() <= dict(model.named_parameters()).keys()


# --- timm


def test_timm_models_are_rungs_too():
    model = archs.create("timm/resnet10t", img_size=32, num_classes=7, in_chans=1).eval()
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 7)
    with pytest.raises(ValueError, match="close: timm/resnet10t"):
        archs.create("timm/resnet10tt")
    with pytest.raises(ValueError, match="nonsense"):
        archs.create("timm/resnet10t", img_size=32, nonsense=1)


# --- initialisation


def _linears(model: nn.Module) -> dict[str, nn.Linear]:
    return {key: module for key, module in model.named_modules() if isinstance(module, nn.Linear)}


def _is_uniform_default(layer: nn.Module) -> bool:
    """PyTorch's default: weight and bias uniform within 1 / sqrt(fan in)."""
    bound = layer.weight[0].numel() ** -0.5
    near = layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    return near and layer.weight.abs().max() <= bound and 0 < layer.bias.abs().max() <= bound


@pytest.mark.parametrize("family", ["mlp", "bmlp", "patchmlp", "convmixer"])
def test_pytorch_defaults_are_kept(family):
    torch.manual_seed(0)
    for module in archs.create(f"{family}_1m").modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            assert _is_uniform_default(module)


def test_unshared_stem_starts_like_separate_linears():
    torch.manual_seed(0)
    weight = archs.create("patchmlp_1m_unshared").stem[0].weight
    assert weight.std().item() == pytest.approx((3 * 48) ** -0.5, rel=0.05) and weight.abs().max() <= 48**-0.5


def test_mixer_starts_with_lecun_normal_kernels_and_zero_head():
    torch.manual_seed(0)
    model = archs.create("mixer_1m")
    for key, layer in _linears(model).items():
        assert not layer.bias.any()
        if key == "head":
            assert not layer.weight.any()
        else:
            assert layer.weight.std().item() == pytest.approx(layer.in_features**-0.5, rel=0.05)
            assert layer.weight.abs().max() < 2.3 * layer.in_features**-0.5, "truncated at two deviations"


@pytest.mark.parametrize(("variant", "start"), [("s12", 0.1), ("s24", 1e-5), ("s36", 1e-6), ("b24_8", 1e-6)])
def test_resmlp_layer_scale_starts_as_published(variant, start):
    assert archs.variants("resmlp")[variant]["init_values"] == start


def test_resmlp_starts_as_the_authors_do():
    torch.manual_seed(0)
    model = archs.create("resmlp_1m", init_values=0.25)
    linears = _linears(model)
    assert _is_uniform_default(linears.pop("stem.proj"))
    for key, layer in linears.items():
        assert not layer.bias.any()
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05), key
    for key, parameter in model.named_parameters():
        constant = {"alpha": 1.0, "beta": 0.0, "gamma": 0.25}.get(key.rpartition(".")[2])
        assert constant is None or (parameter == constant).all()


def test_gmlp_gates_start_open():
    torch.manual_seed(0)
    model = archs.create("gmlp_1m")
    for key, layer in _linears(model).items():
        if key == "head":
            assert not layer.weight.any() and not layer.bias.any()
        elif key.endswith("spatial.mix"):
            assert layer.weight.std().item() == pytest.approx(1e-6, rel=0.05) and (layer.bias == 1).all()
        elif key == "stem.proj":
            assert layer.weight.std().item() == pytest.approx(layer.in_features**-0.5, rel=0.05)
        else:
            xavier = (2 / (layer.in_features + layer.out_features)) ** 0.5
            assert layer.weight.std().item() == pytest.approx(xavier, rel=0.05)
            assert 0 < layer.bias.std() < 2e-6
    eps = {key: module.eps for key, module in model.named_modules() if isinstance(module, nn.LayerNorm)}
    assert all(value == (1e-5 if key.endswith("branch.2.norm") else 1e-6) for key, value in eps.items())
    assert sorted(set(eps.values())) == [1e-6, 1e-5]


def test_deit_starts_as_the_authors_do():
    torch.manual_seed(0)
    model = archs.create("deit_1m")
    linears = _linears(model)
    assert _is_uniform_default(linears.pop("stem.proj"))
    for layer in linears.values():
        assert not layer.bias.any()
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.pos_embed.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.cls_token.std().item() == pytest.approx(0.02, rel=0.3)
