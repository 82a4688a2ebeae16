"""The operations that change a disk: the only ones in the package.

Every function takes a directory descriptor and a path relative to it, so that nothing that is renamed or mounted
elsewhere in between can redirect it, and does one step that the system makes whole or not at all (``append`` and
``create_file`` excepted, whose callers never trust what a crash left).  Callers say ``fsops.make_link(…)``, never import
the function: the tuple ``MUTATING`` is what tests stop, one call at a time, to try every crash.

All raise :class:`OSError` as the system gives it; the callers know what the path meant and say it.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from _typeshed import ReadableBuffer as Buffer

__all__ = [
    "MUTATING",
    "ExchangeUnsupported",
    "VerityUnsupported",
    "adopt_object",
    "append",
    "create_file",
    "enable_verity",
    "exchange",
    "make_directory",
    "make_link",
    "open_unnamed",
    "remove",
    "remove_directory",
    "rename",
    "replace_file",
    "rewrite_file",
    "sync",
    "sync_filesystem",
    "truncate",
    "write",
]

MUTATING = (
    "make_directory",
    "make_link",
    "exchange",
    "rename",
    "remove",
    "remove_directory",
    "create_file",
    "replace_file",
    "rewrite_file",
    "append",
    "truncate",
    "open_unnamed",
    "write",
    "adopt_object",
    "enable_verity",
    "sync",
    "sync_filesystem",
)
"""Names of the functions that change the disk, or make a change last."""

Owner = tuple[int, int]
"""User and group id that new files are given; None leaves them to the system."""

_RENAME_EXCHANGE = 2  # linux/fs.h
_FS_IOC_ENABLE_VERITY = 0x40806685  # linux/fsverity.h
_HASH_BLOCK = 4096


class ExchangeUnsupported(OSError):
    """The file system cannot exchange two names in one step."""


class VerityUnsupported(OSError):
    """The file system has no fs-verity, or the kernel not the hash."""


def make_directory(dir_fd: int, path: str, owner: Owner | None = None, mode: int = 0o755) -> bool:
    """Make a directory; False where one is there already."""
    try:
        os.mkdir(path, mode, dir_fd=dir_fd)
    except FileExistsError:
        return False
    if owner is not None:
        os.chown(path, *owner, dir_fd=dir_fd, follow_symlinks=False)
    return True


def make_link(dir_fd: int, path: str, target: str) -> None:
    """Make a symbolic link.  FileExistsError where anything is there: its own compare with "absent"."""
    os.symlink(target, path, dir_fd=dir_fd)


def rename(dir_fd: int, old: str, new: str) -> None:
    """Give ``old`` the name ``new``, in place of what had it."""
    os.rename(old, new, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)


def exchange(dir_fd: int, first: str, second: str) -> None:
    """Exchange what two names stand for, links included, in one step.

    Raises:
        ExchangeUnsupported: the kernel or the file system has no RENAME_EXCHANGE.
    """
    import ctypes  # 20 ms cold: only a move pays for it

    libc = ctypes.CDLL(None, use_errno=True)
    try:
        call = libc.renameat2
    except AttributeError:
        raise ExchangeUnsupported(errno.ENOSYS, os.strerror(errno.ENOSYS), second) from None
    if call(dir_fd, os.fsencode(first), dir_fd, os.fsencode(second), _RENAME_EXCHANGE) != 0:
        number = ctypes.get_errno()
        kind = ExchangeUnsupported if number in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP) else OSError
        raise kind(number, os.strerror(number), second)


def remove(dir_fd: int, path: str) -> None:
    """Remove a file or link."""
    os.unlink(path, dir_fd=dir_fd)


def remove_directory(dir_fd: int, path: str) -> None:
    """Remove an empty directory."""
    os.rmdir(path, dir_fd=dir_fd)


def create_file(dir_fd: int, path: str, data: bytes, owner: Owner | None = None, mode: int = 0o644) -> None:
    """Make a new file with these bytes, not synced.  FileExistsError where anything is there."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=dir_fd)
    try:
        if owner is not None:
            os.fchown(fd, *owner)
        _write_all(fd, data)
    finally:
        os.close(fd)


def replace_file(dir_fd: int, path: str, data: bytes, temporary: str, owner: Owner | None = None) -> None:
    """Make a file have these bytes, whole and on disk, or leave it as it was.

    Args:
        dir_fd: the directory that both paths are relative to.
        path: of the file, there or not.
        data: all its bytes.
        temporary: a free path on the same file system; it is gone afterwards, also after an error.
        owner: of the new file.
    """

    def fill(fd: int) -> None:
        if owner is not None:
            os.fchown(fd, *owner)
        _write_all(fd, data)

    _put_in_place(dir_fd, path, temporary, 0o644, fill)


def rewrite_file(dir_fd: int, path: str, data: bytes, temporary: str) -> None:
    """Replace an existing file as :func:`replace_file` does; mode, owner and extended attributes stay as they were."""
    source = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        status = os.fstat(source)
        attributes = [(name, os.getxattr(source, name)) for name in os.listxattr(source)]
    finally:
        os.close(source)

    def fill(fd: int) -> None:
        _write_all(fd, data)
        os.fchown(fd, status.st_uid, status.st_gid)
        os.fchmod(fd, stat.S_IMODE(status.st_mode))
        for name, value in attributes:
            os.setxattr(fd, name, value)

    _put_in_place(dir_fd, path, temporary, 0o600, fill)
    sync(dir_fd, os.path.dirname(path) or ".")


def _put_in_place(dir_fd: int, path: str, temporary: str, mode: int, fill: Callable[[int], None]) -> None:
    """Put a new file, filled and on disk, in the place of another; after an error that stays as it was."""
    with suppress(FileNotFoundError):
        os.unlink(temporary, dir_fd=dir_fd)  # what a crash left
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=dir_fd)
    try:
        try:
            fill(fd)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, path, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
    except BaseException:
        os.unlink(temporary, dir_fd=dir_fd)
        raise


def append(dir_fd: int, path: str, data: bytes, owner: Owner | None = None) -> None:
    """Add bytes to the end of a file, made where it is absent; not synced."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    fd = os.open(path, flags, 0o644, dir_fd=dir_fd)
    try:
        if owner is not None:
            os.fchown(fd, *owner)
        _write_all(fd, data)
    finally:
        os.close(fd)


def truncate(dir_fd: int, path: str, size: int) -> None:
    """Cut a file back to ``size`` bytes."""
    # a pipe that somebody put there must not be waited for
    fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=dir_fd)
    try:
        os.ftruncate(fd, size)
    finally:
        os.close(fd)


def open_unnamed(dir_fd: int, path: str, owner: Owner | None = None, mode: int = 0o644) -> int:
    """A descriptor of a new file without a name on the file system of directory ``path``; gone unless it is adopted."""
    fd = os.open(path, os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC, mode, dir_fd=dir_fd)
    if owner is not None:
        os.fchown(fd, *owner)
    return fd


def write(fd: int, data: Buffer) -> None:
    """Write all the bytes to an unnamed file."""
    _write_all(fd, data)


def enable_verity(fd: int, algorithm_number: int) -> None:
    """Have the kernel make a file immutable and measured.

    ``fd`` is open for reading, and nobody may have the file open for writing.  The structure is ``struct
    fsverity_enable_arg`` of linux/fsverity.h: version, hash algorithm, block size, no salt, no signature.

    Raises:
        VerityUnsupported: the file system has no fs-verity, or the kernel not the hash.
    """
    import fcntl
    import struct

    argument = struct.pack("<IIIIQIIQ88x", 1, algorithm_number, _HASH_BLOCK, 0, 0, 0, 0, 0)
    try:
        fcntl.ioctl(fd, _FS_IOC_ENABLE_VERITY, argument)
    except OSError as error:
        if error.errno in (errno.ENOTTY, errno.EOPNOTSUPP):
            reason = "the file system has no fs-verity, which this repository requires"
        elif error.errno == errno.ENOPKG:
            reason = "the kernel lacks the hash that this repository's fs-verity takes"
        else:
            raise
        raise VerityUnsupported(error.errno, reason) from None


def adopt_object(fd: int, dir_fd: int, path: str) -> bool:
    """Give an unnamed file a name; False where the name is taken already (the same content: nothing to do)."""
    try:
        os.link(f"/proc/self/fd/{fd}", path, dst_dir_fd=dir_fd, follow_symlinks=True)
    except FileExistsError:
        return False
    return True


def sync(dir_fd: int, path: str = ".") -> None:
    """Wait until a directory (its names) or file (its bytes) is on disk."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_filesystem(fd: int) -> None:
    """Wait until everything on the file system of ``fd`` is on disk."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syncfs(fd) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _write_all(fd: int, data: Buffer) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
