"""Reading below one directory, by descriptor: nothing is followed out of it by accident, nothing is created.

The base of a repository and of a sysroot.  What is absent is None; what is something else than it should be is a
:class:`~cfs_tags.errors.FormatError`; sizes are checked before memory is taken; a pipe in the place of a file does not
hold us up.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from cfs_tags.errors import FormatError, NotALink, SystemFailure

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

__all__ = ["Directory"]

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# non-blocking, so that a pipe put in the place of an object cannot hold us up
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_ABSENT = (errno.ENOENT, errno.ENOTDIR)
_LONGEST_PATH = 2048
"""Bytes of a path that are given to the system at once: it takes less than 4096, of which a name may be 255."""


class Directory:
    """A directory that is only read.  Close it, or use it as a context manager.

    Attributes:
        path: as it was given.
        fd: descriptor; paths given to methods are relative to it.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

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
            fd = os.open(path, _FILE, dir_fd=self.fd)
        except OSError as error:
            if error.errno in _ABSENT:
                return None
            if error.errno == errno.ELOOP:
                raise self._malformed(path, "a regular file", "a link") from None
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
            return os.readlink(path, dir_fd=self.fd)
        except OSError as error:
            if error.errno in _ABSENT:
                return None
            if error.errno == errno.EINVAL:
                raise NotALink(path=self._shown(path), found=self._kind(path)) from None
            raise SystemFailure.of(error, "read", self._shown(path)) from error

    def directory(self, path: str) -> int | None:
        """A descriptor of a directory below it, to be closed by the caller; None where there is none.

        Raises:
            FormatError: something else is there, or a link leads away.
        """
        try:
            return _open_directory(path, self.fd)
        except FileNotFoundError:
            return None
        except NotADirectoryError:
            raise self._malformed(path, "a directory", self._kind(path)) from None
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise self._malformed(path, "a directory", "a link") from None
            raise SystemFailure.of(error, "read", self._shown(path)) from error

    def names(self, path: str) -> list[str] | None:
        """The names in a directory of the repository, in no order; None where there is none."""
        fd = self.directory(path)
        if fd is None:
            return None
        try:
            return os.listdir(fd)
        finally:
            os.close(fd)

    def _kind(self, path: str) -> str:
        try:
            mode = os.stat(path, dir_fd=self.fd, follow_symlinks=False).st_mode
        except OSError:
            return "gone"
        if stat.S_ISLNK(mode):
            return "a link"
        return "a directory" if stat.S_ISDIR(mode) else "a file" if stat.S_ISREG(mode) else "neither file nor directory"

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
            return stat.S_ISREG(os.stat(path, dir_fd=self.fd, follow_symlinks=False).st_mode)
        except OSError as error:
            if error.errno in _ABSENT:
                return False
            raise SystemFailure.of(error, "look at", self._shown(path)) from error

    def is_directory(self, path: str) -> bool:
        """Whether a directory, no link to one, is at ``path``."""
        try:
            return stat.S_ISDIR(os.stat(path, dir_fd=self.fd, follow_symlinks=False).st_mode)
        except OSError:
            return False


def _open_directory(path: str, fd: int) -> int:
    """A descriptor of a directory below another, however long the path is."""
    rest = os.fsencode(path)
    above = -1
    try:
        while len(rest) > _LONGEST_PATH and (end := rest.rfind(b"/", 0, _LONGEST_PATH)) > 0:
            below = os.open(rest[:end], _DIRECTORY, dir_fd=fd)
            if above >= 0:
                os.close(above)
            fd = above = below
            rest = rest[end + 1 :]
        return os.open(rest, _DIRECTORY, dir_fd=fd)
    finally:
        if above >= 0:
            os.close(above)


def _read(fd: int, size: int) -> bytes:
    data = os.read(fd, size)
    while len(data) < size:
        more = os.read(fd, size - len(data))
        if not more:
            break
        data += more
    return data
