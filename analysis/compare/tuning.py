"""What a search over recipes found: per model the best cell, how much hangs on it, a map of learning rate and decay.

The best of many is flattered by having been chosen: it says which cell to train with, not how good the model is. On
which images it was chosen follows from the runs (`analysis/judges.py`); by test images, it is no test any more.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from analysis.figures import draw
from analysis.typeset import MISSING, Sheet

NEAR = 1.0  # points below the best that count as level with it: about two standard errors of 5000 images at 85 %
EDGE = 0.1  # share of a range, from either end, that counts as its edge
AXES = ("lr", "weight_decay")
HEADER = (
    "model",
    "best cell",
    "accuracy, %",
    "runner-up",
    "its accuracy, %",
    f"within {NEAR:g} point",
    "tried",
    "edge",
)

Ranges = Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Winner:
    """The best cell of one model; means over the seeds of a cell."""

    model: str
    cell: dict[str, Any]
    acc1: float
    signature: str
    """Of its first run."""
    second: dict[str, Any] | None
    second_acc1: float
    near: int
    """Cells at most NEAR points below the best, itself included: many mean that little hangs on the choice."""
    finished: int
    tried: int
    edges: tuple[str, ...]
    """Warnings: where the best cell is the last one tried, a better one may lie beyond."""


def cells(rows: Sequence[dict[str, Any]], axes: Sequence[str]) -> pd.DataFrame:
    """One row per model and cell: `acc1`, the mean over its seeds, NaN unless all are done; `signature`, `state`.

    Only runs of the full length take part, those with the most epochs. A cell of which a run failed is `failed`.
    """
    frame = pd.DataFrame(rows, dtype=object)  # values as they are, so that a column with a gap changes none
    frame["acc1"] = pd.to_numeric(frame["acc1"])
    frame = frame[frame["epochs"] == frame["epochs"].max()]
    keys = ["model", *(axis for axis in axes if axis != "seed")]
    places = frame[keys].astype(str).agg(" ".join, axis=1)
    made = []
    for _, group in frame.groupby(places, sort=False):
        states = set(group["state"])
        state = next((state for state in ("failed", *sorted(states - {"done"})) if state in states), "done")
        mean = group["acc1"].mean() if state == "done" else math.nan
        made.append({**group.iloc[0][["signature", *keys]], "acc1": mean, "state": state})
    return pd.DataFrame(made)


def winners(table: pd.DataFrame, axes: Sequence[str], ranges: Ranges) -> list[Winner]:
    """The best cell per model, of `cells`; models of which nothing has finished are left out."""
    axes = [axis for axis in axes if axis != "seed"]
    found = []
    for model, group in table.groupby("model", sort=False):
        ranked = group.dropna(subset="acc1").sort_values("acc1", ascending=False, kind="stable")
        if ranked.empty:
            continue
        best, second = ranked.iloc[0], ranked.iloc[1] if len(ranked) > 1 else None
        found.append(
            Winner(
                model=str(model),
                cell={axis: best[axis] for axis in axes},
                acc1=float(best["acc1"]),
                signature=best["signature"],
                second=None if second is None else {axis: second[axis] for axis in axes},
                second_acc1=math.nan if second is None else float(second["acc1"]),
                near=int((ranked["acc1"] >= best["acc1"] - NEAR).sum()),
                finished=len(ranked),
                tried=len(group),
                edges=tuple(
                    f"{axis} {_text(best[axis])} is at the {edge[0]} edge: try {edge[1]}"
                    + (", though others are level" if _level(ranked, axis) else "")
                    for axis in axes
                    if (edge := _edge(best[axis], group[axis], ranges.get(axis)))
                ),
            )
        )
    return found


def _edge(value: Any, tried: pd.Series, span: tuple[float, float] | None) -> tuple[str, str] | None:
    """At which edge of its axis the best value lies, and where to try; None for words, one value, or an inner one.

    Cells that failed count as tried: where higher rates diverge, the highest that does not is no edge. Nor is a zero.
    """
    numbers = [] if any(isinstance(other, (str, bool, list, tuple)) for other in tried) else sorted(set(tried.dropna()))
    if span:
        share = math.log(value / span[0]) / math.log(span[1] / span[0])
        low, high = share < EDGE, share > 1 - EDGE
    elif len(numbers) > 1:
        low, high = value == numbers[0] and value > 0, value == numbers[-1]
    else:
        return None
    if not (low or high):
        return None
    return ("lower", "lower") if low else ("upper", "higher")


def _level(ranked: pd.DataFrame, axis: str) -> bool:
    """Whether a cell elsewhere on the axis is as good as the best."""
    level = ranked[ranked["acc1"] >= ranked["acc1"].iloc[0] - NEAR]
    return bool((level[axis] != ranked[axis].iloc[0]).any())


def sheet(found: Sequence[Winner], judges: str) -> Sheet:
    """The table of winners.

    Args:
        judges: the images that accuracies are of, of `judges.kind`.
    """
    rows, data = [], []
    for win in found:
        tried = f"{win.finished}" if win.finished == win.tried else f"{win.finished} of {win.tried}"
        rows.append(
            [
                win.model,
                _words(win.cell),
                f"{win.acc1:.2f}",
                _words(win.second) if win.second else MISSING,
                MISSING if win.second is None else f"{win.second_acc1:.2f}",
                str(win.near),
                tried,
                " ".join(edge.partition(" ")[0] for edge in win.edges) or "no",
            ]
        )
        data.append({**win.__dict__, "cell": _words(win.cell), "second": _words(win.second or {})})
    note = f"accuracies on {judges}, of the best of many: they choose the cell and flatter it"
    return Sheet("", HEADER, rows, pd.DataFrame(data), note, align="llrlrrrl")


def heat_map(table: pd.DataFrame, model: str, axes: Sequence[str], judges: str) -> str | None:
    """Accuracy over learning rate and weight decay, or the first two axes, the best cell ringed; inline SVG.

    Tiles for a grid, or words, of which each shows the best of what else was varied; points for drawn cells, both axes
    logarithmic. None where fewer than two axes were varied or nothing has finished.
    """
    axes = [axis for axis in axes if axis != "seed"]
    x, y = AXES if set(AXES) <= set(axes) else (*axes, "", "")[:2]
    own = table[table["model"] == model]
    if not y or own["acc1"].isna().all():
        return None
    tiles = own.sort_values("acc1", ascending=False, na_position="last").drop_duplicates([x, y])
    best = tiles.iloc[0]
    xs, ys = (_order(tiles[axis]) for axis in (x, y))
    numbers = all(isinstance(value, int | float) and value > 0 for value in (*xs, *ys))  # or no axis is logarithmic
    is_grid = len(tiles) == len(xs) * len(ys) or not numbers
    # One diverged cell would press all other differences flat: the scale ends as far below the median as the best is
    # above it.
    finished = tiles["acc1"].dropna()
    low = max(finished.min(), 2 * finished.median() - finished.max())
    scale = matplotlib.colors.Normalize(low, max(finished.max(), low + 1e-9))
    with matplotlib.rc_context(draw.STYLE):
        width, height = (1.4 + 0.75 * len(xs), 1.3 + 0.42 * len(ys)) if is_grid else (5.2, 3.6)
        figure, panel = draw.plain(max(width, 3.6), max(height, 2.0))
        titles = {}
        for i, row in enumerate(tiles.to_dict("records")):
            place = (xs.index(row[x]), ys.index(row[y])) if is_grid else (row[x], row[y])
            said = row["state"] if math.isnan(row["acc1"]) else f"{row['acc1']:.2f} %"
            titles[f"cell{i}"] = f"{model}\n{x} {_text(row[x])}, {y} {_text(row[y])}\n{said}"
            (_tile if is_grid else _point)(
                panel, place, row["acc1"], scale, f"cell{i}", row["signature"] == best["signature"]
            )
        if is_grid:
            panel.set_xticks(range(len(xs)), [_tick(value) for value in xs])
            panel.set_yticks(range(len(ys)), [_tick(value) for value in ys])
            panel.set_xlim(-0.5, len(xs) - 0.5)
            panel.set_ylim(-0.5, len(ys) - 0.5)
            panel.tick_params(length=0)
            for spine in panel.spines.values():
                spine.set_visible(False)
        else:
            for axis, set_scale, values in ((panel.xaxis, panel.set_xscale, xs), (panel.yaxis, panel.set_yscale, ys)):
                set_scale("log")
                axis.set_major_locator(LogLocator(10, subs=(1, 3) if values[-1] < 1000 * values[0] else (1,)))
                axis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
                axis.set_minor_locator(NullLocator())
        panel.set_xlabel(x)
        panel.set_ylabel(y)
        panel.set_title(f"{model}: accuracy on {judges}, %", fontsize=10, loc="left")
        return draw.inline(figure, f"tuning-{model.replace('/', '-')}", f"{model}: accuracy by {x} and {y}", titles)


def _order(values: pd.Series) -> list[Any]:
    """Numbers by size; words, and what has gaps, as they came."""
    distinct = list(dict.fromkeys(values))
    return (
        distinct
        if any(value is None or isinstance(value, (str, list, tuple)) for value in distinct)
        else sorted(distinct)
    )


def _colour(acc1: float, scale: Any) -> tuple[str, str]:
    """Fill and the ink that can be read on it, on light and on dark paper alike."""
    red, green, blue, _ = matplotlib.colormaps["cividis"](min(max(float(scale(acc1)), 0.0), 1.0))
    light = 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.42
    return matplotlib.colors.to_hex((red, green, blue)), "#000000" if light else "#ffffff"


def _tile(panel: Any, place: tuple[int, int], acc1: float, scale: Any, gid: str, ringed: bool) -> None:
    x, y = place
    if math.isnan(acc1):
        panel.plot(x, y, "x", color=draw.INK, alpha=0.5, gid=gid)
        return
    fill, ink = _colour(acc1, scale)
    edge = {"edgecolor": draw.INK, "linewidth": 2} if ringed else {"edgecolor": "none"}
    size = 0.47 if not ringed else 0.45
    patch = matplotlib.patches.Rectangle((x - size, y - size), 2 * size, 2 * size, facecolor=fill, gid=gid, **edge)
    panel.add_patch(patch)
    panel.text(x, y, f"{acc1:.1f}", color=ink, ha="center", va="center", fontsize=9)


def _point(panel: Any, place: tuple[float, float], acc1: float, scale: Any, gid: str, ringed: bool) -> None:
    if math.isnan(acc1):
        panel.plot(*place, "x", color=draw.INK, alpha=0.5, gid=gid)
        return
    fill, _ = _colour(acc1, scale)
    ring = {"markeredgecolor": draw.INK, "markeredgewidth": 2} if ringed else {"markeredgecolor": "none"}
    panel.plot(*place, "o", color=fill, markersize=11 if ringed else 9, gid=gid, **ring)
    if ringed:
        panel.annotate(f"{acc1:.1f}", place, xytext=(8, 6), textcoords="offset points", fontsize=9)


def _words(cell: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={_text(value)}" for key, value in cell.items())


def _tick(value: Any) -> str:
    """As `_text`; numbers with more than two decimals as 1e-4, which is shorter."""
    if not isinstance(value, float) or float(f"{value:.2f}") == value:
        return _text(value)
    digits, _, power = f"{value:.2e}".partition("e")
    return f"{float(digits):g}e{int(power)}"


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else "default" if value is None else str(value)
