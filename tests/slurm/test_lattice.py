"""The study of the lattice as it was written down: its runs, its claims, and what it does while rates are missing."""

import json
import os
import re
import subprocess
import sys

import pandas as pd
import pytest

from engine.errors import USAGE, Refusal
from engine.fields import claims
from slurm.define.asked import examples
from slurm.define.load import SWEEPS, load
from slurm.sweeps import lattice, lattice_frame, lattice_old

RESULTS = SWEEPS.parents[1] / "results"
RUNGS = (*lattice.RUNGS.values(), *lattice_frame.RUNGS.values(), *lattice_old.RUNGS.values())
RATES = {rung: round(0.004 + 0.0005 * place, 4) for place, rung in enumerate(RUNGS)}
STUDIES = {
    "lattice": (184, {"cube": 7, "edges": 12, "pairs": 10}),
    "lattice_gap": (48, {"gap": 7}),
    "lattice_patches": (36, {"lost": 6, "gap": 7}),
    "lattice_frame": (48, {"cube": 7, "frames": 7}),
    "lattice_length": (24, {"length": 3}),
    "lattice_old": (30, {"old step": 9}),
}
TUNING = {"lattice_lr": 97, "lattice_old_lr": 21, "lattice_frame_lr": 24}


@pytest.fixture
def tuned(tmp_path, monkeypatch):
    """Load a study as if its rates were there, another one for each rung."""
    monkeypatch.setattr(lattice, "LR", RATES)

    def read(name, more=""):
        path = tmp_path / f"{name}.py"
        path.write_text((SWEEPS / f"{name}.py").read_text() + f"\n\nLR = {RATES!r}\n{more}")
        return load(str(path))

    return read


@pytest.mark.parametrize("name", STUDIES)
def test_every_claim_of_a_study_is_clean(tuned, name):
    """`load` refuses one that is not; here that each says so, and that only a rate differs beside."""
    sweep = tuned(name)
    count, families = STUDIES[name]
    assert len(sweep.runs) == count and {key: len(own.contrasts) for key, own in sweep.families.items()} == families
    known = examples(sweep.runs)
    for family in sweep.families.values():
        for contrast in family.contrasts.values():
            assert contrast.of
            named = {word for axis in contrast.of for word in axis.split("+")}
            if len(contrast.weights) == 2:
                one, other = (known[rung] for rung in contrast.weights)
                assert {item.what for item in claims.difference(one, other)} - {"lr"} == named


@pytest.mark.parametrize("name", TUNING)
def test_rates_are_tuned_on_held_out_images_by_other_seeds_at_full_length(tuned, name):
    tuning, study = load(name), tuned(name.removesuffix("_lr"))
    assert len(tuning.runs) == TUNING[name] and {run.holdout for run in tuning.runs} == {0.1}
    assert not {run.seed for run in tuning.runs} & {run.seed for run in study.runs}
    assert {run.rung for run in tuning.runs} <= {run.rung for run in study.runs}
    (same,) = {run.but(holdout=0, seed=0, lr=1, model_kwargs={}).signature for run in tuning.runs}
    assert same in {run.but(seed=0, lr=1, model_kwargs={}).signature for run in study.runs}


def test_studies_share_the_runs_of_the_first(tuned):
    first = {run.signature for run in tuned("lattice").runs}
    for name, new in (("lattice_gap", 24), ("lattice_patches", 18), ("lattice_frame", 24), ("lattice_length", 16)):
        assert len({run.signature for run in tuned(name).runs} - first) == new, name


def test_stages_add_the_seeds_that_the_rule_names(tuned):
    assert len(tuned("lattice", "STAGE = 2\n").runs) == 160
    third = tuned("lattice", "STAGE = 3\n")
    assert len(third.runs) == 184 and max(run.seed for run in third.runs) == 10


def test_recipe_is_what_the_study_says(tuned):
    (run,) = {run.but(seed=0, lr=1, model_kwargs={}) for run in tuned("lattice").runs}
    said = {"dataset": "cifar10", "epochs": 10, "batch_size": 128, "opt": "adamw", "opt_betas": [0.9, 0.95]}
    said |= {"weight_decay": 0.05, "sched": "cosine", "min_lr": 0, "warmup_epochs": 0.5, "crop_pad": 4, "hflip": 0.5}
    said |= {"clip_grad": 10, "amp": True, "amp_dtype": "bfloat16", "train_samples": None, "holdout": 0}
    said |= {"drop_path": 0, "model_ema": False, "mixup": 0, "cutmix": 0, "smoothing": 0}
    assert {key: run.record()[key] for key in said} == said


def test_the_old_step_has_the_recipe_of_the_ladder(tuned):
    """Every field that the committed table of the ladder has, as text; a later field has its default."""
    old = tuned("lattice_old").runs[0].record()
    ladder = pd.read_csv(RESULTS / "ladder/runs.csv", dtype=str, keep_default_na=False).iloc[0]
    own = {"model", "model_kwargs", "lr", "seed", "scheme"}
    shared = [key for key in old if key in ladder and key not in own]
    assert len(shared) > 40
    told = {key: json.dumps(old[key]) if isinstance(old[key], list) else str(old[key]) for key in shared}
    assert {key: text.replace("None", "") for key, text in told.items()} == {key: ladder[key] for key in shared}


def test_effects_of_the_cube_recover_what_was_put_in():
    """Cells made of known effects: each contrast gives back its own and nothing of the others."""
    size = {"reach": 1.0, "places": 2.0, "channels": 4.0, "reach x places": 8.0, "reach x channels": 16.0}
    size |= {"places x channels": 32.0, "reach x places x channels": 64.0}
    level = {}
    for levels, cell in lattice.CUBE.items():
        level[lattice.RUNGS[cell]] = 0.0
        for name, effect in size.items():
            axes = name.split(" x ")
            coded = 1.0
            for axis in axes:
                coded *= 0.5 if levels[lattice.AXES.index(axis)] else -0.5
            level[lattice.RUNGS[cell]] += effect * coded
    for name, contrast in lattice.cube().items():
        assert sum(weight * level[rung] for rung, weight in contrast.weights.items()) == pytest.approx(size[name])


@pytest.mark.parametrize("before, after, axis, words", [
    ("dense", "kernel", "reach", r"differs in reach \(all to window\(3\)\), places \(own to displacement\)"),
    ("kernel", "depthwise", "reach", r"differs in channels \(one to each\)"),
    ("dense", "attention", "content", r"differs in places .*, projected .*, rows .*, content"),
    ("dense", "token_mlp", "act", "differs in form .*, act"),
])  # fmt: skip
def test_a_claim_that_is_not_clean_is_refused_with_what_differs(tuned, before, after, axis, words):
    claim = f"FAMILIES = {{'x': Family({{'y': pair({before!r}, {after!r}, {axis!r})}}, margin=1.0)}}\n"
    with pytest.raises(Refusal, match=f"FAMILIES 'x', 'y': it claims {axis}, but .*{words}"):
        tuned("lattice", claim)


@pytest.mark.parametrize("command", ["plan", "launch"])
def test_a_study_without_rates_says_what_to_launch(tmp_path, command):
    path = tmp_path / "lattice.py"
    path.write_text((SWEEPS / "lattice.py").read_text() + "\n\nLR = {}\n")
    words = [sys.executable, "scripts/sweep.py", command, path]
    done = subprocess.run(words, cwd=SWEEPS.parents[1], capture_output=True, text=True, timeout=120)
    assert done.returncode == USAGE and done.stderr.count("\n") == 1 and not done.stdout
    assert "no learning rate for lattice_s" in done.stderr and "python scripts/rates.py lattice_lr" in done.stderr


def test_plan_shows_what_each_side_of_a_claim_differs_in(tuned, tmp_path):
    tuned("lattice")
    words = [sys.executable, "scripts/sweep.py", "plan", tmp_path / "lattice.py"]
    options = {"capture_output": True, "text": True, "timeout": 300, "env": {**os.environ, "COLUMNS": "400"}}
    done = subprocess.run(words, cwd=SWEEPS.parents[1], **options)
    assert done.returncode == 0, done.stderr
    (row,) = [line for line in done.stdout.splitlines() if "kernel to scrambled" in line]
    assert re.search(r"pairs, ± 1 +geometry +geometry true to scrambled, lr \S+ to \S+", row)
