"""A thread that takes blocks off our hands: while it hashes and writes one, the next is read."""

from __future__ import annotations

from queue import SimpleQueue
from threading import Semaphore, Thread
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

__all__ = ["Pump"]

_AHEAD = 8


class Pump:
    """Calls ``take`` with every block, in order, in a thread of its own.  A context manager: at the end all is taken.

    Args:
        take: what is done with a block; what it raises comes out of :meth:`put`, or at the end of the context.
    """

    def __init__(self, take: Callable[[bytes], None]) -> None:
        self._take = take
        self._queue: SimpleQueue[bytes | None] = SimpleQueue()
        self._room = Semaphore(_AHEAD)
        self._error: BaseException | None = None
        self._thread = Thread(target=self._run, daemon=True)

    def put(self, data: bytes) -> None:
        """Hand over a block; waits while too many are on their way."""
        self._room.acquire()
        if self._error is not None:
            raise self._error
        self._queue.put(data)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._queue.put(None)
        self._thread.join()
        if kind is None and self._error is not None:
            raise self._error

    def _run(self) -> None:
        while (data := self._queue.get()) is not None:
            if self._error is None:
                try:
                    self._take(data)
                except BaseException as error:
                    self._error = error
            self._room.release()
