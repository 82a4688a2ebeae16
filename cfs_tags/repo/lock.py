"""The locks of a repository: taken with a deadline, never converted, one object for each in a process.

Two locks, both ``flock(2)``:

* the *repository lock*, on the repository directory itself, is the one that cfsctl and bootc use.  Shared: content stays
  while we look at it or name it.  Exclusive: nobody else has the repository open, so content may go.
* the *refs lock*, on ``cfs-tags/refs.lock``, orders the writers of this program among themselves.

flock belongs to an open file description, so two handles of one process would shut each other out.  All handles on one
repository therefore share one :class:`Lock`, found by device and inode: shared requests are counted, and a request that
could never be granted raises at once.  A conversion is not offered: the kernel drops the held lock before it waits for
the new one.  ``flock`` is called directly in both modes; the ``filelock`` package knows the exclusive one only and costs
30 ms of start-up.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from contextlib import contextmanager
from threading import Lock as ThreadLock
from threading import get_ident
from typing import TYPE_CHECKING, Any, Literal

from cfs_tags.errors import LockConflict, LockTimeout, SystemFailure

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["DEFAULT_TIMEOUT", "Lock", "holders"]

DEFAULT_TIMEOUT = 30.0
"""Seconds that a lock is waited for where nothing else is said."""

Mode = Literal["shared", "exclusive"]

_FIRST_PAUSE = 0.001
_LONGEST_PAUSE = 0.003
"""Seconds.  A collector lets go for a few milliseconds at a time (``gc/sweeping.py``): who sleeps longer misses many."""


class Lock:
    """One lock of this process.  Get it with :meth:`of`; never construct a second one for the same file."""

    _known: dict[tuple[int, int], Lock] = {}  # noqa: RUF012  (one registry for the process is the point)
    _guard = ThreadLock()

    def __init__(self, key: tuple[int, int], path: str) -> None:
        self._key = key
        self._path = path
        self._fd = -1
        self._mode: Mode | None = None
        self._count = 0
        self._thread = 0

    @classmethod
    def of(cls, dir_fd: int, name: str, path: str) -> Lock:
        """The lock on ``name`` (``.`` for the directory itself) in a directory; ``path`` is what errors call it.

        Raises:
            SystemFailure: it is gone, or the system refused.
        """
        try:
            status = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        except OSError as error:
            raise SystemFailure.of(error, "lock", path) from error
        key = (status.st_dev, status.st_ino)
        with cls._guard:
            lock = cls._known.get(key)
            if lock is None:
                lock = cls._known[key] = cls(key, path)
            elif lock._count == 0:
                lock._path = path  # renamed since, or another file with the inode of one that is gone
        return lock

    @property
    def mode(self) -> Mode | None:
        """How this process holds it now."""
        return self._mode

    @contextmanager
    def hold(
        self, mode: Mode, dir_fd: int, name: str, timeout: float = DEFAULT_TIMEOUT, *, queue: bool = False
    ) -> Iterator[None]:
        """Hold the lock for the block.

        Args:
            mode: ``shared`` or ``exclusive``.
            dir_fd: the directory that holds the locked file.
            name: of the file there, ``.`` for the directory; it is opened anew, so that closing another descriptor of it
                never gives the lock away.
            timeout: seconds to wait for other processes; 0 tries once.
            queue: other threads of this process are waited for too, instead of refused.

        Raises:
            LockTimeout: somebody else has it.
            LockConflict: this process has it, in a mode that excludes the wanted one.
        """
        self._take(mode, dir_fd, name, timeout, queue)
        try:
            yield
        finally:
            self._give_back()

    def _take(self, mode: Mode, dir_fd: int, name: str, timeout: float, queue: bool) -> None:
        deadline = time.monotonic() + timeout
        pause = _FIRST_PAUSE
        while True:
            with self._guard:
                if self._count and self._mode == mode == "shared":
                    self._count += 1
                    return
                if self._count == 0:
                    if self._try(mode, dir_fd, name):
                        self._mode, self._count, self._thread = mode, 1, get_ident()
                        return
                elif not queue or self._thread == get_ident():
                    raise LockConflict(path=self._path, held=str(self._mode), wanted=mode)
            left = deadline - time.monotonic()
            if left <= 0:
                raise LockTimeout(path=self._path, mode=mode, seconds=timeout, holders=holders(self._key))
            time.sleep(min(pause, left))
            pause = min(pause * 2, _LONGEST_PAUSE)

    def _try(self, mode: Mode, dir_fd: int, name: str) -> bool:
        own = -1
        try:
            # non-blocking: opening a pipe that somebody put there would wait without a deadline
            own = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=dir_fd)
            fcntl.flock(own, (fcntl.LOCK_SH if mode == "shared" else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError as error:
            if own >= 0:
                os.close(own)
            if error.errno in (errno.EWOULDBLOCK, errno.EINTR):
                return False
            raise SystemFailure.of(error, "lock", self._path) from error
        self._fd = own
        return True

    def _give_back(self) -> None:
        with self._guard:
            if self._count == 0:  # a forked child: the lock is the parent's
                return
            self._count -= 1
            if self._count == 0:
                fd, self._fd, self._mode = self._fd, -1, None
                try:
                    # said aloud: a child that was forked meanwhile may still have the description open
                    fcntl.flock(fd, fcntl.LOCK_UN)
                finally:
                    os.close(fd)

    @classmethod
    def _forget(cls) -> None:
        """In a forked child: the locks stay the parent's.  Unlocking here would take them from it, closing does not."""
        cls._guard = ThreadLock()
        for lock in cls._known.values():
            if lock._fd >= 0:
                os.close(lock._fd)
            lock._fd, lock._mode, lock._count = -1, None, 0
        cls._known.clear()


os.register_at_fork(after_in_child=Lock._forget)


def holders(key: tuple[int, int]) -> tuple[dict[str, Any], ...]:
    """Who holds a flock on a file, as far as ``/proc/locks`` shows it to us.

    Args:
        key: device and inode number of the file.

    Returns:
        One dict each: ``pid``, ``command`` (its arguments, at most 120 characters), ``mode``.
    """
    device, inode = key
    found: dict[int, dict[str, Any]] = {}
    try:
        with open("/proc/locks", encoding="ascii", errors="replace") as table:
            lines = table.readlines()
    except OSError:
        return ()
    for line in lines:
        fields = line.split()
        # "1: FLOCK ADVISORY READ 1234 fe:00:5678 0 EOF"; waiters have "->" for a second field
        if len(fields) < 6 or fields[1] != "FLOCK" or not fields[4].isdigit():
            continue
        major, minor, number = [*fields[5].split(":"), "", ""][:3]
        pid = int(fields[4])
        if number != str(inode) or pid <= 0:
            continue
        same_device = (int(major, 16), int(minor, 16)) == (os.major(device), os.minor(device))
        if same_device or _has_open(pid, key):  # btrfs and overlay show another device there
            mode = "exclusive" if fields[3] == "WRITE" else "shared"
            found[pid] = {"pid": pid, "command": _command(pid), "mode": mode}
    return tuple(found.values())


def _has_open(pid: int, key: tuple[int, int]) -> bool:
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            status = os.stat(f"/proc/{pid}/fd/{name}")
            if (status.st_dev, status.st_ino) == key:
                return True
    except OSError:
        pass
    return False


def _command(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read(4096).split(b"\0")
    except OSError:
        words = []
    return os.fsdecode(b" ".join(word for word in words if word))[:120] or "?"
