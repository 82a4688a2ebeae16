"""A log that never holds up who writes to it."""

from __future__ import annotations

from contextlib import suppress
from queue import Empty, Full, Queue
from threading import Thread
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

__all__ = ["Log"]

_LINES = 1000
"""Lines that wait to be written, at most."""
_END_SECONDS = 1.0
_AT_ONCE = 100


class Log:
    """Writes lines in a thread of its own; what nobody reads is dropped and counted.  A context manager.

    Args:
        write: takes text; may wait for as long as it likes, and may fail.
    """

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        self._lines: Queue[str | None] = Queue(_LINES)
        self._dropped = 0
        self._thread = Thread(target=self._run, name="log", daemon=True)

    def __call__(self, line: str) -> None:
        """Have a line written, or not."""
        try:
            self._lines.put_nowait(line)
        except Full:
            self._dropped += 1

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._lines.put(None, timeout=_END_SECONDS)
        except Full:
            return  # it is written to nobody
        self._thread.join(_END_SECONDS)

    def _run(self) -> None:
        is_open = True
        while is_open:
            gathered = [self._lines.get()]
            with suppress(Empty):
                while len(gathered) < _AT_ONCE:
                    gathered.append(self._lines.get_nowait())
            is_open = None not in gathered
            dropped, self._dropped = self._dropped, 0
            lines = [line for line in gathered if line is not None]
            if dropped:
                lines.append(f"cfs-tag: {dropped} lines of the log were dropped: nobody read them")
            with suppress(OSError, ValueError):  # a log that cannot be written is no reason to stop
                self._write("".join([f"{line}\n" for line in lines]))
