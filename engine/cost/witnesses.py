"""MACs of one forward pass: the number of record, three public counters beside it, and what each of them misses.

The number of record counts matrix products and convolutions, 1 MAC each for a multiplication and an addition, as the
closed forms in EXPECTED do: torch's counter on the meta device, with formulas for the operations that it lacks. Norms,
gates, activations, pooling and Fourier transforms are not in it (`outside` gives the transforms apart).

A counter's own number plus what it missed minus what it counted beyond that must be the number of record to 2 %.
What it missed is computed from the shapes of each operation in MISSED; a model is never excused by its name.
"""

import logging
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from engine.errors import Refusal

TOLERANCE = 0.02
UNEXPLAINED = 1  # exit code: two counters differ and nobody knows why

Shapes = Sequence[Sequence[int] | None]
aten = torch.ops.aten


# --- known reasons


def _convolution(given: Shapes, out: Shapes) -> int:
    return math.prod(out[0]) * math.prod(given[1][1:])


def _product(given: Shapes, out: Shapes) -> int:
    """Matrix product of the last two tensors given: what is put out, times the axis summed over."""
    left = [shape for shape in given if shape is not None][-2]
    return math.prod(out[0]) * left[-1]


def _matmul(given: Shapes, out: Shapes) -> int:
    return math.prod(out[0]) * given[0][-1]


def _attention(given: Shapes, out: Shapes) -> int:
    query, key, value = given[:3]
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


@dataclass(frozen=True)
class Missed:
    """An operation of which the named counters see nothing, or too little."""

    macs: Callable[[Shapes, Shapes], int]
    why: dict[str, str]


MISSED = {
    "aten::_convolution_mode": Missed(
        _convolution,
        {"fvcore": "no handler for a convolution whose padding is a word", "torchprofile": "the same"},
    ),
    "aten::scaled_dot_product_attention": Missed(_attention, {"fvcore": "no handler for fused attention"}),
    "aten::baddbmm": Missed(_product, {"fvcore": "no handler for a batched product with a bias"}),
    "aten::addmv": Missed(_product, {"fvcore": "no handler for matrix times vector"}),
    "aten::mv": Missed(_product, {"fvcore": "no handler for matrix times vector", "torchprofile": "the same"}),
    "aten::matmul": Missed(_matmul, {"fvcore": "ignores the batch of the second factor"}),
    "torchvision::deform_conv2d": Missed(
        _convolution, {"fvcore": "no handler for a deformable convolution", "torchprofile": "the same"}
    ),
}
# What a counter adds to products and convolutions; the numbers are its own.
EXTRA = {
    "fvcore": {
        "layer_norm": "5 per element",
        "group_norm": "5 per element",
        "instance_norm": "5 per element",
        "batch_norm": "2 per element",
        "adaptive_avg_pool2d": "1 per input element",
        "upsample_nearest2d": "1 per element",
        "upsample_bilinear2d": "4 per element",
        "grid_sampler": "4 per element",
    },
    "torchprofile": dict.fromkeys(
        ["layer_norm", "group_norm", "instance_norm", "batch_norm", "mul", "mul_", "mean", "leaky_relu"]
        + [f"{kind}_pool{axes}d" for kind in ("avg", "adaptive_avg") for axes in (1, 2, 3)],
        "1 per element",
    )
    | {"upsample_bilinear2d": "4 per element", "grid_sampler": "4 per element"},
    "torch": {},
}


def _shapes(function: Callable[[Shapes, Shapes], int]) -> Callable[..., int]:
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
    aten.mv: _shapes(_matmul),
    aten.dot: _shapes(_matmul),
}
OUTSIDE = {aten._fft_r2c: _fourier(0.5), aten._fft_c2c: _fourier(1), aten._fft_c2r: _fourier(0.5)}
NAMESPACES = {"aten", "prim", "prims", "profiler", "inductor"}  # where an operation without a formula is no product


# --- the number of record


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
            FORMULAS.setdefault(torch.ops.torchvision.deform_conv2d, _shapes(_convolution))
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


# --- the witnesses


@dataclass(frozen=True, kw_only=True)
class Account:
    """What one counter says, and why it is not the number of record."""

    counter: str
    macs: int
    missed: dict[str, int] = field(default_factory=dict)
    extra: dict[str, int] = field(default_factory=dict)
    unseen: dict[str, int] = field(default_factory=dict)
    """Operation -> times it ran without being counted, for those without a known reason."""

    def explained(self) -> int:
        """Its number with what it missed and without what it adds: to be compared with the number of record."""
        return self.macs + sum(self.missed.values()) - sum(self.extra.values())

    def unexplained(self, record_macs: int) -> float:
        """Share of the number of record that is left."""
        return abs(self.explained() - record_macs) / max(record_macs, 1)

    def differences(self) -> list[str]:
        """One phrase for each operation."""
        lines = [f"misses {op}, {macs:,} MACs: {_why(op, self.counter)}" for op, macs in self.missed.items()]
        return lines + [f"adds {op}, {macs:,}: {EXTRA[self.counter][op]}" for op, macs in self.extra.items()]


def _why(op: str, counter: str) -> str:
    return MISSED[op].why[counter] if op in MISSED and counter in MISSED[op].why else "no formula"


def accounts(
    make: Callable[[], nn.Module], shape: Sequence[int], expected: int | None = None
) -> tuple[Record, list[Account]]:
    """The number of record, and what torch's counter, fvcore, torchprofile and the closed form say beside it.

    Args:
        make: the model with fresh weights, on the default device.
        shape: of one batch of images.
        expected: EXPECTED MACs, where there are any.
    """
    with torch.device("meta"):
        model = make()
        true = record(model, torch.empty(shape))
    found = [Account(counter="torch", macs=true.macs - sum(true.ours.values()), missed=true.ours)]
    for count in (_fvcore, _torchprofile):
        found.append(_traced(count, make, model, shape))
    if expected is not None:
        found.append(Account(counter="closed form", macs=expected))
    return true, found


def check(name: str, true: Record, found: Sequence[Account]) -> None:
    """Raise a Refusal of one line if a counter differs from the number of record and no known reason explains it.

    So does an operation without a formula, which every counter may have missed alike.
    """
    if true.unknown:
        names = ", ".join(true.unknown)
        raise Refusal(
            f"{name}: the MACs of {names} have no formula; add one to FORMULAS in engine/cost/witnesses.py", UNEXPLAINED
        )
    for account in found:
        left = account.unexplained(true.macs)
        if left > TOLERANCE or (account.counter == "closed form" and left):
            seen = ", ".join(account.unseen) or "none"
            raise Refusal(
                f"{name}: {account.counter} counts {account.macs:,} MACs, the number of record is {true.macs:,}, and "
                f"{100 * left:.1f} % of it has no known reason; operations it does not count: {seen}",
                UNEXPLAINED,
            )


def _traced(count: Callable[..., Account], make: Callable[[], nn.Module], model: nn.Module, shape: Any) -> Account:
    """Count from a trace: on the meta device, and with weights where torch cannot trace it there (convolutions)."""
    logging.getLogger("fvcore").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            return count(model.eval(), torch.empty(shape, device="meta"))
        except (TypeError, RuntimeError, AssertionError):
            return count(make().eval(), torch.zeros(shape))


def _fvcore(model: nn.Module, x_BCHW: Tensor) -> Account:
    from fvcore.nn import FlopCountAnalysis
    from fvcore.nn.jit_handles import get_shape

    analysis = FlopCountAnalysis(model, x_BCHW).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    theirs = dict(analysis._op_handles)
    missed: Counter[str] = Counter()

    def handle(op: str) -> Callable[[list, list], Any]:
        def both(given: list, out: list) -> Any:
            counted = theirs[op](given, out) if op in theirs else 0
            here = _missed(op, [_tensor_shape(v) for v in given], [_tensor_shape(v) for v in out], int(counted))
            missed[op] += here
            return counted

        def _tensor_shape(value: Any) -> Sequence[int] | None:
            return get_shape(value) if value.isCompleteTensor() else None

        return both

    analysis.set_op_handle(**{op: handle(op) for op, reason in MISSED.items() if "fvcore" in reason.why})
    by_op = {op: int(macs) for op, macs in analysis.by_operator().items()}
    return Account(
        counter="fvcore",
        macs=sum(by_op.values()),
        missed={op: macs for op, macs in missed.items() if macs},
        extra={op: macs for op, macs in by_op.items() if op in EXTRA["fvcore"] and macs},
        unseen=dict(analysis.unsupported_ops()),
    )


def _torchprofile(model: nn.Module, x_BCHW: Tensor) -> Account:
    import torchprofile
    from torchprofile.handlers import HANDLER_MAP

    blank = {op: lambda node: 0 for op in MISSED if op not in HANDLER_MAP}
    with warnings.catch_warnings(record=True) as caught, mock.patch.dict(HANDLER_MAP, blank):
        warnings.simplefilter("always")
        counted = torchprofile.profile_macs(model, x_BCHW, reduction=None)
    unseen = Counter(str(each.message).split('"')[1] for each in caught if "No handlers" in str(each.message))
    missed: Counter[str] = Counter()
    by_op: Counter[str] = Counter()
    for node, macs in counted.items():
        by_op[node.operator.removeprefix("aten::")] += macs
        if node.operator in MISSED and "torchprofile" in MISSED[node.operator].why:
            missed[node.operator] += _missed(
                node.operator, [v.shape for v in node.inputs], [v.shape for v in node.outputs], macs
            )
    return Account(
        counter="torchprofile",
        macs=sum(by_op.values()),
        missed={op: macs for op, macs in missed.items() if macs},
        extra={op: macs for op, macs in by_op.items() if op in EXTRA["torchprofile"] and macs},
        unseen=dict(unseen),
    )


def _missed(op: str, given: Shapes, out: Shapes, counted: int) -> int:
    return MISSED[op].macs(given, out) - counted
