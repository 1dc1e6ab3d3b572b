"""The number of record is the closed form, every other counter's difference from it is explained, memory is a sum."""

import csv
import json
import os
import subprocess
import sys

import pytest
import torch
from torch import library, nn

import archs
from engine.cli import tables
from engine.cost import measure, witnesses
from engine.cost.profile import by_module, count_params, expected_costs, own_shape, profile, saved_bytes, witnessed
from engine.cost.record import FORMULAS, as_formula, matmul, record
from engine.cost.witnesses import Account, accounts, check
from engine.errors import USAGE, Refusal
from tests.archs.test_sizes import CLOSED_FORMS

NAMES = archs.list_archs()
BIG = ["mixer_h14", "resmlp_b24_8", "gmlp_b16", "deit_b16", "deit_b16_mlp01346", "convmixer_w1536_d20"]
NANO = [f"{family}_nano" for family in archs.families()]
CPU = torch.device("cpu")


def small(name: str) -> bool:
    return expected_costs(name)["macs"] < 600e6


# Without a closed form in tests/archs/test_sizes.py, EXPECTED rests on the counters alone.
FORMLESS = [name for name in NAMES if name.partition("_")[0] not in CLOSED_FORMS and small(name) and name not in NANO]


def script(*args: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "scripts.profile_model", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


# --- the number of record


@pytest.mark.parametrize("name", [name for name in NAMES if small(name) or name in BIG])
def test_the_number_of_record_is_the_closed_form(name):
    costs = profile(name, **own_shape(name))
    assert costs == {**expected_costs(name), "flops": 2 * expected_costs(name)["macs"]}


@pytest.mark.parametrize(
    ("model", "shape", "macs"),
    [
        (nn.Linear(6, 5), (2, 3, 6), 2 * 3 * 6 * 5),
        (nn.Conv2d(4, 8, 3, padding="same", groups=2), (2, 4, 7, 7), 2 * 8 * 49 * 9 * 2),
        (nn.ConvTranspose2d(4, 8, 2, stride=2), (1, 4, 5, 5), 4 * 25 * 8 * 4),
        (nn.LayerNorm(6), (2, 6), 0),
    ],
)
def test_record_counts_products_and_convolutions_only(model, shape, macs):
    assert record(model, torch.randn(shape)).macs == macs


def test_record_is_the_same_with_fused_attention_on_a_cpu():
    model = archs.create("deit_nano")
    assert record(model, torch.randn(1, 1, 8, 8)).macs == expected_costs("deit_nano")["macs"]


def test_record_sees_matrix_times_vector_and_deformable_convolutions():
    from torchvision.ops import DeformConv2d

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = DeformConv2d(4, 8, 3, padding=1)

        def forward(self, x):
            x = self.conv(x, torch.zeros(1, 18, 6, 6))
            return x.flatten(1) @ torch.ones(8 * 36)

    found = record(Both(), torch.randn(1, 4, 6, 6))
    assert found.macs == 8 * 36 * 4 * 9 + 8 * 36
    assert found.ours["torchvision::deform_conv2d"] == 8 * 36 * 4 * 9


class Queried(nn.Module):
    """A pooling query: a parameter goes into a module as it is, as in class attention and attention pooling."""

    def __init__(self):
        super().__init__()
        self.query, self.project = nn.Parameter(torch.ones(1, 6)), nn.Linear(6, 5)

    def forward(self, x):
        return self.project(self.query) @ torch.ones(5, 3)


def test_record_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), Queried())
    model.train()[1].eval()
    model[0].bias.requires_grad_(False)
    assert record(model, torch.randn(1, 6)).macs == 6 * 6 + 6 * 5 + 5 * 3
    assert [module.training for module in model] == [True, False, True]
    assert [name for name, weight in model.named_parameters() if not weight.requires_grad] == ["0.bias"]


def test_fourier_transforms_stand_apart():
    class Spectrum(nn.Module):
        def forward(self, x):
            return torch.fft.rfft2(x).real

    found = record(Spectrum(), torch.randn(1, 3, 8, 8))
    assert found.macs == 0 and sum(found.outside.values()) == 3 * 64 * 6 * 5 // 4


def test_activations_are_what_products_put_out():
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    assert record(model, torch.randn(1, 6)).activations == 7


# --- the counters beside it


@pytest.mark.proves("EXPECTED, by torch, fvcore and torchprofile")
@pytest.mark.parametrize("name", [*NANO, *FORMLESS])
def test_every_difference_is_explained(name):
    own = own_shape(name)
    shape = (1, own["in_chans"], own["img_size"], own["img_size"])
    true, found = accounts(lambda: archs.create(name), shape, expected_costs(name)["macs"])
    check(name, true, found)
    assert [account.counter for account in found] == ["torch", "fvcore", "torchprofile", "closed form"]
    assert all(account.unexplained(true.macs) < 1e-4 for account in found)


@pytest.mark.parametrize(
    ("name", "counter", "op"),
    [
        ("convmixer_nano", "fvcore", "aten::_convolution_mode"),
        ("convmixer_nano", "torchprofile", "aten::_convolution_mode"),
        ("deit_nano", "fvcore", "aten::scaled_dot_product_attention"),
    ],
)
def test_what_a_counter_misses_is_named_with_its_macs(name, counter, op):
    own = own_shape(name)
    true, found = accounts(lambda: archs.create(name), (1, 1, own["img_size"], own["img_size"]))
    (account,) = (each for each in found if each.counter == counter)
    given = archs.arguments(name)
    tokens = (given["img_size"] // given["patch_size"]) ** 2
    macs = {
        "aten::_convolution_mode": tokens * given["dim"] * given.get("kernel_size", 0) ** 2 * given["depth"],
        "aten::scaled_dot_product_attention": 2 * (tokens + 1) ** 2 * given["dim"] * given["depth"],
    }[op]
    assert account.missed == {op: macs}
    assert any(line.startswith(f"misses {op}, {macs:,} MACs") for line in account.differences())
    assert account.macs < true.macs


def test_differences_are_computed_for_models_of_others_too():
    costs, found = witnessed("timm/deit_tiny_patch16_224", img_size=32, in_chans=3, num_classes=10)
    assert costs["closed_form_macs"] is None and costs["torch_macs"] == costs["macs"]
    assert any(account.missed for account in found if account.counter == "fvcore")


@library.custom_op("softer_test::product", mutates_args=())
def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x @ weight


@product.register_fake
def _(x, weight):
    return x.new_empty(x.shape[0], weight.shape[1])


class Hidden(nn.Module):
    """A product that no counter can see, after one that all can."""

    def __init__(self):
        super().__init__()
        self.linear, self.weight = nn.Linear(192, 20), nn.Parameter(torch.ones(20, 30))

    def forward(self, x):
        return torch.ops.softer_test.product(self.linear(x.flatten(1)), self.weight)


def test_an_operation_that_nobody_can_count_is_an_error():
    true, found = accounts(Hidden, (1, 3, 8, 8))
    with pytest.raises(Refusal, match=r"^hidden: the MACs of softer_test::product have no formula"):
        check("hidden", true, found)


def test_a_difference_without_a_reason_is_an_error_of_one_line(monkeypatch):
    monkeypatch.setitem(FORMULAS, torch.ops.softer_test.product, as_formula(matmul))
    true, found = accounts(Hidden, (1, 3, 8, 8))
    assert true.macs == 192 * 20 + 20 * 30
    with pytest.raises(Refusal, match=r"fvcore counts 3,840 MACs, the number of record is 4,440, and 13.5 %") as error:
        check("hidden", true, found)
    assert "softer_test::product" in str(error.value) and "\n" not in str(error.value)
    assert error.value.code == witnesses.UNEXPLAINED
    # The reason makes the same difference explained: no model is named anywhere.
    why = {"fvcore": "no handler", "torchprofile": "no handler"}
    monkeypatch.setitem(witnesses.MISSED, "softer_test::product", witnesses.Missed(matmul, why))
    check("hidden", *accounts(Hidden, (1, 3, 8, 8)))


def test_a_closed_form_that_is_off_by_one_is_an_error():
    true, _ = accounts(lambda: archs.create("bmlp_nano"), (1, 1, 8, 8))
    with pytest.raises(Refusal, match="closed form counts 28,561"):
        check("bmlp_nano", true, [Account(counter="closed form", macs=true.macs + 1)])


# --- modules, activations, memory


@pytest.mark.proves("EXPECTED, by torch, fvcore and torchprofile")
@pytest.mark.parametrize("name", NANO)
def test_modules_add_up(name):
    rows = {row["module"]: row for row in by_module(name, 1, **own_shape(name))}
    whole = rows.pop("(all)")
    assert whole["macs"] == expected_costs(name)["macs"] and whole["macs_percent"] == 100
    assert sum(row["macs"] for row in rows.values()) == whole["macs"]


B, N, H, K = 128, 64, 256, 32


@pytest.fixture
def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(N, H), nn.ReLU(), nn.Linear(H, K))


def test_saved_bytes_of_a_small_mlp(mlp):
    """The input for the first weight; the ReLU's output, for itself and the second weight."""
    assert saved_bytes(mlp, torch.randn(B, N)) == 4 * B * (N + H)


def test_peak_memory_of_a_small_mlp(mlp):
    """Inference: the hidden layer before and after its ReLU. Training: the hidden layer, the gradient of it and of what
    came before the ReLU, the gradients of the second layer, the loss and its gradient."""
    x, weights = torch.randn(B, N), 4 * count_params(mlp)
    base = 4 * B * N + weights

    def infer(x):
        with torch.inference_mode():
            mlp(x)

    assert measure.peak_bytes(mlp, x, infer) == base + 4 * 2 * B * H
    peak = measure.peak_bytes(mlp, x, lambda x: mlp(x).sum().backward())
    assert peak == base + 4 * (3 * B * H + H * K + K + 2)
    assert all(parameter.grad is None for parameter in mlp.parameters())


def test_speeds_are_interleaved_and_a_missing_copy_is_no_zero(monkeypatch):
    monkeypatch.setattr(measure, "BLOCK_SECONDS", 1e-4)
    subjects = [
        measure.Subject(name=name, model=archs.create(name), image=(1, 8, 8), device=CPU)
        for name in ("bmlp_nano", "mixer_nano")
    ]
    rows = measure.speeds(subjects, batch_size=4, rounds=3)
    for row in rows:
        assert row["images_per_s_with_copy"] is None and row["batch_size"] == 4
        assert 0 < row["latency_ms_q1"] <= row["latency_ms"] <= row["latency_ms_q3"]
    calls = []
    measure.in_turn([lambda: calls.append("a") or 0.0, lambda: calls.append("b") or 0.0], 2)
    assert calls == ["a", "b", "a", "b"]


def test_best_batch_is_doubled_until_it_gains_nothing(monkeypatch):
    seconds = {1: 1.0, 2: 1.1, 4: 1.2, 8: 2.4, 16: 4.8}
    monkeypatch.setattr(measure, "block", lambda subject, batch: lambda: seconds[batch])
    assert measure.best_batch(None) == 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_copy_and_memory_on_a_gpu():
    subject = measure.Subject(
        name="bmlp_nano", model=archs.create("bmlp_nano").cuda(), image=(1, 8, 8), device=torch.device("cuda")
    )
    (row,) = measure.speeds([subject], batch_size=4, rounds=3)
    assert row["images_per_s_with_copy"] > 0
    assert measure.memory(subject, 4)["train_peak_mb"] > measure.memory(subject, 4)["infer_peak_mb"] > 0


# --- the command line


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
    command = [sys.executable, "-m", "scripts.profile_model", "--sweep", str(sweep), "-b", "2", "--rounds", "2"]
    env = {**os.environ, "SOFTMLP_RESULTS": str(tmp_path / "results")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=env)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((tmp_path / "results/tiny/speeds.csv").open()))
    assert [row["model"] for row in rows] == ["mixer_nano dim=16", "bmlp_nano"]
    wide = profile("mixer_nano", img_size=8, in_chans=1, num_classes=10, dim=16)["macs"]
    assert [int(row["macs"]) for row in rows] == [wide, 28_560]
    assert all(float(row["latency_ms"]) > 0 for row in rows)


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
