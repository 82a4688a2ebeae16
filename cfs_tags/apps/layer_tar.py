"""Layers put together again: the bytes that a splitstream stands for, a tar or the blob of an artifact, in bounded memory.

The splitstream itself is mapped, not read, and let go of on the way, so that one of any size costs no memory; the content
comes in blocks of :data:`BLOCK_SIZE` bytes, whatever the sizes of the files in it.  This is the only place that reads
the content of layers: exports and the registry take it from here.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from mmap import MADV_DONTNEED, mmap
from typing import NoReturn

from cfs_tags.errors import FormatError, MissingObject, SystemFailure
from cfs_tags.formats import splitstream
from cfs_tags.formats.splitstream import SplitStream
from cfs_tags.repo import layout
from cfs_tags.repo.store import ReadRepo
from cfs_tags.values import ObjectId

BLOCK_SIZE = 256 << 10
"""Bytes of a block of content; the last is shorter."""

_PASSED = 64
"""An empty block is given after so many files that are passed over before the start: the caller may stop there."""
_KEPT_BLOCKS = 8
"""Blocks after which the pages of the splitstream that were read are released."""
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


@contextmanager
def opened(repo: ReadRepo, stream_object: ObjectId, needed_by: str = "a layer") -> Iterator[SplitStream]:
    """A splitstream of any size, mapped for as long as the block lasts.

    Args:
        repo: where.
        stream_object: the object of the splitstream.
        needed_by: what names it, for errors.

    Raises:
        MissingObject: it is not there.
        FormatError, UnsupportedError: it is no splitstream of this repository's algorithm.
    """
    with repo.map(stream_object, needed_by) as data:
        stream = splitstream.parse(data, repo.algorithm)
        try:
            yield stream
        finally:
            stream.release()


def let_go(stream: SplitStream) -> None:
    """Have what was read of a mapped splitstream leave our memory: that of a layer of a million files has 70 MB.  The system
    keeps it for as long as there is room, and what is read again comes from there."""
    mapped = stream.raw_object_refs.obj
    if isinstance(mapped, mmap):
        mapped.madvise(MADV_DONTNEED)


def size(repo: ReadRepo, stream_object: ObjectId) -> int:
    """Bytes that :func:`blocks` gives out in all, as the splitstream says.  Raises as :func:`opened`."""
    with opened(repo, stream_object) as stream:
        return stream.stream_size


def blocks(repo: ReadRepo, stream_object: ObjectId, *, start: int = 0, length: int | None = None) -> Generator[bytes]:
    """The content of a splitstream in blocks.

    No lock is taken: the caller holds the repository lock shared while it reads, or accepts that a collector may remove
    what it reads.

    Args:
        repo: where.
        stream_object: the object of the splitstream.
        start: bytes that are left out at the beginning; of the files there only the sizes are looked at, and an empty block
            comes for every 64 of them: a layer may have a million.
        length: bytes that are given out at most; None for all up to the end, where it is checked that the parts have as
            many bytes as the splitstream says.

    Raises:
        MissingObject: the splitstream or an object of it is not there.
        FormatError, UnsupportedError: it is no splitstream, or its parts have another size than it says.
        SystemFailure: the system refused to read; a corrupt file on a secure repository is such.
    """
    with opened(repo, stream_object) as stream:
        for number, block in enumerate(_blocks(repo, stream, start, length)):
            if number % _KEPT_BLOCKS == 0:
                let_go(stream)
            yield block


def _blocks(repo: ReadRepo, stream: SplitStream, skip: int, length: int | None) -> Iterator[bytes]:
    # tens of thousands of rounds for a layer: a small file takes three system calls, and little besides
    skip = min(skip, stream.stream_size)
    is_whole = length is None or length >= stream.stream_size - skip
    left = stream.stream_size - skip if length is None or is_whole else length
    buffer, fill, passed = memoryview(bytearray(BLOCK_SIZE)), 0, 0
    for part in splitstream.chunks(stream):
        if not left and not is_whole:
            break
        if skip:
            size = len(part) if isinstance(part, bytes) else _size_of(repo, part)
            if skip >= size:
                skip -= size
                passed += 1
                if passed % _PASSED == 0:
                    yield b""
                continue
        fd = -1 if isinstance(part, bytes) else _open(repo, part)
        try:
            while left:
                room = min(BLOCK_SIZE - fill, left)
                if isinstance(part, bytes):
                    count = min(room, len(part) - skip)
                    buffer[fill : fill + count] = part[skip : skip + count]
                else:
                    count = os.preadv(fd, (buffer[fill : fill + room],), skip)
                skip, fill, left = skip + count, fill + count, left - count
                if fill == BLOCK_SIZE:
                    yield bytes(buffer)
                    fill = 0
                if count < room:
                    break  # a read comes back short at the end of a file, and only there
            if not left and is_whole and _size(part, fd) > skip:
                _wrong_size(stream, "more")
        except OSError as error:
            path = os.path.join(repo.path, layout.OBJECTS, str(part[:2]), str(part[2:]))
            raise SystemFailure.of(error, "read", path) from error
        finally:
            if fd >= 0:
                os.close(fd)
        skip = 0
    if left or (skip and is_whole):
        _wrong_size(stream, f"{left + skip} fewer")
    if fill:
        yield bytes(buffer[:fill])


def _open(repo: ReadRepo, object_id: ObjectId) -> int:
    try:
        return os.open(object_id[2:], _FILE, dir_fd=repo.hold_parent(object_id[:2]))
    except OSError:
        return repo.open_object(object_id, "a layer")  # says what is wrong


def _size_of(repo: ReadRepo, object_id: ObjectId) -> int:
    try:
        return repo.status(layout.object_path(object_id)).st_size
    except FileNotFoundError:
        raise MissingObject(object=object_id, needed_by="a layer") from None


def _size(part: bytes | ObjectId, fd: int) -> int:
    return len(part) if isinstance(part, bytes) else os.fstat(fd).st_size


def _wrong_size(stream: SplitStream, found: str) -> NoReturn:
    wanted = f"{stream.stream_size} bytes in all"
    raise FormatError(structure="splitstream body", offset=0, wanted=wanted, found=found)
