"""Fits tables to terminals of any width without truncating numbers."""

from __future__ import annotations

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

__all__ = ["fitted"]


def fitted(table: Table, console: Console) -> RenderableType:
    """The table if the terminal is wide enough, otherwise its rows as blocks with one line per cell.

    Example:
        >>> from rich.console import Console
        >>> from rich.table import Table
        >>> from composer_ls.lab.report.fitted import fitted
        >>> table = Table("smoothing", "accuracy (%)", "NLL (nats)", box=None)
        >>> table.add_row("0.1", "98.61", "0.1621")
        >>> console = Console(width=20)
        >>> console.print(fitted(table, console))
        smoothing: 0.1
        accuracy (%): 98.61
        NLL (nats): 0.1621

    """
    if console.measure(table).maximum <= console.width and _needed(table, console) <= console.width:
        return table
    headings = [_plain(column.header) for column in table.columns]
    blocks = []
    for row in zip(*(column.cells for column in table.columns), strict=True):
        lines = [
            f"{heading}: {cell}" if heading else cell
            for heading, cell in zip(headings, map(_plain, row), strict=True)
            if cell
        ]
        blocks.append("\n".join(lines))
    title = [Text(_plain(table.title), style="bold")] if table.title else []
    return Group(*title, Text("\n\n".join(blocks)))


def _needed(table: Table, console: Console) -> int:
    """The width of the table when no column is narrowed."""
    wide = console.options.update(width=10_000)
    return console.measure(table, options=wide).maximum


def _plain(cell: object) -> str:
    return str(cell).replace("\n", " ")
