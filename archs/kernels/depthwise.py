"""A depthwise convolution whose weight gradient on a CPU is not oneDNN's, which takes longer than all the rest of it.

Forward pass and input gradient are PyTorch's, bit for bit. The weight gradient is another sum of the same products
(archs/kernels/weight_gradient.py) where eager autograd asks for it, in float32 or bfloat16, and there are enough of
them; PyTorch's own elsewhere: on other devices, under torch.func, torch.compile, tracers and counters, and where the
gradient is to have a gradient. So whatever counts, exports or compiles a model sees a plain convolution.
"""

from typing import Any

import torch
from timm.layers import register_notrace_module
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

DTYPES = (torch.float32, torch.bfloat16)
FEWEST_CHANS = 16  # a vector
FEWEST_MACS = 2**22  # a millisecond or so; fewer are not worth the tenth of a second that compiles the kernel


@register_notrace_module  # a leaf for torch.fx, as nn.Conv2d is
class DepthwiseConv2d(nn.Conv2d):
    """One kernel per channel, stride 1, zeros beyond the border: x_BCHW -> x_BCHW, fastest in channels_last layout."""

    def __init__(self, dim: int, kernel_size: int) -> None:
        super().__init__(dim, dim, kernel_size, groups=dim, padding="same")

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if not torch.jit.is_scripting() and _is_worthwhile(x_BCHW, self.weight):
            dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x_BCHW.dtype
            bias = None if self.bias is None else self.bias.to(dtype)
            return _Depthwise.apply(x_BCHW.to(dtype), self.weight.to(dtype), bias)
        return self._conv_forward(x_BCHW, self.weight, self.bias)


@torch.jit.unused
def _is_worthwhile(x_BCHW: Tensor, weight: Tensor) -> bool:
    """Whether the weight gradient, if there is to be one, is ours."""
    if not (torch.is_grad_enabled() and weight.requires_grad) or type(x_BCHW) not in (Tensor, nn.Parameter):
        return False
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active():
        return False
    if x_BCHW.device.type != "cpu" or weight.device.type != "cpu" or x_BCHW.dim() != 4:
        return False
    given = {x_BCHW.dtype, weight.dtype}
    if torch.is_autocast_enabled("cpu"):
        known = given <= {*DTYPES} and torch.get_autocast_dtype("cpu") in DTYPES
    else:
        known = len(given) == 1 and given <= {*DTYPES}
    size, odd = weight.shape[2], weight.shape[2] % 2 == 1  # one of even size has no middle: torch pads one side more
    return known and odd and x_BCHW.shape[1] >= FEWEST_CHANS and x_BCHW.numel() * size**2 >= FEWEST_MACS


class _Depthwise(torch.autograd.Function):
    """The convolution of `DepthwiseConv2d` on tensors of one dtype."""

    @staticmethod
    def forward(ctx: Any, x_BCHW: Tensor, weight_C1KK: Tensor, bias_C: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_BCHW, weight_C1KK)
        return functional.conv2d(x_BCHW, weight_C1KK, bias_C, padding="same", groups=len(weight_C1KK))

    @staticmethod
    def backward(ctx: Any, gradient_BCHW: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x_BCHW, weight = ctx.saved_tensors
        dim, size = len(weight), weight.shape[2]
        plain = [1, 1], [size // 2, size // 2], [1, 1], False, [0, 0], dim
        if torch.is_grad_enabled() or is_in_torch_dispatch_mode():
            return torch.ops.aten.convolution_backward(
                gradient_BCHW, x_BCHW, weight, [dim], *plain, ctx.needs_input_grad
            )
        from archs.kernels.weight_gradient import weight_gradient  # llvmlite is not loaded before it is wanted

        for_x, for_weight, for_bias = None, None, None
        if ctx.needs_input_grad[0]:
            given = gradient_BCHW, x_BCHW, weight, [dim], *plain
            for_x = torch.ops.aten.convolution_backward(*given, [True, False, False])[0]
        if ctx.needs_input_grad[1]:
            maps = (tensor.permute(0, 2, 3, 1).contiguous() for tensor in (x_BCHW, gradient_BCHW))
            for_weight = weight_gradient(*maps, size, torch.get_num_threads()).to(weight.dtype)
        if ctx.needs_input_grad[2]:  # not by convolution_backward, which would compute that of the weights, too
            for_bias = gradient_BCHW.sum((0, 2, 3))
        return for_x, for_weight, for_bias
