"""A study of which there are tables alone: report, comparison and status read them as they are, and say so."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from analysis.compare import contrasts, frames
from analysis.factorial import columns
from analysis.probes import permutation_gap
from engine.errors import DATA, Refusal
from engine.fields import claims
from engine.folder import published
from engine.run import Run, make_run
from slurm.define.find import find, named

ROOT = Path(__file__).parents[2]
STUDY = published.study("ladder", ROOT / "results")
# results/LOG.md, "ladder", computed when its runs were there
EFFECTS = {"kernel per channel": 9.64, "weights from the image": -14.78, "same weights for all patches": 0.91}


@pytest.fixture(scope="module")
def frame():
    return frames.load([], alone=[STUDY])


@pytest.fixture(scope="module")
def asked(frame):
    return columns.table(frame, STUDY.contrasts, {}).set_index("contrast")


def test_every_published_row_is_read_with_its_fields(frame):
    rows = published.read(ROOT / "results/ladder/runs.csv")
    assert list(frame["signature"]) == [row["signature"] for row in rows] and len(rows) == 164
    assert list(frame["acc1"]) == [float(row["acc1"]) for row in rows]
    assert frame["table"].ne("").all() and frame["train_loss"].notna().all(), "the loss is in epochs.csv"
    first = frame.iloc[0]
    assert first["model_kwargs"] == {"depth": 4, "dim": 876} and first["opt_betas"] == [0.9, 0.95]
    assert first["amp"] and first["permute"] == "none" and first["lr"] == 3e-4
    assert first["aug_repeats"] == 0 and first["dilute_layers"] == Run().dilute_layers, "what came later is as before"
    assert len(frames.curves(frame)) == 1640


def test_effects_are_those_that_were_logged(asked):
    assert len(asked) == 14 and asked["n"].eq(5).all()
    for name, effect in EFFECTS.items():
        assert round(asked["diff"][name], 2) == effect
    assert asked["verdict"].value_counts().to_dict() == {"undecided": 7, "gain": 4, "loss": 3}


def test_what_differs_is_computed_for_families_that_are_gone_too(asked):
    assert asked["of"]["locality alone"] == ("reach",) and asked["of"]["sharing alone"] == ("places",)
    assert set(asked["of"]["locality × sharing"]) == {"places", "reach"}
    assert asked["of"]["kernel per channel"] == () and "frame" in asked["others"]["kernel per channel"]
    assert asked["others"]["an MLP across tokens"] == ["frame", "dim"]


def test_a_gap_is_pooled_over_rungs(frame, asked):
    """The mean of three paired differences; its error is that of all rungs."""
    pairs = permutation_gap.pairs(frame)
    made = columns.measure(asked, pairs.rename(columns={"gap": "value"}))
    by = pairs.set_index(["rung", "seed"])["gap"]
    plus, minus = asked["weights"]["kernel per channel"]
    assert made["value"]["kernel per channel"] == pytest.approx((by[plus] - by[minus]).mean())
    widths = (made["high"] - made["low"])[asked["weights"].map(len) == 2]
    assert widths.max() == pytest.approx(widths.min())


def test_an_ingredient_is_proven_only_where_nothing_else_differs():
    cells = {name: make_run({"model": "lattice_nano", "model_kwargs": own}) for name, own in (
        ("kernel", {"mixer": "kernel"}), ("depthwise", {"mixer": "depthwise"}), ("banded", {"mixer": "banded"}),
        ("toeplitz", {"mixer": "toeplitz"}), ("dense", {"mixer": "dense"}), ("wide", {"mixer": "kernel", "dim": 40}),
    )}  # fmt: skip
    fields = {name: run.record() for name, run in cells.items()}

    def proven(**weights):
        return claims.proven(claims.Contrast(weights), fields)

    assert proven(depthwise=1, kernel=-1) == ("channels",)
    assert proven(depthwise=1, wide=-1) == ()
    assert proven(depthwise=1, banded=-1) == ()
    assert set(proven(kernel=1, banded=-1, toeplitz=-1, dense=1)) == {"reach", "places"}
    assert proven(kernel=1, banded=-1, toeplitz=1, dense=-1) == ("places",), "a main effect"
    assert proven(kernel=1, banded=-1, toeplitz=-1, wide=1) == ()
    gone = [{"model": "gone_1m", "model_kwargs": {}}, {"model": "lost_1m", "model_kwargs": {}}]
    assert [item.what for item in claims._of_models(*gone)] == ["model"]


def test_a_study_that_is_misspelt_is_refused_with_the_nearest(tmp_path):
    shutil.copytree(ROOT / "results/ladder", tmp_path / "ladder")
    path = tmp_path / "ladder" / "study.yaml"
    path.write_text("questions: What?\n")
    with pytest.raises(Refusal, match="unknown key 'questions'; did you mean 'question'") as refusal:
        published.study("ladder", tmp_path)
    assert refusal.value.code == DATA
    path.unlink()
    assert published.study("ladder", tmp_path).question == ""
    assert published.study("nothing", tmp_path) is None
    with pytest.raises(Refusal, match="unknown sweep 'laddr'"):
        named("laddr")
    folders, runs, (study,) = find(["ladder"])
    assert folders == runs == [] and study == STUDY


def script(*words, results):
    command = [sys.executable, "-m", *words]
    environment = {"SOFTMLP_RESULTS": str(results), "PATH": "", "HOME": str(results), "COLUMNS": "200"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_status_and_comparison_say_that_they_read_tables(tmp_path):
    before = {path: path.read_bytes() for path in (ROOT / "results/ladder").glob("*.csv")}
    status = script("scripts.sweep", "status", "ladder", results=tmp_path)
    assert status.returncode == 0, status.stderr
    assert "ladder: 164 runs, by " in status.stdout and status.stdout.count(" done ") == 164
    assert "mlp_1m depth=4 dim=876 permute=pixels s0" in status.stdout, "what tells it from its twin"
    deit = "deit_1m depth=4 dim=72 mlp_ratio=4.56 num_heads=2 patch_size=8 permute=none"
    words = f"{deit} - mlp_1m depth=4 dim=876 permute=none"
    told = script("scripts.compare", "ladder", "--contrast", words, "--csv", results=tmp_path)
    assert told.returncode == 0, told.stderr
    assert "164 of 164 runs are read from published tables" in told.stderr
    after = told.stdout[told.stdout.index("asked afterwards") :].splitlines()[2]
    assert "frame mlp to deit" in after and ",-9.57" in after.replace("-9.566", "-9.57")
    assert {path: path.read_bytes() for path in before} == before, "no row is lost"


def test_a_contrast_that_is_typed_has_two_sides():
    assert contrasts.parsed("a lr=1e-05 - b") == {"a lr=1e-05": 1, "b": -1}
    assert contrasts.parsed("a - b - c + d") == {"a": 1, "b": -1, "c": -1, "d": 1}
    for wrong in ("a", "a - b - c", "a + b", "a - a", "- a"):
        with pytest.raises(Refusal, match="as many rungs to add as to take away"):
            contrasts.parsed(wrong)
