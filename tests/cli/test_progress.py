"""The bar: one line of a terminal, however narrow, and nothing of it stays."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import struct
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from cfs_tags.cli import output
from cfs_tags.cli.progress import Progress
from support.terminal import Screen

GIB = 1 << 30


class Drawn:
    """What a terminal got, and what it shows."""

    def __init__(self, columns: int) -> None:
        self.screen = Screen(columns or 80, 24)
        self.raw = b""
        self.ours, self.theirs = pty.openpty()
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        os.set_blocking(self.ours, False)

    def now(self) -> str:
        """What can be seen."""
        with suppress(BlockingIOError, OSError):
            while data := os.read(self.ours, 65536):
                self.raw += data
                self.screen.feed(data)
        return self.screen.text


@contextmanager
def terminal(columns: int) -> Iterator[Drawn]:
    """Standard error is a terminal of that width."""
    drawn = Drawn(columns)
    with pytest.MonkeyPatch.context() as patched, os.fdopen(drawn.theirs, "w", encoding="utf-8") as stderr:
        patched.setattr(sys, "stderr", stderr)
        patched.setenv("TERM", "xterm")
        patched.delenv("COLUMNS", raising=False)
        yield drawn
        drawn.now()
    os.close(drawn.ours)


@pytest.mark.parametrize("columns", [200, 80, 60, 59, 40, 24, 12])
def test_a_bar_is_one_line_of_a_terminal_and_gone_in_the_end(columns: int) -> None:
    with terminal(columns) as drawn:
        with Progress("Importing", True, of_bytes=True, every=0) as told:
            assert told is not None
            for done in (0, 5 * GIB, 10 * GIB):
                told(done, 10 * GIB)
                assert len(drawn.now().splitlines()) == 1, "one line, which the terminal does not break"
        assert drawn.now() == ""
        assert not drawn.screen.cursor_is_hidden


def test_a_bar_gets_shorter_first_and_then_the_words() -> None:
    shown = {}
    for columns in (80, 40, 24):
        with terminal(columns) as drawn, Progress("Importing", True, of_bytes=True, every=0) as told:
            assert told is not None
            told(5 * GIB, 10 * GIB)
            shown[columns] = drawn.now()
    assert shown[80].startswith("Importing ━━━━━━━━━━━━━━━╺━━━━━━━━━━━━━━  50% of 10.0 GiB")
    assert shown[40] == "Importing ━━━━━━━━━━━╸━━━━━━━━━━━  50%"
    assert shown[24] == "Importing ━━━╸━━━  50%"


def test_bytes_have_a_rate_and_a_time_that_is_left() -> None:
    with terminal(100) as drawn, Progress("Importing", True, of_bytes=True, every=0) as told:
        assert told is not None
        for done in range(1, 6):
            told(done << 20, 10 << 20)
        words = drawn.now().split()
        assert words[-2].endswith("iB/s")
        assert words[-1].count(":") == 1


def test_progress_without_bytes_shows_a_percentage_alone() -> None:
    with terminal(80) as drawn, Progress("Collecting", True, every=0) as told:
        assert told is not None
        told(64, 256)
        assert drawn.now().startswith("Collecting ━━━━━━━╸━━━━━━━━━━━━━━━━━━━━━━  25%")


def test_a_terminal_of_unknown_width_is_taken_for_80_columns() -> None:
    with terminal(0) as drawn, Progress("Collecting", True, every=0) as told:
        assert told is not None
        told(1, 1)
        assert drawn.now().startswith("Collecting ━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━ 100%")


def test_it_is_not_drawn_more_often_than_people_can_see() -> None:
    with terminal(80) as drawn, Progress("Checking", True) as told:
        assert told is not None
        for done in range(10_000):
            told(done, 10_000)
        assert drawn.now()
        assert drawn.raw.count(b"Checking") < 50


def test_it_has_no_thread_because_commands_fork() -> None:
    before = threading.active_count()
    with terminal(80), Progress("Checking", True) as told:
        assert told is not None
        told(1, 2)
        assert threading.active_count() == before


def test_a_line_that_is_printed_meanwhile_is_above_the_bar() -> None:
    with terminal(80) as drawn:
        with Progress("Collecting", True, every=0) as told:
            assert told is not None
            told(1, 2)
            output.note("waiting for [bold]somebody[/bold]\x1b[31m")
            told(2, 2)
            line, bar = drawn.now().splitlines()
            assert line == "cfs-tag: waiting for [bold]somebody[/bold]\\x1b[31m"
            assert bar.startswith("Collecting ━━")
        output.note("done")
        assert drawn.now().splitlines() == [line, "cfs-tag: done"]


def test_a_locale_without_lines_gets_signs_that_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(80) as drawn:
        plain = open(drawn.theirs, "w", encoding="ascii", errors="backslashreplace", closefd=False)  # noqa: SIM115
        with plain, monkeypatch.context() as patched:
            patched.setattr(sys, "stderr", plain)
            with Progress("Checking", True, every=0) as told:
                assert told is not None
                told(1, 2)
                drawn.now()
    assert drawn.raw.isascii()
    assert b"\\u" not in drawn.raw


@pytest.mark.parametrize("why", ["no terminal", "not wanted", "dumb", "closed"])
def test_without_a_terminal_there_is_no_progress(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert drawn.raw == b""


def test_a_bar_without_a_report_leaves_the_terminal_alone() -> None:
    with terminal(80) as drawn, Progress("Checking", True):
        pass
    assert drawn.raw == b""


def test_a_terminal_that_went_away_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def isatty(self) -> bool:
            return True

        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(sys, "stderr", Gone())
    monkeypatch.setenv("TERM", "xterm")
    with Progress("Checking", True, every=0) as told:
        assert told is not None
        told(1, 2)
        told(2, 2)
