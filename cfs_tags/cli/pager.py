"""A pager for output that is longer than the terminal."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from io import TextIOBase
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TextIO


@contextmanager
def paged(wanted: bool) -> Iterator[None]:
    """Have what is written to standard output meanwhile shown by a pager, where that is a terminal and too short for it.

    The pager is ``PAGER``, else ``less``; an empty one and ``cat`` are none.  As with git, less is told by ``LESS=FRX`` to
    show colours and to leave what was read on the screen, where the user has not set it.  Who quits the pager has seen
    enough: the rest is not written.

    Args:
        wanted: whether there shall be one at all.
    """
    words = _words()
    if not wanted or not words or not sys.stdout.isatty() or os.environ.get("TERM") == "dumb":
        yield
        return
    screen = sys.stdout
    pages = _Pages(screen, words)
    sys.stdout = pages
    try:
        with suppress(BrokenPipeError):
            try:
                yield
            finally:
                pages.end()
    finally:
        sys.stdout = screen


def _words() -> list[str]:
    """The command of the pager; nothing where there is none."""
    try:
        words = shlex.split(os.environ.get("PAGER", "less"))
    except ValueError:
        return []
    return words if words != ["cat"] else []


class _Pages(TextIOBase):
    """Text that is held until it is more than a screen; then a pager gets it, and all that follows.

    Args:
        screen: the terminal.
        words: of the pager.
    """

    def __init__(self, screen: TextIO, words: list[str]) -> None:
        self._screen = screen
        self._words = words
        self._held: list[str] | None = []
        self._room = os.get_terminal_size(screen.fileno())
        self._lines = 0
        self._pager: subprocess.Popen[bytes] | None = None

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """That of the terminal."""
        return self._screen.encoding

    def isatty(self) -> bool:
        """As the terminal."""
        return True

    def fileno(self) -> int:
        """Of the terminal, for its width."""
        return self._screen.fileno()

    def write(self, text: str) -> int:
        """Hold text, or give it to the pager.

        Raises:
            BrokenPipeError: the pager was quit.
        """
        if self._held is not None:
            self._held.append(text)
            width = self._room.columns or 80
            self._lines += sum(max(1, -(-len(line) // width)) for line in text.splitlines())
            if self._lines >= (self._room.lines or 24):
                self._start()
        elif self._pager is not None and self._pager.stdin is not None:
            self._pager.stdin.write(text.encode(self.encoding, "backslashreplace"))
        else:
            self._screen.write(text)
        return len(text)

    def _start(self) -> None:
        self._screen.flush()
        try:
            env = {"LESS": "FRX", "LV": "-c", **os.environ}
            self._pager = subprocess.Popen(self._words, stdin=subprocess.PIPE, env=env)
        except OSError:
            pass  # there is no such program: all of it goes to the terminal
        self._release()

    def _release(self) -> None:
        held, self._held = self._held, None
        self.write("".join(held or ()))

    def end(self) -> None:
        """Write what is held, or wait until the user quits the pager, who alone decides what an interrupt means there."""
        if self._held is not None:
            self._release()
        if self._pager is None or self._pager.stdin is None:
            return
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            with suppress(BrokenPipeError):
                self._pager.stdin.close()
            self._pager.wait()
        finally:
            signal.signal(signal.SIGINT, before)
