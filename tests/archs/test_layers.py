"""A weight over the tokens is one for all images: in its value, and in what autocast casts."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from archs.ingredients import places
from archs.parts.layers import mix_tokens

B, N, M, C = 6, 5, 7, 4


class Casts(TorchDispatchMode):
    """The numbers of elements of tensors that were cast from float32 to bfloat16, or back."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and {out.dtype, args[0].dtype} == {torch.float32, torch.bfloat16}:
            self.sizes.append(out.numel())
        return out


def operands(dtype):
    torch.manual_seed(0)
    shapes = (B, N, C), (M, N), (M,)
    return [torch.randn(shape, dtype=dtype).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tokens_are_mixed_image_by_image(dtype, amp):
    """Float64 is left alone by autocast, as by its own casts."""
    x, weight, bias = operands(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        y = mix_tokens(x, weight, bias)
    used = torch.bfloat16 if amp and dtype == torch.float32 else dtype
    assert y.dtype == used
    near = {"rtol": 2e-2, "atol": 2e-2} if used == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-5}
    expected = torch.stack([weight @ image for image in x]) + bias[:, None]
    torch.testing.assert_close(y.to(dtype), expected, **near)
    found = torch.autograd.grad(y.to(dtype).sum(), [x, weight, bias])
    for ours, theirs in zip(found, torch.autograd.grad(expected.sum(), [x, weight, bias]), strict=True):
        torch.testing.assert_close(ours, theirs, **near)


def test_autocast_casts_a_weight_once_and_not_for_each_image():
    """Forward and backward; the peak of memory on a GPU is not seen here."""
    x, weight, bias = operands(torch.float32)
    with Casts() as casts:
        with torch.autocast("cpu", torch.bfloat16):
            y = mix_tokens(x, weight, bias)
        y.backward(torch.ones_like(y))
    assert casts.sizes.count(M * N) == 2, "the weight, and its gradient back"
    assert B * M * N not in casts.sizes
    with Casts() as casts, torch.autocast("cpu", torch.bfloat16):
        torch.bmm(weight.expand(B, -1, -1), x)
    assert B * M * N in casts.sizes, "what would have been found"


def test_a_graph_of_torch_fx_has_the_condition_inside_a_leaf():
    class Mixing(torch.nn.Module):
        def forward(self, x, weight):
            return mix_tokens(x, weight, None)

    x, weight, _ = operands(torch.float32)
    graph = torch.fx.symbolic_trace(Mixing())
    assert torch.equal(graph(x, weight), mix_tokens(x, weight, None))
    with torch.autocast("cpu", torch.bfloat16):
        assert graph(x, weight).dtype == torch.bfloat16


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_groups_of_channels_are_mixed_by_their_own_matrix(groups):
    """Values and both gradients against an einsum, and gradients of gradients against finite differences."""
    torch.manual_seed(0)
    x = torch.randn(B, 2, 3, C, dtype=torch.float64).requires_grad_()
    matrices = torch.randn(groups, 6, 6, dtype=torch.float64).requires_grad_()
    each = matrices.repeat_interleave(C // groups, 0)
    expected = torch.einsum("cij,bjc->bic", each, x.flatten(1, 2)).reshape(x.shape)
    y = places.product(matrices, x, groups)
    torch.testing.assert_close(y, expected)
    given = torch.randn_like(y)
    for ours, theirs in zip(
        torch.autograd.grad(y, [x, matrices], given), torch.autograd.grad(expected, [x, matrices], given), strict=True
    ):
        torch.testing.assert_close(ours, theirs)
    assert torch.autograd.gradgradcheck(lambda x, m: places.product(m, x, groups), (x, matrices), fast_mode=True)


def test_a_transpose_and_its_gradient_are_in_order_whoever_asks():
    x = torch.randn(N, M)
    for wanted in (x, x.clone().requires_grad_()):
        y = places.transposed(wanted)
        assert y.is_contiguous() and torch.equal(y, x.t()) and y.data_ptr() != x.data_ptr()
    given = torch.randn(M, N)
    (gradient,) = torch.autograd.grad(y, wanted, given)
    assert gradient.is_contiguous() and torch.equal(gradient, given.t())
    value, along = torch.func.jvp(places.transposed, (x,), (given.t(),))
    assert torch.equal(value, x.t()) and torch.equal(along, given)
    of = torch.func.grad(lambda x, by: (places.transposed(x) * by).sum())
    assert torch.equal(torch.func.vmap(of, (None, 0))(x, given.expand(2, M, N)), given.t().expand(2, N, M))
    assert torch.equal(torch.jit.trace(places.transposed, x)(x), x.t())


def test_a_product_by_groups_can_be_traced():
    class Mixing(torch.nn.Module):
        def forward(self, x, matrices):
            return places.product(matrices, x, C)

    operands = torch.randn(B, 2, 3, C, requires_grad=True), torch.randn(C, 6, 6)
    expected = places.product(operands[1], operands[0], C)
    assert torch.equal(torch.fx.symbolic_trace(Mixing())(*operands), expected)
    assert torch.equal(torch.jit.trace(Mixing(), operands)(*operands), expected)
    assert torch.equal(torch.export.export(Mixing(), operands).module()(*operands), expected)
