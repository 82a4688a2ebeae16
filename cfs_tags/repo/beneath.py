"""Following a path from a held directory, component by component and through no link.

A path of several components that the system resolves whole goes wherever a link in its middle leads, and whoever may
write one of these directories can put a link there at any moment.  So everything that reads or changes a repository opens the
directory of its path here first, and then works in that directory with a single name, which it never follows.

``openat2(2)`` does it in one call (Linux 5.6; ``RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS``).  Python
has no such function and the import of :mod:`ctypes` takes as long as some hundred steps of a walk, so a process walks
first (``O_NOFOLLOW``, one directory after the other: as safe) and takes ``openat2`` when it goes on for longer.  Where the
kernel, or a sandbox, has no ``openat2``, it goes on walking.

All functions raise :class:`OSError`: ``ELOOP`` where a link stands in the way, ``EXDEV`` where a path has ``..`` in it.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    Openat2 = Callable[[int, str, int, int], int]

_STEP = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_WALKS = 400
"""Paths that are walked before ``openat2`` is looked for."""
_LONGEST = 1000
"""Characters of a path that are given to the system at once: it takes less than 4096 bytes, and one has four at most."""
_HERE = -100  # AT_FDCWD: linux/fcntl.h
_OPENAT2 = 437  # the same number on all architectures but alpha: asm-generic/unistd.h
_RESOLVE = 0x08 | 0x04 | 0x02  # BENEATH, NO_SYMLINKS, NO_MAGICLINKS: linux/openat2.h
_REASONS = {errno.ELOOP: "a link stands in the way", errno.EXDEV: "the path leads out of the directory"}


def open_at(dir_fd: int, path: str, flags: int, mode: int = 0) -> int:
    """Open what stands at a path below a directory; no component of it, the last one included, may be a link.

    Args:
        dir_fd: the directory.
        path: relative to it.
        flags: as for :func:`os.open`; ``O_NOFOLLOW`` and ``O_CLOEXEC`` come by themselves.
        mode: of a file that is made, without regard to the umask's bits.
    """
    flags |= os.O_NOFOLLOW | os.O_CLOEXEC
    if "/" not in path:
        return _open_single(dir_fd, path, flags, mode)
    call = _kernel.openat2()
    if call is not None and len(path) <= _LONGEST:
        try:
            return call(dir_fd, path, flags, mode)
        except OSError as error:
            if error.errno != errno.ENOSYS:
                raise
            _kernel.forget()  # a sandbox was entered meanwhile
    above, _, name = path.rpartition("/")
    parent = _walk(dir_fd, above)
    try:
        return _open_single(parent, name, flags, mode)
    finally:
        os.close(parent)


def status(dir_fd: int, path: str) -> os.stat_result:
    """What the system says of what stands at a path below a directory; of a link itself where the last component is one."""
    if "/" not in path:
        return os.stat(_single(path), dir_fd=dir_fd, follow_symlinks=False)
    with Parent(dir_fd, path) as (fd, name):
        return os.stat(name, dir_fd=fd, follow_symlinks=False)


def read_link(dir_fd: int, path: str) -> str:
    """The text of a link."""
    with Parent(dir_fd, path) as (fd, name):
        return os.readlink(name, dir_fd=fd)


class Parent:
    """The directory of a path, held open for an operation with the last component alone.

    ``with Parent(dir_fd, path) as (fd, name):`` gives the descriptor and that component.  A path of one component costs
    nothing: ``fd`` is ``dir_fd`` then.
    """

    __slots__ = ("_at", "_own")

    def __init__(self, dir_fd: int, path: str) -> None:
        above, slash, name = path.rpartition("/")
        _single(name)
        self._own = open_at(dir_fd, above, _STEP) if slash else -1
        self._at = (self._own if slash else dir_fd), name

    def __enter__(self) -> tuple[int, str]:
        return self._at

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._own >= 0:
            os.close(self._own)


def _single(name: str) -> str:
    """A component, if it is one that stays where it is.  ``.`` is the directory itself, where it is the whole path."""
    if name == "..":
        raise _refused(errno.EXDEV, name)
    if not name:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), name)
    return name


def _refused(number: int, path: str) -> OSError:
    return OSError(number, _REASONS.get(number) or os.strerror(number), path)


def _walk(dir_fd: int, path: str) -> int:
    """A descriptor of a directory: one component after the other is opened from the one before."""
    at = dir_fd
    try:
        for name in path.split("/"):
            below = _open_single(at, name, _STEP, 0)
            if at != dir_fd:
                os.close(at)
            at = below
    except BaseException:
        if at != dir_fd:
            os.close(at)
        raise
    return at


def _open_single(fd: int, name: str, flags: int, mode: int) -> int:
    try:
        return os.open(_single(name), flags, mode, dir_fd=fd)
    except NotADirectoryError:
        # the system says so of a link, too
        if stat.S_ISLNK(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
            raise _refused(errno.ELOOP, name) from None
        raise


class _Kernel:
    """``openat2`` of this kernel, found when it is worth it."""

    def __init__(self) -> None:
        self._walks = 0
        self._call: Openat2 | None = None

    def openat2(self) -> Openat2 | None:
        """The function, None while there is none."""
        if self._walks <= _WALKS:
            self._walks += 1
            if self._walks > _WALKS:
                self._call = _find()
        return self._call

    def forget(self) -> None:
        """There is none any more."""
        self._call = None


_kernel = _Kernel()


def _find() -> Openat2 | None:
    import ctypes
    from struct import pack

    system_call = ctypes.CDLL(None, use_errno=True).syscall
    system_call.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t)
    system_call.restype = ctypes.c_long

    def openat2(dir_fd: int, path: str, flags: int, mode: int) -> int:
        name = os.fsencode(path)
        if b"\0" in name:
            raise ValueError("embedded null byte")  # as os.open; a C string would end there
        if b".." in name and b".." in name.split(b"/"):
            raise _refused(errno.EXDEV, path)  # the kernel lets one pass that leads nowhere else
        # O_NOFOLLOW beside O_PATH would let the last component be a link; struct open_how
        how = pack("QQQ", flags & ~os.O_NOFOLLOW, mode, _RESOLVE)
        while (fd := system_call(_OPENAT2, dir_fd, name, how, len(how))) < 0:
            number = ctypes.get_errno()
            if number not in (errno.EINTR, errno.EAGAIN):  # EAGAIN: something was renamed meanwhile
                raise _refused(number, path)
        return int(fd)

    try:
        os.close(openat2(_HERE, ".", _STEP, 0))
    except OSError:
        return None
    return openat2
