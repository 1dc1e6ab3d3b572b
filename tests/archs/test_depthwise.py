"""The depthwise convolution that trains by a kernel of its own: its numbers, and where it is PyTorch's."""

import copy

import pytest
import torch
from timm.models import get_notrace_modules
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

import archs
from archs.kernels import depthwise, weight_gradient
from archs.kernels.depthwise import DepthwiseConv2d

SHAPE = (8, 40, 24, 24)  # 4.6 million products for 5 x 5; 40 channels are two vectors and a half


def relative(found, expected):
    return ((found.double() - expected).norm() / expected.norm()).item()


def pair(kernel_size=5, dim=40, dtype=torch.float32):
    torch.manual_seed(0)
    ours = DepthwiseConv2d(dim, kernel_size).to(dtype)
    plain = nn.Conv2d(dim, dim, kernel_size, groups=dim, padding="same").to(dtype)
    plain.load_state_dict(ours.state_dict())
    return ours, plain


def images(shape=SHAPE, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)


def gradients(layer, x_BCHW, amp=False):
    """What comes out, and the gradients of images, weights and bias of a sum that weighs every place differently."""
    layer.zero_grad()
    x_BCHW = x_BCHW.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        y_BCHW = layer(x_BCHW)
    y_BCHW.backward(torch.linspace(-1, 2, y_BCHW.numel()).reshape(y_BCHW.shape).sin().to(y_BCHW.dtype))
    return y_BCHW.detach(), x_BCHW.grad, layer.weight.grad, layer.bias.grad


@pytest.fixture
def calls(monkeypatch):
    """A list that grows with each call of our kernel."""
    seen, real = [], weight_gradient.weight_gradient
    monkeypatch.setattr(weight_gradient, "weight_gradient", lambda *given: seen.append(given) or real(*given))
    return seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("shape", "kernel_size"),
    [((3, 8, 8, 32), 3), ((2, 5, 7, 19), 5), ((2, 16, 16, 40), 9), ((2, 3, 70, 16), 5), ((4, 1, 1, 17), 7)],
)
def test_the_kernel_equals_float64(shape, kernel_size, dtype):
    """Sums are float32 whatever goes in, so bfloat16 loses nothing; shapes leave over channels, rows and columns."""
    torch.manual_seed(0)
    x, g = (torch.randn(shape).to(dtype) for _ in range(2))
    x_BCHW, g_BCHW = (tensor.double().permute(0, 3, 1, 2) for tensor in (x, g))
    weight = torch.zeros(shape[3], 1, kernel_size, kernel_size, dtype=torch.float64, requires_grad=True)
    y_BCHW = functional.conv2d(x_BCHW, weight, padding="same", groups=shape[3])
    (expected,) = torch.autograd.grad(y_BCHW, weight, g_BCHW)
    for_weight, for_bias = weight_gradient.weight_gradient(x, g, kernel_size)
    assert for_weight.dtype == for_bias.dtype == torch.float32
    assert relative(for_weight, expected) < 1e-6 and relative(for_bias, g_BCHW.sum((0, 2, 3))) < 1e-6


def test_sums_over_many_places_keep_their_digits():
    """Of numbers of one sign: 262,144 terms, of which a single float32 would lose a thousandth."""
    x, g = torch.rand(64, 64, 64, 16), torch.rand(64, 64, 64, 16)
    for_weight, for_bias = weight_gradient.weight_gradient(x, g, 5)
    assert relative(for_weight[:, 0, 2, 2], (x.double() * g.double()).sum((0, 1, 2))) < 1e-5
    assert relative(for_bias, g.double().sum((0, 1, 2))) < 1e-5


def test_threads_change_no_bit():
    x, g = torch.randn(3, 9, 10, 83), torch.randn(3, 9, 10, 83)
    one = weight_gradient.weight_gradient(x, g, 5)
    for threads in (2, 3, 16):
        assert all(map(torch.equal, one, weight_gradient.weight_gradient(x, g, 5, threads)))


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("kernel_size", [5, 7, 9])
def test_training_equals_a_plain_convolution_in_float64(kernel_size, channels_last, calls):
    ours, plain = pair(kernel_size)
    x = images().contiguous(memory_format=torch.channels_last) if channels_last else images()
    found, same = gradients(ours, x), gradients(plain, x)
    expected = gradients(plain.double(), x.double())
    assert len(calls) == 1
    assert torch.equal(found[0], same[0])
    assert all(relative(*two) < 1e-5 for two in zip(found, expected, strict=True))


def test_autocast_differs_from_a_plain_convolution_by_rounding(calls):
    ours, plain = pair()
    found, same = gradients(ours, images(), amp=True), gradients(plain, images(), amp=True)
    assert len(calls) == 1 and calls[0][0].dtype == torch.bfloat16
    assert torch.equal(found[0], same[0]) and [t.dtype for t in found] == [t.dtype for t in same]
    rounded = copy.deepcopy(plain).bfloat16().double()
    expected = gradients(rounded, images(dtype=torch.bfloat16).double())
    for got, theirs, exact in zip(found, same, expected, strict=True):
        assert relative(got, exact) < max(2**-8, 1.1 * relative(theirs, exact))


def test_only_what_wants_a_gradient_gets_one(calls):
    ours, plain = pair()
    for layer in (ours, plain):
        layer.bias.requires_grad_(False)
    two = [torch.autograd.grad(layer(images()).square().sum(), layer.weight)[0] for layer in (ours, plain)]
    assert relative(two[0], two[1].double()) < 1e-5 and ours.bias.grad is None and len(calls) == 1
    bare = DepthwiseConv2d(40, 5)
    bare.bias = None
    bare(images()).sum().backward()
    assert bare.weight.grad is not None and len(calls) == 2


CASES = {
    "float64": ({"dtype": torch.float64}, {"dtype": torch.float64}),
    "3 x 3": ({"kernel_size": 3}, {"shape": (32, 40, 24, 24)}),
    "even": ({"kernel_size": 6}, {}),
    "few channels": ({"dim": 15}, {"shape": (32, 15, 24, 24)}),
    "few products": ({}, {"shape": (1, 40, 24, 24)}),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("case", CASES)
def test_elsewhere_it_is_pytorchs(case, calls):
    layer, given = CASES[case]
    ours, plain = pair(**layer)
    assert all(map(torch.equal, gradients(ours, images(**given)), gradients(plain, images(**given))))
    assert not calls


def test_frozen_weights_and_one_image_alone_are_pytorchs(calls):
    ours, plain = pair()
    for layer in (ours, plain):
        layer.requires_grad_(False)
    x = images().requires_grad_()
    assert torch.equal(*(torch.autograd.grad(layer(x).sum(), x)[0] for layer in (ours, plain)))
    ours.requires_grad_(True)
    assert torch.equal(ours(images((40, 96, 96))), plain(images((40, 96, 96)))) and not calls
    with torch.device("meta"):
        layer = DepthwiseConv2d(40, 5)
        layer(torch.empty(SHAPE)).sum().backward()
    assert layer.weight.grad.shape == (40, 1, 5, 5)


def test_gradients_have_gradients(calls):
    found = []
    for layer in pair():
        x = images().requires_grad_()
        first = torch.autograd.grad(layer(x).square().sum(), [x, layer.weight, layer.bias], create_graph=True)
        penalty = sum(tensor.square().sum() for tensor in first)
        assert not calls
        found.append(torch.autograd.grad(penalty, [x, layer.weight, layer.bias]))
        calls.clear()  # through the forward pass, to which no further gradient is asked for
    assert all(relative(ours, plain.double()) < 1e-5 for ours, plain in zip(*found, strict=True))


def test_gradients_per_sample_are_pytorchs(calls):
    def each(layer):
        weights = dict(layer.named_parameters())

        def loss(values, x_BCHW):
            return functional_call(layer, values, (x_BCHW,)).square().sum()

        return vmap(grad(loss), (None, 0))(weights, images((2, *SHAPE)))["weight"]

    ours, plain = pair()
    assert torch.equal(each(ours), each(plain)) and not calls


def test_a_counter_sees_a_plain_convolution_forward_and_backward(calls):
    counted = []
    for layer in pair():
        with FlopCounterMode(display=False) as counter:
            gradients(layer, images())
        counted.append(counter.get_flop_counts()["Global"])
    assert counted[0] == counted[1] and len(counted[0]) == 2 and not calls


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("how", ["export", "trace", "script", "fx", "compile"])
def test_tracers_see_a_plain_convolution(how, calls):
    ours, plain = pair()
    x = images()
    if how == "export":
        traced = torch.export.export(ours, (x,)).module()
    elif how == "compile":
        traced = torch.compile(ours, backend="aot_eager", fullgraph=True)
    elif how == "fx":
        tracer = {"leaf_modules": get_notrace_modules()}
        _, nodes = get_graph_node_names(nn.Sequential(ours), tracer_kwargs=tracer)
        traced = create_feature_extractor(nn.Sequential(ours), [nodes[-1]], tracer_kwargs=tracer)
        assert torch.equal(traced(x)[nodes[-1]], plain(x))
        return
    else:
        traced = torch.jit.trace(ours, x) if how == "trace" else torch.jit.script(ours)
    assert torch.equal(traced(x), plain(x))
    traced(x).sum().backward()
    plain(x).sum().backward()
    assert torch.equal(ours.weight.grad, plain.weight.grad) and not calls


def test_convmixer_trains_with_it(calls):
    """One step of a whole model: as many calls as blocks, and the gradients of PyTorch's alone but for rounding."""
    torch.manual_seed(0)
    model = archs.create("convmixer_1m", dim=64, depth=2).train()
    x, found = torch.randn(48, 3, 32, 32), []
    for most in (depthwise.FEWEST_MACS, float("inf")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(depthwise, "FEWEST_MACS", most)
            model.zero_grad()
            functional.cross_entropy(model(x), torch.arange(48) % 10).backward()
        found.append([parameter.grad.clone() for parameter in model.parameters()])
    assert len(calls) == 2
    assert all(
        relative(ours, theirs.double()) < 1e-4 for ours, theirs in zip(*found, strict=True) if theirs.norm() > 1e-6
    )
