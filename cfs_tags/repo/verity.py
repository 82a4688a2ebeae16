"""What the kernel says about fs-verity and about holes, and mapping files that it may refuse to read.

Where a file has fs-verity, each block is checked when it is read from the disk, and one that fails is an I/O error.  In a
mapped file that error is a signal that ends the process, so files are read into the mapping before it is used.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from cfs_tags.errors import FormatError
from cfs_tags.formats import splitstream
from cfs_tags.repo import layout

if TYPE_CHECKING:
    from collections.abc import Iterator
    from mmap import mmap

    from cfs_tags.values import Algorithm, ObjectId

_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_MEASURE = 0xC0046686  # FS_IOC_MEASURE_VERITY, linux/fsverity.h
_NO_VERITY = (errno.ENODATA, errno.ENOTTY, errno.EOPNOTSUPP)
_WINDOW = 8 << 20
"""Bytes that are read into the mapping at once."""
_PIECE = 1 << 20
_SMALL = 1 << 20
_DENSITY = 64
"""A file has at most so many bytes for each that it takes on the disk; the first megabyte is free.

Bytes that take no room make work for nothing.  File systems that compress come to about 30 where a file is all zeros."""
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
        fd = os.open(layout.META, _FILE, dir_fd=repo_fd)
    except OSError:
        return False
    try:
        return verity_digest(fd) is not None
    except OSError:
        return False
    finally:
        os.close(fd)


def measured(fd: int, algorithm: Algorithm) -> ObjectId:
    """The fs-verity digest of a file's bytes, all of them read but holes.

    Args:
        fd: of the file, at its start.
        algorithm: of the digest.

    Raises:
        OSError: the system refused.
    """
    from cfs_tags.formats import fsverity

    status = os.fstat(fd)
    size = status.st_size
    measurer = fsverity.Measurer(algorithm)
    if size > _PIECE and status.st_blocks * 512 < size:
        position = 0
        for start, end in _data_ranges(fd, size):
            measurer.update_zeros(start - position)
            position = start
            while position < end and (piece := os.pread(fd, min(end - position, _PIECE), position)):
                measurer.update(piece)
                position += len(piece)
        measurer.update_zeros(size - position)
        return measurer.digest()
    piece = os.read(fd, min(size, _PIECE)) if size else b""
    if len(piece) == size:
        return fsverity.measure(piece, algorithm)
    measurer.update(piece)
    # a block that cannot be read ends the bytes before it early; the next read says why
    while piece := os.read(fd, _PIECE):
        measurer.update(piece)
    return measurer.digest()


def map_file(fd: int, *, cut: bool = False) -> mmap | bytes:
    """A splitstream or image that is not empty, mapped for reading, all of it known to be readable.

    Args:
        fd: of the file.
        cut: of one that is longer than it may be map the start; of one that is nearly all holes take what is none.

    Raises:
        FormatError: it is longer than a splitstream or image may be (``formats/erofs.py`` has the same limit).
        OSError: the system refused; a block that cannot be read is EIO.  EFBIG: nearly all of it is holes.
    """
    import mmap

    size = os.fstat(fd).st_size
    if size > splitstream.MAX_SIZE and not cut:
        raise FormatError(structure="object", offset=0, wanted=f"at most {splitstream.MAX_SIZE} bytes", found=f"{size} bytes")
    if is_sparse(fd):
        if not cut:
            raise OSError(errno.EFBIG, f"nearly all of its {size} bytes are holes")
        return _data_of(fd, min(size, splitstream.MAX_SIZE))
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


def _data_of(fd: int, size: int) -> bytes:
    """The parts of a file that are no holes, with some zeros behind each."""
    parts = []
    for start, end in list(_data_ranges(fd, size)):
        while start < end and (piece := os.pread(fd, end - start, start)):
            parts.append(piece)
            start += len(piece)
        parts.append(bytes(4096))
    return b"".join(parts)


def is_sparse(fd: int) -> bool:
    """Whether nearly all of a file is holes, so that reading it would be work that nothing on the disk accounts for.

    Raises:
        OSError: the system refused.
    """
    status = os.fstat(fd)
    free = status.st_size - _SMALL
    if free <= status.st_blocks * 512 * _DENSITY:
        return False
    # some file systems count blocks late: the data itself tells
    return free > sum(end - start for start, end in _data_ranges(fd, status.st_size)) * _DENSITY


def _data_ranges(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """The parts of a file that are no holes, in order: start and end in bytes; all of it where the system does not say.

    Args:
        fd: of the file; its position is moved.
        size: bytes that are looked at.

    Raises:
        OSError: the system refused.
    """
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
            end = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole is left
                return
            if error.errno != errno.EINVAL:
                raise
            start, end = end, size
        if start >= end:
            return
        yield start, end
