"""What the kernel says about fs-verity, and mapping files that it may refuse to read.

Where a file has fs-verity, each block is checked when it is read from the disk, and one that fails is an I/O error.  In a
mapped file that error is a signal that ends the process, so files are read into the mapping before anybody looks at it.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from cfs_tags.errors import FormatError
from cfs_tags.formats import splitstream

if TYPE_CHECKING:
    from mmap import mmap

__all__ = ["is_secure", "map_file", "verity_digest"]

_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_MEASURE = 0xC0046686  # FS_IOC_MEASURE_VERITY, linux/fsverity.h
_NO_VERITY = (errno.ENODATA, errno.ENOTTY, errno.EOPNOTSUPP)
_WINDOW = 8 << 20
"""Bytes that are read into the mapping at once."""
_POPULATE_READ = 22  # MADV_POPULATE_READ of Linux 5.14, asm-generic/mman-common.h


def verity_digest(fd: int) -> str | None:
    """What the kernel measured of a file when fs-verity was switched on, in hexadecimal; None where it has none.

    A digest of another algorithm comes out with its own length.

    Raises:
        OSError: the system refused.
    """
    import fcntl

    # struct fsverity_digest: algorithm and size as u16 (in: room for the digest), then the digest
    answer = bytearray(b"\0\0\x40\0" + bytes(64))
    try:
        fcntl.ioctl(fd, _MEASURE, answer)
    except OSError as error:
        if error.errno in _NO_VERITY:
            return None
        raise
    return answer[4 : 4 + int.from_bytes(answer[2:4], "little")].hex()


def is_secure(repo_fd: int) -> bool:
    """Whether every object must have fs-verity: ``meta.json`` itself has it (composefs-rs 0.9.4, ``repository.rs``)."""
    try:
        fd = os.open("meta.json", _FILE, dir_fd=repo_fd)
    except OSError:
        return False
    try:
        return verity_digest(fd) is not None
    except OSError:
        return False
    finally:
        os.close(fd)


def map_file(fd: int, *, cut: bool = False) -> mmap:
    """A splitstream or image that is not empty, mapped for reading, all of it known to be readable.

    Args:
        fd: of the file.
        cut: of one that is longer than it may be map the start.

    Raises:
        FormatError: it is longer than a splitstream or image may be (``formats/erofs.py`` has the same limit).
        OSError: the system refused; a block that cannot be read is EIO.
    """
    import mmap

    size = os.fstat(fd).st_size
    if size > splitstream.MAX_SIZE and not cut:
        raise FormatError(structure="object", offset=0, wanted=f"at most {splitstream.MAX_SIZE} bytes", found=f"{size} bytes")
    mapped = mmap.mmap(fd, min(size, splitstream.MAX_SIZE), prot=mmap.PROT_READ)
    try:
        for start in range(0, len(mapped), _WINDOW):
            length = min(_WINDOW, len(mapped) - start)
            mapped.madvise(_POPULATE_READ, start, length)
            if len(mapped) > _WINDOW:  # the system has it now; our own memory need not have all of a large one at a time
                mapped.madvise(mmap.MADV_DONTNEED, start, length)
    except OSError as error:
        if error.errno == errno.EINVAL:  # an older kernel
            return mapped
        mapped.close()
        if error.errno == errno.EFAULT:  # what would have been the signal
            raise OSError(errno.EIO, os.strerror(errno.EIO)) from None
        raise
    return mapped
