"""Tables on a terminal: no text is cut off or broken in the middle of a word, so that whatever is seen can be used.

Digests and ids are shortened to what a command takes for them, instants to seconds, and columns without anything in them
go.  Where a table is wider than the terminal, first a long name gets a line of its own above the rest of its row, then the
last columns go on in a second line of each row; remarks are wrapped between words."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from unicodedata import combining, east_asian_width

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["layout", "shortened"]

_DIGITS = 12
_DIGEST = re.compile(r"((?:oci-[a-z]+-)?sha(?:256|512):|@deployment/|)([0-9a-f]{64}|[0-9a-f]{128})")
_INSTANT = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)\.\d+Z")
_REMARKS = ("NOTES", "REASON", "HEALTH")
_NAMES = ("NAME", "REPOSITORY")
_LEAST = 20
_GAP = 2


def layout(headings: Sequence[str], rows: Sequence[Sequence[str]], columns: int, *, bold: bool = False) -> list[str]:
    """The lines of a table.

    Args:
        headings: of the columns, in capitals.
        rows: cells of printable text.
        columns: how wide the terminal is.
        bold: show the headings in bold.
    """
    cells = [[_short(cell) for cell in row] for row in rows]
    used = [index for index in range(len(headings)) if not cells or any(row[index] for row in cells)]
    names = [headings[index] for index in used]
    cells = [[row[index] for index in used] for row in cells]
    widths = [max([_width(name), *(_width(row[index]) for row in cells)]) for index, name in enumerate(names)]
    # a remark takes what is left
    least = [min(width, _LEAST) if name in _REMARKS else width for name, width in zip(names, widths, strict=True)]
    long = next((index for index, name in enumerate(names) if name in _NAMES), None)
    if long is not None:
        others = sum(least) + _GAP * (len(least) - 1) - least[long]
        least[long] = max(min(widths[long], columns - others), min(widths[long], _LEAST))
    lines = [f"\x1b[1m{line}\x1b[0m" if bold else line for line in _row(names, names, least, columns)]
    for row in cells:
        lines += _row(names, row, least, columns)
    return lines


def _row(names: list[str], row: list[str], widths: list[int], columns: int) -> Iterator[str]:
    """The lines of a row."""
    line, at = "", 0
    for index, (name, cell, width) in enumerate(zip(names, row, widths, strict=True)):
        if index and at + _GAP + width > columns:
            # the rest of the columns stand a little to the right, in a line of their own
            if line.strip():
                yield line.rstrip()
            line, at = " " * _GAP, _GAP
        elif index:
            line, at = line + " " * _GAP, at + _GAP
        if name in _REMARKS and index == len(row) - 1:
            first, *more = _wrapped(cell, columns - at)
            if (line + first).strip():
                yield (line + first).rstrip()
            yield from (" " * at + text for text in more)
            return
        if name in _NAMES and _width(cell) > width:
            yield line + cell
            line, cell = " " * at, ""
        line += cell + " " * (width - _width(cell))
        at += width
    if line.strip():
        yield line.rstrip()


def _wrapped(text: str, room: int) -> list[str]:
    """A remark in lines of whole words; a word that is longer than the room stays in one piece."""
    lines = [""]
    for word in text.split(" "):
        if lines[-1] and _width(lines[-1]) + 1 + _width(word) > max(room, _LEAST):
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}" if lines[-1] else word
    return lines


def shortened(text: str) -> str:
    """Text in which a digest, an id or an instant that stands alone, or behind a word, is short."""
    word, blank, rest = text.rpartition(" ")
    return f"{word}{blank}{_short(rest)}"


def _short(text: str) -> str:
    found = _DIGEST.fullmatch(text)
    if found is not None:
        return f"{found[1]}{found[2][:_DIGITS]}"
    return _INSTANT.sub(r"\1Z", text)


def _width(text: str) -> int:
    """Columns that a terminal gives to a text."""
    if text.isascii():
        return len(text)
    return sum(0 if combining(character) else 2 if east_asian_width(character) in "WF" else 1 for character in text)
