"""A request to end (SIGTERM) that lets a command tidy up."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["stoppable"]


@contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM stops what is done in the block as Ctrl-C does: KeyboardInterrupt is raised."""
    import signal

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGTERM)
    if before is not signal.SIG_DFL:  # who calls us wants it otherwise
        yield
        return
    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
