"""The self-test finds the known order where it is, and says so where it is not."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from analysis.bias import dsd
from analysis.bias.dsd import KINDS, QUICK, Networks, best_accuracy, compare, needs

RESULT = Path(__file__).resolve().parents[2] / "results" / "dsd.json"


@pytest.fixture(scope="module")
def quick():
    return dsd.measure(QUICK)


def test_the_laboratory_recovers_the_known_order(quick):
    (task,) = quick["tasks"]
    assert quick["passed"] and task["passed"]
    need = {kind: task["images"][kind] for kind in KINDS}
    assert need["shared"]["value"] < need["unshared"]["value"] < need["dense"]["value"]
    for name, ratio in task["ratios"].items():
        assert 1 < ratio["low"] < ratio["value"] < ratio["high"], name
    # Theory, up to logarithms: k times as many without sharing.
    assert task["ratios"]["unshared/shared"]["low"] < task["patches"] < 2 * task["ratios"]["unshared/shared"]["high"]
    # No network beats the likelihood ratio: 2000 test images x 5 seeds, five standard errors.
    assert max(max(curve) for curve in task["accuracy"].values()) < task["best"] + 5 * 0.2 / 10_000**0.5


def test_results_repeat_to_the_bit(quick):
    rows = dsd.accuracies("shared", 8, QUICK)
    assert [round(float(value), 4) for value in rows.mean(1)] == quick["tasks"][0]["accuracy"]["shared"]


def test_one_patch_has_no_order_to_recover():
    """There the three are one network: the same weights, images and steps, and so the same curve."""
    found = dsd.measure(replace(QUICK, patches=(1,), sizes=(8, 16, 32), steps=50, seeds=3))
    (task,) = found["tasks"]
    assert (
        not found["passed"] and task["accuracy"]["shared"] == task["accuracy"]["unshared"] == task["accuracy"]["dense"]
    )


def test_a_wrong_or_uncertain_order_does_not_pass():
    right = {
        "shared": np.array([4.0, 4.2, 4.1]),
        "unshared": np.array([6.0, 6.3, 6.0]),
        "dense": np.array([8.0, 8.1, 8.4]),
    }
    assert compare(right, (16, 512))["passed"]
    wrong = {**right, "unshared": right["dense"], "dense": right["unshared"]}
    assert not compare(wrong, (16, 512))["passed"]
    noisy = {**right, "dense": right["unshared"] + np.array([2.0, -1.0, 0.5])}
    found = compare(noisy, (16, 512))
    assert not found["passed"] and found["ratios"]["unshared/shared"]["passed"]
    assert not compare({**right, "unshared": right["shared"] + 1}, (16, 512))["ratios"]["unshared/shared"]["passed"]


def test_ratios_are_geometric_means():
    need = {"shared": np.array([4.0, 6.0]), "unshared": np.array([5.0, 7.5]), "dense": np.array([9.0, 9.0])}
    found = compare(need, (16, 512))
    assert found["images"]["shared"]["value"] == 32 and found["images"]["dense"]["never"] == 2
    assert [found["ratios"][pair]["at_least"] for pair in ("unshared/shared", "dense/unshared")] == [False, True]
    assert found["ratios"]["unshared/shared"]["value"] == pytest.approx(2**1.25, abs=1e-3)
    half = 12.706 * 0.25  # Student's t with one degree of freedom x standard error of (1, 1.5)
    assert found["ratios"]["unshared/shared"]["high"] == pytest.approx(2 ** (1.25 + half), rel=1e-3)


def test_need_is_read_off_the_curve():
    sizes = (16, 64, 256)
    curves = np.array([[0.5, 0.9, 0.5, 0.6], [0.7, 0.9, 0.6, 0.8], [0.9, 0.9, 0.7, 0.7]])
    assert needs(curves, sizes, 0.8) == pytest.approx([7.0, 4.0, 8.0, 6.0])


@pytest.mark.parametrize("patches", [1, 2])
def test_best_accuracy_is_that_of_the_likelihood_ratio(patches):
    """One patch: Phi(1 / noise). Two: the larger projection by size decides, which integration gives."""
    plan = replace(QUICK, noise=0.8)
    z = torch.linspace(-6, 7, 1301, dtype=torch.float64)
    if patches == 1:
        expected = 0.5 * (1 + math.erf(1 / 0.8 / 2**0.5))
    else:
        density = torch.exp(-0.5 * ((z[:, None] - torch.tensor([1.0, 0.0])) / 0.8) ** 2)
        density /= density.sum(0)
        # log (e^a + e^b) > log (e^-a + e^-b) just where a + b > 0.
        expected = (density[:, :1] * density[:, 1] * ((z[:, None] + z) > 0)).sum().item()
    assert best_accuracy(patches, plan) == pytest.approx(expected, abs=4 * 0.5 / 100_000**0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_networks_are_the_papers(kind):
    """Unit by unit, seed by seed; and one seed's loss moves no other seed's weights."""
    model = Networks(kind, 2, 3, 4, torch.Generator().manual_seed(0)).double()
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data.add_(torch.rand_like(parameter))
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    logits = model(x)
    for seed in range(2):
        filters, threshold = model.weight[seed], model.threshold[seed]
        for image in range(5):
            patches = x[seed, image]
            if kind == "dense":
                z = [filters[unit] @ patches.flatten() for unit in range(3)]
            else:
                z = [filters[0 if kind == "shared" else place] @ patches[place] for place in range(3)]
            soft = [max(each - threshold, 0) - max(-each - threshold, 0) for each in z]
            score = model.scale[seed] * sum(soft) + model.offset[seed]
            assert (logits[seed, image, 1] - logits[seed, image, 0]).item() == pytest.approx(score.item())
    logits[0, :, 1].sum().backward()
    assert model.weight.grad[0].any() and not any(parameter.grad[1].any() for parameter in model.parameters())


def test_images_carry_one_signal_each():
    x, y = dsd._images(0, 4, replace(QUICK, noise=1e-6, sizes=(40,), test_images=10))
    norms = x.norm(dim=2)
    assert x.shape == (50, 4, 16) and ((norms - 1).abs() < 1e-4).sum(1).tolist() == [1] * 50
    assert set(norms.argmax(1).tolist()) == {0, 1, 2, 3}
    signed = x.sum(1) * (2 * y - 1)[:, None]
    assert torch.allclose(signed, signed[:1].expand_as(signed), atol=1e-4)


def test_script_reports_and_fails_where_the_order_is_not_recovered(tmp_path):
    code = (
        "import sys; from dataclasses import replace; from analysis.bias import dsd; from scripts import selftest\n"
        f"sys.argv = ['selftest', '--results-file', {str(tmp_path / 'd.json')!r}]\n"
        "dsd.QUICK = replace(dsd.QUICK, patches=(1,), sizes=(8, 16), steps=5, seeds=2)\nselftest.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "FAILED: do not trust" in done.stdout and "NOT recovered" in done.stdout
    assert json.loads((tmp_path / "d.json").read_text())["passed"] is False


def test_the_committed_result_is_of_the_full_plan():
    found = json.loads(RESULT.read_text())
    assert found["passed"] is all(task["passed"] for task in found["tasks"])
    assert found["plan"] == json.loads(json.dumps(dsd.asdict(dsd.FULL)))
