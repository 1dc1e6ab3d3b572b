"""Accuracy against what is left, a line per criterion."""

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from analysis.figures import draw
from analysis.figures.draw import INK, PAPER
from analysis.figures.looks import KINDS
from analysis.pruning.curves import cells

HUES = tuple(light for light, *_ in KINDS.values())
MARKERS = "osD^vPX*"
WORDS = {"weights": "weights that are left in each unit, %", "units": "units that are left in each layer, %"}


def curves(frame: pd.DataFrame) -> str:
    """A panel for weights and one for units: mean of seeds with its 95 % interval; hollow right after pruning, filled
    after training again. The dashed line is the whole model."""
    means, whole, titles = cells(frame), frame.drop_duplicates("source")["acc_whole"].mean(), {}
    forms = list(dict.fromkeys(means["form"]))
    with matplotlib.rc_context(draw.STYLE):
        figure = Figure(figsize=(1 + 3.6 * len(forms), 3.6), layout="constrained")
        for axes, form in zip(figure.subplots(1, len(forms), sharey=True, squeeze=False)[0], forms, strict=True):
            for i, by in enumerate(sorted(set(means.loc[means["form"] == form, "by"]))):
                for when in ("before", "after"):
                    own = means[(means["by"] == by) & (means["when"] == when)].sort_values("share")
                    colour, gid = HUES[i % len(HUES)], f"prune-{by}-{when}"
                    style = {"color": colour, "marker": MARKERS[i % len(MARKERS)], "markersize": 5, "linewidth": 1}
                    style |= {"linestyle": "-", "markerfacecolor": colour} if when == "after" else {"linestyle": ":"}
                    style |= {"markerfacecolor": PAPER} if when == "before" else {}
                    label = by.replace("_", " ") if when == "before" else None
                    x, half = 100 * (1 - own["share"]), own["half"].fillna(0.0)
                    axes.errorbar(x, own["mean"], yerr=half, capsize=0, label=label, gid=gid, **style)
                    told = "; ".join(f"{100 * (1 - row.share):g} %: {row.mean:.2f}" for row in own.itertuples())
                    titles[gid] = f"{by}, {when} training again\n{told}"
            axes.axhline(whole, color=INK, linewidth=0.8, dashes=(4, 3))
            axes.set_xscale("log")
            axes.invert_xaxis()
            ticks = sorted({100 * (1 - share) for share in means.loc[means["form"] == form, "share"]})
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.minorticks_off()
            axes.set_xlabel(WORDS[form])
            axes.legend()
        figure.axes[0].set_ylabel("accuracy, %")
        words = "Accuracy by criterion; hollow: right after pruning, filled: trained again, dashed: the whole model"
        return draw.inline(figure, "prune", words, titles)
