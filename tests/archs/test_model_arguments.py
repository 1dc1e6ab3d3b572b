"""Arguments of every family: what makes no sense is one line, and what means the same is the same value."""

import ast

import pytest

import archs
from archs.parts import sizes
from archs.parts.family import ARCHS
from engine.errors import USAGE, Refusal
from engine.run import make_run

COUNTS = {
    (family, key)
    for family in archs.families()
    for key, (kinds, may_be_empty) in sizes._kinds(family).items()
    if kinds[0] in ("int", "Sequence[int]") and not may_be_empty
}


def test_every_family_counts_its_width_and_depth():
    for family in archs.families():
        assert {(family, key) for key in ("dim", "depth", "num_classes", "img_size")} <= COUNTS


@pytest.mark.proves("arguments of build: sizes without sense are refused")
@pytest.mark.parametrize(("family", "key"), sorted(COUNTS))
@pytest.mark.parametrize("value", [0, -1, 1.5, "x", None, True, float("nan"), [0], []])
def test_a_count_that_is_none_is_refused(family, key, value):
    name = archs.list_archs(f"{family}_*")[0]
    if key in sizes._FROM_ZERO and value == 0:  # no classifier, as in timm; nothing merged
        assert archs.arguments(name, **{key: value})[key] == 0
        return
    with pytest.raises(ValueError, match=f"{name}: {key} ") as caught:
        archs.arguments(name, **{key: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("model", "kwargs", "words"),
    [
        ("mixer_nano", {"dim": 0}, "mixer_nano: dim 0 is not a whole number from 1"),
        ("mixer_nano", {"depth": -1}, "depth -1 is not a whole number from 1"),
        ("mixer_nano", {"patch_size": [2, 2, 2]}, "has 3 numbers and needs two"),
        ("mixer_nano", {"dim": [16, 16]}, "dim [16, 16] is not a whole number from 1"),
        ("mixer_nano", {"token_ratio": 0}, "token_ratio 0 is not a number above 0"),
        ("mixer_nano", {"token_ratio": "a"}, "token_ratio 'a' is not a number above 0"),
        ("resmlp_nano", {"init_values": -1}, "init_values -1 is not a number from 0"),
        ("cyclemlp_nano", {"dim": [16, 0]}, "dim [16, 0] is not a whole number from 1"),
        ("cyclemlp_nano", {"mlp_ratio": [4, -4]}, "is not a number above 0"),
        ("deit_nano", {"mlp_layers": [-1]}, "mlp_layers [-1] is not a whole number from 0"),
        ("gfnet_nano", {"pos_embed": 1}, "pos_embed 1 is neither true nor false"),
    ],
)
def test_a_size_without_sense_is_one_line(model, kwargs, words):
    with pytest.raises(Refusal) as caught:
        make_run({"model": model, "model_kwargs": kwargs})
    assert words in str(caught.value) and "\n" not in str(caught.value) and caught.value.code == USAGE


def test_one_number_is_a_list_of_one_where_a_list_is_wanted():
    one = make_run({"model": "deit_nano", "model_kwargs": {"mlp_layers": 0}})
    assert one.model_kwargs["mlp_layers"] == [0]
    assert one == make_run({"model": "deit_nano", "model_kwargs": {"mlp_layers": [0.0]}})
    assert archs.arguments("vip_nano", depth=3)["depth"] == [3]
    assert archs.arguments("mlp_nano", dim=64)["dim"] == 64 and archs.arguments("mlp_nano", dim=(8, 9))["dim"] == (8, 9)
    assert archs.arguments("mixer_nano", patch_size=[2, 4])["patch_size"] == [2, 4]
    assert archs.arguments("deit_nano", mlp_layers=[])["mlp_layers"] == []


def test_every_variant_of_the_zoo_makes_sense():
    for name in archs.list_archs():
        assert archs.fitted(name, archs.arguments(name)) == archs.arguments(name)


def test_every_annotation_is_known():
    """An annotation that sizes.py does not read would leave an argument unchecked without a word."""
    known = {"int", "float", "bool", "Grid", "Sequence[int]", "Sequence[float]"}
    for family in archs.families():
        source = ast.parse((ARCHS / f"{family}.py").read_text())
        words = {node.targets[0].id for node in source.body if isinstance(node, ast.Assign)}
        for key, (kinds, _) in sizes._kinds(family).items():
            for kind in kinds:
                assert kind in known or kind in words or kind.startswith("Literal["), f"{family} {key}: {kind}"
