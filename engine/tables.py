"""Rows on the screen and in a file, CSV, JSON or Markdown as its suffix says; amounts such as 60M. No torch here."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.errors import OUTPUT, Refusal

SUFFIXES = (".csv", ".json", ".md")
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
Row = dict[str, Any]


def check_suffix(path: Path | None) -> None:
    """Refuse a results file of unknown kind before anything is measured."""
    if path is not None and path.suffix not in SUFFIXES:
        raise Refusal(f"--results-file {path} ends in '{path.suffix}'; known: {', '.join(SUFFIXES)}")


def parse_amount(text: str) -> int:
    """`60M` as 60,000,000."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?(?:e\d+)?)([KMG]?)", text, re.IGNORECASE)
    if not match or not float(match[1]):
        raise Refusal(f"'{text}' is no amount; write such as 300K, 5M or 1.2G")
    return round(float(match[1]) * UNITS[match[2].upper()])


def write(path: Path, rows: Sequence[Row]) -> None:
    """Replace `path` by the rows. A value that is None is an empty cell, never a zero."""
    import pandas as pd

    table = pd.DataFrame(rows, dtype=object)  # a column of integers with a gap stays one of integers
    text = {
        ".csv": lambda: table.to_csv(index=False),
        ".json": lambda: table.to_json(orient="records", indent=2) + "\n",
        ".md": lambda: table.map(cell).to_markdown(index=False, disable_numparse=True) + "\n",
    }[path.suffix]()
    try:
        path.write_text(text)
    except OSError as error:
        raise Refusal(f"{path}: {error.strerror}", OUTPUT) from None


def cell(value: Any) -> str:
    """A number with thousands set apart, a small one to three digits; nothing for None."""
    if value is None or value != value:
        return ""
    if isinstance(value, float):
        return f"{value:,.2f}" if abs(value) >= 1 or not value else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def table(rows: Sequence[Row], turn: bool = False) -> Any:
    """A rich table with one line per row or, where there are more columns than a screen has, one column per row."""
    from rich.table import Table

    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [[cell(row.get(column)) for column in columns] for row in rows]
    if turn:
        lines = [[column, *(line[i] for line in lines)] for i, column in enumerate(columns)]
        columns, lines = lines[0], [line for line in lines[1:] if any(line[1:])]
    made = Table()
    for i, column in enumerate(columns):
        made.add_column(column, justify="left" if i == 0 or isinstance(rows[0].get(column), str) else "right")
    for line in lines:
        made.add_row(*line)
    return made
