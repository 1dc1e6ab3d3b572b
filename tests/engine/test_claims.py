"""Which contrasts may bear an ingredient's name: the rule on cells whose differences are known."""

import pytest

import archs
from engine.errors import Refusal
from engine.fields import claims
from engine.fields.claims import Contrast
from engine.run import Run

RECIPE = Run().record()


def cell(a="0", b="0", **recipe):
    """Fields of a run whose model stands at two axes, as archs.difference is told below."""
    return {**RECIPE, **recipe, "model": "cells", "model_kwargs": {"A": a, "B": b}}


@pytest.fixture(autouse=True)
def axes(monkeypatch):
    """Two axes that are the model's arguments; what the zoo's own models differ in is tested in tests/archs."""

    def difference(one, other):
        (_, first), (_, second) = one, other
        return [claims.Item(key, first[key], second[key]) for key in first if first[key] != second[key]]

    monkeypatch.setattr(archs, "difference", difference, raising=False)
    monkeypatch.setattr(archs, "families", lambda: ["cells"])


SQUARE = {f"{a}{b}": cell(a, b) for a in "01" for b in "01"}


@pytest.mark.parametrize("weights, of", [
    ({"10": 1, "00": -1}, ("A",)),
    ({"10": 0.5, "11": 0.5, "00": -0.5, "01": -0.5}, ("A",)),
    ({"11": 1, "10": -1, "01": -1, "00": 1}, ("A", "B")),
    ({"11": 1, "00": -1}, ("A+B",)),
    ({"11": 1, "00": -1}, ("B + A",)),
    ({"11": 1, "00": -1}, ()),
])  # fmt: skip
def test_a_clean_claim_passes(weights, of):
    claims.check(Contrast(weights, of), SQUARE)


@pytest.mark.parametrize("weights, of, words", [
    ({"11": 1, "00": -1}, ("A",), r"claims A, but 00 to 11 differs in A \(0 to 1\), B \(0 to 1\)"),
    ({"01": 1, "00": -1}, ("A",), r"claims A, but 00 to 01 differs in B"),
    ({"10": 1, "00": -1}, ("A", "B"), "claims B, but"),
    ({"10": 1, "01": 1, "00": -1, "11": -1}, ("A",), "both directions"),
    ({"10": 1, "00": -0.5, "01": -0.5}, ("A",), "10 has no rung of equal weight"),
    ({"10": 1, "11": 0.5, "00": -1, "01": -0.5}, ("B",), "claims B, but"),
    ({"11": 0.5, "01": 0.5, "10": -0.5, "00": -0.5}, ("A",), r"claims A, but 00 to 11 differs in A .*, B"),
])  # fmt: skip
def test_a_claim_that_is_not_clean_is_refused_with_what_differs(weights, of, words):
    with pytest.raises(Refusal, match=words):
        claims.check(Contrast(weights, of), SQUARE)


def test_more_than_two_values_are_no_direction():
    runs = SQUARE | {"20": cell("2"), "21": cell("2", "1")}
    with pytest.raises(Refusal, match="claims A, which has more than two values in it: 0, 1, 2"):
        claims.check(Contrast({"10": 0.5, "21": 0.5, "00": -0.5, "01": -0.5}, ("A",)), runs)


def test_an_interaction_with_pairs_that_cancel_is_refused():
    runs = {f"{a}{b}{seed}": cell(a, b, epochs=seed) for a in "01" for b in "01" for seed in (1, 2)}
    half = {"11": 0.5, "00": 0.5, "10": -0.5, "01": -0.5}
    both = {f"{name}{seed}": weight for seed in (1, 2) for name, weight in half.items()}
    claims.check(Contrast(both, ("A", "B")), runs)
    turned = {name: weight * (1 if name.endswith("1") else -1) for name, weight in both.items()}
    with pytest.raises(Refusal, match="both directions"):
        claims.check(Contrast(turned, ("A", "B")), runs)
    claims.check(Contrast(turned, ("A", "B", "epochs")), runs)


def test_the_rate_may_differ_and_is_shown_and_no_other_field_may():
    contrast = Contrast({"10": 1, "00": -1}, ("A",))
    rates = {"10": cell("1", lr=0.01), "00": cell(lr=0.03)}
    claims.check(contrast, rates)
    assert claims.told(contrast, rates) == "A 0 to 1, lr 0.03 to 0.01"
    with pytest.raises(Refusal, match=r"differs in A \(0 to 1\), clip_grad \(0 to 1\)"):
        claims.check(contrast, {"10": cell("1", clip_grad=1.0), "00": cell()})
    claims.check(Contrast({"10": 1, "00": -1}, ("clip_grad",)), {"10": cell(clip_grad=1.0), "00": cell()})


def test_what_differs_is_told_from_the_minus_to_the_plus_side():
    assert claims.told(Contrast({"10": 0.5, "11": 0.5, "00": -0.5, "01": -0.5}, ("A",)), SQUARE) == "A 0 to 1"
    assert claims.told(Contrast({"11": 1, "00": -1}), SQUARE) == "A 0 to 1, B 0 to 1"
    assert claims.told(Contrast({"11": 1, "10": -1, "01": -1, "00": 1}, ("A", "B")), SQUARE) == "A, B"
    rates = SQUARE | {"11": cell("1", "1", lr=0.01)}
    main = Contrast({"10": 0.5, "11": 0.5, "00": -0.5, "01": -0.5}, ("A",))
    assert claims.told(main, rates) == "A 0 to 1, lr 0.001 to 0.01 in 1 of 2 pairs"
    assert list(claims.sides(Contrast({"11": 1, "00": -1}), rates)) == ["A", "B", "lr"]
