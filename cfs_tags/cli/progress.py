"""A line that tells how far something is."""

from __future__ import annotations

import sys
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

__all__ = ["Progress"]

_EVERY = 0.2
_WIDTH = 30


class Progress:
    """A bar on standard error, where that is a terminal.  A context manager: it gives what is to be told, or None.

    It has no thread, so processes may be forked while it is shown.

    Args:
        wanted: whether there shall be one at all.
        label: what is being done, where what is counted is no bytes.
    """

    def __init__(self, wanted: bool, label: str | None = None) -> None:
        self._label = label
        self._shown = False
        self._last = 0.0
        self._wanted = wanted and sys.stderr.isatty()

    def __enter__(self) -> Callable[[int, int], None] | None:
        return self._show if self._wanted else None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def _show(self, done: int, total: int) -> None:
        now = monotonic()
        if now - self._last < _EVERY:
            return
        self._last, self._shown = now, True
        part = min(done / total, 1.0) if total else 1.0
        filled = int(part * _WIDTH)
        before, after = ("", f" of {total / 1e6:.1f} MB") if self._label is None else (f"{self._label} ", "")
        sys.stderr.write(f"\r{before}{'#' * filled}{'.' * (_WIDTH - filled)} {part:4.0%}{after}\x1b[K")
        sys.stderr.flush()
