"""Figures as inline SVG: strings to put into a page, which lends them its font and its text colour.

Ink is `currentColor`; the hue of a family (looks.py) is a CSS variable with the hue on light paper as its fallback, so
that one figure reads on light and on dark pages. Text stays text: small, searchable, in the font
of the page. Every id carries the figure's name, so that figures do not clash. Equal input gives equal bytes.
"""

import io
import re
from html import escape

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.path import Path

from analysis.figures.looks import KINDS, SHAPES, VERDICTS, Look, css

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


def hue(look: Look) -> str:
    """The colour to draw it with; `inline` makes a CSS variable of it."""
    return KINDS[look.kind][0]


def marker(look: Look) -> Path:
    """Its shape as a marker of matplotlib."""
    corners = [(x, -y) for x, y in SHAPES[look.shape]]
    return Path([*corners, corners[0]], closed=True)


def _css_colour(colour: str) -> str:
    variables = {light: f"var(--{name}, {light})" for name, (light, *_) in (KINDS | VERDICTS).items()}
    return {**variables, INK: "currentColor", PAPER: f"var(--paper, {PAPER})"}[colour]


def standalone(svg: str) -> str:
    """An inline figure as a file of its own: with its namespace, a font, and inks for light and for dark paper."""
    light, dark = (f"svg {{ color: {ink}; {css(paper)} }}" for ink, paper in (("#1a1a1a", False), ("#e6e6e6", True)))
    style = (
        f"<style>svg {{ font-family: sans-serif; }} {light} @media (prefers-color-scheme: dark) {{ {dark} }}</style>"
    )
    head, rest = svg.split(">", 1)
    head = head.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
    return f"{head}>{style}{rest}\n"


def plain(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


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
    for colour in (INK, PAPER, *(light for light, *_ in (KINDS | VERDICTS).values())):
        text = text.replace(colour, _css_colour(colour))
    opening = re.match(r'<svg[^>]*viewBox="([^"]+)"[^>]*>', text)
    assert opening
    start = f'<svg viewBox="{opening[1]}" role="img" aria-label="{escape(label)}" class="figure">'
    return start + text[opening.end() :].strip()
