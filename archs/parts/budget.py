"""Width for a budget: the `dim` at which a model costs so many MACs or parameters, counted, not estimated.

Rungs of a ladder are comparable at one budget only, and no two families get there by one formula: so the width is
searched for by counting on the meta device. A family may say in its file
- `width_step(given)`: what widths must be multiples of, given the other arguments of `build`; without it, 1;
- `RATIO`: the argument that widens its hidden layers, used when whole steps of the width miss the budget.
A pyramid's widths keep their proportions, rounded to the step.

Processors work on 8 numbers or more at once (a Mixer of width 96 trains faster than one of 91), so widths are multiples
of 8 where one of them is within 5 % of the budget; `search` says how far, and which width would meet it exactly.
"""

import importlib
import inspect
import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from archs.parts import zoo
from archs.parts.backbone import pair

ROUND, ROUND_TOLERANCE = 8, 0.05
# How far the ratio may move, in percent of the variant's own.
PERCENT = (50, 200)
# Of the widest stage. Fewer channels leave hidden layers without any.
WIDTHS = (4, 2**16)

Found = tuple[dict[str, Any], int]


class Solution(NamedTuple):
    """What a budget decides: arguments of `build`, what they cost, and which would meet the budget more closely."""

    arguments: dict[str, Any]
    cost: int
    exact: Found | None
    """Arguments and cost at any width, where the round one was preferred to them."""


def solve(name: str, **given: Any) -> dict[str, Any]:
    """Arguments for `archs.create(name, ...)`: those of `search`, which takes the same."""
    return search(name, **given).arguments


def search(
    name: str,
    *,
    macs: float | None = None,
    params: float | None = None,
    img_size: int | tuple[int, int] | None = None,
    num_classes: int | None = None,
    in_chans: int | None = None,
    tolerance: float = 0.02,
    exact: bool = False,
    **overrides: Any,
) -> Solution:
    """The arguments of `build` that meet a budget: `overrides`, `dim` and, if that alone cannot, the family's ratio.

    Args:
        macs, params: the budget, exactly one of them; MACs at batch 1.
        img_size, num_classes, in_chans: what the model will be created with; None is the variant's own.
        tolerance: largest relative distance from the budget of a width that is no multiple of 8.
        exact: whether to take the width that is nearest to the budget in any case.
        overrides: arguments of `build` that stay as they are, the ratio among them if it is not to move.

    Raises:
        ValueError: an unknown name or argument, or a budget out of reach: then the nearest attainable costs are named.
    """
    if (macs is None) == (params is None):
        raise ValueError("give one budget: macs or params")
    if "dim" in overrides:
        raise ValueError("dim is what the budget decides; it cannot be given")
    kind, budget = ("macs", macs) if params is None else ("params", params)
    if budget <= 0:
        raise ValueError(f"{kind} must be positive, not {budget:g}")
    shape = {"img_size": img_size, "num_classes": num_classes, "in_chans": in_chans}
    own = zoo.arguments(name, **{key: value for key, value in shape.items() if value is not None}, **overrides)
    family = importlib.import_module(f"archs.{name.partition('_')[0]}")
    step = family.width_step(own) if hasattr(family, "width_step") else 1

    def widths(step: int) -> list[Found]:
        """The two widths, in whole steps, that enclose the budget."""

        def by_width(n: int) -> Found:
            changed = {"dim": _widths(own["dim"], n, step)}
            return changed, _cost(name, kind, {**own, **changed})

        start = max(max(_as_list(own["dim"])) // step, 1)
        # Most of the cost is quadratic in the width.
        guess = round(start * (budget / by_width(start)[1]) ** 0.5)
        return _around(by_width, budget, guess, -(-WIDTHS[0] // step), WIDTHS[1] // step)

    found = widths(step)
    ratio = getattr(family, "RATIO", None)
    if ratio is not None and ratio not in overrides and _miss(found, budget) > tolerance:
        whole = own.get(ratio, inspect.signature(family.build).parameters[ratio].default)
        for width, _ in tuple(found):

            def by_ratio(percent: int, width: dict[str, Any] = width) -> Found:
                changed = {**width, ratio: _scaled(whole, percent)}
                return changed, _cost(name, kind, {**own, **changed})

            found += _around(by_ratio, budget, 100, *PERCENT)

    def nearest(found: list[Found]) -> Found:
        return min(found, key=lambda each: abs(each[1] - budget))

    best = nearest(found)
    if not exact and _miss(rounded := widths(math.lcm(step, ROUND)), budget) <= ROUND_TOLERANCE:
        changed, cost = nearest(rounded)
        closer = best if changed != best[0] and _miss([best], budget) <= tolerance else None
        return Solution({**overrides, **changed}, cost, closer)
    if (miss := _miss(found, budget)) > tolerance:
        below = max((cost for _, cost in found if cost <= budget), default="none")
        above = min((cost for _, cost in found if cost > budget), default="none")
        raise ValueError(
            f"{name} cannot have {kind} within {tolerance:.1%} of {budget:g}, at best within {miss:.1%}; "
            f"nearest attainable: {below} below, {above} above"
        )
    return Solution({**overrides, **best[0]}, best[1], None)


def _around(at: Callable[[int], Found], budget: float, guess: int, low: int, high: int) -> list[Found]:
    """`at` the largest integer of [low, high] within the budget and at its successor; costs rise with the integer."""
    at = cache(at)
    n, stride = min(max(guess, low), high), 1
    below, above = low - 1, high + 1
    # Away from the guess in doubling strides until the budget is enclosed, then bisect.
    if at(n)[1] <= budget:
        below = n
        while below < high and at(min(below + stride, high))[1] <= budget:
            below, stride = min(below + stride, high), 2 * stride
        above = min(below + stride, high + 1)
    else:
        above = n
        while above > low and at(max(above - stride, low))[1] > budget:
            above, stride = max(above - stride, low), 2 * stride
        below = max(above - stride, low - 1)
    while above - below > 1:
        middle = (below + above) // 2
        if at(middle)[1] <= budget:
            below = middle
        else:
            above = middle
    return [at(n) for n in (below, above) if low <= n <= high]


@torch.no_grad()
def _cost(name: str, kind: str, given: dict[str, Any]) -> int:
    """Parameters, or MACs at batch 1; the meta device has no weights and counts fused attention, the CPU does not."""
    with torch.device("meta"):
        model = zoo.create(name, **given).eval()
        x_BCHW = torch.empty(1, given.get("in_chans", 3), *pair(given["img_size"]))
    if kind == "params":
        return sum(parameter.numel() for parameter in model.parameters())
    with FlopCounterMode(display=False) as counter:
        model(x_BCHW)
    return counter.get_total_flops() // 2


def _miss(found: list[Found], budget: float) -> float:
    return min(abs(cost - budget) / budget for _, cost in found)


def _as_list(value: float | Sequence[float]) -> list[float]:
    return [value] if isinstance(value, int | float) else list(value)


def _widths(own: int | Sequence[int], n: int, step: int) -> int | list[int]:
    """`own` in proportion, so that the widest is n steps."""
    if isinstance(own, int):
        return n * step
    return [step * max(1, round(n * each / max(own))) for each in own]


def _scaled(own: float | Sequence[float], percent: int) -> float | list[float]:
    scaled = [round(each * percent / 100, 4) for each in _as_list(own)]
    return scaled[0] if isinstance(own, int | float) else scaled
