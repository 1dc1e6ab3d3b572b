"""Other counters beside the number of record (record.py), and what each of them misses.

A counter's own number plus what it missed minus what it counted beyond that must be the number of record to 2 %.
What it missed is computed from the shapes of each operation in MISSED; a model is never excused by its name.
"""

import logging
import math
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from engine.cost.record import Record, Shapes, convolution, matmul, record
from engine.errors import Refusal

TOLERANCE = 0.02
UNEXPLAINED = 1  # exit code: two counters differ and nobody knows why


# --- known reasons


def _product(given: Shapes, out: Shapes) -> int:
    """Matrix product of the last two tensors given: what is put out, times the axis summed over."""
    left = [shape for shape in given if shape is not None][-2]
    return math.prod(out[0]) * left[-1]


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
        convolution,
        {"fvcore": "no handler for a convolution whose padding is a word", "torchprofile": "the same"},
    ),
    "aten::scaled_dot_product_attention": Missed(_attention, {"fvcore": "no handler for fused attention"}),
    "aten::baddbmm": Missed(_product, {"fvcore": "no handler for a batched product with a bias"}),
    "aten::addmv": Missed(_product, {"fvcore": "no handler for matrix times vector"}),
    "aten::mv": Missed(_product, {"fvcore": "no handler for matrix times vector", "torchprofile": "the same"}),
    "aten::matmul": Missed(matmul, {"fvcore": "ignores the batch of the second factor"}),
    "torchvision::deform_conv2d": Missed(
        convolution, {"fvcore": "no handler for a deformable convolution", "torchprofile": "the same"}
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
            f"{name}: the MACs of {names} have no formula; add one to FORMULAS in engine/cost/record.py", UNEXPLAINED
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
