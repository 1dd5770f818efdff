"""Tables that fit the terminal: columns of less weight go first, and no word is broken."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table as Rich

_GAP = 3  # what rich puts between two columns
_EDGE = 2  # and around all of them
_NUMBER = re.compile(r"[-+~]?\d|-$", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a table.

    Attributes:
        title: What stands above it.
        drop: Columns with the largest number are left out first where the table is too wide, those of one number
            together; 0: it always stays.
        most: Characters that a line of it has at most, however wide the terminal is.
        path: Its cells are paths, of which the end is shown where there is no room.
    """

    title: str
    drop: int = 0
    most: int | None = None
    path: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of cells below columns; it is laid out for the width that it is printed in."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    title: str | None = None
    gaps: bool = False

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Lay it out."""
        from rich.box import SIMPLE_HEAD
        from rich.table import Table as Rich
        from rich.text import Text

        shown, widths = self.fit(options.max_width)
        result = Rich(title=self.title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        for index, width in zip(shown, widths, strict=True):
            numbers = index > 0 and all(_NUMBER.match(row[index]) for row in self.rows if row[index])
            result.add_column(
                self.columns[index].title, justify="right" if numbers else "left", width=width, overflow="fold"
            )
        for row in self.rows:
            result.add_row(
                *(Text(_shortened(row[i], width, self.columns[i])) for i, width in zip(shown, widths, strict=True))
            )
            if self.gaps:
                result.add_section()
        yield result
        if lost := [column.title for i, column in enumerate(self.columns) if i not in shown]:
            names = ", ".join(dict.fromkeys(lost))
            yield Text(f"left out for the width: {names} (shown by a wider terminal, or --json)\n")

    def fit(self, available: int) -> tuple[list[int], list[int]]:
        """Return which columns are shown, and how wide each is.

        Args:
            available: Characters of a line.
        """
        least = [self._width(i, words=True) for i in range(len(self.columns))]
        most = [max(self._width(i, words=False), least[i]) for i in range(len(self.columns))]
        shown = [*range(len(self.columns))]
        for level in sorted({column.drop for column in self.columns} - {0}, reverse=True):
            if _total([least[i] for i in shown]) > available:
                shown = [i for i in shown if self.columns[i].drop != level]
        widths = [min(most[i], max(self.columns[i].most or most[i], least[i])) for i in shown]
        # The widest gives first; one that can't without breaking a word gives only when none else can.
        for floors in ([least[i] for i in shown], [min(least[i], len(self.columns[i].title)) for i in shown]):
            while (_total(widths)) > available:
                can = [i for i, width in enumerate(widths) if width > max(floors[i], 1)]
                if not can:
                    break
                widths[max(can, key=lambda i: widths[i])] -= 1
        return shown, widths

    def _width(self, index: int, *, words: bool) -> int:
        """Return the longest line of a column's cells, or its longest word."""
        from rich.cells import cell_len

        cells = [self.columns[index].title, *(row[index] for row in self.rows)]
        parts = (part for cell in cells for part in (cell.split() if words else cell.split("\n")))
        return max(map(cell_len, parts), default=1)


def table(
    columns: Sequence[str | Column], rows: Sequence[Sequence[str]], *, title: str | None = None, gaps: bool = False
) -> Table:
    """Return a table: columns of numbers are aligned on the right, others on the left.

    Args:
        columns: Titles, or columns with what becomes of them where there is little room.
        rows: The cells, which may have several lines.
        title: What stands above it.
        gaps: Whether a line is left free between rows.
    """
    made = [Column(title=column) if isinstance(column, str) else column for column in columns]
    return Table(made, rows, title, gaps)


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + _GAP * (len(widths) - 1) + _EDGE


def _shortened(cell: str, width: int, column: Column) -> str:
    """Return a cell whose words fit: one that is too long shows its beginning, a path its end, and where it is cut."""
    from rich.cells import cell_len, set_cell_size

    def short(match: re.Match[str]) -> str:
        word = match[0]
        if cell_len(word) <= width:
            return word
        if column.path:
            return f"…{word[len(word) - width + 1 :]}"
        return f"{set_cell_size(word, width - 1).rstrip()}…"

    return re.sub(r"\S+", short, cell)


def details(facts: Mapping[str, str]) -> Rich:
    """Return facts of one thing, a line each: its name, and what there is to say, which may be longer than a line."""
    from rich.table import Table as Rich
    from rich.text import Text

    result = Rich.grid(padding=(0, 2))
    result.add_column(no_wrap=True)
    result.add_column(overflow="fold")
    for name, value in facts.items():
        result.add_row(Text(name), Text(value))
    return result
