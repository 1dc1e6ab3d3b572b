"""scripts/profile_model.py: rows, ratios, budgets, and one line for each mistake."""

import argparse
import csv
import json
import os
import subprocess

import pytest
import torch
from torch import nn

import archs
from engine.cli import tables
from engine.cost import measure, profiles
from engine.cost.profile import own_shape, profile, saved_bytes, witnessed
from engine.errors import USAGE, Refusal
from scripts import profile_model
from tests import warm

CPU = torch.device("cpu")


def script(*args: object) -> subprocess.CompletedProcess:
    return warm.run("-m", "scripts.profile_model", *args)


def test_amounts():
    assert [tables.parse_amount(text) for text in ("60M", "1.2G", "300k", "5e6", "7")] == [
        60_000_000,
        1_200_000_000,
        300_000,
        5_000_000,
        7,
    ]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["mixer_nano", "--results-file", "x.txt"], "ends in '.txt'; known: .csv, .json, .md"),
        (["--budget", "macs=60X"], "'60X' is no amount; write such as 300K, 5M or 1.2G"),
        (["--budget", "time=3"], "--budget takes macs=AMOUNT or params=AMOUNT, not 'time=3'"),
        (["mixer_nano", "--rounds", "0"], "--rounds is at least 1, not 0"),
    ],
)
def test_a_usage_mistake_is_one_line(args, words):
    done = script(*args)
    assert done.returncode == USAGE and words in done.stderr and done.stderr.count("\n") == 1


def test_compare_gives_ratios_to_the_first(tmp_path):
    file = tmp_path / "p.csv"
    done = script("--compare", "mixer_nano", "bmlp_nano", "-b", 4, "--rounds", 3, "--results-file", file)
    assert done.returncode == 0, done.stderr
    told = ["mixer_nano: 27,626 parameters, 444,736 MACs", "bmlp_nano: 29,170 parameters, 28,560 MACs"]
    assert done.stderr.splitlines() == [*told, "timing 2 models in turn, 3 rounds"]
    first, second = csv.DictReader(file.open())
    assert float(first["latency_ratio"]) == float(first["images_ratio"]) == float(first["macs_ratio"]) == 1
    assert float(second["macs_ratio"]) == pytest.approx(28_560 / 444_736)
    for ratio, figure in (("images_ratio", "images_per_s"), ("latency_ratio", "latency_ms")):
        assert float(second[ratio]) == pytest.approx(float(second[figure]) / float(first[figure])), "of what is shown"
    assert first["macs"] == first["closed_form_macs"] == first["torch_macs"] == "444736"
    assert first["images_per_s_with_copy"] == "" or torch.cuda.is_available()
    assert float(first["train_peak_mb"]) > float(first["infer_peak_mb"]) > 4e-6 * 27_626


BATCHNORM = [("mlp_six", 32), ("mlp_twelve", 32), ("timm/test_resnet", 32), ("timm/resnet18", 32)]


@pytest.mark.parametrize(("name", "size"), BATCHNORM)
def test_a_batchnorm_over_one_value_per_image_is_no_obstacle(name, size):
    """At these sizes each has a BatchNorm that a training pass with one image refuses."""
    shape = {"img_size": size, "in_chans": 3, "num_classes": 10}
    model = archs.create(name, **shape).train()
    with pytest.raises(ValueError, match=measure.ONE_VALUE):
        model(torch.randn(1, 3, size, size))
    costs, _ = witnessed(name, **shape)
    assert costs["macs"] == profile(name, **shape)["macs"] and costs["saved_bytes"] > 4 * costs["activations"] / 2


def test_such_a_model_is_timed_at_batch_1_where_only_its_training_step_is_missing():
    asked = {"img_size": 8, "in_chans": 1, "num_classes": 10}  # as the demo has it
    subjects, told = profiles.subjects(["timm/test_resnet"], asked, {}), []
    how = {"device": CPU, "speed": True, "batch_size": 1, "rounds": 1, "amp": False, "tell": told.append}
    (row,), notes, failures = profiles.side_by_side(subjects, **how)
    assert failures == [] and row["latency_ms"] > 0 and row["images_per_s"] > 0
    assert row["train_peak_mb"] is None and "a BatchNorm sees one value per channel" in notes[0]


def test_memory_without_a_training_step_is_no_number():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    subject = measure.Subject(name="x", model=model, image=(3, 2, 2), device=CPU)
    assert measure.memory(subject, 1)["train_peak_mb"] is None
    peaks = measure.memory(subject, 2)
    assert peaks["train_peak_mb"] > peaks["infer_peak_mb"] > 0


@pytest.mark.parametrize("name", ["bmlp_nano", "mixer_nano", "convmixer_nano"])
def test_saved_bytes_are_those_of_one_more_image(name):
    """In double of what is counted: the batch of eight less that of seven, with weights."""
    costs, _ = witnessed(name, **own_shape(name))
    model = archs.create(name)
    saved = [saved_bytes(model, torch.randn(batch, 1, 8, 8)) for batch in (7, 8)]
    assert costs["saved_bytes"] == saved[1] - saved[0] > 0


def test_a_model_that_fails_leaves_the_rows_of_the_others(tmp_path):
    file = tmp_path / "p.json"
    names = ["mixer_nano", "timm/halonet26t", "timm/test_resnet"]  # blocks of 8 do not tile the second's last maps
    done = script("--compare", *names, "--img-size", 32, "--no-speed", "--results-file", file)
    assert done.returncode == USAGE and "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("softmlp: timm/halonet26t: AssertionError in ") and "assert" in last
    rows = json.loads(file.read_text())
    assert [row["model"] for row in rows] == names and [row["macs"] is None for row in rows] == [False, True, False]
    assert rows[1]["error"] in last and rows[0]["macs_ratio"] == 1
    assert rows[2]["macs_ratio"] == pytest.approx(rows[2]["macs"] / rows[0]["macs"], rel=1e-9)  # written to 10 digits
    alone = script("timm/halonet26t", "--img-size", 32, "--no-speed")
    assert alone.returncode == USAGE and alone.stderr.count("\n") == 1 and not alone.stdout


def test_each_rung_of_a_sweep_is_timed_where_reports_look(tmp_path):
    """Model arguments, image size, channels and classes are those of its runs."""
    sweep = tmp_path / "tiny.py"
    sweep.write_text(
        '"""What does a sweep of two rungs cost?"""\n'
        "from engine.run import Run\n\n\ndef runs():\n"
        "    for seed in (0, 1):\n"
        "        yield Run(model='mixer_nano', model_kwargs={'dim': 16}, dataset='digits', seed=seed)\n"
        "        yield Run(model='bmlp_nano', dataset='digits', seed=seed)\n"
    )
    env = {**os.environ, "SOFTMLP_RESULTS": str(tmp_path / "results")}
    done = warm.run("-m", "scripts.profile_model", "--sweep", sweep, "-b", 2, "--rounds", 2, env=env)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((tmp_path / "results/tiny/speeds.csv").open()))
    assert [row["model"] for row in rows] == ["mixer_nano dim=16", "bmlp_nano"]
    wide = profile("mixer_nano", img_size=8, in_chans=1, num_classes=10, dim=16)["macs"]
    assert [int(row["macs"]) for row in rows] == [wide, 28_560]
    assert all(float(row["latency_ms"]) > 0 for row in rows)


def test_references_stand_beside_the_rungs_at_the_size_of_their_images(tmp_path):
    sweep = tmp_path / "tiny.py"
    text = (
        '"""What?"""\nfrom engine.run import Run\n\n\ndef runs():\n    yield Run(model="mixer_1m", dataset="cifar10")\n'
    )
    sweep.write_text(text)
    given = argparse.Namespace(sweep=str(sweep), reference=["timm/resnet18", "mixer_1m"])
    rung, reference = profile_model.subjects_of(given, {})
    assert (rung.label, reference.label) == ("mixer_1m", "timm/resnet18") and reference.arguments == {}
    assert reference.shape == rung.shape == {"img_size": 32, "in_chans": 3, "num_classes": 10}
    sweep.write_text(text + '    yield Run(model="mixer_nano", dataset="digits")\n')
    with pytest.raises(Refusal, match=r"--reference: the rungs of .* take images of 2 shapes"):
        profile_model.subjects_of(given, {})
    alone = script("mixer_nano", "--reference", "timm/resnet18")
    assert alone.returncode == 2 and "--reference goes with --sweep" in alone.stderr


def test_by_module_as_markdown(tmp_path):
    file = tmp_path / "p.md"
    done = script("mixer_nano", "--by-module", 1, "--results-file", file)
    assert done.returncode == 0, done.stderr
    lines = file.read_text().splitlines()
    assert lines[0].split("|")[2].strip() == "module" and len(lines) == 2 + 5


def test_budget_lists_and_solves(tmp_path):
    file = tmp_path / "p.json"
    done = script("--budget", "params=28K", "mixer*", "bmlp_nano", "--results-file", file)
    assert done.returncode == 0, done.stderr
    rows = json.loads(file.read_text())
    assert ("mixer_nano", 27_626, None) in [(row["model"], row["params"], row["model_kwargs"]) for row in rows]
    (solved,) = (row for row in rows if row["model"] == "bmlp_nano")
    assert solved["params"] == pytest.approx(28_000, rel=0.05) and "dim=" in solved["model_kwargs"]
    assert solved["off_budget_percent"] == pytest.approx(100 * (solved["params"] / 28_000 - 1))
