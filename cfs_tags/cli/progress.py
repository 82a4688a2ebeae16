"""A line that tells how far something is."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING

from cfs_tags.cli import output

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

__all__ = ["Progress"]

_EVERY = 0.2
_LONGEST = 30
_SHORTEST = 5


class Progress:
    """A bar on standard error, where that is a terminal.  A context manager: it gives what is to be told, or None.

    It has no thread of its own, because what it tells of forks; it is there from the first time on that it is told
    something, and gone in the end.

    Args:
        what: is done, in a word.
        wanted: whether there shall be one at all.
        of_bytes: whether it is told bytes, of which people want to know how many there are.
    """

    def __init__(self, what: str, wanted: bool, *, of_bytes: bool = False) -> None:
        self._what = what
        self._of_bytes = of_bytes
        self._wanted = wanted and _can_move()
        self._shown = False
        self._last = 0.0

    def __enter__(self) -> Callable[[int, int], None] | None:
        return self._show if self._wanted else None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._shown:
            _draw("")

    def _show(self, done: int, total: int) -> None:
        now = monotonic()
        if now - self._last < _EVERY:
            return
        self._last, self._shown = now, True
        part = min(done / total, 1.0) if total else 1.0
        _draw(self._line(part, f" of {output.rounded(total)}" if self._of_bytes else "", _columns() - 1))

    def _line(self, part: float, whole: str, room: int) -> str:
        """What fits: without the whole where that leaves no bar that one could read, and then without a bar."""
        for after in (f" {part:4.0%}{whole}", f" {part:4.0%}"):
            width = min(room - len(self._what) - 1 - len(after), _LONGEST)
            if width >= _SHORTEST:
                filled = int(part * width)
                return f"{self._what} {'#' * filled}{'.' * (width - filled)}{after}"
        return f"{self._what} {part:4.0%}"[:room]


def _can_move() -> bool:
    return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def _columns() -> int:
    """Of the terminal; in the last of them some go on in the next line, so nothing may be there."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except OSError:
        return 80


def _draw(text: str) -> None:
    with suppress(OSError):  # nobody looks any more
        sys.stderr.write(f"\r{text}\x1b[K")
        sys.stderr.flush()
