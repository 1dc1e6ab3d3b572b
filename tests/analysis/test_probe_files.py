"""The file of a probe: read without running it, and one line for each mistake."""

import pytest

from analysis import probes
from engine.errors import Refusal

MINE = '''"""Mine: is it mine?"""

PROTOCOL = {"seed": 0}
UNITS = {"acc": "%"}
UNITS |= {"acc_#": "%"}
HEADLINE = ("acc", "acc_2")


def measure(subject):
    return {}
'''


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Write a probe's file; what is read of it."""
    monkeypatch.setattr(probes, "FOLDER", tmp_path)

    def write(text):
        (tmp_path / "mine.py").write_text(text)
        probes.read.cache_clear()
        probes._units.cache_clear()
        probes.check(["mine"])
        return probes.read("mine")

    yield write
    probes.read.cache_clear()
    probes._units.cache_clear()


def test_the_file_of_a_probe_is_read_without_running_it(mine):
    found = mine(MINE + 'WORDS = {"acc": "accuracy"}\nraise SystemExit\n')
    assert found["UNITS"] == {"acc": "%", "acc_#": "%"} and found["WORDS"] == {"acc": "accuracy"}
    assert probes.names() == ["mine"]


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("PROTOCOL", "PROTOKOL", "has no PROTOCOL, a dict .*; is it 'PROTOKOL'"),
        ("HEADLINE", "HEADLIN", "has no HEADLINE, a tuple .*; is it 'HEADLIN'"),
        ('UNITS = {"acc": "%"}\nUNITS |= {"acc_#": "%"}\n', "", "has no UNITS, a dict of the unit of each key"),
        ("def measure", "def mesure", "has no measure, a function .*; is it 'mesure'"),
        ("measure(subject)", "measure(model, images)", r"has measure\(model, images\); it must take one argument"),
        ("measure(subject)", "measure(subject, *, k)", r".*; it must take one argument, the subject"),
        ('"acc_2")', '"area")', "has 'area' in HEADLINE, which has no unit; UNITS has acc, acc_#"),
        ('("acc", "acc_2")', '["acc"]', r"has HEADLINE = \['acc'\]; it must be a tuple"),
        ('UNITS = {"acc": "%"}', 'UNITS = {"acc": 1}', "has UNITS that maps other things than strings"),
        ('{"seed": 0}', "dict(seed=0)", "computes PROTOCOL; write it out"),
        ('"""Mine: is it mine?"""', "", "has no docstring; say the question"),
        ("PROTOCOL", "TITEL = 'x'\nPROTOCOL", "has 'TITEL'; is it TITLE, a string"),
        ("return {}", "return {", "is not Python: .*line 10"),
        ("PROTOCOL = ", "PROTO = ", "has no PROTOCOL"),
        ("PROTOCOL", "COST = (1, -2)\nPROTOCOL", r"has COST = \(1, -2\); it must be a tuple of two numbers"),
        ("PROTOCOL", "COST = 3\nPROTOCOL", "has COST = 3; it must be a tuple of two numbers"),
        ("PROTOCOL", "OVER_TRAINING = 1\nPROTOCOL", "has OVER_TRAINING = 1; it must be a bool"),
        (
            "def measure",
            "def draw():\n    pass\n\n\ndef measure",
            r"has draw\(\); it must take one argument, the subject",
        ),
    ],
)
def test_a_mistake_in_the_file_of_a_probe_is_one_line(mine, before, after, words):
    assert before in MINE
    with pytest.raises(Refusal, match=rf"^analysis/probes/mine\.py {words}") as refusal:
        mine(MINE.replace(before, after))
    assert "\n" not in str(refusal.value)


def test_a_probe_says_its_question_and_its_cost(mine):
    mine(MINE)
    assert probes.about("mine") == ("is it mine?", "not said")
    mine(MINE + "COST = (2.5, 3)\nOVER_TRAINING = True\n")
    assert probes.about("mine") == ("is it mine?", "2.5 passes and 3 s, and at each epoch kept")
    mine(MINE + "COST = (0, 1)\n")
    assert probes.about("mine")[1] == "1 s"


def test_what_has_no_unit_is_refused_by_its_key(mine):
    mine(MINE)
    assert probes.unit("mine", "acc_16") == "%"
    with pytest.raises(Refusal, match=r"mine\.py measures 'area', which has no unit; UNITS has acc, acc_#"):
        probes.unit("mine", "area")


def test_a_name_that_is_no_probe_is_refused_with_the_nearest(mine, tmp_path):
    mine(MINE)
    (tmp_path / "other.py").write_text('UNITS = {"share": "tokens"}\n')
    for name, words in (
        ("mien", "PROBES: unknown probe 'mien'; did you mean 'mine'"),
        ("other", "other.py has neither"),
    ):
        with pytest.raises(Refusal, match=words):
            probes.check([name], "PROBES")
