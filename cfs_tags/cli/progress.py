"""Work that takes long: a line that shows how far it is, and stopping so that it can tidy up."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager, suppress
from time import monotonic
from typing import TYPE_CHECKING

from cfs_tags.cli import output

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from rich.progress import Progress as Bar

_WIDE = 60
"""Columns from which on there is room for the rate and for the time that is left."""


class Progress:
    """A bar on standard error, where that is a terminal.  A context manager: it gives a function that takes reports, or None.

    It has no thread of its own, because the work that it shows forks.  It appears with the first report, and is removed at
    the end of the block.

    Args:
        what: is done, in a word.
        wanted: whether to show one.
        of_bytes: whether the reports are in bytes: then it shows how many there are, and how many in a second.
        of: another noun for what the reports count: likewise.  Without any it shows how many hundredths are done in a second.
        every: seconds between two updates.
    """

    def __init__(self, what: str, wanted: bool, *, of_bytes: bool = False, of: str = "", every: float = 0.2) -> None:
        self._what = what
        self._of_bytes = of_bytes
        self._of = of
        self._wanted = wanted and _can_move()
        self._bar: Bar | None = None
        self._every = every
        self._last = -every

    def __enter__(self) -> Callable[[int, int], None] | None:
        return self._show if self._wanted else None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            output.above_bar = None
            with suppress(OSError):  # the terminal has gone
                self._bar.stop()

    def _show(self, done: int, total: int) -> None:
        now = monotonic()
        if now - self._last < self._every:
            return
        self._last = now
        with suppress(OSError):
            if self._bar is None:
                self._bar = self._start(total)
            task = self._bar.tasks[0]
            self._bar.update(task.id, completed=min(done, total) if total else 1, total=total or 1)
            if task.speed:
                self._bar.update(task.id, rate=self._rate(task.speed, total))
            self._bar.refresh()

    def _rate(self, speed: float, total: int) -> str:
        if self._of_bytes:
            return f"{output.rounded(int(speed))}/s"
        return f"{speed:.1f}/s" if self._of else f"{speed * 100 / max(total, 1):.1f}%/s"

    def _start(self, total: int) -> Bar:
        from rich.progress import BarColumn, ProgressColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar
        from rich.text import Text

        from cfs_tags.cli.screen import console

        def text(template: str) -> TextColumn:
            return TextColumn(template, markup=False, style="none")

        screen = console(sys.stderr)
        columns: list[ProgressColumn] = [text("{task.description}"), BarColumn(bar_width=30), text("{task.percentage:3.0f}%")]
        if screen.width < _WIDE:
            columns[1] = BarColumn(bar_width=max(screen.width - len(self._what) - 8, 1))
        if screen.width >= _WIDE:
            columns += [text("{task.fields[whole]}"), text("{task.fields[rate]}"), TimeRemainingColumn(compact=True)]
        bar = Bar(
            *columns,
            console=screen,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        whole = output.rounded(total) if self._of_bytes else output.count(total, self._of) if self._of else ""
        bar.add_task(self._what, total=total or 1, whole=f"of {whole}" if whole else "", rate="")
        bar.start()
        output.above_bar = lambda text: bar.console.print(Text(text), soft_wrap=True, end="")
        return bar


def _can_move() -> bool:
    return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


@contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM stops what is done in the block as Ctrl-C does: KeyboardInterrupt is raised."""
    import signal

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGTERM)
    if before is not signal.SIG_DFL:  # the caller has a handler of its own
        yield
        return
    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
