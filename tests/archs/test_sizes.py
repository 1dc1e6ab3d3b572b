"""Parameters and MACs of every name: as the family states, as a closed form says, as the papers print."""

import importlib
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import archs
from archs.parts.family import read
from tests.archs.test_archs import NAMES, expected_of


def cost_of(name: str, **given: object) -> tuple[int, int]:
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


def _lattice(**own: int) -> tuple[int, int]:
    n, c, params, macs = _frame(own, norm=2)
    params += own["depth"] * (n * n + 8 * c * c + 9 * c)
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
    class_token = own.get("global_pool", "token") == "token"
    removed, t = len(own.get("mlp_layers", ())), n + class_token
    params += own["depth"] * (12 * c * c + 13 * c) - removed * (4 * c * c + 6 * c)
    params += (class_token + t * own.get("pos_embed", True)) * c
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
    "lattice": _lattice,
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


@pytest.mark.proves("tables of literals, documented, with rungs of comparable size")
@pytest.mark.parametrize("family", archs.families())
def test_tables_are_complete_literals(family):
    """As imported they are what the source says, so nothing changes them on the way."""
    module, tables = importlib.import_module(f"archs.{family}"), read(family).tables
    for key, value in tables.items():
        assert (asdict(module.BIAS) if key == "BIAS" else getattr(module, key)) == value, key
    assert {"nano", "1m", "5m"} <= tables["VARIANTS"].keys() and tables["SOURCE"] and module.__doc__


@pytest.mark.proves("EXPECTED, counted by torch")
@pytest.mark.parametrize("name", NAMES)
def test_params_and_macs_are_as_expected(name):
    assert cost_of(name) == (expected_of(name)["params"], expected_of(name)["macs"])


@pytest.mark.proves("EXPECTED, by a closed form")
@pytest.mark.parametrize("name", [name for name in NAMES if name.partition("_")[0] in CLOSED_FORMS])
def test_closed_form_agrees(name):
    """Counted by hand from the papers' formulas, without any module."""
    own = {"in_chans": 3, **archs.arguments(name)}
    assert CLOSED_FORMS[name.partition("_")[0]](**own) == (expected_of(name)["params"], expected_of(name)["macs"])


@pytest.mark.proves("EXPECTED, as the paper prints it")
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
    assert cost_of(name, **given)[0] == params


@pytest.mark.proves("EXPECTED, as the paper prints it")
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
    assert (round(expected_of(name)["params"] / 1e6), round(expected_of(name)["macs"] / 1e9, 1)) == (millions, giga)


def test_vip_halves_its_grid_once_where_the_paper_says():
    """S/7 and L/7 after the first stage, M/7 after the second, S/14 nowhere; stages and transitions in one list."""
    with torch.device("meta"):
        kinds = {name: archs.create(f"vip_{name}").stages for name in ("s14", "s7", "m7", "l7")}
    halved = {
        name: [i for i, run in enumerate(runs) if not isinstance(run, nn.Sequential)] for name, runs in kinds.items()
    }
    assert halved == {"s14": [], "s7": [1], "m7": [2], "l7": [1]}


@pytest.mark.proves("tables of literals, documented, with rungs of comparable size")
@pytest.mark.parametrize(("size", "low", "high"), [("nano", 25e3, 41e3), ("1m", 0.8e6, 1.2e6), ("5m", 4e6, 6e6)])
@pytest.mark.parametrize("family", archs.families())
def test_rungs_of_one_size_are_comparable(family, size, low, high):
    assert low <= expected_of(f"{family}_{size}")["params"] <= high
