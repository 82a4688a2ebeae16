"""Reading below one directory, by descriptor: no link is followed, nothing is created.

The base of a repository and of what an import reads (``beneath.py`` follows the paths).  What is absent is None; what is
something else than it should be is a :class:`~cfs_tags.errors.FormatError`; sizes are checked before memory is taken; a
pipe in the place of a file does not hold us up.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from cfs_tags.errors import FormatError, NotALink, SystemFailure
from cfs_tags.repo import beneath

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# non-blocking, so that a pipe put in the place of an object cannot hold us up
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_ABSENT = (errno.ENOENT, errno.ENOTDIR)
_LED_AWAY = (errno.ELOOP, errno.EXDEV)

_TICK = 20_000_000
_SECOND = 1_000_000_000
_PASSES = 8
_ONE_CALL = 100
"""Names that one call of the system reads: it gives 32 KiB at a time, and a name takes 280 bytes at most."""


class Directory:
    """A directory that is only read.  Close it, or use it as a context manager.

    Args:
        path: where it is.
        fd: a descriptor of it, which is closed along with this; without one it is opened.

    Attributes:
        path: as it was given.
        fd: descriptor; paths given to methods are relative to it.
    """

    def __init__(self, path: str, fd: int = -1) -> None:
        self.path = path
        self.fd = fd if fd >= 0 else os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        """Close the descriptor.  Harmless when repeated."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.path!r})"

    def read_file(self, path: str, limit: int) -> bytes | None:
        """The bytes of a regular file below it, None where there is none.

        Args:
            path: relative to the directory.
            limit: largest size, in bytes, that is read.

        Raises:
            FormatError: it is larger, or something else than a file.
            SystemFailure: the system refused.
        """
        fd = self.open_file(path)
        if fd is None:
            return None
        try:
            size = os.fstat(fd).st_size
            if size > limit:
                raise self._malformed(path, f"at most {limit} bytes", f"{size} bytes")
            return _read(fd, size)
        except OSError as error:
            raise SystemFailure.of(error, "read", self._shown(path)) from error
        finally:
            os.close(fd)

    def open_file(self, path: str) -> int | None:
        """A descriptor of a regular file, None where nothing is."""
        try:
            fd = self.descriptor(path)
        except OSError as error:
            if error.errno in _ABSENT:
                return None
            if error.errno in _LED_AWAY:
                raise self._led_away(path, "a regular file") from None
            if error.errno == errno.ENXIO:  # a socket
                raise self._malformed(path, "a regular file", "something else") from None
            raise SystemFailure.of(error, "read", self._shown(path)) from error
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise self._malformed(path, "a regular file", "something else")
        return fd

    def read_link(self, path: str) -> str | None:
        """The text of a link below it, None where there is nothing.

        Raises:
            NotALink: something else is there.
            SystemFailure: the system refused.
        """
        try:
            return beneath.read_link(self.fd, path)
        except OSError as error:
            if error.errno in _ABSENT:
                return None
            if error.errno in _LED_AWAY:
                raise self._led_away(path, "a link to content") from None
            if error.errno == errno.EINVAL:
                raise NotALink(path=self._shown(path), found=self._kind(path)) from None
            raise SystemFailure.of(error, "read", self._shown(path)) from error

    def directory(self, path: str) -> int | None:
        """A descriptor of a directory below it, to be closed by the caller; None where there is none.

        Raises:
            FormatError: something else is there, or a link leads away.
        """
        try:
            return self.descriptor(path, _DIRECTORY)
        except FileNotFoundError:
            return None
        except NotADirectoryError:
            raise self._malformed(path, "a directory", self._kind(path)) from None
        except OSError as error:
            if error.errno in _LED_AWAY:
                raise self._led_away(path, "a directory") from None
            raise SystemFailure.of(error, "read", self._shown(path)) from error

    def names(self, path: str) -> list[str] | None:
        """The names in a directory of the repository as :func:`all_names` has them; None where there is none."""
        fd = self.directory(path)
        if fd is None:
            return None
        try:
            with self.reading(path):
                return all_names(fd)
        finally:
            os.close(fd)

    @contextmanager
    def reading(self, path: str) -> Iterator[None]:
        """Have an error that comes from a descriptor say which path it is about.

        Raises:
            SystemFailure: instead of an OSError.
        """
        try:
            yield
        except OSError as error:
            raise SystemFailure.of(error, "read", self._shown(path)) from error

    def status(self, path: str) -> os.stat_result:
        """What the system says of what is at ``path``; of a link itself where it is one.

        Raises:
            OSError: as the system gives it.
        """
        return beneath.status(self.fd, path)

    def descriptor(self, path: str, flags: int = _FILE) -> int:
        """A descriptor of what is at ``path``, for reading where ``flags`` say nothing else; raises as :meth:`status`."""
        return beneath.open_at(self.fd, path, flags)

    def _kind(self, path: str) -> str:
        try:
            mode = self.status(path).st_mode
        except OSError:
            return "gone"
        if stat.S_ISLNK(mode):
            return "a link"
        return "a directory" if stat.S_ISDIR(mode) else "a file" if stat.S_ISREG(mode) else "neither file nor directory"

    def _led_away(self, path: str, wanted: str) -> FormatError:
        """A link is in the way, or the path has ``..`` in it: says which part of the path it is."""
        parts = path.split("/")
        for number in range(1, len(parts)):
            if self._kind(above := "/".join(parts[:number])) == "a link":
                return self._malformed(above, "a directory", "a link")
        return self._malformed(path, wanted, "a path that leads out" if ".." in parts else "a link")

    def _shown(self, path: str) -> str:
        return os.path.join(self.path, path)

    def _malformed(self, path: str, wanted: str, found: str) -> FormatError:
        return FormatError(structure="file system", offset=0, wanted=wanted, found=found, path=self._shown(path))

    def is_file(self, path: str) -> bool:
        """Whether a regular file, no link to one, is at ``path``.

        Raises:
            SystemFailure: the system would not say.
        """
        try:
            return stat.S_ISREG(self.status(path).st_mode)
        except OSError as error:
            if error.errno in _ABSENT:
                return False
            if error.errno in _LED_AWAY:
                raise self._led_away(path, "a regular file") from None
            raise SystemFailure.of(error, "look at", self._shown(path)) from error

    def is_directory(self, path: str) -> bool:
        """Whether a directory, no link to one, is at ``path``.

        Raises:
            SystemFailure: the system would not say.
        """
        try:
            return stat.S_ISDIR(self.status(path).st_mode)
        except OSError as error:
            if error.errno in (*_ABSENT, *_LED_AWAY, errno.ENAMETOOLONG):
                return False
            raise SystemFailure.of(error, "look at", self._shown(path)) from error


def is_settled(stamp: int, at: int | None = None) -> bool:
    """Whether a change of a directory gives it another time stamp than this, now or ``at`` (nanoseconds since 1970).

    File systems count in ticks of the kernel, up to 10 ms; some in seconds.
    """
    return (time.time_ns() if at is None else at) - stamp > (_TICK if stamp % _SECOND else _SECOND + _TICK)


def all_names(fd: int) -> list[str]:
    """The names in an open directory, in no order: one that stands there all the time is among them, once.

    The system gives long directories in parts.  A name that another is moved over between two of them has a new place
    afterwards on some file systems (tmpfs is one): the parts miss it, or have it twice.  So a directory that was changed
    while it was read is read again; what was removed meanwhile may be among the names.

    Raises:
        OSError: as the system gives it.
    """
    found: dict[str, None] = {}
    for _ in range(_PASSES):
        stamp = os.fstat(fd).st_mtime_ns
        names = os.listdir(fd)
        is_whole = len(names) <= _ONE_CALL or (is_settled(stamp) and os.fstat(fd).st_mtime_ns == stamp)
        if is_whole and not found:
            return names
        found.update(dict.fromkeys(names))
        if is_whole:
            break
    return list(found)


def leads_nowhere(path: str, dir_fd: int | None = None) -> bool:
    """Whether a link is at a path, and not what it leads to: that may be on a disk that is not mounted."""
    try:
        if not stat.S_ISLNK(os.stat(path, dir_fd=dir_fd, follow_symlinks=False).st_mode):
            return False
    except OSError:
        return False
    try:
        os.stat(path, dir_fd=dir_fd)
    except OSError:
        return True
    return False


class HostDirectory(Directory):
    """A directory of the running system (``/boot``, ``/run``), where a link may be a directory: ``/boot/loader`` often is.

    The last component of a path is not followed here either.  What is below a link that leads nowhere is not absent: what
    it leads to may be on a disk that is not mounted.
    """

    def status(self, path: str) -> os.stat_result:
        """What the system says of what is at ``path``; of a link itself where it is one."""
        return os.stat(path, dir_fd=self.fd, follow_symlinks=False)

    def descriptor(self, path: str, flags: int = _FILE) -> int:
        """A descriptor of what is at ``path``."""
        try:
            return os.open(path, flags, dir_fd=self.fd)
        except FileNotFoundError:
            if self._leads_nowhere(path):
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from None
            raise

    def _leads_nowhere(self, path: str) -> bool:
        """Whether the last thing that is there on the way to a path is a link."""
        parts = path.split("/")
        for number in range(len(parts) - 1, 0, -1):
            try:
                return stat.S_ISLNK(self.status("/".join(parts[:number])).st_mode)
            except FileNotFoundError:
                continue
        return False


def _read(fd: int, size: int) -> bytes:
    data = os.read(fd, size)
    while len(data) < size:
        more = os.read(fd, size - len(data))
        if not more:
            break
        data += more
    return data
