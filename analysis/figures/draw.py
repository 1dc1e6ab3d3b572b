"""Figures as inline SVG: strings to put into a page, which lends them its font and its text colour.

Ink is `currentColor`; the colour of a family is a CSS variable with the colour on light paper as its fallback, so that
one figure reads on light and on dark pages (`css` has the variables). Text stays text: small, searchable, in the font
of the page. Every id carries the figure's name, so that figures do not clash. Equal input gives equal bytes.
"""

import io
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import Bbox

from analysis.compare.frames import REFERENCE, count_text, gain_text, quantity
from analysis.compare.pareto import front
from analysis.stats import within
from analysis.typeset import accuracy

# Light and dark paper, by order of families. Found by search: contrast with the paper at least 3 : 1; distance (CIE76)
# of any two at least 30 in normal sight, 15 in simulated deuteranopia and protanopia. Markers tell families apart, too.
PALETTE = (
    ("#00418c", "#547bc6"),
    ("#df7700", "#fe8b4d"),
    ("#047a68", "#65c381"),
    ("#ff2581", "#c84d63"),
    ("#129ec9", "#3dc1ff"),
    ("#5da04e", "#cce57c"),
    ("#793039", "#ffa6b8"),
    ("#7465ea", "#a37dfe"),
    ("#835e0d", "#9b7a43"),
    ("#c14ca0", "#b765a1"),
    ("#274400", "#74870c"),
    ("#4b0047", "#e0d3ff"),
)
MARKERS = "osD^vPX<>p"  # ten to twelve colours, so that families which share a colour differ in their marker
DASHES = ("-", (0, (4, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.2, 1.2, 1.2)))
INK = "#010203"  # stands for currentColor until the SVG is written
PAPER = "#fdfcfb"  # stands for the colour of the page, in hollow markers
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "softer-mlps",
    "font.size": 10,
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    "legend.handletextpad": 0.3,
    "legend.columnspacing": 1.4,
    "lines.markersize": 7,
}


def looks(families: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each family, by order of first appearance; references of timm are stars in ink."""
    own = [family for family in dict.fromkeys(families) if family != REFERENCE]
    result = {family: (PALETTE[i % len(PALETTE)][0], MARKERS[i % len(MARKERS)]) for i, family in enumerate(own)}
    return {**result, REFERENCE: (INK, "*")}


def colours(families: Iterable[str]) -> dict[str, str]:
    """The colour of each family as CSS."""
    return {family: _css_colour(colour) for family, (colour, _) in looks(families).items()}


def _css_colour(colour: str) -> str:
    variables = {light: f"var(--family-{i}, {light})" for i, (light, _) in enumerate(PALETTE)}
    return {**variables, INK: "currentColor", PAPER: f"var(--paper, {PAPER})"}[colour]


def css(dark: bool) -> str:
    """The palette as declarations of CSS variables."""
    return " ".join(f"--family-{i}: {pair[dark]};" for i, pair in enumerate(PALETTE))


def standalone(svg: str) -> str:
    """An inline figure as a file of its own: with its namespace, a font, and inks for light and for dark paper."""
    light, dark = f"svg {{ color: #1a1a1a; {css(False)} }}", f"svg {{ color: #e6e6e6; {css(True)} }}"
    style = (
        f"<style>svg {{ font-family: sans-serif; }} {light} @media (prefers-color-scheme: dark) {{ {dark} }}</style>"
    )
    head, rest = svg.split(">", 1)
    head = head.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
    return f"{head}>{style}{rest}\n"


def accuracy_cost(rungs: pd.DataFrame, cost: str, label: str, families: Iterable[str] = ()) -> str:
    """Accuracy against a cost, or a rate, of which much is cheap; log x, Pareto front marked.

    Args:
        rungs: rows of the table of rungs, with the column `cost`.
        families: all that have a colour on the page, in order, if more than those of `rungs`.
    """
    look = looks([*families, *rungs["family"]])
    shown = rungs[rungs["acc1"].notna() & (rungs[cost] > 0)]
    paid = shown.assign(paid=(-1 if cost.startswith("images_per_s") else 1) * shown[cost])
    best = shown[front(paid, "paid", "acc1")].sort_values(cost)
    name = f"accuracy-{cost}"
    titles = {}
    with matplotlib.rc_context(STYLE):
        figure, axes = plain(7.2, 4.4)
        axes.set_xscale("log")
        axes.plot(best[cost], best["acc1"], color=INK, linewidth=0.8, alpha=0.45, zorder=1)
        for i, row in enumerate(shown.itertuples()):
            colour, marker = look[row.family]
            x = getattr(row, cost)
            if row.acc1_half > 0:
                axes.errorbar(x, row.acc1, _reach(row), color=colour, linewidth=1.1, zorder=2)
            fill = colour if row.Index in best.index else PAPER
            axes.plot(x, row.acc1, marker, color=colour, markerfacecolor=fill, gid=f"point{i}", zorder=3)
            titles[f"point{i}"] = _title(row) + ("" if cost in ("macs", "params") else f"\n{quantity(x)} {label}")
        _log_ticks(axes, shown[cost])
        _label_front(axes, shown, best, cost)
        axes.set_xlabel(label)
        axes.set_ylabel("top-1 accuracy, %")
        legend(figure, shown["family"], look)
        return inline(figure, name, f"Top-1 accuracy against {label}", titles)


def ladder(rungs: pd.DataFrame, frame: pd.DataFrame) -> str:
    """Two panels over the same rows: accuracy (every seed, mean, interval) and gain over the rung before."""
    look = looks(frame["family"])
    titles = {}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 1.0 + 0.34 * len(rungs)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        for y, row in enumerate(rungs.itertuples()):
            colour, marker = look[row.family]
            seeds = frame.loc[(frame["rung"] == row.rung) & frame["acc1"].notna(), "acc1"]
            left.plot(seeds, [y] * len(seeds), "|", color=colour, alpha=0.55, markersize=9)
            if row.acc1_half > 0:
                left.errorbar(row.acc1, y, xerr=_reach(row), color=colour, linewidth=1.4)
            left.plot(row.acc1, y, marker, color=colour, gid=f"level{y}")
            if row.gain_half > 0:
                right.errorbar(row.gain, y, xerr=row.gain_half, color=colour, linewidth=1.4)
            fill = colour if row.gain_clear else PAPER
            right.plot(row.gain, y, marker, color=colour, markerfacecolor=fill, gid=f"gain{y}")
            titles[f"level{y}"] = titles[f"gain{y}"] = _title(row)
        left.set_yticks(range(len(rungs)), labels(rungs["rung"], 34).values())
        left.set_ylim(len(rungs) - 0.4, -0.6)
        right.axvline(0, color=INK, linewidth=0.6)
        left.set_xlabel("top-1 accuracy, %")
        right.set_xlabel("gain over the rung before, points")
        for axes in (left, right):
            axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)
            axes.tick_params(axis="y", length=0)
            axes.spines["left"].set_visible(False)
            axes.xaxis.set_major_locator(MaxNLocator(5, steps=(1, 2, 5, 10)))
        return inline(figure, "ladder", "Accuracy of each rung, and its gain over the rung before", titles)


def learning_curves(curves: pd.DataFrame, families: Sequence[str]) -> str:
    """Evaluation accuracy by epoch: a panel per family, mean and range over seeds, the other rungs in faint ink.

    The axis leaves out the first quarter of the epochs where it lies below all that follows.
    """
    look = looks(families)
    titles = {}
    shown = list(dict.fromkeys(curves["family"]))
    columns = min(3, len(shown))
    lines = -(-len(shown) // columns)
    done = curves.assign(epochs=curves["epoch"] + 1)
    means = done.groupby(["rung", "epochs"], sort=False)["eval_top1"].agg(["mean", "min", "max"])
    names = labels(means.index.get_level_values("rung").unique(), 30)
    late = means[means.index.get_level_values("epochs") >= 0.25 * done["epochs"].max()]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 0.5 + (3.4 if columns == 1 else 2.1) * lines), layout="constrained")
        panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
        for i, (axes, family) in enumerate(zip(panels, shown, strict=False)):
            colour, _ = look[family]
            own = list(dict.fromkeys(curves.loc[curves["family"] == family, "rung"]))
            for rung in means.index.get_level_values("rung").unique():
                band = means.loc[rung].sort_index()
                if rung not in own:
                    faint = band["mean"].iloc[:: -(-len(band) // 60)]  # it is drawn once in every panel
                    axes.plot(faint.index, faint, color=INK, alpha=0.16, linewidth=0.7, zorder=1)
                    continue
                dashes = DASHES[own.index(rung) % len(DASHES)]
                axes.fill_between(band.index, band["min"], band["max"], color=colour, alpha=0.22, linewidth=0, zorder=2)
                line = {
                    "color": colour,
                    "linewidth": 1.5,
                    "linestyle": dashes,
                    "label": names[rung].removeprefix(f"{family}_"),
                }
                gid = f"curve{i}-{own.index(rung)}"
                dot = "." if len(band) == 1 else None  # a line needs two points
                axes.plot(band.index, band["mean"], marker=dot, gid=gid, zorder=3, **line)
                titles[gid] = f"{rung}: {band['mean'].iloc[-1]:.2f} % after {band.index[-1]:g} epochs"
            axes.set_title(family, fontsize=10, loc="left")
            if len(own) > 1:
                axes.legend(loc="lower right", fontsize=8, handlelength=2.2, handletextpad=0.5, labelspacing=0.25)
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        # The first epochs, far below, would press the differences flat.
        margin = 0.08 * (late["max"].max() - late["min"].min()) or 1.0
        panels[0].set_ylim(late["min"].min() - margin, late["max"].max() + margin)
        for axes in panels[len(shown) :]:
            axes.set_visible(False)
        for i, axes in enumerate(panels[: len(shown)]):
            if i + columns >= len(shown):
                axes.set_xlabel("epochs")
                axes.tick_params(labelbottom=True)
            if i % columns == 0:
                axes.set_ylabel("top-1 accuracy, %")
        return inline(figure, "curves", "Evaluation accuracy by epoch, a panel per family", titles)


def plain(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _title(row: Any) -> str:
    """What a point says when pointed at."""
    level = accuracy(row.acc1, row.acc1_half, row.n)
    return (
        f"{row.rung}\naccuracy {level} %, n = {count_text(row)}\n{quantity(row.macs)} MACs, "
        f"{quantity(row.params)} parameters\ngain over the rung before: {gain_text(row)}"
    )


def _reach(row: Any) -> list[list[float]]:
    """How far the interval of a rung's accuracy goes down and up, on its scale."""
    low, high = within(row.acc1, row.acc1_half)
    return [[row.acc1 - low], [high - row.acc1]]


def labels(rungs: Sequence[str], length: int) -> dict[str, str]:
    """What each rung is called in a figure: without the words that most share, where that confuses none.

    One that is still too long is its model alone where no other rung has that model, and otherwise cut.
    """
    names = {rung: rung.split(" ") for rung in rungs}
    counts = Counter(word for words in names.values() for word in words[1:])
    for word in [word for word, count in counts.items() if len(names) > 1 and 2 * count >= len(names)]:
        fewer = {rung: [other for other in words if other != word] for rung, words in names.items()}
        if len(set(map(tuple, fewer.values()))) == len(names):
            names = fewer
    texts = {rung: " ".join(words) for rung, words in names.items()}
    models = Counter(words[0] for words in names.values())
    for rung, (model, *_) in names.items():
        if len(texts[rung]) > length:
            texts[rung] = model if models[model] == 1 else texts[rung][: length - 1] + "…"
    return texts


def _log_ticks(axes: Axes, values: pd.Series) -> None:
    """A handful of labels with prefixes, however many decades there are; linear where there is no room for a log."""
    axes.margins(x=0.08, y=0.12)
    ratio = values.max() / values.min() if len(values) else 1.0
    axes.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5) if ratio < 30 else (1, 3) if ratio < 1000 else (1,)))
    if ratio < 3:
        axes.set_xscale("linear")
        axes.margins(x=0.08 if ratio > 1 else 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(EngFormatter(sep=" "))


def _label_front(axes: Axes, shown: pd.DataFrame, best: pd.DataFrame, cost: str) -> None:
    """Names above the points of the front; one that would cover a point or a better one is left to its tooltip."""
    names = labels(shown["rung"], 28)
    axes.figure.draw_without_rendering()  # settles the scale
    marks = axes.transData.transform(shown[[cost, "acc1"]].to_numpy(float))
    taken = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in marks]
    for i, row in enumerate(best[::-1].itertuples()):
        x, top = getattr(row, cost), within(row.acc1, row.acc1_half)[1] if row.acc1_half > 0 else row.acc1
        share = axes.transAxes.inverted().transform(axes.transData.transform((x, top)))[0]
        label = axes.annotate(
            *(names[row.rung], (x, top)),
            xytext=(0, 5),
            textcoords="offset points",
            ha="left" if share < 0.2 else "right" if share > 0.6 else "center",
            fontsize=9,
            gid=f"label{i}",
            zorder=1.5,
        )
        box = label.get_window_extent()
        if any(box.overlaps(other) for other in taken):
            label.remove()
        else:
            taken.append(box)


def legend(figure: Figure, families: pd.Series, look: dict[str, tuple[str, str]]) -> None:
    handles = [
        Line2D([], [], linestyle="", marker=look[family][1], color=look[family][0], label=family)
        for family in dict.fromkeys(families)
    ]
    if handles:
        columns = 4 if families.str.len().max() > 10 else 6  # what the width of a figure holds
        figure.legend(handles=handles, loc="outside upper left", ncols=min(len(handles), columns))


def inline(figure: Figure, name: str, label: str, titles: dict[str, str]) -> str:
    """Write the figure and turn it into a citizen of an HTML page; `titles` maps ids of artists to their tooltips."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    # The page's own font, at matplotlib's sizes.
    text = re.sub(r"font-family: [^;\"]*(; )?", "", text)
    # Half a hundredth of a point is enough: of coordinates, which stand in tags. What is read stays as it was written.
    text = re.sub(r"<[^!>][^>]*>", lambda tag: re.sub(r"(?<=\d\.\d\d)\d+", "", tag[0]), text)
    for gid, title in titles.items():
        text = text.replace(f'<g id="{gid}">', f'<g id="{gid}"><title>{escape(title)}</title>')
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'href="#', f'href="#{name}-', text).replace("url(#", f"url(#{name}-")
    for colour in (INK, PAPER, *(light for light, _ in PALETTE)):
        text = text.replace(colour, _css_colour(colour))
    opening = re.match(r'<svg[^>]*viewBox="([^"]+)"[^>]*>', text)
    assert opening
    start = f'<svg viewBox="{opening[1]}" role="img" aria-label="{escape(label)}" class="figure">'
    return start + text[opening.end() :].strip()
