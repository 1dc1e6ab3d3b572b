"""Softness as a dial: accuracy over the strictness by number of images, and the share of a gap that each arm closes.

Nothing for a sweep with neither a dial at three values nor a contrast `architecture` (analysis/factorial/dose.py and
shares.py). Drawn from runs or from tables alone.
"""

import math

import matplotlib
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from analysis.factorial import dose, shares
from analysis.figures import draw as figures
from analysis.figures.draw import INK, PAPER
from analysis.figures.looks import KINDS
from analysis.report.page import Page, Section
from analysis.report.tables import shown
from analysis.typeset import Sheet

PLACE, TITLE, SHORT = 5, "Softness as a dial", "Softness"
HUES = tuple(light for light, *_ in KINDS.values())
MARKERS = "osD^vPX*"


def draw(page: Page) -> Section | None:
    found = dose.table(page.frame)
    contrasts = [*page.wanted.items()]
    contrasts += [(name, one.weights) for family in page.families.values() for name, one in family.contrasts.items()]
    closed = shares.table(page.frame, contrasts)
    if found.empty and not closed:
        return None
    said, tables, drawn = [], [], Markup()
    for number, study in enumerate(dict.fromkeys(found["study"])):
        said.append(_told(found, study))
        drawn += Markup(curve(found, study, f"dose-{number}"))
        tables += [
            shown(f"dose-{number}", _curve_sheet(found, study)),
            shown(f"peak-{number}", _peak_sheet(found, study)),
        ]
    if closed:
        said.append(_closed(closed))
        drawn += Markup(bars(closed)) if closed[0].gap > 0 else Markup()
        tables.append(shown("shares", _share_sheet(closed)))
    return Section(" ".join(said), drawn, _caption(page, found, closed), tables)


def _told(found: pd.DataFrame, study: str) -> str:
    peaks, moved = dose.peaks(found, study), dose.moved(found, study)
    told = "; ".join(f"{peak.samples:,} images: {_at(peak.at, peak.low, peak.high)}" for peak in peaks)
    words = f"Strictness of the highest mean (0: a full matrix, 1: the kernel), {told}."
    if moved is not None and not math.isnan(moved.low):
        clear = moved.low > 0 or moved.high < 0
        verb = "moves" if clear else "is not shown to move"
        words += f" From the fewest to the most images it {verb}: {moved.value:+g} [{moved.low:+g}, {moved.high:+g}]."
    if found.loc[found["study"] == study, dose.RATE].nunique() > 1:
        words += " The values were not trained at one learning rate; the table has that of each."
    return words


def _closed(closed: list[shares.Share]) -> str:
    gap = closed[0].gap
    if gap <= 0:
        return f"The architecture gains nothing over the flat net ({gap:+.2f} points): there is no gap to close."
    told = "; ".join(f"{one.name} {_percent(one)}" for one in closed)
    lacks = all(math.isnan(one.share.low) for one in closed)
    words = " The gap itself is not shown to be there, so that no share has an interval." if lacks else ""
    return f"Share of the gap of {gap:+.2f} points that each arm closes: {told}.{words}"


def _percent(one: shares.Share) -> str:
    value, low, high = (100 * part for part in one.share)
    return f"{value:.0f} %" + ("" if math.isnan(low) else f" [{low:.0f}, {high:.0f}]")


def _at(value: float, low: float, high: float) -> str:
    return f"{value:g}" + ("" if math.isnan(low) else f" [{low:g}, {high:g}]")


def curve(found: pd.DataFrame, study: str, name: str) -> str:
    """A line per number of images: mean and 95 % interval at each value, values equally far apart; a ring is the peak
    and the bar below it its interval."""
    means, titles = dose.curves(found[found["study"] == study]), {}
    values = sorted(means["strictness"].unique())
    with matplotlib.rc_context(figures.STYLE):
        figure = Figure(figsize=(7.2, 4.0), layout="constrained")
        axes = figure.subplots()
        for i, (samples, own) in enumerate(means.groupby("samples", sort=True)):
            colour, gid = HUES[i % len(HUES)], f"{name}-{samples}"
            x = [values.index(value) for value in own["strictness"]]
            style = {"color": colour, "marker": MARKERS[i % len(MARKERS)], "markersize": 5, "linewidth": 1}
            axes.errorbar(
                x, own["mean"], yerr=own["half"].fillna(0.0), capsize=0, label=f"{samples:,}", gid=gid, **style
            )
            titles[gid] = f"{samples:,} images\n" + "; ".join(
                f"{row.strictness:g}: {row.mean:.2f}" for row in own.itertuples()
            )
            best = own.loc[own["mean"].idxmax()]
            place = values.index(best["strictness"])
            axes.scatter(place, best["mean"], s=150, facecolor="none", edgecolor=INK, linewidth=1)
        axes.set_xticks(range(len(values)), [f"{value:g}" for value in values])
        axes.set_xlabel("strictness: 0 is a full matrix, 1 the kernel")
        axes.set_ylabel("accuracy, %")
        axes.legend(title="training images")
        return figures.inline(figure, name, "Accuracy over the strictness of the dial", titles)


def bars(closed: list[shares.Share]) -> str:
    """A mark per arm with its interval; 0 is the flat net, 100 % the architecture."""
    titles = {}
    with matplotlib.rc_context(figures.STYLE):
        figure = Figure(figsize=(7.2, 1.0 + 0.34 * len(closed)), layout="constrained")
        axes = figure.subplots()
        for y, one in enumerate(closed):
            value, low, high = (100 * part for part in one.share)
            if not math.isnan(low):
                axes.plot([low, high], [y, y], color=INK, linewidth=1)
            axes.scatter(value, y, s=40, color=HUES[0], edgecolor=PAPER, zorder=3, gid=f"share-{y}")
            titles[f"share-{y}"] = f"{one.name}: {_percent(one)}, {one.points:+.2f} of {one.gap:+.2f} points"
        for whole in (0, 100):
            axes.axvline(whole, color=INK, linewidth=0.8, dashes=(4, 3))
        axes.set_yticks(range(len(closed)), [one.name for one in closed])
        axes.set_ylim(len(closed) - 0.5, -0.5)
        axes.set_xlabel("share of the gap that is closed, %")
        return figures.inline(figure, "shares", "Share of the gap between flat net and architecture, by arm", titles)


def _curve_sheet(found: pd.DataFrame, study: str) -> Sheet:
    means = dose.curves(found[found["study"] == study])
    rows = [
        [
            f"{row.strictness:g}",
            f"{row.samples:,}",
            str(row.n),
            f"{row.mean:.2f}",
            "" if math.isnan(row.half) else f"{row.half:.2f}",
            row.lr,
        ]
        for row in means.itertuples()
    ]
    header = ("strictness", "images", "seeds", "accuracy, %", "±", "learning rate")
    return Sheet("Accuracy by strictness and number of images", header, rows, means, align="rrrrrr")


def _peak_sheet(found: pd.DataFrame, study: str) -> Sheet:
    peaks = dose.peaks(found, study)
    rows = [
        [f"{one.samples:,}", str(one.n), _at(one.at, one.low, one.high), _share(one.at_end), f"{one.gain:.2f}"]
        for one in peaks
    ]
    header = ("images", "seeds", "strictness of the peak", "draws at an end", "points over the better end")
    note = "interval by a bootstrap of residuals; the points are of a value that was chosen after a look, so too high"
    return Sheet("Peaks", header, rows, pd.DataFrame(dose.as_rows(peaks)), note=note, align="rrrrr")


def _share(value: float) -> str:
    return "" if math.isnan(value) else f"{100 * value:.0f} %"


def _share_sheet(closed: list[shares.Share]) -> Sheet:
    rows = [[one.name, str(one.n), f"{one.points:+.2f}", f"{one.gap:+.2f}", _percent(one)] for one in closed]
    data = pd.DataFrame(
        [{**one._asdict(), "share": one.share.value, "low": one.share.low, "high": one.share.high} for one in closed]
    )
    header = ("arm", "seeds", "points over the flat net", "the gap", "share closed")
    return Sheet("Share of the gap closed by each arm", header, rows, data, note="Fieller's interval", align="lrrrr")


def _caption(page: Page, found: pd.DataFrame, closed: list[shares.Share]) -> str:
    counts = [*found.groupby(["study", "samples", "strictness"]).size()] if len(found) else []
    counts += [one.n for one in closed]
    words = "Means and 95 % intervals over seeds; a ring is the highest mean. " if len(found) else ""
    words += "Shares are ratios of paired differences with Fieller's interval. " if closed else ""
    return f"{words}{page.seeds(counts)}; {page.budget}"
