"""The figure of the permutation gap; a string as those of analysis/figures/draw.py."""

import matplotlib
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.figures import draw
from analysis.figures.draw import INK, PAPER
from analysis.typeset import number, plus_minus


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
