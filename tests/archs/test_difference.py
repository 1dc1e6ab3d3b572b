"""`archs.difference`: clean pairs differ in exactly one thing, tempting ones in more; no torch is needed to say so."""

import subprocess
import sys

import pytest

import archs
from archs.ingredients.axes import AXES
from archs.ingredients.difference import Difference

FROZEN, WRAP, SCRAMBLED = {"frozen": True}, {"wrap": True}, {"scrambled": True}
CLEAN = {
    "reach": [
        ("dense", "banded"),
        ("dense_c", "banded_c"),
        ("toeplitz", "kernel"),
        ("toeplitz_c", "depthwise"),
        ("none", "pooling"),
        ("none", "average"),
        ("attention", "attention_window"),
        ("kernel", ("kernel", {"kernel_size": 5})),
    ],
    "places": [
        ("dense", "toeplitz"),
        ("dense_c", "toeplitz_c"),
        ("banded", "kernel"),
        ("banded_c", "depthwise"),
        ("attention", "set_attention"),
    ],
    "channels": [
        ("dense", "dense_c"),
        ("banded", "banded_c"),
        ("toeplitz", "toeplitz_c"),
        ("kernel", "depthwise"),
        ("toeplitz", ("toeplitz", {"groups": 4})),
        ("dense", ("dense", {"groups": 16})),
    ],
    "border": [
        ("toeplitz_c", "circulant_c"),
        ("kernel", ("kernel", WRAP)),
        ("depthwise", ("depthwise", WRAP)),
    ],
    "geometry": [
        ("kernel", ("kernel", SCRAMBLED)),
        ("depthwise", ("depthwise", SCRAMBLED)),
        ("monarch", ("monarch", SCRAMBLED)),
    ],
    "form": [
        ("dense", "two"),
        ("dense", ("two", {"hidden": 64})),
        ("two", ("two", {"hidden": 64})),
        ("dense", "axial"),
        ("dense", ("monarch", SCRAMBLED)),
    ],
    "act": [("two", "token_mlp")],
    "gate": [("dense", "gate")],
    "projected": [(("toeplitz", {"groups": 4}), "toeplitz_projected")],
    "rows": [("toeplitz_projected", "distance")],
    "content": [("distance", "attention")],
    "learned": [("dense", ("dense", FROZEN)), ("depthwise", ("depthwise", FROZEN))],
    "start": [
        (("depthwise", FROZEN), "shift"),
        (("kernel", FROZEN), "pooling"),
        ("dense", "dense_from_kernel"),
        ("dense_from_kernel", "dense_from_impulse"),
        ("dense_from_impulse", ("dense_from_impulse", {"kernel_size": 5})),
    ],
    "strictness": [
        (("dial", {"strictness": 0.5}), ("dial", {"strictness": 0.75})),
        (("dial", {"strictness": 0.5}), ("dial", {"gated": True})),
        (("dial", {"wrap": True}), ("kernel", {"wrap": True})),
        (("dial", {"groups": 64}), "depthwise"),
        (("dial", {"kernel_size": 5, "scrambled": True}), "dense"),
        (("dial", {"groups": 64}), "dense_c"),
    ],
    "position": [(name, (name, {"position": "learned"})) for name in ("dense", "depthwise", "set_attention")],
    "stem": [("dense", ("dense", {"stem": "unshared"}))],
    "frame": [("dense", ("dense", {"frame": "convmixer"})), ("kernel", ("kernel", {"frame": "resmlp"}))],
    "dim": [("distance", ("distance", {"dim": 56}))],
}
NOT_CLEAN = [
    ("dense", "token_mlp", {"form", "act"}),
    ("dense", "attention", {"places", "channels", "projected", "rows", "content"}),
    ("depthwise", "attention", {"reach", "channels", "projected", "rows", "content"}),
    ("toeplitz", "distance", {"channels", "projected", "rows"}),
    ("kernel", "monarch", {"reach", "places", "form"}),
    ("kernel", "pooling", {"learned", "start"}),
    ("dense", "kernel", {"reach", "places"}),
    ("dense", ("token_mlp", {"hidden": 64}), {"form", "act"}),
    ("banded", "dial", {"reach", "strictness"}),
    ("dial", "depthwise", {"channels", "strictness"}),
    ("dial", ("dial", {"strictness": 1, "kernel_size": 5}), {"reach", "strictness"}),
    ("attention", ("dense", {"dim": 48}), {"places", "channels", "projected", "rows", "content", "dim"}),
]


def cell(word):
    name, given = (word, {}) if isinstance(word, str) else word
    return "lattice_s", {"mixer": name, **given}


@pytest.mark.parametrize(("axis", "a", "b"), [(axis, a, b) for axis, pairs in CLEAN.items() for a, b in pairs])
def test_a_clean_pair_differs_in_one_thing(axis, a, b):
    (one,) = archs.difference(cell(a), cell(b))
    (back,) = archs.difference(cell(b), cell(a))
    assert one.what == axis and one.a != one.b and back == Difference(axis, one.b, one.a)
    assert archs.difference(cell(a), cell(a)) == []


@pytest.mark.parametrize(("a", "b", "axes"), NOT_CLEAN)
def test_a_tempting_pair_differs_in_more(a, b, axes):
    assert {each.what for each in archs.difference(cell(a), cell(b))} == axes


def test_values_say_their_numbers():
    found = archs.difference(cell("dense"), cell("kernel"))
    assert list(map(str, found)) == ["reach: all -> window(3)", "places: own -> displacement"]
    (form,) = archs.difference(cell("dense"), cell(("two", {"hidden": 64})))
    (groups,) = archs.difference(cell("toeplitz"), cell(("toeplitz", {"groups": 4})))
    assert (form.b, groups.b) == ("two(64)", "groups(4)")
    assert archs.difference(cell("dense_c"), cell(("dense", {"groups": 64}))) == [
        Difference("mixer", "dense_c", "dense")
    ]


def test_a_dial_at_an_end_is_that_mixer_or_another_form_of_it():
    strict, free = (("dial", {"strictness": strictness}) for strictness in (1, 0))
    assert archs.difference(cell(strict), cell("kernel")) == []
    assert archs.difference(cell("depthwise"), cell(("dial", {"strictness": 1, "groups": 64}))) == []
    assert archs.difference(cell(free), cell("dense")) == [Difference("mixer", "dial", "dense")]
    (one,) = archs.difference(cell("kernel"), cell(("dial", {"gated": True, "strictness": 0.3})))
    assert one == Difference("strictness", "1", "gate(0.3)")


def test_published_families_differ_in_their_frames_and_say_so():
    found = archs.difference("bmlp_1m", "resmlp_1m")
    assert found[0] == Difference("frame", "bmlp", "resmlp")
    assert Difference("stem", "dense", "shared") in found and Difference("dim", 160, 144) not in found[:1]
    resmlp = archs.difference(("resmlp_1m", {"dim": 95}), ("convmixer_1m", {"dim": 252}))
    assert {"frame", "receptive_field", "shift_equivariant", "grid_bound", "dim"} == {each.what for each in resmlp}
    lattice = archs.difference("resmlp_1m", ("lattice_1m", {"frame": "resmlp"}))
    assert lattice == [Difference("frame", "resmlp", "lattice resmlp")]
    assert archs.difference("timm/resnet18", "resmlp_1m") == [Difference("frame", "timm/resnet18", "resmlp")]
    assert archs.difference("timm/resnet18", "timm/resnet18") == []


def test_within_a_family_arguments_and_claims_differ():
    assert [each.what for each in archs.difference("mixer_s16", "mixer_b16")] == ["dim", "depth"]
    assert archs.difference("deit_nano", "deit_nano_set") == [
        Difference("permutation_equivariant", False, True),
        Difference("shift_equivariant", False, True),
        Difference("grid_bound", True, False),
        Difference("global_pool", "token", "avg"),
        Difference("pos_embed", True, False),
    ]
    # An argument that is the default already is no difference.
    assert archs.difference("mixer_s16", ("mixer_s16", {"token_ratio": 0.5})) == []


def test_wrong_names_are_refused():
    with pytest.raises(ValueError, match="unknown model 'lattice_q'"):
        archs.difference("lattice_q", "lattice_s")
    with pytest.raises(ValueError, match="mixer dense has no hidden"):
        archs.difference(cell("dense"), cell(("dense", {"hidden": 3})))


def test_no_torch_is_imported():
    code = (
        "import sys, archs; print(archs.difference('lattice_s', ('lattice_s', {'mixer': 'kernel'})));"
        "print(archs.symmetry('lattice_s', mixer='kernel')); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert set(CLEAN) >= set(AXES)
