"""Accuracy against a cost or a rate, as inline SVG: log x, the Pareto front, references whose accuracy is not known."""

import itertools
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import pandas as pd
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator

from analysis.compare.frames import count_text
from analysis.compare.pareto import front
from analysis.figures.looks import Look, symbols
from analysis.stats import within
from analysis.typeset import accuracy, quantity

WIDTH, HEIGHT = 590, 380
LEFT, RIGHT, TOP, FOOT = 46, 14, 14, 42
LINE, LETTER = 13, 6.4  # of a label: its height, and the width of a letter
LINEAR = 3  # times as much from the least to the most, below which a log axis would have no room for its numbers
STYLE = (
    "text{{font:11.5px sans-serif;fill:#62605b}}.name{{fill:currentColor}}.mk{{fill:var(--c);stroke:var(--paper)}}"
    ".mk.hollow{{fill:var(--paper);stroke:var(--c);stroke-width:1.8}}.mk .dot{{fill:var(--paper);stroke:none}}"
    ".ci{{stroke:var(--c);stroke-width:1.4}}.grid{{stroke:#8884}}.front,.beside{{stroke:#888;fill:none}}"
    ".beside{{stroke-dasharray:4 3}}"
)


class _Axes:
    """Costs and accuracies to the figure's coordinates."""

    def __init__(self, costs: Sequence[float], values: Sequence[float]) -> None:
        self.is_log = max(costs) >= LINEAR * min(costs)
        xs = [self._scaled(cost) for cost in costs]
        self.x0, self.x1 = _padded(min(xs), max(xs), 0.08)
        self.y0, self.y1 = _padded(min(values), max(values), 0.08)
        ratio = max(costs) / min(costs)
        steps = (1, 2, 5) if ratio < 30 else (1, 3) if ratio < 1000 else (1,)
        locator = LogLocator(10, subs=steps) if self.is_log else MaxNLocator(4)
        ends = [10**end if self.is_log else end for end in (self.x0, self.x1)]
        self.x_ticks = [float(tick) for tick in locator.tick_values(*ends) if ends[0] <= tick <= ends[1]]
        self.y_ticks = [float(t) for t in MaxNLocator(6).tick_values(self.y0, self.y1) if self.y0 <= t <= self.y1]

    def _scaled(self, cost: float) -> float:
        return math.log10(cost) if self.is_log else cost

    def x(self, cost: float) -> float:
        share = (self._scaled(cost) - self.x0) / (self.x1 - self.x0)
        return round(LEFT + (WIDTH - LEFT - RIGHT) * share, 1)

    def y(self, value: float) -> float:
        return round(HEIGHT - FOOT - (HEIGHT - FOOT - TOP) * (value - self.y0) / (self.y1 - self.y0), 1)


def _padded(low: float, high: float, share: float) -> tuple[float, float]:
    room = share * (high - low) or 0.5
    return low - room, high + room


def accuracy_cost(
    rungs: pd.DataFrame,
    cost: str,
    label: str,
    looks: Mapping[str, Look],
    keys: Mapping[str, str],
    beside: Mapping[str, float],
) -> str:
    """The figure; every rung says its numbers when it is pointed at.

    Args:
        rungs: rows of the table of rungs, with the columns `cost` and `label`. Of a rate, `images_per_s...`, much is
            cheap.
        looks: by rung, and `keys`: what marks it on the page.
        beside: by name the cost of models whose accuracy is not known: an upright line each.
    """
    shown = rungs[rungs["acc1"].notna() & (rungs[cost] > 0)]
    paid = shown.assign(paid=(-1 if cost.startswith("images_per_s") else 1) * shown[cost])
    best = shown[front(paid, "paid", "acc1")].sort_values(cost)
    reach = {
        row.rung: within(row.acc1, row.acc1_half) if row.n > 2 else (row.acc1, row.acc1) for row in shown.itertuples()
    }
    at = _Axes([*shown[cost], *beside.values()], [end for ends in reach.values() for end in ends])
    parts = [_frame(at, label), *(_beside(at, i, name, x, label) for i, (name, x) in enumerate(beside.items()))]
    steps = "L".join(f"{at.x(x)},{at.y(y)}" for x, y in zip(best[cost], best["acc1"], strict=True))
    parts.append(f'<path class="front" d="M{steps}"/>' if len(best) > 1 else "")
    for row in shown.sort_values("acc1").itertuples():
        x, hollow = at.x(getattr(row, cost)), "" if row.Index in best.index else " hollow"
        look, (low, high) = looks[row.rung], reach[row.rung]
        title = _title(row) + ("" if cost in ("macs", "params") else f"; {quantity(getattr(row, cost))} {label}")
        bar = f'<path class="ci" d="M{x},{at.y(low)}V{at.y(high)}"/>' if high > low else ""
        use = f'<use href="#{"dotted-" * look.dotted}{look.shape}" class="mk{hollow}" x="{x}" y="{at.y(row.acc1)}"/>'
        parts.append(f'<g class="k-{look.kind}" data-r="{keys[row.rung]}"><title>{escape(title)}</title>{bar}{use}</g>')
    parts += _names(at, shown, best, cost)
    opening = (
        f'<svg class="scatter" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Accuracy against {escape(label)}">'
    )
    return opening + "".join(parts) + "</svg>"


def standalone(svg: str, hues: str) -> str:
    """The same as a file of its own, on light paper.

    Args:
        hues: of `looks.css`.
    """
    kinds = "".join(
        f".k-{word.strip()[2:]}{{--c:var({word.strip()})}}"
        for word in (d.partition(":")[0] for d in hues.split(";"))
        if word.strip()
    )
    style = (
        f"<style>svg{{--paper:#fff;color:#1d1d1b;{hues}}}{kinds}{STYLE.replace('{{', '{').replace('}}', '}')}</style>"
    )
    head, rest = svg.split(">", 1)
    head = head.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
    return f"{head}>{style}<defs>{symbols()}</defs>{rest}\n"


def _frame(at: _Axes, label: str) -> str:
    parts, prefixed = [], EngFormatter(sep=" ")
    for tick in at.y_ticks:
        y = at.y(tick)
        parts.append(f'<path class="grid" d="M{LEFT},{y}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{tick:g}</text>')
    for tick in at.x_ticks:
        x = at.x(tick)
        parts.append(f'<path class="grid" d="M{x},{TOP}V{HEIGHT - FOOT}"/>')
        parts.append(f'<text x="{x}" y="{HEIGHT - FOOT + 15}" text-anchor="middle">{prefixed(tick)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="name" x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{escape(label)}</text>')
    parts.append(f'<text class="name" x="{LEFT - 6}" y="{TOP - 3}" text-anchor="end">%</text>')
    return "".join(parts)


def _beside(at: _Axes, place: int, name: str, cost: float, label: str) -> str:
    x, y, short = at.x(cost), HEIGHT - FOOT - 6 - LINE * place, name.removeprefix("timm/")
    is_right = x + LETTER * len(short) > WIDTH - RIGHT
    place = f'x="{x - 4}" text-anchor="end"' if is_right else f'x="{x + 4}"'
    text = f'<text class="name" {place} y="{y}">{escape(short)}</text>'
    title = f"<title>{escape(name)}: {quantity(cost)} {escape(label)}, profiled, not trained here</title>"
    return f'<g>{title}<path class="beside" d="M{x},{TOP}V{HEIGHT - FOOT}"/>{text}</g>'


def _names(at: _Axes, shown: pd.DataFrame, best: pd.DataFrame, cost: str) -> list[str]:
    """Names by the points of the front; one that would cover a point, the front itself or a better one's name is left
    to its tooltip."""
    taken = [
        (at.x(x) - 6, at.y(y) - 6, at.x(x) + 6, at.y(y) + 6) for x, y in zip(shown[cost], shown["acc1"], strict=True)
    ]
    corners = [(at.x(x), at.y(y)) for x, y in zip(best[cost], best["acc1"], strict=True)]
    lines = list(itertools.pairwise(corners))
    made = []
    for row in best[::-1].itertuples():
        x, y, width = at.x(getattr(row, cost)), at.y(row.acc1), LETTER * len(row.label)
        level = ((x - width / 2, y - 10), (x + 9, y + 4), (x - 9 - width, y + 4), (x - width / 2, y + 20))
        aslant = ((x + 7, y - 7), (x - 7 - width, y - 7), (x + 7, y + 17), (x - 7 - width, y + 17))
        for left, base in level + aslant:
            box = (left, base - LINE + 3, left + width, base + 3)
            inside = box[0] > LEFT and box[2] < WIDTH and box[1] > 0 and box[3] < HEIGHT - FOOT
            free = not any(box[0] < o[2] and o[0] < box[2] and box[1] < o[3] and o[1] < box[3] for o in taken)
            if inside and free and not any(_crosses(box, *ends) for ends in lines):
                made.append(f'<text class="name" x="{left:.1f}" y="{base:.1f}">{escape(row.label)}</text>')
                taken.append(box)
                break
    return made


def _crosses(box: tuple[float, float, float, float], a: tuple[float, float], b: tuple[float, float]) -> bool:
    """Whether the line from a to b meets the box (left, top, right, bottom); Liang and Barsky 1984."""
    enter, leave = 0.0, 1.0
    for axis in (0, 1):
        step = b[axis] - a[axis]
        near, far = box[axis] - a[axis], box[axis + 2] - a[axis]
        if step == 0:
            if near > 0 or far < 0:
                return False
            continue
        ends = sorted((near / step, far / step))
        enter, leave = max(enter, ends[0]), min(leave, ends[1])
    return enter <= leave


def _title(row: Any) -> str:
    """What a point says when pointed at."""
    level = accuracy(row.acc1, row.acc1_half, row.n)
    return f"{row.rung}: {level} %, n = {count_text(row)}; {quantity(row.macs)} MACs, {quantity(row.params)} parameters"
