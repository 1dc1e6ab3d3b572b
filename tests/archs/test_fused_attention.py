"""Attention that trains in float32 where the model is in bfloat16: its numbers, and where it is PyTorch's."""

import pytest
import torch
from torch.func import grad
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

import archs
from archs.kernels import attention as kernels
from archs.kernels.attention import attention


def given(dtype=torch.bfloat16, tokens=33, mask=False):
    """Queries, keys and values whose weights are far from equal; each a bfloat16 number in any dtype."""
    generator = torch.Generator().manual_seed(3)
    found = [torch.randn(4, 2, tokens, 12, generator=generator).bfloat16() for _ in range(3)]
    found[0] = 3 * found[0]
    bias = torch.rand(4, 1, 1, tokens, generator=generator).bfloat16().to(dtype) if mask else None
    return [each.to(dtype).requires_grad_() for each in found], bias


def both(function, dtype=torch.bfloat16, **kind):
    """The result and the gradients of queries, keys and values of a sum that weighs all differently."""
    qkv, bias = given(dtype, **kind)
    made = function(*qkv, attn_mask=bias)
    weights = torch.randn(made.shape, generator=torch.Generator().manual_seed(4)).bfloat16().to(dtype)
    return [made.detach(), *torch.autograd.grad(made, qkv, weights)]


def relative(found, expected):
    return ((found.double() - expected).norm() / expected.norm()).item()


@pytest.fixture
def calls(monkeypatch):
    """How often it was ours."""
    found, decide = [], kernels._is_ours
    monkeypatch.setattr(kernels, "_is_ours", lambda q: found.append(decide(q)) or found[-1])
    return found


@pytest.mark.parametrize("mask", [False, True])
def test_training_in_bfloat16_is_as_exact_as_its_numbers_allow(mask, calls):
    """Against float64 the error is that of rounding the result; PyTorch's own gradients are further off."""
    exact, ours = both(scaled_dot_product_attention, torch.float64, mask=mask), both(attention, mask=mask)
    assert calls == [True] and {each.dtype for each in ours} == {torch.bfloat16}
    for found, expected in zip(ours, exact, strict=True):
        rounded = relative(expected.bfloat16(), expected)
        assert relative(found, expected) < 1.05 * rounded < 3e-3
    torchs = both(scaled_dot_product_attention, mask=mask)
    assert max(map(relative, ours, exact)) < 0.5 * max(map(relative, torchs, exact))


def test_autocast_does_not_narrow_it_again(calls):
    with torch.autocast("cpu", torch.bfloat16):
        cast = both(attention)
    assert all(map(torch.equal, cast, both(attention))) and calls == [True, True]


@pytest.mark.parametrize("case", ["float32", "no gradients", "a counter", "torch.func", "a tracer"])
def test_elsewhere_it_is_pytorchs(case, calls):
    (q, k, v), _ = given()
    expected = scaled_dot_product_attention(q, k, v)
    if case == "float32":
        assert all(map(torch.equal, both(attention, torch.float32), both(scaled_dot_product_attention, torch.float32)))
    elif case == "no gradients":
        with torch.no_grad():
            assert torch.equal(attention(q, k, v), expected)
    elif case == "a counter":
        with FlopCounterMode(display=False):
            assert all(map(torch.equal, both(attention), both(scaled_dot_product_attention)))
    elif case == "torch.func":
        found, wanted = (
            grad(lambda q, f=f: f(q, k.detach(), v.detach()).sum())(q.detach())
            for f in (attention, scaled_dot_product_attention)
        )
        assert torch.equal(found, wanted)
    else:
        traced = torch.jit.trace(lambda *qkv: attention(*qkv), (q, k, v), check_trace=False)
        assert "aten::to" not in str(traced.graph) and torch.equal(traced(q, k, v), expected)
    assert not any(calls)


def test_deit_trains_with_it(calls):
    """In every block of a step under autocast; a judged model is what it was."""
    torch.manual_seed(0)
    model, x_BCHW = archs.create("deit_nano", depth=3), torch.randn(4, 1, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        model(x_BCHW).sum().backward()
        assert calls == [True] * 3
        with torch.no_grad():
            model.eval()(x_BCHW)
        assert calls == [True] * 3 + [False] * 3
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
