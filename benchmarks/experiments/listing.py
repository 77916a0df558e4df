"""Tables whose names stay whole on a narrow terminal: a heading takes a line of its own, and what belongs to it stands beneath."""

from collections.abc import Sequence
from typing import Final

from rich.cells import cell_len
from rich.text import Text

GAP: Final = 2
"""Cells before every column of values."""
Row = tuple[str, Sequence[str]]
"""A name and its values; a heading has none."""


def listing(header: Row, rows: Sequence[Row], *, width: int) -> list[Text]:
    """One line each: names, then values, right-aligned in columns as wide as they need.

    Args:
        header: what the names are, and a title of every column.
        rows: headings may be as wide as a line.
        width: cells of a line; only names and headings that do not fit are cut.
    """
    filled = [row for row in (header, *rows) if row[1]]
    widths = [max(map(len, column)) for column in zip(*(values for _, values in filled), strict=True)]
    room = width - sum(GAP + size for size in widths)
    names = max(1, min(room, max(cell_len(name) for name, _ in filled)))
    lines = []
    for name, values in (header, *rows):
        line = Text(name, no_wrap=True, overflow="crop")
        line.truncate(names if values else width, overflow="ellipsis", pad=bool(values))
        for value, size in zip(values, widths, strict=False):
            line.append(" " * GAP + value.rjust(size))
        lines.append(line)
    lines[0].stylize("bold")
    return lines
