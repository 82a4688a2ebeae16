"""A terminal of a given size, with a program on it."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pyte

__all__ = ["Screen", "Shown", "show"]

SHIFT = 1_782_907_200 - time.time()
"""From now to 2026-07-01T12:00:00Z, when the programs run, so that ages are the same in every run; the clock goes on."""

# the user of the machine is not the same everywhere either
PROGRAM = f"""
import os, pwd, sys, time
real, shift = time.time, {SHIFT} + float(os.environ.pop("LATER", "0"))
time.time = lambda: real() + shift
pwd.getpwuid = lambda uid: pwd.struct_passwd(("user", "x", uid, uid, "", "/", ""))
from cfs_tags.cli.main import main
sys.exit(main())
"""


class Screen:
    """What a person sees who scrolls back: lines of text."""

    def __init__(self, columns: int, lines: int) -> None:
        self._screen = pyte.HistoryScreen(columns, lines, history=100_000, ratio=1)
        self._stream = pyte.ByteStream(self._screen)

    def feed(self, data: bytes) -> None:
        """Show what a program writes."""
        self._stream.feed(data)

    @property
    def text(self) -> str:
        """All lines, without blanks at their ends and without empty lines below the last."""
        columns = range(self._screen.columns)
        above = ["".join(line[column].data for column in columns) for line in self._screen.history.top]
        return "\n".join(line.rstrip() for line in [*above, *self._screen.display]).rstrip("\n")

    @property
    def cursor_is_hidden(self) -> bool:
        """Whether the cursor cannot be seen."""
        return bool(self._screen.cursor.hidden)


class Shown(NamedTuple):
    """What a program wrote to a terminal, what the terminal shows of it in the end, and the exit status."""

    raw: bytes
    text: str
    status: int
    cursor_is_hidden: bool
    frames: tuple[str, ...]
    """What the last line showed, each time that it was about to be drawn again."""


def show(
    words: Sequence[str | Path],
    *,
    columns: int = 80,
    lines: int = 24,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    typed: bytes = b"",
    later: float = 0.0,
    stable: Callable[[str], str] = str,
) -> Shown:
    """Run ``cfs-tag`` with these words on a terminal.

    Args:
        words: of the command line.
        columns: of the terminal.
        lines: of the terminal.
        cwd: the current directory.
        env: of the environment, besides what is said here: UTF-8, xterm, no other wish.
        typed: what is typed.
        later: seconds after the usual time, when it is run.
        stable: what becomes of the text before the terminal shows it.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    unset = (
        "COLUMNS",
        "NO_COLOR",
        "FORCE_COLOR",
        "SUDO_USER",
        "PYTHONUTF8",
        "LC_ALL",
        "LANG",
        "CFS_TAG_REPO",
        "CFS_TAG_SYSROOT",
    )
    kept = {name: value for name, value in os.environ.items() if name not in unset}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *map(str, words)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=cwd,
        env={**kept, "LANG": "C.UTF-8", "TERM": "xterm-256color", "PAGER": "cat", "LATER": str(later), **(env or {})},
        start_new_session=True,
    )
    os.close(theirs)
    if typed:
        os.write(ours, typed)
    raw = stable(b"".join(_read(ours)).decode()).encode()
    os.close(ours)
    status = process.wait(timeout=60)
    screen = Screen(columns, lines)
    frames = []
    first, *pieces = raw.split(b"\r\x1b[2K")
    screen.feed(first)
    for piece in pieces:
        frames.append(screen.text.rpartition("\n")[2])
        screen.feed(b"\r\x1b[2K" + piece)
    return Shown(raw, screen.text, status, screen.cursor_is_hidden, tuple(frames))


def _read(terminal: int) -> Iterator[bytes]:
    while True:
        try:
            data = os.read(terminal, 65536)
        except OSError:  # its way to say that this was all
            return
        if not data:
            return
        yield data
