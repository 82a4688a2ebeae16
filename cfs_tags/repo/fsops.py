"""The operations that change a disk: the only ones in the package.

Every function takes a directory descriptor and a path relative to it, opens the directory of that path without following
a link (``beneath.py``) and works there with the last component alone, so that nothing that is renamed, linked or mounted
elsewhere in between can redirect it.  It does one step that the system makes whole or not at all (``append`` and
``create_file`` excepted, whose callers never trust what a crash left).  Callers say ``fsops.make_link(…)``, never import
the function: the tuple ``MUTATING`` is what tests stop, one call at a time, to try every crash.

All raise :class:`OSError` as the system gives it; the callers know what the path is for, and say so in their errors.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

from cfs_tags.repo.beneath import Parent, open_at

if TYPE_CHECKING:
    from collections.abc import Callable

    from _typeshed import ReadableBuffer as Buffer

MUTATING = (
    "make_directory",
    "make_link",
    "add_name",
    "exchange",
    "rename",
    "remove",
    "remove_directory",
    "create_file",
    "replace_file",
    "rewrite_file",
    "append",
    "date",
    "date_link",
    "truncate",
    "open_unnamed",
    "write",
    "adopt_object",
    "enable_verity",
    "sync",
    "sync_filesystem",
)
"""Names of the functions that change the disk, or make a change last."""

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_RENAME_EXCHANGE = 2  # linux/fs.h
_FS_IOC_ENABLE_VERITY = 0x40806685  # linux/fsverity.h
_HASH_BLOCK = 4096


class ExchangeUnsupported(OSError):
    """The file system cannot exchange two names in one step."""


class NotOurs(OSError):
    """What stands at a path is not a file of this user's that has no other name: its bytes are not changed."""


def make_directory(dir_fd: int, path: str, mode: int = 0o755) -> bool:
    """Make a directory; False where one is there already."""
    with Parent(dir_fd, path) as (fd, name):
        try:
            os.mkdir(name, mode, dir_fd=fd)
        except FileExistsError:
            return False
    return True


def make_link(dir_fd: int, path: str, target: str, parent: int = -1) -> None:
    """Make a symbolic link.  FileExistsError where anything is there: its own compare with "absent".

    ``parent`` is the directory of the path, for who has it open and makes thousands in it.
    """
    if parent >= 0:
        os.symlink(target, path.rpartition("/")[2], dir_fd=parent)
        return
    with Parent(dir_fd, path) as (fd, name):
        os.symlink(target, name, dir_fd=fd)


def add_name(dir_fd: int, old: str, new: str) -> bool:
    """Give a file a second name (a hard link); False where that name is taken."""
    with Parent(dir_fd, old) as (source, name), Parent(dir_fd, new) as (target, wanted):
        try:
            os.link(name, wanted, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
        except FileExistsError:
            return False
    return True


def rename(dir_fd: int, old: str, new: str) -> None:
    """Give ``old`` the name ``new``, in place of what had it."""
    with Parent(dir_fd, old) as (source, name), Parent(dir_fd, new) as (target, wanted):
        os.rename(name, wanted, src_dir_fd=source, dst_dir_fd=target)


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
    with Parent(dir_fd, first) as (one, name), Parent(dir_fd, second) as (other, other_name):
        failed = call(one, os.fsencode(name), other, os.fsencode(other_name), _RENAME_EXCHANGE) != 0
    if failed:
        number = ctypes.get_errno()
        kind = ExchangeUnsupported if number in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP) else OSError
        raise kind(number, os.strerror(number), second)


def remove(dir_fd: int, path: str) -> None:
    """Remove a file or link."""
    if "/" not in path:  # a million of them, one after the other
        os.unlink(path, dir_fd=dir_fd)
        return
    with Parent(dir_fd, path) as (fd, name):
        os.unlink(name, dir_fd=fd)


def remove_directory(dir_fd: int, path: str) -> None:
    """Remove an empty directory."""
    with Parent(dir_fd, path) as (fd, name):
        os.rmdir(name, dir_fd=fd)


def create_file(dir_fd: int, path: str, data: bytes, mode: int = 0o644) -> None:
    """Make a new file with these bytes, not synced.  FileExistsError where anything is there."""
    fd = open_at(dir_fd, path, _NEW, mode)
    try:
        _write_all(fd, data)
    finally:
        os.close(fd)


def replace_file(dir_fd: int, path: str, data: bytes, temporary: str) -> None:
    """Make a file have these bytes, whole and on disk, or leave it as it was.

    Args:
        dir_fd: the directory that both paths are relative to.
        path: of the file, there or not.
        data: all its bytes.
        temporary: a free path on the same file system; it is gone afterwards, also after an error.
    """
    _put_in_place(dir_fd, path, temporary, 0o644, lambda fd: _write_all(fd, data))


def rewrite_file(dir_fd: int, path: str, data: bytes, temporary: str) -> None:
    """Replace an existing file as :func:`replace_file` does; mode, owner and extended attributes stay as they were."""
    source = open_at(dir_fd, path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        status = os.fstat(source)
        attributes = [(name, os.getxattr(source, name)) for name in os.listxattr(source)]
    finally:
        os.close(source)

    def fill(fd: int) -> None:
        _write_all(fd, data)
        os.fchown(fd, status.st_uid, status.st_gid)
        os.fchmod(fd, status.st_mode & 0o777)
        for name, value in attributes:
            os.setxattr(fd, name, value)

    _put_in_place(dir_fd, path, temporary, 0o600, fill)
    sync(dir_fd, os.path.dirname(path) or ".")


def _put_in_place(dir_fd: int, path: str, temporary: str, mode: int, fill: Callable[[int], None]) -> None:
    """Put a new file, filled and on disk, in the place of another; after an error that stays as it was."""
    with Parent(dir_fd, temporary) as (source, spare), Parent(dir_fd, path) as (target, name):
        with suppress(FileNotFoundError):
            os.unlink(spare, dir_fd=source)  # what a crash left
        fd = os.open(spare, _NEW, mode, dir_fd=source)
        try:
            try:
                fill(fd)
                os.fsync(fd)
            finally:
                os.close(fd)
            os.rename(spare, name, src_dir_fd=source, dst_dir_fd=target)
        except BaseException:
            os.unlink(spare, dir_fd=source)
            raise


def append(dir_fd: int, path: str, data: bytes) -> None:
    """Add bytes to the end of a file of ours, made where it is absent; not synced.

    Raises:
        NotOurs: the file is another user's, has a second name, or is no file.
    """
    fd = open_at(dir_fd, path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o644)
    try:
        _refuse_others(fd, path)
        _write_all(fd, data)
    finally:
        os.close(fd)


def date(dir_fd: int, path: str, seconds: float) -> None:
    """Give an empty file of ours, made where it is absent, a time of change; not synced.

    Raises:
        NotOurs: the file is another user's, has a second name, or is no file.
    """
    fd = open_at(dir_fd, path, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK, 0o644)
    try:
        _refuse_others(fd, path)
        os.utime(fd, (seconds, seconds))
    finally:
        os.close(fd)


def date_link(dir_fd: int, path: str, seconds: float) -> None:
    """Give a link a time of change."""
    with Parent(dir_fd, path) as (parent, name):
        os.utime(name, (seconds, seconds), dir_fd=parent, follow_symlinks=False)


def truncate(dir_fd: int, path: str, size: int) -> None:
    """Cut a file of ours back to ``size`` bytes.

    Raises:
        NotOurs: the file is another user's, has a second name, or is no file.
    """
    # where a pipe was put there, opening it must not wait for a reader
    fd = open_at(dir_fd, path, os.O_WRONLY | os.O_NONBLOCK)
    try:
        _refuse_others(fd, path)
        os.ftruncate(fd, size)
    finally:
        os.close(fd)


def _refuse_others(fd: int, path: str) -> None:
    """A name in our directory may be a second one of a file that is somewhere else: its bytes are not ours to change."""
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        raise NotOurs(errno.EPERM, "it is no file", path)
    if found.st_nlink != 1:
        raise NotOurs(errno.EPERM, f"the file has {found.st_nlink} names", path)
    if found.st_uid != os.geteuid():
        raise NotOurs(errno.EPERM, f"the file belongs to user {found.st_uid}", path)


def open_unnamed(dir_fd: int, path: str, mode: int = 0o644) -> int:
    """A descriptor of a new file without a name on the file system of directory ``path``; gone unless it is adopted."""
    return open_at(dir_fd, path, os.O_WRONLY | os.O_TMPFILE, mode)


def write(fd: int, data: Buffer) -> None:
    """Write all the bytes to an unnamed file."""
    _write_all(fd, data)


def enable_verity(fd: int, algorithm_number: int) -> None:
    """Have the kernel make a file immutable and measured.

    ``fd`` is open for reading, and no process may have the file open for writing.  The structure is ``struct
    fsverity_enable_arg`` of linux/fsverity.h: version, hash algorithm, block size, no salt, no signature.

    Raises:
        OSError: the file system has no fs-verity, or the kernel not the hash.
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
        raise OSError(error.errno, reason) from None


def adopt_object(fd: int, dir_fd: int, path: str) -> bool:
    """Give an unnamed file a name; False where the name is taken already (the same content: nothing to do)."""
    try:
        if "/" not in path:  # a million of them, one after the other
            os.link(f"/proc/self/fd/{fd}", path, dst_dir_fd=dir_fd, follow_symlinks=True)
            return True
        with Parent(dir_fd, path) as (parent, name):
            os.link(f"/proc/self/fd/{fd}", name, dst_dir_fd=parent, follow_symlinks=True)
    except FileExistsError:
        return False
    return True


def sync(dir_fd: int, path: str = ".") -> None:
    """Wait until a directory (its names) or file (its bytes) is on disk."""
    fd = open_at(dir_fd, path, os.O_RDONLY | os.O_NONBLOCK)
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
