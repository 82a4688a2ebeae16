"""What a terminal shows, rendered by rich: tables.  Imported where output is a terminal, and nowhere else.

No text is cut off or broken in the middle of a word, so that whatever is seen can be copied into a command.  Digests and
ids are shortened to what a command takes for them, instants to seconds, and columns without anything in them go.  Text is
data: it was escaped before, and rich reads no markup, no emoji and no links in it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from textwrap import wrap
from typing import TextIO

from rich.cells import cell_len
from rich.columns import Columns
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cfs_tags.cli import view

_REMARKS = ("NOTES", "REASON", "HEALTH", "WHY")
_NAMES = ("NAME", "REPOSITORY")
_NUMBERS = ("TOTAL", "SHARED", "FREED", "SIZE", "AGE", "LAYERS", "KEPT BEFORE", "KEPT AFTER", "LOST")
_MEANING = {
    ("STATE", "booted"): "bold green",
    ("STATE", "staged"): "cyan",
    ("STATE", "rollback"): "yellow",
    ("STATE", "gone"): "dim",
    ("HEALTH", "ok"): "green",
    ("RESULT", "damaged"): "red",
    ("RESULT", "nothing"): "red",
    ("REF", "none"): "red",
    ("REF", "partial"): "yellow",
}
"""Colours of cells whose words mean something good or bad."""
_LEAST = 20
_GAP = 2
_PAIR = 60
"""Columns from which on a record has several cells in a line."""
_TOGETHER = 200
"""So many rows are rendered at a time, so that a long table begins to show at once."""


def console(stream: TextIO) -> Console:
    """A console that writes what it is given, as wide and in the colours that :mod:`cfs_tags.cli.view` says."""
    return Console(
        file=stream,
        force_terminal=True,
        width=view.columns(stream) or 80,
        color_system="standard" if view.in_colour(stream) else None,
        legacy_windows=False,
        markup=False,
        emoji=False,
        highlight=False,
    )


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Show a table on standard output.

    A name that leaves too little room for the rest of its row stands in a line above it.  A remark, in the last column, is
    wrapped between words, or stands below its row.  Where the columns do not fit beside each other even so, each row is
    shown as a record: ``NAME cell`` for each of its cells, as many in a line as fit, with an empty line between rows.

    Args:
        headings: of the columns, in capitals.
        rows: cells of printable text.
    """
    cells = [[view.short_cell(cell) for cell in row] for row in rows]
    used = [index for index in range(len(headings)) if any(row[index] for row in cells)] or list(range(len(headings)))
    names = [headings[index] for index in used]
    cells = [[row[index] for index in used] for row in cells]
    screen = console(sys.stdout)
    widths = _widths(names, cells, screen.width)
    if widths is None:
        _show_records(screen, names, cells)
    else:
        _show_grid(screen, names, cells, widths)


def _widths(names: list[str], cells: list[list[str]], room: int) -> list[int] | None:
    """How wide each column is, without the last one where it goes below its row; None where they do not fit."""
    widths = [max([cell_len(name), *(cell_len(row[index]) for row in cells)]) for index, name in enumerate(names)]
    remark = widths.pop() if names[-1] in _REMARKS else None
    if remark is not None:
        words = max([cell_len(word) for row in cells for word in row[-1].split(" ")], default=0)
        least = max(words, min(remark, _LEAST))
        beside = _fitted(names, widths, room - _GAP - least)
        if beside is not None:
            return [*beside, min(remark, room - sum(beside) - _GAP * len(beside))]
    return _fitted(names, widths, room)


def _fitted(names: list[str], widths: list[int], room: int) -> list[int] | None:
    """The widths with the column of names as wide as the room allows; None where even a narrow one leaves too little."""
    over = sum(widths) + _GAP * (len(widths) - 1) - room
    if over <= 0:
        return widths
    return next(
        (
            [*widths[:index], width - over, *widths[index + 1 :]]
            for index, width in enumerate(widths)
            if names[index] in _NAMES and width - over >= _LEAST
        ),
        None,
    )


def _show_grid(screen: Console, names: list[str], cells: list[list[str]], widths: list[int]) -> None:
    long = next((index for index, name in enumerate(names) if name in _NAMES), None)
    below = len(widths) < len(names)
    grid = _grid(names, widths, with_headings=True)
    for row in cells:
        ends = grid.row_count >= _TOGETHER
        if long is not None and cell_len(row[long]) > widths[long]:
            grid = _shown(screen, grid, names, widths)
            _print(screen, " " * (sum(widths[:long]) + _GAP * long) + row[long])
            row = [*row[:long], "", *row[long + 1 :]]
        elif ends:
            grid = _shown(screen, grid, names, widths)
        grid.add_row(*[Text(cell, _style(name, cell)) for name, cell in zip(names, row[: len(widths)], strict=False)])
        if below and row[-1]:
            grid = _shown(screen, grid, names, widths)
            _show_remark(screen, f"  {names[-1]}", row[-1])
    screen.print(grid, crop=False)


def _grid(names: list[str], widths: list[int], *, with_headings: bool = False) -> Table:
    made = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), show_header=with_headings, header_style="bold")
    for name, width in zip(names, widths, strict=False):
        made.add_column(Text(name), width=width, no_wrap=name not in _REMARKS, justify="right" if name in _NUMBERS else "left")
    return made


def _shown(screen: Console, grid: Table, names: list[str], widths: list[int]) -> Table:
    """Show the rows that there are; the next ones go on below them."""
    if grid.row_count or grid.show_header:
        screen.print(grid, crop=False)
    return _grid(names, widths)


def _style(name: str, cell: str) -> str:
    """The colour of a cell: what is wrong is seen before it is read."""
    if "problem: " in cell and name == "NOTES":
        return "red"
    return _MEANING.get((name, cell), "yellow" if name == "HEALTH" and cell else "")


def _show_records(screen: Console, names: list[str], cells: list[list[str]]) -> None:
    # where hardly two cells fit beside each other, each has a line, and cells stand below each other
    labels = max([len(name) for name in names]) if screen.width < _PAIR else 0
    for number, row in enumerate(cells or [[" "] * len(names)]):
        if number:
            screen.print()
        items: list[Text] = []
        for name, cell in zip(names, row, strict=True):
            if not cell:
                continue
            item = Text.assemble((f"{name:<{labels}}", "bold"), " ", (cell, _style(name, cell)))
            if name not in _REMARKS and item.cell_len <= screen.width:
                items.append(item)
                if labels:
                    _show_items(screen, items)
                    items = []
                continue
            _show_items(screen, items)
            items = []
            if name in _REMARKS:
                _show_remark(screen, name, cell)
            else:
                _print(screen, Text(name, style="bold"))
                _print(screen, cell)
        _show_items(screen, items)


def _show_items(screen: Console, items: list[Text]) -> None:
    if items:
        screen.print(Columns(items, padding=(0, _GAP, 0, 0)), crop=False)


def _show_remark(screen: Console, name: str, text: str) -> None:
    """A remark in lines of whole words, those after the first a little to the right of its heading."""
    indent = " " * 2 * _GAP
    style = _style(name.strip(), text)
    for line in wrap(f"{name} {text}", screen.width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False):
        if line.startswith(indent):
            _print(screen, Text(line, style))
        else:
            _print(screen, Text.assemble((line[: len(name)], "bold"), (line[len(name) :], style)))


def _print(screen: Console, text: str | Text) -> None:
    """A line, however long it is."""
    screen.print(text, soft_wrap=True)
