"""The contract that every name of the zoo keeps. Exceptions are declared in the family, never here."""

import ast
import fnmatch
import importlib
import inspect
import re
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers import DropPath
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode

import archs
from analysis.probes.receptive_field import randomise
from archs.backbone import Backbone
from archs.layers import Residual

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
    own = archs.arguments(name, **given)
    with torch.device("meta"):
        model = archs.create(name, **given).eval()
        x = torch.empty(1, own.get("in_chans", 3), own["img_size"], own["img_size"])
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x)
    return sum(parameter.numel() for parameter in model.parameters()), counter.get_total_flops() // 2


# --- closed forms: (params, macs); n tokens, c channels, k classes, p pixels in a patch


def _frame(own: dict, norm: int = 2) -> tuple[int, int, int, int]:
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


def _metaformer(mixer: Callable[[int, int], tuple[int, int]], **own: int) -> tuple[int, int]:
    """`mixer` gives the params and MACs of one token mixer from n and c."""
    n, c, params, macs = _frame(own)
    own_params, own_macs = mixer(n, c)
    params += own["depth"] * (own_params + 8 * c * c + 9 * c)
    return params, macs + own["depth"] * (own_macs + 8 * n * c * c)


def _gfnet(**own: int) -> tuple[int, int]:
    side = own["img_size"] // own["patch_size"]
    params, macs = _metaformer(lambda n, c: (2 * side * (side // 2 + 1) * c, 0), **own)
    return params + own.get("pos_embed", False) * side * side * own["dim"], macs


def _vip(**own: Any) -> tuple[int, int]:
    widths, k = own["dim"], own["num_classes"]
    n, p = (own["img_size"] // own["patch_size"]) ** 2, own["in_chans"] * own["patch_size"] ** 2
    params, macs = p * widths[0] + widths[0] + 2 * widths[-1] + widths[-1] * k + k, n * p * widths[0] + widths[-1] * k
    for i, (c, depth) in enumerate(zip(widths, own["depth"], strict=True)):
        if i and c != widths[i - 1]:
            n //= 4
            params, macs = params + 4 * widths[i - 1] * c + c, macs + n * 4 * widths[i - 1] * c
        params += depth * (5 * c * c + 17 * c // 4 + 6 * c * c + 4 * c + 4 * c)
        macs += depth * (n * 10 * c * c + c * c)
    return params, macs


def _cyclemlp(**own: Any) -> tuple[int, int]:
    widths, k, skeleton, patch = (
        own["dim"],
        own["num_classes"],
        own.get("skeleton", "overlap"),
        own.get("patch_size", 4),
    )
    ratios = own.get("mlp_ratio", 4)
    n, c, b = (own["img_size"] // patch) ** 2, widths[0], widths[-1]
    p = own["in_chans"] * ((2 * patch - 1) if skeleton == "overlap" else patch) ** 2
    params, macs = p * c + c + 2 * c * (skeleton == "swin") + 2 * b + b * k + k, n * p * c + b * k
    for i, (c, depth) in enumerate(zip(widths, own["depth"], strict=True)):
        if i:
            n, a = n // 4, widths[i - 1]
            params += 8 * a + 4 * a * c if skeleton == "swin" else 9 * a * c + c
            macs += n * (4 if skeleton == "swin" else 9) * a * c
        r = ratios if isinstance(ratios, int) else ratios[i]
        mixer = 4 * c * c + 4 * c if skeleton == "swin" else 5 * c * c + 25 * c // 4
        params += depth * (mixer + 2 * r * c * c + (r + 1) * c + 4 * c)
        macs += depth * (n * (4 + 2 * r) * c * c + (0 if skeleton == "swin" else c * c))
    return params, macs


CLOSED_FORMS = {
    "mixer": _mixer,
    "resmlp": _resmlp,
    "gmlp": _gmlp,
    "convmixer": _convmixer,
    "deit": _deit,
    "bmlp": _bmlp,
    "patchmlp": _patchmlp,
    "mlp": _mlp,
    "vip": _vip,
    "cyclemlp": _cyclemlp,
    "gfnet": _gfnet,
    "identityformer": partial(_metaformer, lambda n, c: (0, 0)),
    "randformer": partial(_metaformer, lambda n, c: (0, n * n * c)),
    "poolformer": partial(_metaformer, lambda n, c: (0, 0)),
    "s2mlp": partial(_metaformer, lambda n, c: (2 * c * c + 2 * c, 2 * n * c * c)),
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


@pytest.mark.parametrize("name", NAMES)
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


@pytest.mark.parametrize(
    ("name", "millions", "giga"),
    [
        ("vip_s7", 25, 6.9),
        ("vip_m7", 55, 16.3),
        ("vip_l7", 88, 24.3),
        ("cyclemlp_b1", 15, 2.1),
        ("cyclemlp_b2", 27, 3.9),
        ("cyclemlp_b3", 38, 6.8),
        ("cyclemlp_b4", 52, 10.0),
        ("cyclemlp_b5", 76, 12.2),
        ("cyclemlp_t", 28, 4.4),
        ("cyclemlp_s", 50, 8.5),
        ("cyclemlp_b", 88, 15.1),
        ("gfnet_ti", 8, 1.3),
        ("gfnet_xs", 16, 2.8),
        ("gfnet_s", 25, 4.5),
        ("gfnet_b", 43, 7.9),
    ],
)
def test_published_variants_have_their_published_size(name, millions, giga):
    """The papers' tables; where they count normalisation too, b3 to b5, l7 and cyclemlp_b, without it."""
    assert (round(_expected(name)["params"] / 1e6), round(_expected(name)["macs"] / 1e9, 1)) == (millions, giga)


def test_vip_halves_its_grid_once_where_the_paper_says():
    """S/7 and L/7 after the first stage, M/7 after the second, S/14 nowhere; stages and transitions in one list."""
    with torch.device("meta"):
        kinds = {name: archs.create(f"vip_{name}").stages for name in ("s14", "s7", "m7", "l7")}
    halved = {
        name: [i for i, run in enumerate(runs) if not isinstance(run, nn.Sequential)] for name, runs in kinds.items()
    }
    assert halved == {"s14": [], "s7": [1], "m7": [2], "l7": [1]}


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
    side = own["img_size"] // own.get("patch_size", own["img_size"])
    # A pyramid halves its grid; a trunk on concatenated patches has one token.
    assert features.shape[1] == features.shape[2] and features.shape[1] in {side, side // 2, 1}
    assert len(features) == 2 and features.shape[3] == model.head.in_features


@pytest.mark.parametrize("name", NANO)
@pytest.mark.parametrize("in_chans", [1, 3])
def test_other_channels_classes_and_size(name, in_chans):
    size = archs.arguments(name)["img_size"] // 2
    model = archs.create(name, in_chans=in_chans, num_classes=7, img_size=size).eval()
    assert model(_images(name, img_size=size, in_chans=in_chans)).shape == (2, 7)


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith(("_1m", "_5m"))])
def test_rungs_run_at_64_px_too(name):
    """With the family's own AT_64_PX where its arguments for 32 px do not fit; on the meta device, but for two."""
    given = {"img_size": 64, **getattr(_family(name), "AT_64_PX", {})}
    with torch.device("meta"):
        logits = archs.create(name, **given)(torch.empty(2, 3, 64, 64))
    assert logits.shape == (2, 10)
    if name.endswith("_1m"):
        assert archs.create(name, **given).eval()(_images(name, batch=1, img_size=64)).isfinite().all()


@pytest.mark.parametrize("name", [name for name in NANO if not hasattr(_family(name), "SQUARE_IMAGES")])
def test_images_need_not_be_square(name):
    size = archs.arguments(name)["img_size"]
    model = archs.create(name, img_size=(size, size // 2)).eval()
    assert model(torch.randn(2, 1, size, size // 2)).shape == (2, 10)


@pytest.mark.parametrize("name", [name for name in NANO if hasattr(_family(name), "SQUARE_IMAGES")])
def test_family_of_square_images_says_so(name):
    with pytest.raises(ValueError, match="must be square, it is 4 x 2 tokens; give a square img_size"):
        archs.create(name, img_size=(8, 4))


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
        ("vip_nano", {"dim": [30]}, "dim 30 is not a multiple of the grid's side, 4 tokens; nearest: 28, 32"),
        ("vip_nano", {"dim": [12, 24], "depth": [1, 1], "img_size": 6}, "grid of 3 x 3 tokens cannot be halved"),
        ("vip_nano", {"dim": [32, 64]}, "dim has 2 stages, depth has 1"),
        ("cyclemlp_nano", {"skeleton": "conv"}, "known: overlap, patch, swin"),
        ("cyclemlp_nano", {"steps": 4}, "must be odd"),
        ("cyclemlp_nano", {"dim": [16, 30]}, "not a multiple of 4"),
        ("cyclemlp_nano", {"mlp_ratio": [4.0]}, "dim has 2 stages, depth 2, mlp_ratio 1"),
        ("cyclemlp_nano", {"skeleton": "swin", "img_size": 10}, "grid of 5 x 5 tokens cannot be halved 1 times"),
        ("poolformer_nano", {"pool_size": 2}, "must be odd"),
        ("s2mlp_nano", {"dim": 30}, "not a multiple of 4"),
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
def test_batches_of_any_size_and_layout_give_the_same_logits(name):
    model, x = randomise(archs.create(name)).eval(), _images(name, batch=5)
    logits = model(x)
    close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-5)
    for part in (slice(0, 1), slice(1, 4)):
        close(model(x[part]), logits[part])
    close(model(x.contiguous(memory_format=torch.channels_last)), logits)
    wider = torch.stack([x, x + 1], -1)
    close(model(wider[..., 0]), logits)


@pytest.mark.parametrize("name", NANO)
def test_compiles_into_one_graph(name):
    """The graph of forward and backward, run by PyTorch's own operators; `inductor` is tested once, below."""
    torch._dynamo.reset()
    model, x = randomise(archs.create(name)).double(), _images(name).double()
    eager = _gradients(model, x)
    compiled = _gradients(torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=False), x, model)
    for key, gradient in eager.items():
        torch.testing.assert_close(compiled[key], gradient, rtol=1e-9, atol=1e-9, msg=key)


def test_inductor_compiles_a_model():
    """One model and evaluation only, because every kernel costs a C++ compiler's seconds."""
    model, x = randomise(archs.create("bmlp_nano", depth=1)).eval(), _images("bmlp_nano")
    with torch.no_grad():
        compiled = torch.compile(model, backend="inductor", fullgraph=True, dynamic=False)(x)
        torch.testing.assert_close(compiled, model(x), rtol=1e-4, atol=1e-5)


def _gradients(call: Callable, x: torch.Tensor, model: nn.Module | None = None) -> dict[str, torch.Tensor]:
    """The gradient of each parameter, from fresh."""
    model = call if model is None else model
    model.zero_grad()
    call(x).square().sum().backward()
    return {key: parameter.grad.clone() for key, parameter in model.named_parameters()}


@pytest.mark.parametrize("name", NANO)
def test_exports_as_one_program(name):
    model, x = randomise(archs.create(name)).eval(), _images(name)
    program = torch.export.export(model, (x,))
    torch.testing.assert_close(program.module()(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def one_process():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("name", NANO)
def test_gradients_under_ddp_are_those_of_one_process(name, one_process):
    """Without `find_unused_parameters`: every parameter takes part in every step."""
    model, x = randomise(archs.create(name)).double(), _images(name).double()
    alone = _gradients(model, x)
    replica = DistributedDataParallel(model)
    for _ in range(2):  # the second step fails if the first left a parameter unused
        together = _gradients(replica, x, model)
    # BatchNorm's running statistics move between the steps, its gradients in training do not.
    for key, gradient in alone.items():
        torch.testing.assert_close(together[key], gradient, rtol=1e-9, atol=1e-9, msg=key)


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


@pytest.mark.parametrize("name", NANO)
def test_drop_path_is_the_schedule_that_the_family_declares(name):
    """DROP_PATH is "ramp", linear from 0 over all blocks of all stages, or "constant"; a family without it has none."""
    assert (name in DROPPING) == hasattr(_family(name), "DROP_PATH")
    if name not in DROPPING:
        return
    blocks = archs.create(name, drop_path=0.3).blocks()
    # A transition between two grids has no residual, so nothing to drop.
    blocks = [block for block in blocks if any(isinstance(module, Residual) for module in block.modules())]
    rates = [{m.drop_prob for m in block.modules() if isinstance(m, DropPath)} for block in blocks]
    last = len(rates) - 1
    expected = {"ramp": [0.3 * i / max(last, 1) for i in range(last + 1)], "constant": [0.3] * (last + 1)}
    assert last > 0 and all(len(rate) <= 1 for rate in rates)
    assert [sum(rate) for rate in rates] == pytest.approx(expected[_family(name).DROP_PATH])


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


@pytest.mark.parametrize("family", ["vip", "cyclemlp"])
def test_permutator_and_cyclemlp_start_as_their_authors_do(family):
    """The same rule in both codes: normal linears, zero biases, convolutions as they come."""
    torch.manual_seed(0)
    given = {"dim": [64, 128], "depth": [2, 2]}
    model = archs.create(f"{family}_1m", num_classes=100, **given)
    assert _is_uniform_default(model.stem.proj)
    (transition,) = (module for module in model.modules() if isinstance(module, nn.Conv2d))
    assert _is_uniform_default(transition)
    linears = _linears(model)
    del linears["stem.proj"]
    # Two blocks of nine linears in each of two stages, and the head.
    assert len(linears) == 4 * 8 + 1
    for key, layer in linears.items():
        assert layer.bias is None or not layer.bias.any()
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05), key


@pytest.mark.parametrize("family", ["identityformer", "randformer", "poolformer", "s2mlp"])
def test_metaformers_start_normal_everywhere(family):
    torch.manual_seed(0)
    # The head of ten classes is too small a sample for so narrow a margin.
    for key, layer in _linears(archs.create(f"{family}_1m", num_classes=100)).items():
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05) and not layer.bias.any(), key


def test_randformer_mixes_with_fixed_averages():
    model = archs.create("randformer_nano")
    matrices = [value for key, value in model.named_buffers() if key.endswith("weight")]
    assert len(matrices) == 3 and not torch.equal(matrices[0], matrices[1])
    for matrix in matrices:
        assert torch.allclose(matrix.sum(-1), torch.ones(16)) and not matrix.requires_grad
        # Softmax of numbers in [0, 1): no entry is e times another of its row.
        assert (matrix.amax(-1) / matrix.amin(-1)).max() < 2.7183
    assert not any(key.endswith("branch.weight") for key, _ in model.named_parameters())
    assert sum(key.endswith("branch.weight") for key in model.state_dict()) == 3


def test_gfnet_starts_as_the_authors_do():
    torch.manual_seed(0)
    model = archs.create("gfnet_1m", num_classes=100, pos_embed=True)
    assert _is_uniform_default(model.stem[0].proj)
    linears = _linears(model)
    del linears["stem.0.proj"]
    for key, layer in linears.items():
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05) and not layer.bias.any(), key
    spectra = [value for key, value in model.named_parameters() if key.endswith("complex_weight")]
    assert len(spectra) == 6
    for value in [*spectra, model.stem[1].pos_embed]:
        assert value.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.no_weight_decay() == {"stem.1.pos_embed"}
