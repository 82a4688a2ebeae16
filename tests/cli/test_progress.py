"""The bar: one line of a terminal, however narrow, and nothing of it stays."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import struct
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from cfs_tags.cli import progress
from cfs_tags.cli.progress import Progress


@contextmanager
def terminal(columns: int) -> Iterator[list[str]]:
    """Standard error is a terminal of that width; what was drawn there is in the list afterwards."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    drawn: list[str] = []
    with pytest.MonkeyPatch.context() as patched, os.fdopen(theirs, "w") as screen:
        patched.setattr(sys, "stderr", screen)
        patched.setenv("TERM", "xterm")
        patched.setattr(progress, "_EVERY", 0.0)
        yield drawn
    text = b""
    with suppress(OSError):  # its way to say that this was all
        while data := os.read(ours, 65536):
            text += data
    os.close(ours)
    drawn += text.decode().split("\x1b[K")


@pytest.mark.parametrize("columns", [80, 40, 24, 12])
def test_a_bar_is_one_line_of_a_terminal_and_gone_in_the_end(columns: int) -> None:
    with terminal(columns) as drawn, Progress("Importing", True, of_bytes=True) as told:
        assert told is not None
        told(0, 10 << 30)
        told(5 << 30, 10 << 30)
        told(10 << 30, 10 << 30)
    assert [line[0] for line in drawn[:-1]] == ["\r"] * 4
    assert all(len(line) <= columns for line in drawn)
    assert drawn[-2:] == ["\r", ""]


def test_a_bar_gets_shorter_first_and_then_the_words() -> None:
    shown = {}
    for columns in (80, 40, 24):
        with terminal(columns) as drawn, Progress("Importing", True, of_bytes=True) as told:
            assert told is not None
            told(5 << 30, 10 << 30)
        shown[columns] = drawn[0][1:]
    assert shown[80] == "Importing ###############...............  50% of 10.0 GiB"
    assert shown[40] == "Importing ######......  50% of 10.0 GiB"
    assert shown[24] == "Importing ####....  50%"


def test_what_is_no_bytes_is_told_as_a_part_alone() -> None:
    with terminal(80) as drawn, Progress("Collecting", True) as told:
        assert told is not None
        told(64, 256)
    assert drawn[0] == "\rCollecting #######.......................  25%"


def test_a_terminal_of_unknown_width_is_taken_for_80_columns() -> None:
    with terminal(0) as drawn, Progress("Collecting", True) as told:
        assert told is not None
        told(1, 1)
    assert drawn[0] == "\rCollecting ############################## 100%"


@pytest.mark.parametrize("why", ["no terminal", "not wanted", "dumb", "closed"])
def test_where_nobody_can_see_a_bar_nothing_is_told(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(80) as drawn:
        if why == "no terminal":
            monkeypatch.setattr(sys, "stderr", io.StringIO())
        if why == "dumb":
            monkeypatch.setenv("TERM", "dumb")
        if why == "closed":
            monkeypatch.setattr(sys, "stderr", None)
        with Progress("Checking", why != "not wanted") as told:
            assert told is None
        monkeypatch.undo()
    assert drawn == [""]


def test_a_bar_that_was_told_nothing_leaves_the_terminal_alone() -> None:
    with terminal(80) as drawn, Progress("Checking", True):
        pass
    assert drawn == [""]


def test_a_terminal_that_went_away_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def isatty(self) -> bool:
            return True

        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(sys, "stderr", Gone())
    monkeypatch.setenv("TERM", "xterm")
    with Progress("Checking", True) as told:
        assert told is not None
        told(1, 2)
