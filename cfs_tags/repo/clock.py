"""What the clock of the system is worth: when something was done here last, and whether the clock has jumped since.

``cfs-tags/clock`` is empty.  Its time of change is the latest time at which the clock was believed: each change of refs moves
it on, unless the clock stands more than an hour before it (it was set back), or more than half a year behind it (it was set
forward, or nothing was done here for so long; nobody can tell).  Until the clock is right again, or somebody says that it is,
what ends by time ends by the earlier of the two times, and what is to end after a while begins with the later: nothing goes
early.

Where there is no such file, the clock is believed.
"""

from __future__ import annotations

import errno
import os
import time
from contextlib import suppress
from typing import NamedTuple

from cfs_tags.errors import RefusedError, SystemFailure
from cfs_tags.repo import fsops, layout
from cfs_tags.repo.store import ReadRepo, WriteRepo

_FILE = f"{layout.STATE}/clock"
_BACK = 3600.0
"""Seconds by which a clock is corrected without having been wrong."""
_AHEAD = 182 * 86400.0
"""Seconds in which something is done to a repository that is in use."""
_UNKNOWN = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES)
"""How the system answers where there is no such file, or where this user may not look, who can then change nothing either."""

LATEST = 221_845_392_000.0
"""The year 9000: whoever dates a file later, or before 1970, means no time."""


class Clock(NamedTuple):
    """The time.

    Attributes:
        now: as the system says it, in seconds since 1970.
        seen: when it was believed last; None where that is not known, or somebody says that ``now`` is right.
    """

    now: float
    seen: float | None

    @property
    def earliest(self) -> float:
        """The time that it is at least: what ends by time ends by this."""
        return self.now if self.seen is None or not self._is_ahead else self.seen

    @property
    def latest(self) -> float:
        """The time that it is at most, for what is to last for a while from now on."""
        return self.now if self.seen is None else max(self.now, self.seen)

    @property
    def _is_ahead(self) -> bool:
        return self.seen is not None and self.now - self.seen > _AHEAD

    @property
    def doubt(self) -> RefusedError | None:
        """Why the clock is not believed; None where it is."""
        if self.seen is None:
            return None
        if self._is_ahead:
            return RefusedError("clock-ahead", now=_shown(self.now), seen=_shown(self.seen))
        if self.seen - self.now > _BACK:
            return RefusedError("clock-set-back", now=_shown(self.now), seen=_shown(self.seen))
        return None


def read(repo: ReadRepo, *, trusted: bool = False) -> Clock:
    """The time, and what is known of it here.

    Args:
        repo: where.
        trusted: somebody says that the clock is right.

    Raises:
        SystemFailure: the system would not say when the clock was believed last.
    """
    return Clock(time.time(), None if trusted else _seen(repo))


def advance(repo: WriteRepo) -> None:
    """Have the time that was seen go on with the clock, where that is believed; where the system refuses, it stays."""
    with suppress(OSError, SystemFailure):
        known = read(repo)
        if known.doubt is None:
            fsops.date(repo.fd, _FILE, known.latest)


def believe(repo: WriteRepo) -> None:
    """Have the clock be right from now on, whatever was seen before.

    Raises:
        SystemFailure: it could not be written down.
    """
    repo.make_directories(layout.STATE)
    try:
        fsops.date(repo.fd, _FILE, time.time())
    except OSError as error:
        raise SystemFailure.of(error, "write", os.path.join(repo.path, _FILE)) from error


def _seen(repo: ReadRepo) -> float | None:
    try:
        return min(max(repo.status(_FILE).st_mtime, 0.0), LATEST)
    except OSError as error:
        if error.errno in _UNKNOWN:
            return None
        raise SystemFailure.of(error, "look at", os.path.join(repo.path, _FILE)) from error


def _shown(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
