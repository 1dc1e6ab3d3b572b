"""A budget of MACs or parameters is met by every family, in multiples of 8 where they are near, or refused."""

import importlib
import re

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import archs
from archs.parts.budget import search, solve

BUDGETS = [("params", 1e6), ("params", 5e6), ("macs", 20e6), ("macs", 100e6)]


def _cost(name: str, kind: str, img_size: int = 32, in_chans: int = 3, **given: object) -> int:
    with torch.device("meta"):
        model = archs.create(name, img_size=img_size, in_chans=in_chans, **given).eval()
        x = torch.empty(1, in_chans, img_size, img_size)
    if kind == "params":
        return sum(parameter.numel() for parameter in model.parameters())
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x)
    return counter.get_total_flops() // 2


def _ratio(family: str) -> str | None:
    return getattr(importlib.import_module(f"archs.{family}"), "RATIO", None)


@pytest.mark.proves("width for a budget, RATIO and width_step")
@pytest.mark.parametrize(("kind", "budget"), BUDGETS)
@pytest.mark.parametrize("family", archs.families())
def test_every_family_meets_every_budget(family, kind, budget):
    """None is out of reach at 32 px once the ratio may move."""
    given = solve(f"{family}_1m", **{kind: budget}, img_size=32, num_classes=10, exact=True)
    assert given.keys() <= {"dim", _ratio(family)}
    assert _cost(f"{family}_1m", kind, **given) == pytest.approx(budget, rel=0.02)


@pytest.mark.proves("width for a budget, RATIO and width_step")
@pytest.mark.parametrize(("kind", "budget"), [("params", 2e6), ("macs", 50e6)])
@pytest.mark.parametrize("family", archs.families())
def test_width_alone_meets_the_budget_or_names_its_neighbours(family, kind, budget):
    """Out of reach may only be what lies between two widths that are one step apart."""
    name, ratio = f"{family}_1m", _ratio(family)
    whole = {} if ratio is None else {ratio: archs.arguments(name).get(ratio, _default(family, ratio))}
    try:
        given = solve(name, **{kind: budget}, **whole, exact=True)
    except ValueError as error:
        said = str(error)
    else:
        assert {key: given[key] for key in whole} == whole
        assert _cost(name, kind, **given) == pytest.approx(budget, rel=0.02)
        return
    assert f"{name} cannot have {kind} within 2.0% of" in said
    below, above = (int(number) for number in re.search(r"(\d+) below, (\d+) above", said).groups())
    assert below < 0.98 * budget and above > 1.02 * budget
    # They are what two neighbouring widths cost.
    lower = solve(name, **{kind: below}, **whole, tolerance=0, exact=True)["dim"]
    upper = solve(name, **{kind: above}, **whole, tolerance=0, exact=True)["dim"]
    module = importlib.import_module(f"archs.{family}")
    step = module.width_step(archs.arguments(name)) if hasattr(module, "width_step") else 1
    assert max(_list(upper)) - max(_list(lower)) == step


# Widths in multiples of 8 from hand counts of nearly these frames, patch 8 and depth 6: for 20 million MACs and for
# 1 million parameters.
LADDER = {
    "bmlp": (616, 112),
    "identityformer": (160, 144),
    "resmlp": (160, 144),
    "mixer": (152, 144),
    "lattice": (160, 144),
    "deit": (128, 112),
}
OTHERS = ("cyclemlp", "convmixer", "gfnet", "gmlp", "poolformer", "randformer", "s2mlp", "vip")
ON_TOKENS = {*LADDER, *OTHERS} - {"bmlp"}


@pytest.mark.proves("width for a budget, RATIO and width_step")
@pytest.mark.parametrize("family", archs.families())
def test_every_rung_meets_both_budgets_with_16_tokens(family):
    """At patch 8 the rungs on tokens cost 14 to 21 million MACs and 0.98 to 1.4 million parameters at either."""
    names = [name for name in archs.list_archs(f"{family}_1m*") if len(_list(archs.arguments(name)["depth"])) == 1]
    if not names:
        pytest.skip("a pyramid")
    name, own = names[0], archs.arguments(names[0])
    given = {"depth": [6] if isinstance(own["depth"], list) else 6}
    given |= {"patch_size": 8} if "patch_size" in own else {}
    given |= {"kernel_size": 3} if family == "convmixer" else {}
    for i, budget in enumerate(({"macs": 20e6}, {"params": 1e6})):
        found = solve(name, **budget, **given, exact=True)
        (kind, amount) = next(iter(budget.items()))
        assert _cost(name, kind, **{**given, **found}) == pytest.approx(amount, rel=0.02)
        if family in ON_TOKENS:
            assert 14e6 < _cost(name, "macs", **{**given, **found}) < 21e6
            assert 0.98e6 < _cost(name, "params", **{**given, **found}) < 1.4e6
        if family in LADDER:
            assert abs(found["dim"] - LADDER[family][i]) <= 8


@pytest.mark.proves("width for a budget, RATIO and width_step")
@pytest.mark.parametrize(("kind", "budget"), [("params", 1e6), ("macs", 20e6)])
@pytest.mark.parametrize("family", archs.families())
def test_widths_are_multiples_of_8_where_one_is_near_and_the_exact_one_is_named(family, kind, budget):
    """Near is within 5 %; nearer multiples there are none."""
    name, given = f"{family}_1m", {"img_size": 32, "num_classes": 10}
    found = search(name, **{kind: budget}, **given)
    cost = _cost(name, kind, **given, **found.arguments)
    assert found.cost == cost
    exact = solve(name, **{kind: budget}, **given, exact=True)
    is_round = all(width % 8 == 0 for width in _list(found.arguments["dim"]))
    if is_round and found.arguments.keys() == {"dim"}:
        assert cost == pytest.approx(budget, rel=0.05)
        assert found.exact is None or (found.exact[0] == exact and abs(found.exact[1] - budget) < abs(cost - budget))
        if isinstance(dim := found.arguments["dim"], int):
            for other in (dim - 8, dim + 8):
                try:
                    near = _cost(name, kind, **given, dim=other)
                except ValueError:  # no multiple of what else the width must be one of
                    continue
                assert abs(near - budget) >= abs(cost - budget)
    else:
        assert found.arguments == exact and found.exact is None


def test_widths_by_hand():
    given = {"img_size": 32, "num_classes": 10, "depth": 4}
    costs = {dim: _cost("mlp_1m", "macs", **given, dim=dim) for dim in (232, 234, 240)}
    found = search("mlp_1m", macs=costs[234], **given)
    assert found == ({"depth": 4, "dim": 232}, costs[232], ({"dim": 234}, costs[234]))
    assert search("mlp_1m", macs=costs[240], **given) == ({"depth": 4, "dim": 240}, costs[240], None)
    assert solve("mlp_1m", macs=costs[234], **given, exact=True) == {"depth": 4, "dim": 234}
    # One step of 8 is more than 5 % here, so the exact width is taken.
    small = _cost("mlp_1m", "macs", **given, dim=52)
    assert solve("mlp_1m", macs=small, **given) == {"depth": 4, "dim": 52}


def _default(family: str, ratio: str) -> float:
    return importlib.import_module(f"archs.{family}").build.__kwdefaults__[ratio]


def _list(dim: int | list[int]) -> list[int]:
    return [dim] if isinstance(dim, int) else dim


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("mixer_s16", {"img_size": 64, "num_classes": 200, "patch_size": 8, "depth": 4}),
        ("deit_s16", {"img_size": 64, "num_classes": 200, "patch_size": 8, "depth": 4, "num_heads": 5}),
        ("patchmlp_1m", {"img_size": 64, "num_classes": 200, "patch_size": 8}),
        ("cyclemlp_b3", {"img_size": 64, "num_classes": 200, "in_chans": 1}),
        ("mlp_six", {"img_size": 32, "num_classes": 200, "in_chans": 1}),
    ],
)
def test_other_images_and_arguments_are_kept(name, given):
    found = solve(name, params=3e6, **given)
    assert _cost(name, "params", **{**given, **found}) == pytest.approx(3e6, rel=0.05)
    overrides = {key: value for key, value in given.items() if key not in ("img_size", "num_classes", "in_chans")}
    assert overrides.items() <= found.items() and found.keys() <= overrides.keys() | {"dim", "mlp_ratio", "expansion"}


def test_pyramids_keep_their_proportions():
    (a, b, c, d) = solve("vip_m7", params=20e6, depth=[1, 1, 1, 1], exact=True)["dim"]
    assert a == b and c == d and c == pytest.approx(2 * a, abs=32) and a % 32 == 0
    wide = solve("cyclemlp_b1", params=30e6, depth=[1, 1, 1, 1], exact=True)["dim"]
    assert [each / wide[-1] for each in wide] == pytest.approx([64 / 512, 128 / 512, 320 / 512, 1], abs=0.01)
    six = solve("mlp_six", params=1e6, exact=True)["dim"]
    assert six[0] == six[1] and six[2] == six[3]


def test_a_ratio_per_stage_moves_together():
    found = solve("cyclemlp_b3", params=20e6, tolerance=0.002, depth=[1, 1, 1, 1], exact=True)
    assert _cost("cyclemlp_b3", "params", **found) == pytest.approx(20e6, rel=0.002)
    ratios = found.get("mlp_ratio", [8, 8, 4, 4])
    assert [each / ratios[-1] for each in ratios] == pytest.approx([2, 2, 1, 1], rel=1e-3)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("mixer_1m", {}, "give one budget: macs or params"),
        ("mixer_1m", {"macs": 1e6, "params": 1e6}, "give one budget: macs or params"),
        ("mixer_1m", {"macs": 0}, "macs must be positive"),
        ("mixer_1m", {"params": 1e6, "dim": 64}, "dim is what the budget decides"),
        ("mixer_1m", {"params": 1e6, "depht": 3}, "did you mean 'depth'"),
        ("mixer_9m", {"params": 1e6}, "unknown model 'mixer_9m'"),
        ("timm/resnet10t", {"params": 1e6}, "unknown model"),
        ("vip_1m", {"params": 1e6, "img_size": (32, 64)}, "must be square"),
        ("identityformer_1m", {"params": 100}, "nearest attainable: none below, [0-9]+ above"),
    ],
)
def test_what_cannot_be_solved_is_a_value_error(name, given, message):
    with pytest.raises(ValueError, match=message):
        solve(name, **given)
