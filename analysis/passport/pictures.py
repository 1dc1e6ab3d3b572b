"""The figures of a passport: inline SVG for the page, and the same as files, SVG and PDF, for a paper.

`fields`     the receptive field of up to eight units: the pixels with half of the gradient, with 95 %, with any
`depth`      how much of the image each unit can read, and where it mostly reads
`moves`      how far maps and logits are from following each move
`learned`    what the probes found, each with its interval and what it would be by chance
`parts`      where the parameters and the MACs are
"""

import io
import math
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from analysis import probes
from analysis.figures import draw
from analysis.figures.draw import INK, PAPER
from analysis.figures.looks import KINDS
from analysis.passport.forced import Field, Followed, Forced
from analysis.passport.learned import Learned
from analysis.typeset import number, quantity

HUE, OTHER = KINDS["matrix"][0], KINDS["flat"][0]
SHOWN, CELLS = 8, 32  # fields in a row, and cells of a side
LAYERS = ((1.0, 0.16), (0.95, 0.5), (0.5, 1.0))  # share of the mass, how dark
FEW, MOST_ROWS = 3, 8
LEAST = 1e-17  # where the axis of errors begins
POWERS = (0, -4, -8, -12, -16)


class Picture:
    """A figure with its name, its caption as alternative text, and its tooltips by the ids of artists."""

    def __init__(self, name: str, label: str, figure: Figure, titles: dict[str, str]) -> None:
        self.name, self.label, self.figure, self.titles = name, label, figure, titles
        with matplotlib.rc_context(draw.STYLE):
            self.inline = draw.inline(figure, name, label, titles)

    @property
    def svg(self) -> bytes:
        """A file of its own, for light and dark paper."""
        return draw.standalone(self.inline).encode()

    @property
    def pdf(self) -> bytes:
        """The same; letters stay letters."""
        file = io.BytesIO()
        with matplotlib.rc_context({**draw.STYLE, "pdf.fonttype": 42}):
            self.figure.savefig(file, format="pdf", metadata={"CreationDate": None})
        return file.getvalue()


def fields(found: Sequence[Field]) -> Picture:
    """Small maps side by side, in the order of depth; a map of more than 32 cells a side is drawn in 32."""
    shown = spaced(found, SHOWN)
    titles: dict[str, str] = {}
    with matplotlib.rc_context(draw.STYLE):
        columns = max(4, min(SHOWN, len(shown)))
        figure = Figure(figsize=(7.2, 7.2 / columns + 0.42), layout="constrained")
        for i, axes in enumerate(np.atleast_1d(figure.subplots(1, columns))):
            if i >= len(shown):
                axes.set_axis_off()
                continue
            each = shown[i]
            _layers(axes, each.mass)
            axes.set_title(_short(each.label), fontsize=7.5, pad=3)
            axes.set_xlabel(f"{each.extent[0]} × {each.extent[1]} px", fontsize=7.5, labelpad=2)
            axes.set_gid(f"field{i}")
            own = each.record
            titles[f"field{i}"] = (
                f"{each.name} ({each.kind})\n{100 * own['share']:.1f} % of the pixels can influence it, "
                f"{100 * own['share_95']:.1f} % carry 95 % of the gradient"
            )
    return Picture("fields", "Pixels that a unit at the middle reads, by depth", figure, titles)


def depth(found: Sequence[Field]) -> Picture:
    """Two lines over the units: pixels with any gradient, pixels with 95 % of it."""
    with matplotlib.rc_context(draw.STYLE):
        figure, axes = draw.plain(5.2, 2.9)
        places = range(len(found))
        for key, words, style in (("share", "can be read", "-o"), ("share_95", "carry 95 % of the gradient", "--s")):
            values = [100 * each.record[key] for each in found]
            colour = HUE if key == "share" else OTHER
            axes.plot(places, values, style, color=colour, label=words, markersize=3.6, linewidth=1.3)
        axes.set_ylim(-3, 104)
        axes.set_ylabel("% of the pixels", fontsize=8.5)
        axes.set_xticks(places, [_short(each.label) for each in found], rotation=40, ha="right", fontsize=7)
        axes.tick_params(axis="y", labelsize=8)
        axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)
        axes.legend(loc="lower right", fontsize=8)
    return Picture("depth", "How much of the image each unit reads", figure, {})


def moves(found: Forced) -> Picture:
    """A row per move: the error over that of an unrelated image, of the deepest map that says something, of logits."""
    names, titles = list(found.moves), {}
    with matplotlib.rc_context(draw.STYLE):
        figure = Figure(figsize=(5.2, 0.9 + 0.25 * len(names)), layout="constrained")
        axes = figure.subplots()
        axes.axvspan(LEAST, found.exact, color=HUE, alpha=0.1, linewidth=0)
        axes.axvline(1, color=INK, linewidth=0.7, linestyle=":")
        for row, move in enumerate(names):
            for logits, marker, colour in ((False, "s", OTHER), (True, "o", HUE)):
                if (answer := found.answer(move, logits)) is None:
                    continue
                gid = f"move{row}-{int(logits)}"
                exact = answer.verdict(found.dtype) == "exact"
                fill = colour if exact else PAPER
                y = row + (0.16 if logits else -0.16)
                axes.plot(
                    max(_ratio(answer), 3 * LEAST),
                    y,
                    marker,
                    color=colour,
                    markerfacecolor=fill,
                    gid=gid,
                    markersize=5.5,
                )
                titles[gid] = (
                    f"{found.title(move)}: {answer.unit}\nerror {answer.error:.1e}, unrelated {answer.null:.1e}"
                )
        axes.set_xscale("log")
        axes.set_xticks([10.0**power for power in POWERS], ["1", *(f"1e−{-power}" for power in POWERS[1:])])
        axes.minorticks_off()
        axes.set_xlim(LEAST, 10)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_yticks(range(len(names)), [found.title(move) for move in names], fontsize=8.5)
        axes.tick_params(axis="y", length=0)
        axes.tick_params(axis="x", labelsize=8)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="y", color=INK, alpha=0.1, linewidth=0.6)
        axes.set_xlabel("error, as a share of that of an unrelated image", fontsize=8.5)
        axes.text(2 * LEAST, -0.62, "exact to rounding", fontsize=7.5, va="bottom", color=HUE)
        axes.text(0.8, -0.62, "nothing left", fontsize=7.5, va="bottom", ha="right")
        handles = [
            axes.plot([], [], marker, color=colour, label=words, markersize=5, linestyle="")[0]
            for marker, colour, words in (("s", OTHER, "deepest map that can tell"), ("o", HUE, "logits"))
        ]
        figure.legend(handles=handles, fontsize=8, loc="outside lower center", ncols=2)
    return Picture("moves", "How far maps and logits are from following each move of the image", figure, titles)


def learned(found: Learned) -> Picture | None:
    """A panel per probe with percentages among its headlines; None where there is none."""
    panels = {name: _percentages(name, found) for name in found.values}
    panels = {name: keys for name, keys in panels.items() if keys}
    if not panels:
        return None
    titles: dict[str, str] = {}
    names = list(panels)
    with matplotlib.rc_context(draw.STYLE):
        rows = -(-len(names) // 2)
        heights = [max(len(panels[name]) for name in names[2 * r : 2 * r + 2]) for r in range(rows)]
        figure = Figure(figsize=(7.2, sum(0.62 + 0.2 * height for height in heights)), layout="constrained")
        grid = figure.subplots(rows, min(2, len(names)), squeeze=False, height_ratios=[0.62 + 0.2 * h for h in heights])
        for i, axes in enumerate(grid.flat):
            if i >= len(names):
                axes.set_axis_off()
                continue
            _panel(axes, names[i], panels[names[i]], found, titles, heights[i // 2])
    return Picture("learned", "What the probes found, with intervals over images and what chance gives", figure, titles)


def parts(found: Sequence[tuple[str, int, int]], params: int, macs: int) -> Picture:
    """Two bars a unit: its share of the parameters and of the MACs, in percent."""
    found = [part for part in found if part[1] or part[2]]
    titles: dict[str, str] = {}
    with matplotlib.rc_context(draw.STYLE):
        figure = Figure(figsize=(7.2, 0.7 + 0.21 * len(found)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        for axes, which, whole, colour, words in (
            (left, 1, params, OTHER, "parameters"),
            (right, 2, macs, HUE, "MACs"),
        ):
            for row, part in enumerate(found):
                gid = f"part{row}-{which}"
                share = 100 * part[which] / max(whole, 1)
                axes.barh(row, share, color=colour, height=0.66, gid=None)
                axes.plot(share, row, alpha=0, gid=gid)
                axes.text(share, row, f" {quantity(part[which])}", va="center", fontsize=7)
                titles[gid] = f"{part[0]}: {part[which]:,} {words}, {share:.1f} %"
            axes.set_xlabel(f"% of {quantity(whole)} {words}", fontsize=8.5)
            axes.tick_params(labelsize=8)
            axes.margins(x=0.18)
            axes.set_xlim(left=0)
        left.set_yticks(range(len(found)), [_short(part[0], 22) for part in found], fontsize=7.5)
        left.set_ylim(len(found) - 0.4, -0.6)
        for axes in (left, right):
            axes.tick_params(axis="y", length=0)
    return Picture("parts", "Where the parameters and the MACs are", figure, {})


def spaced(found: Sequence[Field], most: int) -> list[Field]:
    """So many of them, evenly, the first and the last among them."""
    if len(found) <= most:
        return list(found)
    return [found[round(i * (len(found) - 1) / (most - 1))] for i in range(most)]


def _layers(axes: Axes, mass: np.ndarray) -> None:
    """The pixels that carry shares of the mass, the fewest that do, each layer darker on the one before."""
    cells = coarse(mass, CELLS)
    H, W = cells.shape
    for share, alpha in LAYERS:
        if not cells.any():
            break
        mask = cells > 0 if share == 1 else _densest(cells, share)
        axes.add_patch(PathPatch(outline(mask), facecolor=HUE, alpha=alpha, linewidth=0))
    axes.set_xlim(0, W)
    axes.set_ylim(H, 0)
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_linewidth(0.5)


def coarse(mass: np.ndarray, most: int) -> np.ndarray:
    """Sums over blocks of pixels, so that no side has more cells than that."""
    block = -(-max(mass.shape) // most)
    H, W = (-(-side // block) * block for side in mass.shape)
    padded = np.zeros((H, W))
    padded[: mass.shape[0], : mass.shape[1]] = mass
    return padded.reshape(H // block, block, W // block, block).sum((1, 3))


def _densest(cells: np.ndarray, share: float) -> np.ndarray:
    """The fewest cells with so much of the mass."""
    flat = np.sort(cells.ravel())[::-1]
    last = flat[min((flat.cumsum() < share * flat.sum()).sum(), len(flat) - 1)]
    return cells >= last


def outline(mask: np.ndarray) -> Path:
    """A path around the true cells (H, W): one rectangle for each run of them in a row, equal rows as one."""
    corners, codes, open_runs = [], [], {}
    for row in range(mask.shape[0] + 1):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], mask[row].astype(int), [0]]))) if row < len(mask) else []
        runs = {(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)}
        for run in [run for run in open_runs if run not in runs]:
            top = open_runs.pop(run)
            corners += [(run[0], top), (run[1], top), (run[1], row), (run[0], row), (run[0], top)]
            codes += [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY]
        open_runs |= {run: row for run in runs if run not in open_runs}
    return Path(corners, codes) if corners else Path(np.zeros((0, 2)))


def _ratio(answer: Followed) -> float:
    return answer.error / answer.null if answer.null else math.inf if answer.error else 0.0


def _percentages(name: str, found: Learned) -> list[str]:
    """What a probe measured in percent: of its headlines, or where these are few of all that it has."""
    known = [key for key in found.values[name] if probes.unit(name, key) == "%"]
    headlines = [key for key in probes.read(name)["HEADLINE"] if key in known]
    return headlines if len(headlines) >= FEW else known[:MOST_ROWS]


def _panel(axes: Axes, name: str, keys: list[str], found: Learned, titles: dict[str, str], height: int) -> None:
    """A row per key: value, interval, and what chance gives as a line."""
    for row, key in enumerate(keys):
        each, gid = found.values[name][key], f"{name}-{row}"
        axes.plot([each.low, each.high], [row, row], color=HUE, linewidth=1.6)
        axes.plot(each.value, row, "o", color=HUE, markersize=4.5, gid=gid)
        if not math.isnan(each.null):
            axes.plot([each.null] * 2, [row - 0.33, row + 0.33], color=INK, linewidth=1, alpha=0.6)
        titles[gid] = (
            f"{name}, {key}: {number(each.value, 1)} % [{number(each.low, 1)}, {number(each.high, 1)}], "
            f"by chance {number(each.null, 1)}"
        )
    axes.set_title(name.replace("_", " "), fontsize=9, loc="left")
    axes.set_yticks(range(len(keys)), [probes.words(name, key).replace("_", " ") for key in keys], fontsize=8)
    axes.set_ylim(height - 0.5, -0.5)
    axes.set_xlim(left=min(0.0, *(found.values[name][key].low for key in keys)))
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=7.5)
    axes.set_xlabel("%", fontsize=8, labelpad=1)
    axes.grid(axis="x", color=INK, alpha=0.12, linewidth=0.6)
    axes.spines["left"].set_visible(False)


def _short(name: str, most: int = 14) -> str:
    return name if len(name) <= most else f"…{name[1 - most :]}"
