"""Figures of the choice of layers: which layer each criterion gives away, and how surely."""

import matplotlib
from matplotlib.figure import Figure

from analysis.figures import draw
from analysis.figures.draw import INK
from analysis.figures.looks import KINDS
from analysis.removal.ranks import Ranking


def choices(rankings: list[Ranking], k: int, over: str) -> str:
    """A line per ranking and a column per layer: the disc is as large as the share of resamples that choose the layer,
    and the ring says that the answer does.

    Args:
        over: what the shares are of, in words.
    """
    layers, titles = rankings[0].layers, {}
    with matplotlib.rc_context(draw.STYLE):
        figure = Figure(figsize=(7.2, 1.1 + 0.36 * len(rankings)), layout="constrained")
        axes = figure.subplots()
        for y, ranking in enumerate(rankings):
            chosen = ranking.chosen(k) if not ranking.drawn else []
            for layer, share, place in zip(layers, ranking.frequency(k), ranking.places(), strict=True):
                gid = f"choice{y}-{layer}"
                if share:
                    axes.scatter(layer, y, s=150 * share, color=KINDS["matrix"][0], alpha=0.75, linewidth=0, gid=gid)
                if layer in chosen:
                    axes.scatter(layer, y, s=190, facecolor="none", edgecolor=INK, linewidth=1)
                titles[gid] = f"{ranking.label}\nlayer {layer}: chosen in {share:.0%}, place {place + 1:.3g}"
        axes.set_xticks(layers)
        axes.set_yticks(range(len(rankings)), [ranking.label for ranking in rankings])
        axes.set_ylim(len(rankings) - 0.4, -0.6)
        axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(f"layer; ring: among the {k} chosen, disc: share of {over}")
        return draw.inline(figure, "choice", f"Which {k} layers each criterion chooses", titles)
