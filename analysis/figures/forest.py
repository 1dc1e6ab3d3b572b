"""What each ingredient buys, as a figure of its own: a row per contrast, a panel per measure, on one list of names.

A string as those of analysis/figures/draw.py. Colour is the verdict on accuracy; a hollow mark says that more than its
ingredient differs, a diamond that a contrast is of more than two rungs. In the panels beside it ink says that a
difference is decided; more of a gap or of a loss is neither good nor bad.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from analysis.factorial import columns
from analysis.figures import draw
from analysis.figures.draw import INK, PAPER
from analysis.figures.looks import VERDICTS
from analysis.typeset import MISSING, number, quantity

ROW, HEAD, FOOT = 0.22, 0.55, 0.45  # inches
LABEL, ACCURACY, PANEL, TEXT = 3.0, 2.5, 1.5, 0.75
CLEAR = 0.05


class Panel(NamedTuple):
    """A measure beside accuracy, of `columns.measure`, by row of the contrasts; `below` stands under its title."""

    title: str
    below: str
    values: pd.DataFrame


def forest(asked: pd.DataFrame, costs: Sequence[float], panels: Sequence[Panel], alt: str) -> str:
    """The figure.

    Args:
        asked: of `columns.table`; families stand apart under their name.
        costs: the difference in parameters, by row; NaN where that is not known, or no cost as of an interaction.
        panels: drawn after accuracy and parameters, in this order.
        alt: what it shows, in words.
    """
    places, heads, y = [], [], 0.0
    for family, group in asked.groupby("family", sort=False):
        if asked["family"].nunique() > 1:
            heads.append((y, f"{family}, ± {group['margin'].iloc[0]:g}"))
            y += 1
        places += [y + i for i in range(len(group))]
        y += len(group)
    widths = [LABEL, ACCURACY, TEXT, *[PANEL] * len(panels)]
    height = HEAD + FOOT + ROW * y
    with matplotlib.rc_context(draw.STYLE | {"font.size": 9, "lines.markersize": 5.5}):
        figure = Figure(figsize=(sum(widths) + 0.2 * len(widths), height))
        room = {"left": 0.0, "right": 0.995, "top": 1 - HEAD / height, "bottom": FOOT / height, "wspace": 0.12}
        grid = figure.subplots(1, len(widths), sharey=True, width_ratios=widths, gridspec_kw=room)
        grid[0].set_ylim(y - 0.4, -0.6)
        titles = _accuracy(grid[1], asked, places)
        _names(grid[0], asked, places, heads)
        _texts(grid[2], costs, places)
        for axes, panel in zip(grid[3:], panels, strict=True):
            _beside(axes, asked, panel, places)
        return draw.inline(figure, "forest", alt, titles)


def _names(axes: Axes, asked: pd.DataFrame, places: Sequence[float], heads: Sequence[tuple[float, str]]) -> None:
    axes.set_axis_off()
    for y, row in zip(places, asked.itertuples(), strict=True):
        axes.text(1.0, y, row.contrast, ha="right", va="center", transform=axes.get_yaxis_transform())
        if what := columns.ingredient(row):
            axes.text(0.0, y, what, va="center", alpha=0.6, transform=axes.get_yaxis_transform())
    for y, family in heads:
        axes.text(0.0, y, family, va="center", weight="bold", transform=axes.get_yaxis_transform())


def _accuracy(axes: Axes, asked: pd.DataFrame, places: Sequence[float]) -> dict[str, str]:
    """Draws it, and returns the tooltips."""
    titles = {}
    _frame(axes, "accuracy", "points: difference", places)
    by_family = pd.Series(places, index=asked.index).groupby(asked["family"], sort=False)
    for (_, own), margin in zip(by_family, asked.groupby("family", sort=False)["margin"].first(), strict=True):
        ends = {"xy": (-margin, own.min() - 0.5), "width": 2 * margin, "height": own.max() - own.min() + 1}
        axes.add_patch(Rectangle(**ends, color=INK, alpha=0.07, linewidth=0))
    for i, (y, row) in enumerate(zip(places, asked.itertuples(), strict=True)):
        if math.isnan(row.diff):
            continue
        colour = VERDICTS.get(row.verdict.partition(",")[0], (INK, INK))[0]
        _mark(axes, row.diff, row.low, row.high, y, colour, row, gid=f"row{i}")
        half = "" if math.isnan(row.high) else f" ± {number((row.high - row.low) / 2, 2)}"
        titles[f"row{i}"] = f"{row.contrast}: {number(row.diff, 2, '+')}{half} points, n = {row.n}, {row.verdict}\n"
        titles[f"row{i}"] += f"differs in {row.differs}"
    return titles


def _beside(axes: Axes, asked: pd.DataFrame, panel: Panel, places: Sequence[float]) -> None:
    _frame(axes, panel.title, panel.below, places)
    for y, row, own in zip(places, asked.itertuples(), panel.values.itertuples(), strict=True):
        if not math.isnan(own.value):
            colour = INK if own.p < CLEAR else VERDICTS["undecided"][0]
            _mark(axes, own.value, own.low, own.high, y, colour, row)


def _texts(axes: Axes, costs: Sequence[float], places: Sequence[float]) -> None:
    _titled(axes, "parameters", "difference")
    axes.set_axis_off()
    for y, cost in zip(places, costs, strict=True):
        sign = "+" if cost > 0 else "−" if cost < 0 else ""
        text = MISSING if math.isnan(cost) else sign + quantity(abs(cost))
        axes.text(1.0, y, text, ha="right", va="center", transform=axes.get_yaxis_transform())


def _mark(axes: Axes, value: float, low: float, high: float, y: float, colour: str, row: Any, gid: str = "") -> None:
    if high > low:
        axes.plot([low, high], [y, y], color=colour, linewidth=1.3)
    shape = "D" if len(row.weights) > 2 else "o"
    size = 4.6 if shape == "D" else 5.5
    given = {"markerfacecolor": colour if row.of else PAPER, "markeredgewidth": 1.3, "markersize": size}
    axes.plot(value, y, shape, color=colour, gid=gid or None, **given)


def _frame(axes: Axes, title: str, below: str, places: Sequence[float]) -> None:
    _titled(axes, title, below)
    axes.axvline(0, color=INK, linewidth=0.8)
    lines = {"transform": axes.get_yaxis_transform(), "color": INK, "alpha": 0.1, "linewidth": 0.5}
    axes.hlines([y + 0.5 for y in places], 0, 1, **lines)
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0, labelleft=False)
    axes.xaxis.set_major_locator(MaxNLocator(5 if title == "accuracy" else 3, steps=(1, 2, 5, 10)))


def _titled(axes: Axes, title: str, below: str) -> None:
    axes.annotate(title, (0, 1), (0, 16), "axes fraction", "offset points", weight="bold")
    axes.annotate(below, (0, 1), (0, 5), "axes fraction", "offset points", size=8)
