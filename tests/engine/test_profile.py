"""The number of record is the closed form, every other counter's difference from it is explained, memory is a sum."""

import pytest
import torch
from torch import library, nn

import archs
from engine.cost import measure, witnesses
from engine.cost.profile import by_module, count_params, expected_costs, own_shape, profile, saved_bytes, witnessed
from engine.cost.record import FORMULAS, as_formula, matmul, record
from engine.cost.witnesses import Account, accounts, check
from engine.errors import Refusal
from tests.archs.test_sizes import CLOSED_FORMS

NAMES = archs.list_archs()
BIG = ["mixer_h14", "resmlp_b24_8", "gmlp_b16", "deit_b16", "deit_b16_mlp01346", "convmixer_w1536_d20"]
NANO = [f"{family}_nano" for family in archs.families()]
CPU = torch.device("cpu")


def small(name: str) -> bool:
    return expected_costs(name)["macs"] < 600e6


# Without a closed form in tests/archs/test_sizes.py, EXPECTED rests on the counters alone.
FORMLESS = [name for name in NAMES if name.partition("_")[0] not in CLOSED_FORMS and small(name) and name not in NANO]


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
