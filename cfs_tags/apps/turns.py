"""The repository lock in a process that has many readers at once, and gives collectors their turn.

flock knows no queue: readers that overlap, or follow each other closely, keep an exclusive taker out for ever.  Here all
readers of the process share one hold, which everybody gives back at least every :data:`TURN` seconds, and which is then not
taken for :data:`PAUSE`.
"""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from time import monotonic
from typing import TYPE_CHECKING

from cfs_tags.errors import LockTimeout

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from cfs_tags.repo.store import ReadRepo

__all__ = ["PAUSE", "TURN", "Share", "Turns"]

TURN = 10.0
"""Seconds for which the lock is held without a break, at most; and what a worker is doing then."""
PAUSE = 0.2
"""Seconds for which it is free then: four times what our own commands wait between two attempts."""

_POLL = 0.05
_GATHER = 0.005


class Turns:
    """The lock, held shared while there is a share of it.  For one event loop.

    Args:
        repo: whose lock.
        timeout: seconds to wait for it where somebody else has it exclusive.

    Attributes:
        timeout: the same.
    """

    def __init__(self, repo: ReadRepo, timeout: float) -> None:
        self._repo = repo
        self.timeout = timeout
        self._held = ExitStack()
        self._shares = 0
        self._since = 0.0  # when the turn began: breaks too short for anybody else to notice do not end it
        self._freed = float("-inf")
        self._not_before = 0.0
        self._queue = asyncio.Lock()

    @property
    def is_over(self) -> bool:
        """Whether the turn is over: every share should be given back, and may be taken again at once."""
        return self._shares > 0 and monotonic() - self._since > TURN

    def share(self) -> Share:
        """A share, not taken yet.  As a context manager it is given back at the end."""
        return Share(self)

    async def take(self) -> None:
        """Count one share more.

        Raises:
            LockTimeout: somebody else has the lock; names the holders.
            TimeoutError: the turn is over, and what was begun in it does not end.
        """
        deadline = monotonic() + self.timeout
        async with self._queue:
            while self.is_over and monotonic() < deadline:
                await asyncio.sleep(_GATHER)
            if self.is_over:
                raise TimeoutError
            while self._shares == 0:
                await asyncio.sleep(self._not_before - monotonic())
                try:
                    self._held.enter_context(self._repo.locked("shared", 0))
                except LockTimeout as late:
                    if monotonic() >= deadline:
                        late.seconds = self.timeout
                        raise
                    await asyncio.sleep(_POLL)
                    continue
                if monotonic() - self._freed >= PAUSE:
                    self._since = monotonic()
                break
            self._shares += 1

    def give_back(self) -> None:
        """Count one share less; the last frees the lock."""
        was_over = self.is_over
        self._shares -= 1
        if self._shares == 0:
            self._held.close()
            self._freed = monotonic()
            self._not_before = self._freed + PAUSE if was_over else 0.0


class Share:
    """One request's share of the lock."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._is_held = False

    @property
    def is_over(self) -> bool:
        """Whether it should be given back now."""
        return self._turns.is_over

    async def take(self) -> None:
        """Have it from now on.  Harmless when repeated.  Raises LockTimeout."""
        if not self._is_held:
            await self._turns.take()
            self._is_held = True

    def give_back(self) -> None:
        """Have it no more.  Harmless when repeated."""
        if self._is_held:
            self._is_held = False
            self._turns.give_back()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.give_back()
