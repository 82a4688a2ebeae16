"""Places for which there is more demand than there are: a short queue, and no peer has all of either.

A registry on a loopback address, or behind a proxy, has one peer only, and may well be asked for a lot by it; so the limits
of a peer are wide.  What they do is to keep a part of everything free for the others.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Full", "Places", "share_of_one"]

LOOK_SECONDS = 1.0
"""Seconds between two looks whether one who waits is still there."""


class Full(Exception):
    """There is no place, and none in the queue."""


class _Waiting(NamedTuple):
    peer: str
    turn: asyncio.Future[None]


def share_of_one(count: int, reserve: int) -> int:
    """How many of ``count`` one peer may have, where ``reserve`` are kept for others: always one, at least."""
    return max(1, count - reserve)


class Places:
    """So many places, and a queue.  For one event loop.

    Args:
        count: of places; a quarter is kept from a peer that has all the others.
        queue: most that wait; a quarter is kept in the same way.
    """

    def __init__(self, count: int, queue: int) -> None:
        self._free = count
        self._most = share_of_one(count, count // 4)
        self._queue = queue
        self._most_waiting = share_of_one(queue, queue // 4)
        self._taken: Counter[str] = Counter()
        self._waiting: list[_Waiting] = []

    def enter(self, peer: str) -> bool:
        """Take a place, if there is one for that peer now."""
        if self._free == 0 or self._taken[peer] >= self._most or any(one.peer == peer for one in self._waiting):
            return False
        self._take(peer)
        return True

    async def wait(self, peer: str, seconds: float, is_gone: Callable[[], bool]) -> bool:
        """Wait for a place.

        Args:
            peer: who.
            seconds: to wait, at most.
            is_gone: whether nobody wants the place any more; asked now and then.

        Returns:
            whether there is a place; it is to be left then.

        Raises:
            Full: too many are waiting.
        """
        if len(self._waiting) >= self._queue or sum(one.peer == peer for one in self._waiting) >= self._most_waiting:
            raise Full
        loop = asyncio.get_running_loop()
        one = _Waiting(peer, loop.create_future())
        self._waiting.append(one)
        until = loop.time() + seconds
        try:
            while not one.turn.done() and (left := until - loop.time()) > 0 and not is_gone():
                await asyncio.wait((one.turn,), timeout=min(left, LOOK_SECONDS))
            return one.turn.done()
        except BaseException:
            if one.turn.done():
                self.leave(peer)
            raise
        finally:
            if not one.turn.done():
                self._waiting.remove(one)

    def leave(self, peer: str) -> None:
        """Give a place back: to the peer that has the fewest of those that wait, and to the first of its requests."""
        self._free += 1
        self._taken[peer] -= 1
        if not self._taken[peer]:
            del self._taken[peer]
        allowed = [one for one in self._waiting if self._taken[one.peer] < self._most]
        if allowed:
            following = min(allowed, key=lambda one: self._taken[one.peer])  # the first of several
            self._waiting.remove(following)
            self._take(following.peer)
            following.turn.set_result(None)

    def _take(self, peer: str) -> None:
        self._free -= 1
        self._taken[peer] += 1
