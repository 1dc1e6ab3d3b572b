"""Figures of bias: what probes measured, and the permutation gap; strings as those of analysis/figures/draw.py."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.figures import draw
from analysis.figures.draw import INK, PAPER
from analysis.typeset import T_OF_TWO, accuracy, estimate, number, plus_minus

PER_LINE = 4  # panels beside each other, so that their ticks can be read


def probe_bars(
    rows: pd.DataFrame,
    titles: Mapping[str, str],
    units: Mapping[str, str],
    families: Mapping[str, str],
    name: str,
    label: str,
) -> str:
    """A panel per key over the same rungs: bars with their 95 % interval, and a tick where chance would put each.

    Of two seeds the line ends at these.

    Args:
        rows: of `probe_table.summary`, of one probe.
        titles: of the panels, by key.
        units: of the keys.
        families: the family of each rung, all of them, in the order that decides the colours.
    """
    look, rungs, tips = draw.looks(families.values()), list(dict.fromkeys(rows["rung"])), {}
    lines = -(-len(titles) // PER_LINE)
    columns = -(-len(titles) // lines)
    with matplotlib.rc_context(draw.STYLE):
        figure = Figure(figsize=(7.2, lines * (0.75 + 0.24 * len(rungs))), layout="constrained")
        panels = figure.subplots(lines, columns, sharey=True, squeeze=False).ravel()
        for i, (axes, (key, title)) in enumerate(zip(panels, titles.items(), strict=False)):
            for row in rows[rows["key"] == key].dropna(subset="value").itertuples():
                y, gid = rungs.index(row.rung), f"bar{i}-{rungs.index(row.rung)}"
                colour, _ = look[families[row.rung]]
                axes.barh(y, row.value, height=0.62, color=colour, alpha=0.75, gid=gid)
                if row.high > row.low:
                    axes.plot([row.low, row.high], [y, y], color=INK, linewidth=1)
                if not math.isnan(row.null):
                    axes.plot([row.null, row.null], [y - 0.42, y + 0.42], color=INK, linewidth=1.4)
                tips[gid] = _said(row, key, units[key])
            axes.set_title(title, fontsize=9, loc="left")
            _rows(axes, rungs)
        for axes in panels[len(titles) :]:
            axes.set_visible(False)
        return draw.inline(figure, name, label, tips)


def _said(row: Any, key: str, unit: str) -> str:
    said = estimate(row.value, row.low, row.high, row.n)
    return f"{row.rung}\n{key}: {said} {unit}, n = {row.n}\nby chance {number(row.null)}"


def gaps(table: pd.DataFrame, families: Iterable[str]) -> str:
    """Permutation gap by rung, with its 95 % interval: filled for shuffled pixels, hollow for shuffled patches.

    Args:
        table: of `permutation_gap.table`, with the `family` of each rung.
        families: all on the page, in the order that decides the colours.
    """
    look, rungs, titles = draw.looks(families), list(dict.fromkeys(table["rung"])), {}
    with matplotlib.rc_context(draw.STYLE):
        figure = Figure(figsize=(7.2, 0.9 + 0.3 * len(rungs)), layout="constrained")
        axes = figure.subplots()
        axes.axvline(0, color=INK, linewidth=0.8)
        kinds = list(dict.fromkeys(table["permute"]))
        for i, row in enumerate(table[table["n"] > 0].itertuples()):
            colour, marker = look[row.family]
            y = rungs.index(row.rung) + (kinds.index(row.permute) - (len(kinds) - 1) / 2) * 0.3
            if row.gap_half > 0:
                axes.errorbar(row.gap, y, xerr=row.gap_half, color=colour, linewidth=1.4)
            fill = colour if row.permute == "pixels" else PAPER
            axes.plot(row.gap, y, marker, color=colour, markerfacecolor=fill, gid=f"gap{i}")
            gap = plus_minus(row.gap, row.gap_half, row.n, "+")
            titles[f"gap{i}"] = (
                f"{row.rung}, shuffled {row.permute}\n{number(row.acc1)} % on whole images, "
                f"{number(row.acc1_permuted)} % on shuffled ones\ngap {gap} points, n = {row.n}"
            )
        _rows(axes, rungs)
        axes.set_xlabel("permutation gap, points")
        return draw.inline(figure, "gaps", "Accuracy lost when all images are shuffled alike", titles)


def resolution(table: pd.DataFrame) -> str:
    """Accuracy against the size of the test images, a line per rung and training size, which a ring marks.

    Bars are 95 % intervals over seeds, of two seeds both.

    Args:
        table: of `analysis.bias.resolution.summary`.
    """
    look, names = draw.looks(table["family"]), draw.labels(list(dict.fromkeys(table["rung"])), 34)
    tips = {}
    with matplotlib.rc_context(draw.STYLE):
        figure, axes = draw.plain(6.4, 3.6)
        for i, (key, group) in enumerate(table.sort_values("side").groupby(["rung", "trained_px"], sort=False)):
            (rung, trained), (colour, marker) = key, look[group["family"].iloc[0]]
            reach = group["acc1_half"].where(group["n"] > 2, group["acc1_half"] / T_OF_TWO).fillna(0)
            bars = np.stack([reach, np.minimum(reach, 100 - group["acc1"])])
            label = f"{names[rung]}, trained at {trained} px"
            axes.errorbar(
                group["side"], group["acc1"], yerr=bars, color=colour, marker=marker, linewidth=1.2, label=label
            )
            for row in group.itertuples():
                gid = f"size{i}-{row.img_size}"
                own = row.img_size == trained
                ring = {"markersize": 11 if own else 7, "markerfacecolor": "none", "markeredgewidth": 1.2 if own else 0}
                axes.plot(row.side, row.acc1, "o", color=colour, gid=gid, **ring)
                said = accuracy(row.acc1, row.acc1_half, row.n)
                tips[gid] = f"{rung}\ntrained at {trained} px, judged at {row.img_size}\n{said} %, n = {row.n}"
        axes.set_xscale("log", base=2)
        ticks = table.drop_duplicates("img_size")
        axes.set_xticks(ticks["side"], ticks["img_size"])
        axes.minorticks_off()
        axes.set_xlabel("size of the test images, pixels")
        axes.set_ylabel("accuracy, %")
        axes.legend(frameon=False, fontsize=8)
        return draw.inline(figure, "resolution", "Accuracy at other sizes of image", tips)


def _rows(axes: Axes, rungs: list[str]) -> None:
    """A line per rung, the first on top."""
    axes.set_yticks(range(len(rungs)), draw.labels(rungs, 34).values())
    axes.set_ylim(len(rungs) - 0.4, -0.6)
    axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=(1, 2, 5, 10)))
