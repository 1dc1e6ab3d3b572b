"""Tables as text: for the screen, GitHub, LaTeX and a spreadsheet; numbers as they are read aloud."""

import math
import re
import sys
from dataclasses import dataclass
from typing import Any

import pandas as pd
from rich import box
from rich.table import Table
from scipy.special import stdtrit

from analysis.stats import within

MISSING = "–"
T_OF_TWO = float(stdtrit(1, 0.975))  # half-width of an interval over two seeds / distance of either from their mean
_SPREADLESS = 1e-9


@dataclass(frozen=True)
class Sheet:
    """A table to show: the cells as text, the first column a name; and the same unrounded, for CSV."""

    title: str
    header: tuple[str, ...]
    rows: list[list[str]]
    data: pd.DataFrame
    note: str = ""
    align: str = "l"
    """l or r per column; those not told are numbers, aligned right."""

    @property
    def _aligned(self) -> str:
        return self.align.ljust(len(self.header), "r")

    def rich(self) -> Table:
        """For a terminal; without lines where the output is none."""
        given = {"title": self.title or None, "title_justify": "left", "caption": self.note or None}
        table = Table(box=box.SIMPLE_HEAD if sys.stdout.isatty() else None, caption_justify="left", **given)
        for i, name in enumerate(self.header):
            # Numbers are never broken; words are what gives way on a narrow terminal.
            right = self._aligned[i] == "r"
            width = max((len(row[i]) for row in self.rows), default=0) if right else None
            table.add_column(name, justify="right" if right else "left", overflow="fold", min_width=width)
        for row in self.rows:
            table.add_row(*(text.replace("[", r"\[") for text in row))
        return table

    def markdown(self) -> str:
        """For GitHub."""
        lines = [f"**{self.title}**", ""] if self.title else []
        lines += ["| " + " | ".join(self.header) + " |"]
        lines += ["|" + "".join({"l": ":--|", "r": "--:|"}[align] for align in self._aligned)]
        for row in self.rows:
            name, *others = (text.replace("|", r"\|").replace("*", r"\*") for text in row)
            lines.append("| " + " | ".join([f"`{name}`", *others]) + " |")
        note = [self.note.replace("*", r"\*"), ""] if self.note else []
        return "\n".join([*lines, "", *note])

    def latex(self) -> str:
        """A tabular for the booktabs package."""
        lines = [f"% {self.title}"] if self.title else []
        lines += [rf"\begin{{tabular}}{{{self._aligned}}}", r"\toprule"]
        lines += [" & ".join(map(_tex, self.header)) + r" \\", r"\midrule"]
        for row in self.rows:
            name, *others = map(_tex, row)
            lines.append(" & ".join([rf"\texttt{{{name}}}", *others]) + r" \\")
        note = [f"% {self.note}"] if self.note else []
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", *note, ""])

    def csv(self) -> str:
        """All columns, unrounded."""
        return (f"# {self.title}\n" if self.title else "") + self.data.to_csv(index=False)


def _tex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"}
    special |= {"–": "--", "*": "$^{*}$", "<": r"\textless{}", ">": r"\textgreater{}", "×": r"$\times$"}
    special |= {char: "\\" + char for char in "&%$#_{}"}
    text = "".join(special.get(char, char) for char in text)
    return re.sub(r"^([+−])(?=\d)", lambda sign: f"${'+' if sign[1] == '+' else '-'}$", text)


def quantity(value: float) -> str:
    """Three digits and a prefix: 18.5 M; a dash for NaN."""
    if math.isnan(value):
        return MISSING
    for scale, prefix in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= 0.9995 * scale:
            return f"{value / scale:#.3g}".rstrip(".") + prefix
    return f"{value:.0f}"


def estimate(value: float, low: float, high: float, n: int, digits: int = 2, sign: str = "") -> str:
    """A number of n seeds with its 95 % interval: 97.20 ± 0.31; 97.20 [96.10, 100.00] where that is lopsided.

    Of two seeds an interval says next to nothing (Student's factor is 12.7): both are shown instead, 97.20 (96.90,
    97.50), and `low`, `high` are these. Equal seeds: 97.20 (no spread in 5). One seed without an interval: 97.20 (n=1);
    none: a dash.
    """
    if n == 0 or math.isnan(value):
        return MISSING
    text, ends = number(value, digits, sign), f"{number(low, digits, sign)}, {number(high, digits, sign)}"
    if math.isnan(low):
        return f"{text} (n=1)" if n == 1 else text
    if n == 1:
        return f"{text} [{ends}]"
    if high - low < _SPREADLESS:
        return f"{text} (no spread in {n})"
    if n == 2:
        return f"{text} ({ends})"
    half, step = (high - low) / 2, 10.0**-digits
    if abs(high + low - 2 * value) > step / 2:
        return f"{text} [{ends}]"
    return f"{text} ± {half:.{digits}f}" if half >= step / 2 else f"{text} ± < {step:.{digits}f}"


def plus_minus(mean: float, half: float, n: int, sign: str = "") -> str:
    """`estimate` of a mean of n seeds and the half-width of its interval by Student's t, as of `stats.interval`."""
    reach = half / T_OF_TWO if n == 2 else half  # of two seeds: how far each is from the mean
    return estimate(mean, mean - reach, mean + reach, n, sign=sign)


def accuracy(mean: float, half: float, n: int) -> str:
    """`plus_minus` of an accuracy in percent: its interval ends at 0 and at 100."""
    return plus_minus(mean, half, n) if n == 2 else estimate(mean, *within(mean, half), n)


def number(value: float, digits: int = 2, sign: str = "") -> str:
    """A number with its minus sign, which none that rounds to 0 has; a dash for NaN; an infinite one as such."""
    if math.isnan(value):
        return MISSING
    return ("∞" if math.isinf(value) else f"{abs(value):.{digits}f}").join(
        ["−" if round(value, digits) < 0 else "+" if sign else "", ""]
    )


def probability(p: float) -> str:
    """0.023, or < 0.001."""
    return MISSING if math.isnan(p) else f"{p:.3f}" if p >= 0.001 else "< 0.001"


def count_text(row: Any) -> str:
    """Finished runs: 5, or 3 of 5."""
    return f"{row.n} of {row.n + row.n_missing}" if row.n_missing else str(row.n)
