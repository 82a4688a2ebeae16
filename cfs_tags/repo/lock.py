"""The locks of a repository: taken with a deadline, never converted, one object for each in a process.

Two locks, both ``flock(2)``:

* the *repository lock*, on the repository directory itself, is the one that cfsctl and bootc use.  Shared: content stays
  while we look at it or name it.  Exclusive: no other process has the repository open, so content may go.
* the *refs lock*, on ``cfs-tags/refs.lock``, orders the writers of this program among themselves.

flock belongs to an open file description, so two handles of one process would shut each other out.  All handles on one
repository therefore share one :class:`Lock`, found by device and inode: shared requests are counted, and a request that
could never be granted raises at once.  A conversion is not offered: the kernel drops the held lock before it waits for
the new one.

Exclusive locks are taken by :mod:`filelock`, on a descriptor that is opened here and by which no link is followed; it has no
shared mode, which is ``flock`` itself, and no deadline.  It is imported when the first exclusive lock is taken
(``docs/decisions/0010-exclusive-locks-with-filelock.md``).

A lock that other processes hold is waited for in the kernel, by a thread: where the lock is free for an instant only, as
it is beside busy writers, a process that looks now and then finds it taken for minutes.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread, get_ident
from threading import Lock as ThreadLock
from typing import Any, ClassVar, Literal

from cfs_tags.errors import LockConflict, LockTimeout, SystemFailure
from cfs_tags.repo import beneath

DEFAULT_TIMEOUT = 30.0
"""Seconds that a lock is waited for by default."""

Mode = Literal["shared", "exclusive"]

_PAUSE = 0.003
"""Seconds between two looks at a lock that a thread of this process has, or that no thread could be had to wait for."""
_LOOK = 0.05
"""Seconds between two looks whether a thread of this process took a lock that is waited for."""
_LONG = 1.0
"""Seconds of waiting after which :attr:`Lock.on_wait` is called."""


class Lock:
    """One lock of this process.  Get it with :meth:`of`; never construct a second one for the same file."""

    on_wait: ClassVar[Callable[[str, Mode, tuple[dict[str, Any], ...]], None] | None] = None
    """Is called once for each wait that takes longer than a second: path, wanted mode, and holders as :func:`holders`
    gives them."""

    _known: ClassVar[dict[tuple[int, int], Lock]] = {}
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
            status = beneath.status(dir_fd, name)
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
            LockTimeout: another process holds it.
            LockConflict: this process has it, in a mode that excludes the wanted one.
        """
        self._take(mode, dir_fd, name, timeout, queue)
        try:
            yield
        finally:
            self._give_back()

    def _take(self, mode: Mode, dir_fd: int, name: str, timeout: float, queue: bool) -> None:
        began = time.monotonic()
        waiter: _Waiter | None = None
        told = False
        try:
            while not self._is_granted(mode, dir_fd, name, waiter, queue):
                waited = time.monotonic() - began
                if waited >= timeout:
                    raise LockTimeout(path=self._path, mode=mode, seconds=timeout, holders=holders(self._key))
                if waited >= _LONG and not told and Lock.on_wait is not None:
                    told = True
                    Lock.on_wait(self._path, mode, holders(self._key))
                if waiter is None and self._count == 0:
                    waiter = self._waiter(mode, dir_fd, name)
                left = timeout - waited
                if waiter is None:
                    time.sleep(min(_PAUSE, left))
                else:
                    waiter.wait(min(_LOOK, left))
        finally:
            if waiter is not None:
                waiter.give_up()

    def _is_granted(self, mode: Mode, dir_fd: int, name: str, waiter: _Waiter | None, queue: bool) -> bool:
        with self._guard:
            if self._count and self._mode == mode == "shared":
                self._count += 1
                return True
            if self._count:
                if queue and self._thread != get_ident():
                    return False
                raise LockConflict(path=self._path, held=str(self._mode), wanted=mode)
            try:
                fd = self._try(mode, dir_fd, name) if waiter is None else waiter.taken()
            except OSError as error:
                raise SystemFailure.of(error, "lock", self._path) from error
            if fd < 0:
                return False
            self._fd, self._mode, self._count, self._thread = fd, mode, 1, get_ident()
            return True

    def _try(self, mode: Mode, dir_fd: int, name: str) -> int:
        """The descriptor with the lock; -1 where another process has it."""
        fd = _opened(dir_fd, name)
        try:
            if take_at_once(fd, mode):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        return -1

    def _waiter(self, mode: Mode, dir_fd: int, name: str) -> _Waiter | None:
        """The thread that waits for other processes; None where the system gives no thread."""
        waiter = _Waiter.left(self._key, mode)
        if waiter is not None:
            return waiter
        try:
            waiter = _Waiter(_opened(dir_fd, name), self._key, mode)
        except OSError as error:
            raise SystemFailure.of(error, "lock", self._path) from error
        return waiter if waiter.start() else None

    def _give_back(self) -> None:
        with self._guard:
            if self._count == 0:  # a forked child: the lock is the parent's
                return
            self._count -= 1
            if self._count == 0:
                fd, self._fd, self._mode = self._fd, -1, None
                _let_go(fd)

    @classmethod
    def _forget(cls) -> None:
        """In a forked child: the locks stay the parent's.  Unlocking here would take them from it, closing does not."""
        cls._guard = ThreadLock()
        for lock in cls._known.values():
            if lock._fd >= 0:
                os.close(lock._fd)
            lock._fd, lock._mode, lock._count = -1, None, 0
        cls._known.clear()
        _Waiter.forget()


os.register_at_fork(after_in_child=Lock._forget)


class _Waiter:
    """Waits for a lock that another process has, in a thread.

    A call of ``flock`` that waits cannot be taken back.  A waiter that is given up goes on until its turn comes, and then
    lets go at once; who asks for the lock before that has it instead of a new one.  So there are never more of them than
    requests at one time, however often a lock is held by others.
    """

    _known: ClassVar[set[_Waiter]] = set()
    _guard = ThreadLock()

    def __init__(self, fd: int, key: tuple[int, int], mode: Mode) -> None:
        self._fd = fd
        self._key = key
        self._mode: Mode = mode
        self._error: BaseException | None = None
        self._ended = Event()
        self._wanted = True
        self._thread = Thread(target=self._run, name="lock", daemon=True)
        self._known.add(self)

    @classmethod
    def left(cls, key: tuple[int, int], mode: Mode) -> _Waiter | None:
        """One that was given up and still waits for this lock; it is the caller's from now on."""
        with cls._guard:
            for waiter in list(cls._known):
                if (waiter._key, waiter._mode, waiter._wanted) == (key, mode, False):
                    waiter._wanted = True
                    return waiter
        return None

    @classmethod
    def forget(cls) -> None:
        """In a forked child, which has the descriptors and no thread."""
        cls._guard = ThreadLock()
        for waiter in cls._known:
            os.close(waiter._fd)
        cls._known.clear()

    def start(self) -> bool:
        """Begin to wait; False where the system gives no thread."""
        try:
            self._thread.start()
        except RuntimeError:
            self._close()
            return False
        return True

    def wait(self, seconds: float) -> None:
        """Wait for the turn, or for so long."""
        self._ended.wait(seconds)

    def taken(self) -> int:
        """The descriptor with the lock, the caller's from now on; -1 as long as another process has it.

        Raises:
            OSError: the system refused.
        """
        if not self._ended.is_set():
            return -1
        self._thread.join()
        if self._error is not None:
            raise self._error
        self._known.discard(self)
        fd, self._fd = self._fd, -1
        return fd

    def give_up(self) -> None:
        """Wait no longer, and release a lock that comes too late."""
        with self._guard:
            self._wanted = False
            if self._ended.is_set():
                self._close()

    def _run(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_SH if self._mode == "shared" else fcntl.LOCK_EX)
            take_at_once(self._fd, self._mode)  # taken already: this lets filelock know
        except BaseException as error:
            self._error = error
        with self._guard:
            self._ended.set()
            if not self._wanted:
                self._close()

    def _close(self) -> None:
        self._known.discard(self)
        fd, self._fd = self._fd, -1
        if fd >= 0:
            _let_go(fd)


def take_at_once(fd: int, mode: Mode) -> bool:
    """Take a lock on an open file; False where another process has it.

    Raises:
        OSError: the system refused.
    """
    if mode == "exclusive":
        from filelock import lock_descriptor  # 11 ms

        return lock_descriptor(fd, blocking=False)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno == errno.EWOULDBLOCK:
            return False
        raise
    return True


def _opened(dir_fd: int, name: str) -> int:
    # non-blocking: opening a pipe in the place of the file would wait without a deadline
    return beneath.open_at(dir_fd, name, os.O_RDONLY | os.O_NONBLOCK)


def _let_go(fd: int) -> None:
    try:
        # said aloud: a child that was forked meanwhile may still have the description open
        fcntl.flock(fd, fcntl.LOCK_UN)
    finally:
        os.close(fd)


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
