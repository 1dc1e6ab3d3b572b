"""Figures of removals: which layer each criterion gives away and how surely, and what is left without them."""

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from analysis import stats
from analysis.figures import draw
from analysis.figures.draw import INK, PAPER
from analysis.figures.looks import KINDS
from analysis.removal.bench import cells
from analysis.removal.ranks import Ranking

HUES = tuple(light for light, *_ in KINDS.values())
MARKERS = "osD^vPX*"


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


def bench(frame: pd.DataFrame) -> str:
    """A panel per way, a line per criterion: accuracy over the share of layers that lost their mixing, mean of seeds
    with its 95 % interval; hollow before healing, filled after it. The dashed line is the whole model."""
    means, whole, titles = cells(frame), frame.drop_duplicates("source")["acc_whole"].mean(), {}
    ways, asked = (list(dict.fromkeys(means[key])) for key in ("way", "asked"))
    with matplotlib.rc_context(draw.STYLE):
        figure = Figure(figsize=(max(3.2 * len(ways), 4.2), 3.6), layout="constrained")
        panels = figure.subplots(1, len(ways), sharey=True, squeeze=False)[0]
        for axes, way in zip(panels, ways, strict=True):
            for i, name in enumerate(asked):
                for when, filled in (("before", False), ("after", True)):
                    own = means[(means["way"] == way) & (means["asked"] == name) & (means["when"] == when)]
                    colour, marker = HUES[i % len(HUES)], MARKERS[i % len(MARKERS)]
                    x = own["share"] + 1.5 * (i - (len(asked) - 1) / 2)
                    label = name.replace("_", " ") if filled and axes is panels[0] else None
                    style = {"color": colour, "marker": marker, "markersize": 5, "capsize": 0, "linewidth": 1}
                    style |= {"linestyle": "-" if filled else ":", "markerfacecolor": colour if filled else PAPER}
                    ends = [stats.within(row.mean, 0 if pd.isna(row.half) else row.half) for row in own.itertuples()]
                    reach = [
                        [abs(mean - end[side]) for mean, end in zip(own["mean"], ends, strict=True)] for side in (0, 1)
                    ]
                    axes.errorbar(
                        x,
                        own["mean"],
                        yerr=reach if len(own) else None,
                        label=label,
                        gid=f"bench-{way}-{i}-{when}",
                        **style,
                    )
                    told = "; ".join(f"{row.share:.0f} %: {row.mean:.2f}" for row in own.itertuples())
                    titles[f"bench-{way}-{i}-{when}"] = f"{name}, {way}, {when} healing\n{told}"
            axes.axhline(whole, color=INK, linewidth=0.8, dashes=(4, 3))
            axes.set_title(way, fontsize=10)
            axes.set_xticks(sorted(means["share"].unique()))
            axes.set_xlabel("layers without their mixing, %")
        panels[0].set_ylabel("accuracy, %")
        figure.legend(loc="outside lower center", ncols=4)
        words = "Accuracy by criterion and way; hollow: before healing, filled: after it, dashed: the whole model"
        return draw.inline(figure, "bench", words, titles)
