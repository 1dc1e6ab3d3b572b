"""Figures of the permutation gap and of other sizes of image; strings as those of analysis/figures/draw.py."""

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.figures import draw
from analysis.figures.draw import INK, PAPER
from analysis.figures.looks import looks
from analysis.typeset import T_OF_TWO, accuracy, number, plus_minus


def gaps(table: pd.DataFrame) -> str:
    """Permutation gap by rung, with its 95 % interval: filled for shuffled pixels, hollow for shuffled patches.

    Args:
        table: of `permutation_gap.table`, with the `look` and the `label` of each rung.
    """
    table = table[table["n"] > 0]
    rungs, titles = list(dict.fromkeys(table["rung"])), {}
    with matplotlib.rc_context(draw.STYLE):
        figure = Figure(figsize=(7.2, 0.9 + 0.3 * len(rungs)), layout="constrained")
        axes = figure.subplots()
        axes.axvline(0, color=INK, linewidth=0.8)
        kinds = list(dict.fromkeys(table["permute"]))
        for i, row in enumerate(table.itertuples()):
            colour = draw.hue(row.look)
            y = rungs.index(row.rung) + (kinds.index(row.permute) - (len(kinds) - 1) / 2) * 0.3
            if row.gap_half > 0:
                axes.errorbar(row.gap, y, xerr=row.gap_half, color=colour, linewidth=1.4)
            fill = colour if row.permute == "pixels" else PAPER
            axes.plot(row.gap, y, marker=draw.marker(row.look), color=colour, markerfacecolor=fill, gid=f"gap{i}")
            gap = plus_minus(row.gap, row.gap_half, row.n, "+")
            titles[f"gap{i}"] = (
                f"{row.rung}, shuffled {row.permute}\n{number(row.acc1)} % on whole images, "
                f"{number(row.acc1_permuted)} % on shuffled ones\ngap {gap} points, n = {row.n}"
            )
        axes.set_yticks(range(len(rungs)), list(dict.fromkeys(table["label"])))
        axes.set_ylim(len(rungs) - 0.4, -0.6)
        axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=(1, 2, 5, 10)))
        axes.set_xlabel("permutation gap, points")
        return draw.inline(figure, "gaps", "Accuracy lost when all images are shuffled alike", titles)


def resolution(table: pd.DataFrame) -> str:
    """Accuracy against the size of the test images, a line per rung and training size, which a ring marks.

    Bars are 95 % intervals over seeds, of two seeds both.

    Args:
        table: of `analysis.bias.resolution.summary`.
    """
    look, tips = looks(table["family"]), {}
    with matplotlib.rc_context(draw.STYLE):
        figure, axes = draw.plain(6.4, 3.6)
        for i, (key, group) in enumerate(table.sort_values("side").groupby(["rung", "trained_px"], sort=False)):
            (rung, trained), own_look = key, look[group["family"].iloc[0]]
            colour, marker = draw.hue(own_look), draw.marker(own_look)
            reach = group["acc1_half"].where(group["n"] > 2, group["acc1_half"] / T_OF_TWO).fillna(0)
            bars = np.stack([reach, np.minimum(reach, 100 - group["acc1"])])
            label = f"{rung}, trained at {trained} px"
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
