"""A depthwise convolution that trains faster on a CPU, by a backward pass that is not oneDNN's.

oneDNN 3.11 has no weight gradient for depthwise kernels above 3 x 3 (archs/kernels/weight_gradient.py), and its input
gradient is slower than its forward pass with mirrored kernels, which is the same sum. Both are replaced where eager
autograd asks for them, for 5 x 5 and larger, in float32 or bfloat16, and there are enough products. Everywhere else
all is PyTorch's: on other devices, under torch.func, torch.compile, tracers and counters, and where the gradient is to
have a gradient. The forward pass is PyTorch's always, bit for bit, so whatever counts, exports or compiles a model
sees a plain convolution.
"""

from typing import Any

import torch
from timm.layers import register_notrace_module
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

DTYPES = {torch.float32, torch.bfloat16}
SMALLEST = 5  # up to 3 x 3 oneDNN's are as fast
FEWEST_CHANS = 16  # a vector
FEWEST_MACS = 2**22  # some milliseconds of oneDNN's; fewer are not worth the tenth of a second that compiles the kernel


@register_notrace_module  # a leaf for torch.fx, as nn.Conv2d is
class DepthwiseConv2d(nn.Conv2d):
    """One kernel per channel, stride 1, zeros beyond the border: x_BCHW -> x_BCHW, fastest in channels_last layout."""

    def __init__(self, dim: int, kernel_size: int) -> None:
        super().__init__(dim, dim, kernel_size, groups=dim, padding="same")

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if not torch.jit.is_scripting() and _is_ours(x_BCHW, self.weight):
            dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x_BCHW.dtype
            bias = None if self.bias is None else self.bias.to(dtype)
            return _Depthwise.apply(x_BCHW.to(dtype), self.weight.to(dtype), bias)
        return self._conv_forward(x_BCHW, self.weight, self.bias)


@torch.jit.unused
def _is_ours(x_BCHW: Tensor, weight: Tensor) -> bool:
    """Whether this forward pass is followed by a backward pass of ours, if by any."""
    if not (torch.is_grad_enabled() and weight.requires_grad) or type(x_BCHW) not in (Tensor, nn.Parameter):
        return False
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active():
        return False
    if x_BCHW.device.type != "cpu" or weight.device.type != "cpu" or x_BCHW.dim() != 4:
        return False
    if torch.is_autocast_enabled("cpu"):
        known = {x_BCHW.dtype, weight.dtype, torch.get_autocast_dtype("cpu")} <= DTYPES
    else:
        known = x_BCHW.dtype == weight.dtype and weight.dtype in DTYPES
    size = weight.shape[2]
    large = size >= SMALLEST and size % 2 == 1  # a kernel of even size has no middle: torch pads one side more
    return known and large and x_BCHW.shape[1] >= FEWEST_CHANS and x_BCHW.numel() * size**2 >= FEWEST_MACS


class _Depthwise(torch.autograd.Function):
    """The convolution of `DepthwiseConv2d` on tensors of one dtype."""

    @staticmethod
    def forward(ctx: Any, x_BCHW: Tensor, weight_C1KK: Tensor, bias_C: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_BCHW, weight_C1KK)
        return functional.conv2d(x_BCHW, weight_C1KK, bias_C, padding="same", groups=len(weight_C1KK))

    @staticmethod
    def backward(ctx: Any, gradient_BCHW: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x_BCHW, weight = ctx.saved_tensors
        dim, size, wanted = len(weight), weight.shape[2], ctx.needs_input_grad
        if torch.is_grad_enabled() or is_in_torch_dispatch_mode():
            pads = [size // 2, size // 2]
            given = gradient_BCHW, x_BCHW, weight, [dim], [1, 1], pads, [1, 1], False, [0, 0], dim, wanted
            return torch.ops.aten.convolution_backward(*given)
        from archs.kernels.weight_gradient import weight_gradient  # llvmlite is not loaded before it is wanted

        for_x = None
        if wanted[0]:
            for_x = functional.conv2d(gradient_BCHW, weight.flip(2, 3), padding="same", groups=dim)
        maps = (tensor.permute(0, 2, 3, 1).contiguous() for tensor in (x_BCHW, gradient_BCHW))
        for_weight, for_bias = (each.to(weight.dtype) for each in weight_gradient(*maps, size, torch.get_num_threads()))
        return for_x, for_weight, for_bias if wanted[2] else None
