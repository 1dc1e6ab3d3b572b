"""Learning curves: a panel per rung on one scale, the others in grey."""

from collections.abc import Mapping

import pandas as pd
from markupsafe import Markup

from analysis.compare import frames
from analysis.report import parts
from analysis.report.page import Page, Section
from analysis.report.parts import div, join
from analysis.typeset import number

PLACE, TITLE, SHORT = 50, "Learning curves", "Curves"
WIDTH, HEIGHT, LEFT, RIGHT, TOP, FOOT = 186, 96, 24, 30, 8, 14
POINTS = 60  # of a curve; of more epochs every second one, or fewer
EARLY = 0.25  # of the epochs, below which the scale may be cut
PANELS = 24  # panels; of more rungs the most accurate


def draw(page: Page) -> Section | None:
    if not page.finished:
        return None
    table = frames.curves(page.frame[page.frame["rung"].isin(page.order)])
    if table.empty:
        return None
    thinned = table["epoch"].max() // POINTS + 1
    last = table["epoch"].max()
    table = table[(table["epoch"] % thinned == last % thinned)]
    bands = {
        rung: group.groupby("epoch")["eval_top1"].agg(["mean", "min", "max"]) for rung, group in table.groupby("rung")
    }
    shown = [rung for rung in page.order if rung in bands][:PANELS]
    late = table[table["epoch"] >= EARLY * last]
    at = _Axes(
        int(table["epoch"].min()), int(last), parts.scale([late["eval_top1"].min(), table["eval_top1"].max()], 3)
    )
    faint = join(Markup('<path d="{}"/>').format(at.line(bands[rung]["mean"])) for rung in shown)
    defs = Markup(
        '<svg width="0" height="0" aria-hidden="true" class="defs"><defs>'
        '<g id="faint">{}</g><g id="frame">{}</g></defs></svg>'
    )
    panels = [_panel(page, rung, bands[rung], at) for rung in shown]
    left = f" The {len(shown)} most accurate of {len(bands)} rungs." if len(bands) > len(shown) else ""
    caption = f"Accuracy (%) after each of {int(last) + 1} epochs: mean and range of seeds, "
    caption += f"{page.seeds(page.ranked['n'])}; the other rungs in grey. "
    caption += (
        f"Whole images only.{left} {page.budget}"
        if (page.frame["permute"] != "none").any()
        else f"{left.strip()} {page.budget}".strip()
    )
    return Section(_said(page, bands, int(last)), defs.format(faint, at.frame()) + div("curves", *panels), caption)


class _Axes:
    """Epochs and accuracies to the coordinates of a panel."""

    def __init__(self, first: int, last: int, at: parts.Scale) -> None:
        self.first, self.last, self.at = first, last, at

    def x(self, epoch: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (epoch - self.first) / max(self.last - self.first, 1)

    def y(self, value: float) -> float:
        inside = min(max(value, self.at.low), self.at.high)
        return HEIGHT - FOOT - (HEIGHT - FOOT - TOP) * (inside - self.at.low) / (self.at.high - self.at.low)

    def line(self, values: pd.Series) -> str:
        return "M" + "L".join(f"{self.x(epoch):.0f},{self.y(value):.1f}" for epoch, value in values.items())

    def band(self, ends: pd.DataFrame) -> str:
        around = [*ends["max"].items(), *reversed(list(ends["min"].items()))]
        return "M" + "L".join(f"{self.x(epoch):.0f},{self.y(value):.1f}" for epoch, value in around) + "z"

    def frame(self) -> Markup:
        digits = max(len(f"{tick:.10g}".partition(".")[2]) for tick in self.at.ticks) if self.at.ticks else 0
        line = Markup(
            '<line class="grid" x1="{}" x2="{}" y1="{y:.1f}" y2="{y:.1f}"/>'
            '<text x="{}" y="{:.1f}" class="ax" text-anchor="end">{}</text>'
        )
        lines = [
            line.format(LEFT, WIDTH - RIGHT, LEFT - 4, self.y(tick) + 3.5, number(tick, digits), y=self.y(tick))
            for tick in self.at.ticks
        ]
        text = Markup('<text x="{:.0f}" y="{}" class="ax" text-anchor="middle">{}</text>')
        ends = dict.fromkeys((self.first, (self.first + self.last) // 2, self.last))
        return join(lines) + join(text.format(self.x(epoch), HEIGHT - 1, epoch + 1) for epoch in ends)


def _panel(page: Page, rung: str, band: pd.DataFrame, at: _Axes) -> Markup:
    last = band["mean"].iloc[-1]
    dot = Markup('<circle class="point" cx="{:.0f}" cy="{:.1f}" r="2"/>').format(at.x(band.index[-1]), at.y(last))
    body = Markup(
        '<use href="#frame"/><use href="#faint" class="faint"/><path class="range" d="{}"/><path class="own" d="{}"/>{}'
    )
    body = body.format(at.band(band), at.line(band["mean"]), dot if len(band) == 1 else Markup())
    drawn = Markup(
        '<div class="k-{}" data-r="{}"><h4 title="{}">{}{}</h4><svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}'
        '<text class="end" x="{}" y="{:.1f}">{}</text></svg></div>'
    )
    told = f"{rung}: {number(last, 1)} % at the end"
    look = page.look(rung)
    return drawn.format(
        look.kind,
        page.key(rung),
        page.told(rung),
        parts.icon(look),
        page.label(rung),
        WIDTH,
        HEIGHT,
        told,
        body,
        WIDTH - RIGHT + 4,
        at.y(last) + 4,
        number(last, 1),
    )


def _said(page: Page, bands: Mapping[str, pd.DataFrame], last: int) -> str:
    """How much the last third of the epochs brought, and the third before."""
    third = (last + 1) // 3
    gains = []
    for step in (0, 1):
        ends = [(last - step * third, last - (step + 1) * third)] * len(bands)
        own = [
            band["mean"][now] - band["mean"][then]
            for band, (now, then) in zip(bands.values(), ends, strict=True)
            if {now, then} <= set(band.index)
        ]
        gains.append(own)
    if not third or not all(gains) or last < 5:
        return ""
    words = [f"{number(min(own), 1, '+')} to {number(max(own), 1, '+')}" for own in gains]
    return (
        f"In the last {third} epochs the rungs change by {words[0]} points, in the {third} before by {words[1]}. "
        "What more epochs would give is not measured here."
    )
