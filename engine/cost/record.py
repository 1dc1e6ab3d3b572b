"""The number of record: MACs by torch's counter on the meta device, with formulas for the operations that it lacks.

1 MAC is one multiplication with an addition, as the closed forms in EXPECTED count them. Norms, gates, activations,
pooling and Fourier transforms are not in it (`outside` gives the transforms apart).
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

Shapes = Sequence[Sequence[int] | None]
aten = torch.ops.aten


def convolution(given: Shapes, out: Shapes) -> int:
    return math.prod(out[0]) * math.prod(given[1][1:])


def matmul(given: Shapes, out: Shapes) -> int:
    return math.prod(out[0]) * given[0][-1]


def as_formula(function: Callable[[Shapes, Shapes], int]) -> Callable[..., int]:
    """A formula in the form of FlopCounterMode: FLOPs from the shapes of the arguments and `out_shape`."""

    def flops(*given: Any, out_shape: Any = None, **_: Any) -> int:
        shapes = [shape if isinstance(shape, torch.Size) else None for shape in given]
        return 2 * function(shapes, [out_shape])

    return flops


def _fourier(share: float) -> Callable[..., int]:
    """`share` of 5 n log2 n FLOPs for each transform of n complex numbers (Cooley and Tukey); of real ones, half."""

    def flops(given: Any, axes: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
        shape = max(given, out_shape, key=math.prod)
        return round(share * 5 * math.prod(shape) * math.log2(max(math.prod(shape[axis] for axis in axes), 2)))

    return flops


# What torch's counter lacks: on a CPU fused attention, which on the meta device is two products.
FORMULAS = {
    aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    aten.mv: as_formula(matmul),
    aten.dot: as_formula(matmul),
}
OUTSIDE = {aten._fft_r2c: _fourier(0.5), aten._fft_c2c: _fourier(1), aten._fft_c2r: _fourier(0.5)}
NAMESPACES = {"aten", "prim", "prims", "profiler", "inductor"}  # where an operation without a formula is no product


@dataclass(frozen=True, kw_only=True)
class Record:
    """Costs of one forward pass in evaluation mode."""

    macs: int
    by_op: dict[str, int]
    by_module: dict[str, int]
    """Module -> MACs, its children's included; "" is the model."""
    ours: dict[str, int]
    """Part of `by_op` that torch's counter alone misses."""
    outside: dict[str, int]
    """Fourier transforms, not part of `macs`."""
    activations: int
    """Numbers put out by what `macs` counts, as in "On network design spaces", arXiv 1905.13214."""
    unknown: dict[str, int]
    """Operation -> times it ran, of those that are neither PyTorch's own nor have a formula: `check` refuses them."""
    output: tuple[int, ...] | None
    """Shape of what the model puts out; None if that is no tensor."""


class _Record(FlopCounterMode):
    """Torch's counter with our formulas; it also adds up activations and notes operations that nothing here knows."""

    def __init__(self) -> None:
        if _has_deform_conv():
            FORMULAS.setdefault(torch.ops.torchvision.deform_conv2d, as_formula(convolution))
        super().__init__(display=False, custom_mapping={**FORMULAS, **OUTSIDE})
        self.activations = 0
        self.unknown: Counter[str] = Counter()

    def _count_flops(self, func_packet: Any, out: Any, args: Any, kwargs: Any) -> Any:
        if func_packet in self.flop_registry:
            if func_packet not in OUTSIDE:
                self.activations += (out if isinstance(out, Tensor) else out[0]).numel()
        elif (name := str(func_packet._qualified_op_name)).partition("::")[0] not in NAMESPACES:
            self.unknown[name] += 1
        return super()._count_flops(func_packet, out, args, kwargs)


@torch.no_grad()
def record(model: nn.Module, x_BCHW: Tensor) -> Record:
    """The number of record and its parts."""
    with _frozen(model), _Record() as counter:
        out = model(x_BCHW)
    total = {op: flops // 2 for op, flops in counter.flop_counts["Global"].items()}
    inside = {op: macs for op, macs in total.items() if op not in OUTSIDE}
    by_module = {
        name.partition(".")[2]: sum(flops for op, flops in ops.items() if op not in OUTSIDE) // 2
        for name, ops in counter.flop_counts.items()
        if name != "Global"
    }
    return Record(
        macs=sum(inside.values()),
        by_op={_name(op): macs for op, macs in inside.items()},
        by_module=by_module,
        ours={_name(op): macs for op, macs in inside.items() if op in FORMULAS},
        outside={_name(op): macs for op, macs in total.items() if op in OUTSIDE},
        activations=counter.activations,
        unknown=dict(counter.unknown),
        output=tuple(out.shape) if isinstance(out, Tensor) else None,
    )


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients, by parameter too.

    Torch's module tracker hooks a gradient to each tensor that a module is given and that wants one. Without a graph
    a class token or a pooling query, a parameter given as it is, has none to hook, and the tracker raises.
    """
    modes = [(module, module.training) for module in model.modules()]
    wanting = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter in wanting:
            parameter.requires_grad_(True)


def _name(op: Any) -> str:
    return op._qualified_op_name


def _has_deform_conv() -> bool:
    return hasattr(torch.ops.torchvision, "deform_conv2d")
