"""The contract that every name of the zoo keeps. Exceptions are declared in the family, never here."""

import copy
import fnmatch
import re
from collections.abc import Callable
from functools import partial

import pytest
import torch
from timm.layers import DropPath
from timm.optim import create_optimizer_v2
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

import archs
from analysis.probes.receptive_field import randomise
from archs.parts.backbone import Backbone
from archs.parts.family import Source, read
from archs.parts.layers import Residual

NAMES = archs.list_archs()
NANO = [f"{family}_nano" for family in archs.families()]


def source_of(name: str) -> Source:
    return read(name.partition("_")[0])


def expected_of(name: str) -> dict[str, int]:
    return source_of(name).tables["EXPECTED"][name.partition("_")[2]]


SMALL = [name for name in NAMES if expected_of(name)["params"] < 300_000]
DROPPING = [name for name in NANO if "drop_path" in source_of(name).arguments]
SQUARE = [name for name in NANO if source_of(name).tables.get("SQUARE_IMAGES")]


def images_of(name: str, batch: int = 2, img_size: int | None = None, in_chans: int | None = None) -> torch.Tensor:
    own = archs.arguments(name)
    size = img_size or own["img_size"]
    shape = (batch, in_chans or own.get("in_chans", 3), size, size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


# --- the contract


@pytest.mark.proves("images of other sizes, channels and classes; arguments refused in one line")
@pytest.mark.parametrize("name", SMALL)
def test_logits_and_features_have_their_shapes(name):
    model = archs.create(name).eval()
    own = archs.arguments(name)
    assert model(images_of(name)).shape == (2, own["num_classes"])
    assert isinstance(model, Backbone)
    features = model.features(images_of(name))
    side = own["img_size"] // own.get("patch_size", own["img_size"])
    # A pyramid halves its grid; a trunk on concatenated patches has one token.
    assert features.shape[1] == features.shape[2] and features.shape[1] in {side, side // 2, 1}
    assert len(features) == 2 and features.shape[3] == model.head.in_features


@pytest.mark.proves("images of other sizes, channels and classes; arguments refused in one line")
@pytest.mark.parametrize("name", NANO)
@pytest.mark.parametrize("in_chans", [1, 3])
def test_other_channels_classes_and_size(name, in_chans):
    size = archs.arguments(name)["img_size"] // 2
    model = archs.create(name, in_chans=in_chans, num_classes=7, img_size=size).eval()
    assert model(images_of(name, img_size=size, in_chans=in_chans)).shape == (2, 7)


@pytest.mark.proves("images of other sizes, channels and classes; arguments refused in one line")
@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith(("_1m", "_5m"))])
def test_rungs_run_at_64_px_too(name):
    """With the family's own AT_64_PX where its arguments for 32 px do not fit; on the meta device, but for two."""
    given = {"img_size": 64, **source_of(name).tables.get("AT_64_PX", {})}
    with torch.device("meta"):
        logits = archs.create(name, **given)(torch.empty(2, 3, 64, 64))
    assert logits.shape == (2, 10)
    if name.endswith("_1m"):
        assert archs.create(name, **given).eval()(images_of(name, batch=1, img_size=64)).isfinite().all()


@pytest.mark.proves("images of other sizes, channels and classes; arguments refused in one line")
@pytest.mark.parametrize("name", [name for name in NANO if name not in SQUARE])
def test_images_need_not_be_square(name):
    size = archs.arguments(name)["img_size"]
    model = archs.create(name, img_size=(size, size // 2)).eval()
    assert model(torch.randn(2, 1, size, size // 2)).shape == (2, 10)


@pytest.mark.proves("images of other sizes, channels and classes; arguments refused in one line")
@pytest.mark.parametrize("name", SQUARE)
def test_family_of_square_images_says_so(name):
    with pytest.raises(ValueError, match="must be square, it is 4 x 2 tokens; give a square img_size"):
        archs.create(name, img_size=(8, 4))


@pytest.mark.proves("a gradient for every parameter but INERT")
@pytest.mark.parametrize("name", SMALL)
def test_gradient_reaches_every_parameter_but_the_inert(name):
    model = randomise(archs.create(name)).double().eval()
    logits = model(images_of(name).double())
    logits.square().sum().backward()
    norms = {key: parameter.grad.norm().item() for key, parameter in model.named_parameters()}
    inert = source_of(name).tables.get("INERT", ())
    largest = max(norms.values())
    for key, norm in norms.items():
        if any(fnmatch.fnmatch(key, pattern) for pattern in inert):
            assert norm < 1e-12 * largest, f"{key} is declared inert, yet its gradient is {norm / largest:.0e}"
        else:
            assert norm > 1e-9 * largest, f"{key} gets no gradient"
    for pattern in inert:
        assert fnmatch.filter(norms, pattern), f"INERT names nothing: {pattern}"


@pytest.mark.proves("images of other sizes, channels and classes; arguments refused in one line")
@pytest.mark.parametrize("name", NANO)
def test_unknown_argument_names_the_nearest(name):
    with pytest.raises(ValueError, match="no argument 'depht'; did you mean 'depth'"):
        archs.create(name, depht=3)


def test_unknown_name_names_the_nearest():
    with pytest.raises(ValueError, match=re.escape("mixer_s16")):
        archs.create("mixer_s61")


@pytest.mark.proves("images of other sizes, channels and classes; arguments refused in one line")
@pytest.mark.parametrize("name", [name for name in NANO if "patch_size" in archs.arguments(name)])
def test_image_that_patches_do_not_tile_names_the_nearest(name):
    patch = archs.arguments(name)["patch_size"]
    said = f"img_size 9 is not a multiple of patch_size {patch}; nearest: {9 - 9 % patch}, {9 - 9 % patch + patch}"
    with pytest.raises(ValueError, match=said):
        archs.create(name, img_size=9)


@pytest.mark.proves("images of other sizes, channels and classes; arguments refused in one line")
@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("deit_nano", {"num_heads": 3}, "dim 32 is not a multiple of num_heads 3"),
        ("deit_nano", {"mlp_layers": [2]}, "blocks 0 to 1"),
        ("deit_nano", {"global_pool": "max"}, "known: token, avg"),
        ("convmixer_nano", {"act": "silu"}, "known: gelu, relu"),
        ("patchmlp_nano", {"dim": 50}, "nearest: 48, 64"),
        ("vip_nano", {"dim": [30]}, "dim 30 is not a multiple of the grid's side, 4 tokens; nearest: 28, 32"),
        ("vip_nano", {"dim": [12, 24], "depth": [1, 1], "img_size": 6}, "grid of 3 x 3 tokens cannot be halved"),
        ("vip_nano", {"dim": [32, 64]}, "dim has 2 stages, depth has 1"),
        ("cyclemlp_nano", {"skeleton": "conv"}, "known: overlap, patch, swin"),
        ("cyclemlp_nano", {"steps": 4}, "must be odd"),
        ("cyclemlp_nano", {"dim": [16, 30]}, "not a multiple of 4"),
        ("cyclemlp_nano", {"mlp_ratio": [4.0]}, "dim has 2 stages, depth 2, mlp_ratio 1"),
        ("cyclemlp_nano", {"skeleton": "swin", "img_size": 10}, "grid of 5 x 5 tokens cannot be halved 1 times"),
        ("poolformer_nano", {"pool_size": 2}, "must be odd"),
        ("lattice_nano", {"mixer": "kernel", "kernel_size": 2}, "must be odd"),
        ("s2mlp_nano", {"dim": 30}, "not a multiple of 4"),
        ("mlp_nano", {"layer": "relu"}, "known: norm_gelu_linear, linear_relu, linear_relu_norm"),
        ("mlp_nano", {"dim": [8, 8]}, "dim has 2 widths, depth is 3"),
        ("mlp_six", {"skips": [2]}, "layer 2 has no input as wide as its output"),
    ],
)
def test_wrong_value_is_a_value_error(name, given, message):
    with pytest.raises(ValueError, match=message):
        archs.create(name, **given)


@pytest.mark.proves("one function under autocast, any layout and batch, compile, export and DDP")
@pytest.mark.parametrize("name", SMALL)
def test_bfloat16_autocast_runs_and_is_finite(name):
    model = archs.create(name)
    with torch.autocast("cpu", torch.bfloat16):
        loss = nn.functional.cross_entropy(model(images_of(name)), torch.zeros(2, dtype=torch.long))
    loss.backward()
    assert loss.isfinite() and all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.proves("one function under autocast, any layout and batch, compile, export and DDP")
@pytest.mark.parametrize("name", SMALL)
def test_the_residual_stream_keeps_the_images_dtype_under_autocast(name):
    """At the entrance of each block and of the norm behind the last one, and at both ends of each residual."""
    model, seen = archs.create(name), []
    for block in [*model.blocks(), model.norm]:
        block.register_forward_pre_hook(lambda _, given: seen.append(given[0].dtype))
    for module in model.modules():
        if isinstance(module, Residual):
            module.register_forward_hook(lambda _, given, out: seen.extend((given[0].dtype, out.dtype)))
    for dtype in (torch.float32, torch.float64):
        seen.clear()
        x = images_of(name).to(dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
            logits = model.to(dtype)(x)
        assert set(seen) == {dtype} and len(seen) > len(model.blocks())
        assert logits.dtype == (torch.bfloat16 if dtype == torch.float32 else dtype), "autocast did its work"


@pytest.mark.proves("one function under autocast, any layout and batch, compile, export and DDP")
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("opt", ["sgd", "adamw"])
def test_a_step_in_channels_last_is_the_same_step(name, opt):
    """`to(memory_format=torch.channels_last)` restrides every weight of four axes, not those of convolutions only."""
    plain = randomise(archs.create(name)).double()
    converted = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    x = images_of(name).double()
    for model in (plain, converted):
        optimizer = create_optimizer_v2(model, opt, lr=0.01)
        for _ in range(2):
            loss = model(x.contiguous(memory_format=torch.channels_last)).square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for key, weight in plain.state_dict().items():
        torch.testing.assert_close(converted.state_dict()[key], weight, rtol=1e-6, atol=1e-9, msg=key)


@pytest.mark.proves("one function under autocast, any layout and batch, compile, export and DDP")
@pytest.mark.parametrize("name", SMALL)
def test_batches_of_any_size_and_layout_give_the_same_logits(name):
    model, x = randomise(archs.create(name)).eval(), images_of(name, batch=5)
    logits = model(x)
    close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-5)
    for part in (slice(0, 1), slice(1, 4)):
        close(model(x[part]), logits[part])
    close(model(x.contiguous(memory_format=torch.channels_last)), logits)
    wider = torch.stack([x, x + 1], -1)
    close(model(wider[..., 0]), logits)


@pytest.mark.proves("one function under autocast, any layout and batch, compile, export and DDP")
@pytest.mark.parametrize("name", NANO)
def test_compiles_into_one_graph(name):
    """The graph of forward and backward, run by PyTorch's own operators; `inductor` is tested once, below."""
    torch._dynamo.reset()
    model, x = randomise(archs.create(name)).double(), images_of(name).double()
    eager = _gradients(model, x)
    compiled = _gradients(torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=False), x, model)
    for key, gradient in eager.items():
        torch.testing.assert_close(compiled[key], gradient, rtol=1e-9, atol=1e-9, msg=key)


def test_inductor_compiles_a_model():
    """One model and evaluation only, because every kernel costs a C++ compiler's seconds."""
    model, x = randomise(archs.create("bmlp_nano", depth=1)).eval(), images_of("bmlp_nano")
    with torch.no_grad():
        compiled = torch.compile(model, backend="inductor", fullgraph=True, dynamic=False)(x)
        torch.testing.assert_close(compiled, model(x), rtol=1e-4, atol=1e-5)


def _gradients(call: Callable, x: torch.Tensor, model: nn.Module | None = None) -> dict[str, torch.Tensor]:
    """The gradient of each parameter, from fresh."""
    model = call if model is None else model
    model.zero_grad()
    call(x).square().sum().backward()
    return {key: parameter.grad.clone() for key, parameter in model.named_parameters()}


@pytest.mark.proves("one function under autocast, any layout and batch, compile, export and DDP")
@pytest.mark.parametrize("name", NANO)
def test_exports_as_one_program(name):
    model, x = randomise(archs.create(name)).eval(), images_of(name)
    program = torch.export.export(model, (x,))
    torch.testing.assert_close(program.module()(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def one_process():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.proves("one function under autocast, any layout and batch, compile, export and DDP")
@pytest.mark.parametrize("name", NANO)
def test_gradients_under_ddp_are_those_of_one_process(name, one_process):
    """Without `find_unused_parameters`: every parameter takes part in every step."""
    model, x = randomise(archs.create(name)).double(), images_of(name).double()
    alone = _gradients(model, x)
    replica = DistributedDataParallel(model)
    for _ in range(2):  # the second step fails if the first left a parameter unused
        together = _gradients(replica, x, model)
    # BatchNorm's running statistics move between the steps, its gradients in training do not.
    for key, gradient in alone.items():
        torch.testing.assert_close(together[key], gradient, rtol=1e-9, atol=1e-9, msg=key)


@pytest.mark.proves("one function under autocast, any layout and batch, compile, export and DDP")
@pytest.mark.parametrize("name", SMALL)
def test_evaluation_is_deterministic(name):
    given = {"drop_path": 0.5} if name in DROPPING else {}
    model, x = randomise(archs.create(name, **given)).eval(), images_of(name)
    assert torch.equal(model(x), model(x))
    assert torch.allclose(model(x)[:1], model(x[:1]), rtol=1e-4, atol=1e-5), "images of a batch see each other"


@pytest.mark.proves("DROP_PATH, its schedule and effect")
@pytest.mark.parametrize("name", DROPPING)
def test_drop_path_takes_effect_in_training_only(name):
    x = images_of(name, batch=16)
    with_drop, without = randomise(archs.create(name, drop_path=0.5)), randomise(archs.create(name))
    assert not torch.equal(with_drop.train()(x), with_drop.train()(x))
    assert torch.equal(without.train()(x), without.train()(x))
    with_drop.load_state_dict(without.state_dict())
    assert torch.equal(with_drop.eval()(x), without.eval()(x))


@pytest.mark.proves("DROP_PATH, its schedule and effect")
@pytest.mark.parametrize("name", DROPPING)
def test_drop_path_is_the_schedule_that_the_family_declares(name):
    """DROP_PATH is "ramp", linear from 0 over all blocks of all stages, or "constant"."""
    blocks = archs.create(name, drop_path=0.3).blocks()
    # A transition between two grids has no residual, so nothing to drop.
    blocks = [block for block in blocks if any(isinstance(module, Residual) for module in block.modules())]
    rates = [{m.drop_prob for m in block.modules() if isinstance(m, DropPath)} for block in blocks]
    last = len(rates) - 1
    expected = {"ramp": [0.3 * i / max(last, 1) for i in range(last + 1)], "constant": [0.3] * (last + 1)}
    assert last > 0 and all(len(rate) <= 1 for rate in rates)
    assert [sum(rate) for rate in rates] == pytest.approx(expected[source_of(name).tables["DROP_PATH"]])


def test_convmixer_keeps_one_memory_layout():
    """BHWC is channels_last seen from BCHW, so convolutions between permutes copy nothing."""
    model = archs.create("convmixer_nano").eval()
    seen = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(
                lambda _, given, out: seen.extend(
                    tensor.is_contiguous(memory_format=torch.channels_last) for tensor in (given[0], out)
                )
            )
    features = model.features(images_of("convmixer_nano"))
    assert len(seen) == 12 and all(seen) and features.is_contiguous()


@pytest.mark.parametrize(("name", "modules"), [("mlp_six", 3), ("mlp_twelve", 4)])
def test_rank_pruning_layers_of_one_width_share_a_batchnorm(name, modules):
    with torch.device("meta"):
        model = archs.create(name)
    uses = sum(isinstance(m, nn.BatchNorm2d) for _, m in model.named_modules(remove_duplicate=False))
    assert (sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()), uses) == (
        modules,
        archs.arguments(name)["depth"],
    )


def test_deit_spares_its_embeddings_from_weight_decay():
    model = archs.create("deit_nano")
    assert model.no_weight_decay() <= dict(model.named_parameters()).keys()


# --- timm


def test_timm_models_are_rungs_too():
    model = archs.create("timm/resnet10t", img_size=32, num_classes=7, in_chans=1).eval()
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 7)
    with pytest.raises(ValueError, match="close: timm/resnet10t"):
        archs.create("timm/resnet10tt")
    with pytest.raises(ValueError, match="nonsense"):
        archs.create("timm/resnet10t", img_size=32, nonsense=1)
