"""Softmax attention that trains faster on a CPU in bfloat16: PyTorch's fused kernel, asked in float32.

The backward pass of PyTorch 2.12's kernel for CPUs is slower in bfloat16 than in float32, the more the fewer tokens
there are (forward and backward together 3.6 times over 64 tokens, 1.14 times over 577), and less exact. So where eager
autograd asks for it, q, k and v are widened before and the result narrowed after it. Everywhere else all is PyTorch's:
on other devices, in other dtypes, without gradients, under torch.func, torch.compile, tracers and counters.
"""

import torch
from timm.layers import register_notrace_function
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import is_in_torch_dispatch_mode


@register_notrace_function  # a leaf for torch.fx, as PyTorch's is
def attention(q_BHND: Tensor, k_BHND: Tensor, v_BHND: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(D) + attn_mask) v for each image and head, (B, heads, N, D)."""
    if not torch.jit.is_scripting() and _is_ours(q_BHND):
        with torch.autocast("cpu", enabled=False):  # which would narrow them again
            wide = (None if given is None else given.float() for given in (q_BHND, k_BHND, v_BHND, attn_mask))
            return scaled_dot_product_attention(*wide).to(q_BHND.dtype)
    return scaled_dot_product_attention(q_BHND, k_BHND, v_BHND, attn_mask=attn_mask)


@torch.jit.unused
def _is_ours(q_BHND: Tensor) -> bool:
    """Whether a backward pass follows that is faster so."""
    if type(q_BHND) is not Tensor or not (torch.is_grad_enabled() and q_BHND.requires_grad):  # a tracer's is no tensor
        return False
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active():
        return False
    return q_BHND.device.type == "cpu" and q_BHND.dtype == torch.bfloat16 and not is_in_torch_dispatch_mode()
