"""Every probe on a trained run: what it keeps is whole, and the shuffle of a run's pixels belongs to the model."""

import json
import math

import pytest

from analysis import probes
from analysis.bias import probe_runs
from analysis.probes import adversarial, names, universal
from engine.folder import store
from engine.run import make_run
from engine.train import train

NOTHING = {"shape_bias", "first_layer", "tiling"}  # of pictures that these runs have not seen, of flat nets


@pytest.fixture(scope="module")
def folder(tmp_path_factory, digits):
    from engine.run import make_how

    how = make_how({"data_dir": digits, "threads": 1})
    run = make_run({"model": "mixer_nano", "epochs": 4, "batch_size": 64, "lr": 4e-3, "permute": "patches"})
    folder = store.folder_of(run, tmp_path_factory.mktemp("results"))
    train(run, folder, how)
    with pytest.MonkeyPatch.context() as patch:
        for key, fewer in (("steps", 6), ("trials", 3)):  # what an attack finds has tests of its own
            patch.setitem(adversarial.PROTOCOL, key, fewer)
        patch.setitem(universal.PROTOCOL, "steps", 20)
        assert probe_runs.probe(folder, names(), how) == names()
    return folder


def values(folder, name):
    return json.loads((folder / "probes" / f"{name}.json").read_text())["values"]


@pytest.mark.parametrize("name", names())
def test_what_a_probe_keeps_has_units_nulls_and_ends_in_order(folder, name):
    found = values(folder, name)
    assert bool(found) == (name not in NOTHING)
    for key, each in found.items():
        assert probes.unit(name, key) and each["null"] is not None and math.isfinite(each["value"]), key
        assert each["low"] <= each["high"], key
        if probes.unit(name, key) == "%" and key not in ("ece", "ece_width", "ace"):
            assert -1e-9 <= each["value"] <= 100 + 1e-9
    assert not found or any(key in found for key in probes.read(name)["HEADLINE"])


def test_accuracies_without_a_change_are_the_runs(folder):
    acc = store.read_summary(folder)[-1]["eval_top1"]
    assert acc > 40, "it has learned something, so that what follows can fail"
    plain = {name: values(folder, name)["acc"]["value"] for name in names() if "acc" in values(folder, name)}
    assert {"shift", "corruptions", "frequencies", "adversarial", "phase_amplitude"} <= set(plain)
    assert all(each == pytest.approx(acc) for each in plain.values()), plain
    row = store.read_summary(folder)[-1]
    assert values(folder, "calibration")["nll"]["value"] == pytest.approx(row["eval_loss"], rel=1e-3)
