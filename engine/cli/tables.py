"""Rows on the screen and in a file, CSV, JSON or Markdown as its suffix says; amounts such as 60M. No torch here.

A table may have been through a spreadsheet, or have columns and notes of its user's: `read` takes what can be told
without a guess, and nothing that was in a file is lost by adding to it.
"""

import csv
import io
import json
import re
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from engine.errors import DATA, OUTPUT, Refusal
from engine.folder import files

SUFFIXES = (".csv", ".json", ".md")
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
Row = dict[str, Any]


def check_target(path: Path | None, suffixes: Sequence[str] = SUFFIXES, flag: str = "--results-file") -> None:
    """Refuse a file of unknown kind, or one that cannot be written, before anything is measured.

    A pipe or a device such as /dev/stdout needs no suffix and gets a CSV.
    """
    if path is not None and _kind(path) not in suffixes:
        screen = "; for the screen: /dev/stdout" if str(path) == "-" else ""
        raise Refusal(f"{flag} {path} ends in '{path.suffix}'; known: {', '.join(suffixes)}{screen}")
    files.check_target(path)


def _kind(path: Path) -> str:
    return path.suffix or (".csv" if files.is_stream(path) else "")


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
    }[_kind(path)]()
    files.write_bytes(path, text.encode())


def csv_text(rows: Sequence[Row], columns: Sequence[str] = ()) -> str:
    """Rows as CSV with one header: these columns and all others in order of appearance; a missing cell is empty."""
    text = io.StringIO()
    names = list(dict.fromkeys([*columns, *(key for row in rows for key in row)]))
    writer = csv.DictWriter(text, names, "", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def append_row(path: Path, row: Row) -> None:
    """Add a row to a table of results: a CSV with one header, or a .json with a list of objects.

    Any number of processes may add to one file at the same time. A column that the table lacks is added at its end, and
    is empty in the rows before; the user's own columns stay. A pipe or a device gets the header and the row.

    Raises Refusal (OUTPUT): the file cannot be written, or is no table with the row's first column.
    """

    def text(columns: Sequence[str], rows: Sequence[Row]) -> bytes:
        if path.suffix != ".json":
            return csv_text([*rows, row], columns).encode()
        plain = {key: None if value != value else value for key, value in row.items()}  # JSON knows no NaN
        return (json.dumps([*rows, plain], indent=1) + "\n").encode()

    if files.is_stream(path):
        files.write_bytes(path, text((), ()))
        return
    with files.locked(path):
        try:
            before = _read(path, [next(iter(row))]) if path.exists() and path.stat().st_size else ((), ())
        except Refusal as refusal:
            raise Refusal(str(refusal), OUTPUT) from None
        files.write_bytes(path, text(*before))


def read(path: Path, needed: Sequence[str] = ()) -> list[Row]:
    """The rows of a .json, a list of objects, or of a CSV, whose cells are text as they stand.

    A CSV may have a byte order mark, any line ends, blank lines, semicolons or tabs between its cells and, with
    semicolons, decimal commas, as spreadsheets write it. Cells beyond the header are columns "column 3" and so on.

    Args:
        needed: columns without which it is not the table that is asked for.

    Raises Refusal (DATA): it cannot be read, is no table, lacks a needed column, or has two columns of one name.
    """
    return _read(path, needed)[1]


def _read(path: Path, needed: Sequence[str] = ()) -> tuple[list[str], list[Row]]:
    """Columns and rows."""
    try:
        data = path.read_bytes()
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except OSError as error:
        raise Refusal(f"{path} cannot be read: {error.strerror}", DATA) from None
    except UnicodeDecodeError:
        raise Refusal(f"{path} is no text in UTF-8; a spreadsheet saves it so, as 'CSV UTF-8'", DATA) from None
    columns, rows = _of_json(path, text) if path.suffix == ".json" else _of_csv(path, text)
    # An empty list has no columns, and is a table that waits for its first row.
    if missing := [key for key in needed if key not in columns and (columns or path.suffix != ".json")]:
        raise Refusal(f"{path} is no table with a column {', '.join(missing)}; name another file", DATA)
    return columns, rows


def _of_json(path: Path, text: str) -> tuple[list[str], list[Row]]:
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Refusal(f"{path} is no JSON ({str(error)[:80]}); name another file", DATA) from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise Refusal(f"{path} is no list of objects; name another file", DATA)
    return list(dict.fromkeys(key for row in rows for key in row)), rows


def _of_csv(path: Path, text: str) -> tuple[list[str], list[Row]]:
    csv.field_size_limit(2**31 - 1)
    hint = re.match(r"\s*sep=([,;\t])\r?\n", text)  # a line that tells spreadsheets
    text = text[hint.end() if hint else 0 :].lstrip("\r\n ")
    first = text.partition("\n")[0]
    mark = hint[1] if hint else max(",;\t", key=first.count)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True)
        lines = [line for line in reader if any(map(str.strip, line))]
    except csv.Error as error:
        raise Refusal(f"{path} is no CSV ({error}); name another file", DATA) from None
    if not lines:
        return [], []
    header, lines = [cell.strip() for cell in lines[0]], lines[1:]
    header += [""] * (max(map(len, lines), default=0) - len(header))
    columns = [name or f"column {place}" for place, name in enumerate(header, 1)]
    if twice := [name for name in columns if columns.count(name) > 1]:
        raise Refusal(f"{path} has two columns '{twice[0]}'; give one of them another name", DATA)
    if mark == ";":
        lines = [[re.sub(r"^([+-]?\d+),(\d+([eE][+-]?\d+)?)$", r"\1.\2", cell) for cell in line] for line in lines]
    return columns, [dict(zip_longest(columns, line, fillvalue="")) for line in lines]


def read_frame(path: Path, needed: Sequence[str] = ()) -> Any:
    """The same as a DataFrame; a column whose filled cells are all numbers is one of floats, but for signatures."""
    import pandas as pd

    frame = pd.DataFrame(read(path, needed))
    for column in frame.columns.drop("signature", errors="ignore"):  # hex digits may be digits alone, or 1234e567
        filled = frame[column].replace("", None)
        numbers = pd.to_numeric(filled, errors="coerce")
        frame[column] = numbers if numbers.notna().equals(filled.notna()) else filled
    return frame


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
