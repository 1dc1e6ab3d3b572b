"""A mistake in a family's file is one line that names it, and a claim that is not true is caught.

The families here are archs/mixer.py with one thing changed.
"""

import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

import archs
from archs.parts import family as protocol
from archs.parts import zoo
from archs.parts.family import FamilyError, read
from archs.parts.relabeling import Relabeling, along, mirror, on_stem
from tests import warm
from tests.archs import test_archs, test_bias, test_sizes, test_symmetry
from tests.engine import test_profile

ROOT = Path(__file__).resolve().parents[2]
MIXER = (ROOT / "archs" / "mixer.py").read_text()


def changed(old: str, new: str) -> str:
    assert MIXER.count(old) == 1, old
    return MIXER.replace(old, new)


MISTAKES = {
    "missing": ('\nSYMMETRY = ("patches",)', "", "has no SYMMETRY; add it: groups of relabelings"),
    "missing function": ("def relabel(", "def _relabel(", "has no relabel; add it: (state_dict, relabeling) -> "),
    "misspelt": ("\nSYMMETRY =", "\nSYMETRY =", "has no SYMMETRY; call its SYMETRY so"),
    "misspelt, optional": ("\nINERT =", "\nInerts =", "has Inerts, which nobody reads; call it INERT, or _Inerts"),
    "misspelt function": ("def resize(", "def resizes(", "has resizes, which nobody reads; call it resize"),
    "no Python": ("def init(", "def init((", "is no Python, line "),
    "not literal": ('"dim": 32, "depth"', '"dim": 4 * 8, "depth"', "has a VARIANTS that is no literal; write it out"),
    "changed later": ("\nNorm =", "\nEXPECTED['s16'] = {}\nNorm =", "changes EXPECTED in line "),
    "BIAS not literal": ("grid_bound=True", "grid_bound=SOURCE", "has a BIAS that is no literal; BIAS = Bias(...)"),
    "one key less": ('    "s32": {"params": 19_104_624, "macs": 1_002_426_368},\n', "", "has no 's32' in EXPECTED; "),
    "cost missing": ('"params": 27_626, ', "", "has EXPECTED['nano'] = {'macs': 444736}; it is {'params': ..., "),
    "no argument": (
        '"patch_size": 2, "dim"',
        '"patch_sise": 2, "dim"',
        "has 'patch_sise' in VARIANTS['nano'], which `b",
    ),
    "no value": ('"patch_size": 2, "dim"', '"dim"', "has no 'patch_size' in VARIANTS['nano']; `build` has no default"),
    "no variant": (
        "\nINERT",
        "\nVARIANT_BIAS = {'nono': {}}\nINERT",
        "has 'nono' in VARIANT_BIAS, which is no variant; ",
    ),
    "no variant of symmetry": (
        "\nINERT",
        "\nVARIANT_SYMMETRY = {'b': ()}\nINERT",
        "has 'b' in VARIANT_SYMMETRY, which",
    ),
    "no field": (
        "\nINERT",
        "\nVARIANT_BIAS = {'nano': {'bound': True}}\nINERT",
        "has 'bound' in VARIANT_BIAS['nano'], which is no field of Bias; fields: stem, receptive_field, ",
    ),
    "field missing": (", grid_bound=True", "", "has no 'grid_bound' in BIAS; fields: "),
    "no value of a field": (
        '"global", perm',
        '"wide", perm',
        "has receptive_field='wide' in BIAS; it is one of 'token', ",
    ),
    "text": ('("patches",)', '("patches")', "has SYMMETRY = 'patches', a text; it is a tuple: ('patches',)"),
    "swallows": (
        '    replacement: Replacement = "double",\n) -> Removable',
        '    replacement: Replacement = "double",\n    **rest: int,\n) -> Removable',
        "has a `build` with **rest, which swallows a misspelling; name every argument",
    ),
    "positional": (
        "    *,\n    img_size",
        "    img_size",
        "has a `build` with a positional img_size; def build(*, ...)",
    ),
    "without": ("    in_chans: int = 3,\n", "", "has a `build` without in_chans; every family's takes img_size, "),
    "no schedule": ('\nDROP_PATH = "ramp"', "", "has DROP_PATH or a `build` with drop_path, and not both; "),
    "another schedule": (
        'DROP_PATH = "ramp"',
        'DROP_PATH = "slope"',
        "has DROP_PATH = 'slope'; it is 'ramp' or 'const",
    ),
    "no ratio": ('RATIO = "channel_ratio"', 'RATIO = "ratio"', "has RATIO = 'ratio', which `build` does not take; it "),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_with_file_name_and_remedy(mistake, tmp_path):
    old, new, line = MISTAKES[mistake]
    (tmp_path / "mine.py").write_text(changed(old, new))
    with pytest.raises(FamilyError) as caught:
        read("mine", tmp_path)
    assert str(caught.value).startswith(f"archs/mine.py {line}") and "\n" not in str(caught.value), caught.value


def test_what_is_right_is_read_as_it_is_imported(tmp_path):
    (tmp_path / "mine.py").write_text(MIXER + "\n\ndef helper() -> None:\n    pass\n")
    assert read("mine", tmp_path) == read("mixer")
    assert read("mixer").defaults == {
        "in_chans": 3,
        "token_ratio": 0.5,
        "channel_ratio": 4.0,
        "drop_path": 0.0,
        "mlp_layers": (),
        "replacement": "double",
    }
    assert read("patchmlp").bias("nano_unshared").stem == "local" and read("patchmlp").bias("nano").stem == "shared"
    assert read("patchmlp").symmetry("nano_unshared") == ("patches_own",)


def test_a_name_with_an_underscore_is_refused(tmp_path):
    (tmp_path / "my_mlp.py").write_text(MIXER)
    with pytest.raises(FamilyError, match=r"archs/my_mlp.py has an underscore, .*; rename it mymlp.py"):
        protocol.names(tmp_path)


def test_every_name_of_the_protocol_is_somewhere_in_the_zoo():
    """Else it is out of date."""
    found = {name for each in archs.families() for name in vars(__import__(f"archs.{each}", fromlist=[each]))}
    assert {*protocol.MUST, *protocol.MAY} <= found


# --- relabel


def test_a_relabel_names_what_is_not_there():
    order = torch.arange(16).flip(0)
    relabeling = Relabeling.of_patches((1, 8, 8), 2, order)
    state = archs.create("mixer_nano").state_dict()
    with pytest.raises(
        FamilyError, match=r"relabel addresses '\*.mix.fc3.weight', and no weight .*; near: .*fc.*weight"
    ):
        along(state, order, {"*.mix.fc3.weight": (0,)})
    with pytest.raises(FamilyError, match=r"cannot change axis 2 of '\*.mix.fc1.weight': stages.0.0.0.branch.mix.fc1"):
        along(state, order, {"*.mix.fc1.weight": (2,)})
    with pytest.raises(FamilyError, match=r"has the shape \(16, 16\), the new order has 9 entries"):
        along(state, torch.arange(9), {"*.0.0.0.*.mix.fc1.weight": (1,)})
    with pytest.raises(FamilyError, match=r"cannot change axis 3 of 'stem.proj.weight'"):
        mirror(state, relabeling, {"stem.proj.weight": (0, 3)})
    with pytest.raises(FamilyError, match=r"addresses 'stem.0.proj.weight', .*near: stem.proj.weight"):
        on_stem(state, relabeling, "stem.0.proj.weight")
    assert along(None, order, {"nothing": (0,)}) is None and along(state, None, {"nothing": (0,)}) is None


# --- claims


@pytest.fixture
def zoo_with(tmp_path, monkeypatch):
    """Put one more family beside those there are."""

    def add(name: str, text: str) -> str:
        for path in (ROOT / "archs").glob("*.py"):
            (tmp_path / path.name).symlink_to(path)
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.setattr(protocol, "ARCHS", tmp_path)
        monkeypatch.setattr(archs, "__path__", [*archs.__path__, str(tmp_path)])
        return f"{name}_nano"

    zoo._is_family.cache_clear()
    yield add
    zoo._is_family.cache_clear()
    for name in [name for name in sys.modules if name.startswith("archs.wrong")]:
        del sys.modules[name]


WRONG = {
    "bias": ("grid_bound=True", "grid_bound=False", [(test_bias.test_architecture_is_what_its_bias_claims, ())]),
    "symmetry": (
        '("patches",)',
        '("patches_own",)',
        [
            (test_symmetry.test_signature_is_what_the_family_declares, ("sgd",)),
            (test_symmetry.test_every_claim_has_a_map_that_keeps_the_logits, ()),
        ],
    ),
    "relabel": (
        '"*.0.branch.mix.fc1.weight": (1,)',
        '"*.0.branch.mix.fc1.weight": (0,)',
        [
            (test_symmetry.test_signature_is_what_the_family_declares, ("sgd",)),
            (test_symmetry.test_every_claim_has_a_map_that_keeps_the_logits, ()),
        ],
    ),
    "expected": (
        "27_626",
        "27_627",
        [(test_sizes.test_params_and_macs_are_as_expected, ())],
    ),
    "macs": (
        "444_736",
        "444_737",
        [(test_sizes.test_params_and_macs_are_as_expected, ()), (test_profile.test_every_difference_is_explained, ())],
    ),
    "drop": (
        'DROP_PATH = "ramp"',
        'DROP_PATH = "constant"',
        [(test_archs.test_drop_path_is_the_schedule_that_the_family_declares, ())],
    ),
    "inert": (
        'INERT = ("*.mix.fc2.bias",)',
        "INERT = ()",
        [(test_archs.test_gradient_reaches_every_parameter_but_the_inert, ())],
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_claim_that_is_not_true_is_caught(wrong, zoo_with):
    old, new, tests = WRONG[wrong]
    name = zoo_with(f"wrong{wrong}", changed(old, new))
    for test, given in tests:
        with pytest.raises((AssertionError, test_profile.Refusal)):
            test(name, *given)


def test_the_same_tests_pass_where_all_is_true(zoo_with):
    name = zoo_with("wrongnothing", MIXER)
    for _, _, tests in WRONG.values():
        for test, given in tests:
            test(name, *given)


# --- the command


@pytest.fixture
def check(tmp_path):
    """Run scripts/check_family.py in a copy of the house with one more family; (exit code, output)."""

    def run(name: str, text: str, *words: str) -> tuple[int, str]:
        for folder in ("archs", "engine", "analysis", "slurm", "scripts", "tests"):
            shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", tmp_path)
        (tmp_path / "archs" / f"{name}.py").write_text(text)
        environment = {**os.environ, "PYTHONPATH": str(tmp_path), "NO_COLOR": "1"}
        done = warm.run("scripts/check_family.py", name, *words, cwd=tmp_path, env=environment)
        return done.returncode, done.stdout + done.stderr

    return run


def test_the_command_says_what_is_proved_and_what_is_not(check):
    words = ("-k", "drop_path or tables or closed_form or weights_load")
    code, said = check("wrongdrop", changed('DROP_PATH = "ramp"', 'DROP_PATH = "constant"'), *words)
    assert code == 1, said
    lines = said.partition("what is proved of wrongdrop")[2].splitlines()
    assert "FAILED      DROP_PATH, its schedule and effect: 1 of 2 tests" in lines
    assert "proved      weights load at another size unless grid_bound (1 test)" in lines
    assert "not proved  EXPECTED, by a closed form: no test for this family" in lines
    every = ", ".join(archs.variants("mixer"))
    assert f"not proved  BIAS of {every}: no variant that is measured claims the same" in lines


def test_the_command_refuses_a_symmetry_that_is_none(check):
    code, said = check("wronggroup", changed('("patches",)', '("patchs",)'))
    assert code == 2 and said.startswith("softmlp: archs/wronggroup.py claims the symmetry 'patchs'; groups: pixels, ")


def test_the_command_says_a_mistake_in_one_line(check):
    code, said = check("wrongname", changed("\nINERT =", "\nINERTS ="))
    remedy = "call it INERT, or _INERTS if it is the file's own"
    assert (code, said) == (2, f"softmlp: archs/wrongname.py has INERTS, which nobody reads; {remedy}\n")
