"""What the figures of the page are drawn with: scales, marks and axes as pieces of SVG, rows as HTML.

A mark sits at a percentage of its panel's width in an SVG without a viewBox, and rows have fixed heights: figures
stretch with the window, type and marks never do. Colours are CSS variables, so that light, dark and print are one page.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from markupsafe import Markup, escape
from matplotlib.ticker import MaxNLocator

from analysis.figures.looks import Look
from analysis.typeset import number


class Scale(NamedTuple):
    """Values to percent of a panel's width, `pad` percent of which stay free at both ends, for whole marks."""

    low: float
    high: float
    ticks: tuple[float, ...]
    pad: float = 3.0

    def __call__(self, value: float) -> str:
        return f"{self.share(value):.2f}%"

    def share(self, value: float) -> float:
        """In percent; values beyond an end are at the end."""
        inside = min(max(value, self.low), self.high)
        return self.pad + (100 - 2 * self.pad) * (inside - self.low) / (self.high - self.low)


def scale(values: Iterable[float], ticks: int = 5, always: Sequence[float] = (), pad: float = 3.0) -> Scale:
    """A scale that holds all of these, with about so many round ticks.

    Args:
        always: what it holds as well, 0 say.
    """
    known = [float(value) for value in (*values, *always) if value == value and abs(value) != float("inf")] or [0.0]
    low, high = min(known), max(known)
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    room = 0.03 * (high - low)
    low, high = low - room, high + room
    inner = [float(tick) for tick in MaxNLocator(ticks, steps=(1, 2, 2.5, 5, 10)).tick_values(low, high)]
    return Scale(low, high, tuple(tick for tick in inner if low <= tick <= high), pad)


def mark(x: str, y: float, look: Look, more: str = "") -> Markup:
    """The mark of a rung, in its hue and shape."""
    name = f"dotted-{look.shape}" if look.dotted else look.shape
    drawn = '<svg x="{}" y="{:g}" overflow="visible"><use href="#{}" class="mk {}"/></svg>'
    return Markup(drawn).format(x, y, name, more)


def icon(look: Look) -> Markup:
    """The same within a line of text."""
    name = f"dotted-{look.shape}" if look.dotted else look.shape
    drawn = '<svg class="ic k-{}" viewBox="-7 -7 14 14" aria-hidden="true"><use href="#{}" class="mk"/></svg>'
    return Markup(drawn).format(look.kind, name)


def seeds(at: Scale, values: Iterable[float], y: float) -> Markup:
    """A tick for each seed."""
    drawn = Markup('<svg x="{}" y="{:g}" overflow="visible"><path class="seed" d="M0,-5V5"/></svg>')
    return join(drawn.format(at(value), y) for value in values)


def null(at: Scale, value: float, y: float) -> Markup:
    """What a value would be without the effect."""
    drawn = Markup('<line class="null" x1="{x}" x2="{x}" y1="{:g}" y2="{:g}"/>')
    return drawn.format(y - 7, y + 7, x=at(value))


def bar(at: Scale, low: float, high: float, y: float) -> Markup:
    """An interval; none where there is none."""
    if not high > low:
        return Markup()
    return Markup('<line class="ci" x1="{}" x2="{}" y1="{y:g}" y2="{y:g}"/>').format(at(low), at(high), y=y)


def grid(at: Scale, height: float, zero: float | None = None) -> Markup:
    """Lines at the ticks of a panel; one of them may be the line that counts."""
    lines = dict.fromkeys(at.ticks, "grid") | ({} if zero is None or not at.low <= zero <= at.high else {zero: "zero"})
    drawn = Markup('<line class="{}" x1="{x}" x2="{x}" y1="0" y2="{:g}"/>')
    return join(drawn.format(kind, height, x=at(tick)) for tick, kind in lines.items())


def axis(at: Scale, sign: str = "") -> Markup:
    """The numbers at the ticks of a panel, as many digits as they need."""
    digits = max((len(f"{tick:.10g}".partition(".")[2]) for tick in at.ticks), default=0)
    drawn = Markup('<text x="{}" y="12" text-anchor="middle">{}</text>')
    texts = join(drawn.format(at(tick), number(tick, digits, sign if tick else "")) for tick in at.ticks)
    return Markup('<svg class="axis" height="16" aria-hidden="true">{}</svg>').format(texts)


def row(key: str, kind: str, title: str, y: float, step: float, body: Markup) -> Markup:
    """What belongs to one rung in a panel: all of its row can be pointed at."""
    hit = Markup('<rect class="hit" x="0" width="100%" y="{:g}" height="{:g}"/>').format(y - step / 2, step)
    return Markup('<g class="k-{}" data-r="{}"><title>{}</title>{}{}</g>').format(kind, key, title, hit, body)


def panel(height: float, label: str, body: Markup) -> Markup:
    """An SVG as wide as its place."""
    return Markup('<svg height="{:g}" role="img" aria-label="{}">{}</svg>').format(height, label, body)


def join(parts: Iterable[Markup]) -> Markup:
    return Markup("").join(parts)


def div(kind: str, *parts: Markup | str, style: str = "", data: str = "") -> Markup:
    """An element of this class around parts, which are text where they are no Markup."""
    more = Markup(' style="{}"').format(style) if style else Markup()
    more += Markup(' data-r="{}"').format(data) if data else Markup()
    return Markup('<div class="{}"{}>{}</div>').format(kind, more, join(escape(part) for part in parts))
