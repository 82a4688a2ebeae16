"""The bytes that a splitstream stands for: the tar of a layer, or the blob of an artifact, with bounded memory.

The splitstream itself is mapped, not read, and let go of on the way, so that one of any size costs no memory; the content
comes in blocks of about :data:`BLOCK_SIZE` bytes, whatever the sizes of the files in it.
"""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from mmap import MADV_DONTNEED, mmap
from typing import TYPE_CHECKING

from cfs_tags.errors import FormatError, SystemFailure
from cfs_tags.formats import layout, splitstream
from cfs_tags.formats.splitstream import SplitStream
from cfs_tags.repo import verity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cfs_tags.repo.store import ReadRepo
    from cfs_tags.values import ObjectId

__all__ = ["BLOCK_SIZE", "layer_chunks", "layer_size", "let_go", "opened"]

BLOCK_SIZE = 256 << 10
"""Bytes in a block of content, about; the last is shorter."""

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
    path = os.path.join(repo.path, layout.object_path(stream_object))
    fd = repo.open_object(stream_object, needed_by)
    try:
        if os.fstat(fd).st_size == 0:
            raise FormatError(structure="splitstream", offset=0, wanted="a header", found="an empty file", path=path)
        mapped = verity.map_file(fd)
    except OSError as error:
        raise SystemFailure.of(error, "read", path) from error
    except FormatError as error:
        error.path = path
        raise
    finally:
        os.close(fd)
    try:
        try:
            stream = splitstream.parse(mapped, repo.algorithm)
        except FormatError as error:
            error.path = path
            raise
        try:
            yield stream
        except FormatError as error:
            error.path = error.path or path
            raise
        finally:
            stream.release()
    finally:
        with suppress(BufferError):  # a view is alive in the traceback of an error; the mapping goes with it
            mapped.close()


def let_go(stream: SplitStream) -> None:
    """Have what was read of a mapped splitstream leave our memory: that of a layer of a million files has 70 MB.  The system
    keeps it for as long as there is room, and what is read again comes from there."""
    mapped = stream.raw_object_refs.obj
    if isinstance(mapped, mmap):
        mapped.madvise(MADV_DONTNEED)


def layer_size(repo: ReadRepo, stream_object: ObjectId) -> int:
    """Bytes that :func:`layer_chunks` gives out in all, as the splitstream says.  Raises as :func:`opened`."""
    with opened(repo, stream_object) as stream:
        return stream.stream_size


def layer_chunks(repo: ReadRepo, stream_object: ObjectId, *, start: int = 0) -> Iterator[bytes]:
    """The content of a splitstream in blocks.

    Never more bytes than :func:`layer_size` says come out, and an end before that is an error.  No lock is taken: the
    caller holds the repository lock shared while it reads, or takes it that a collector removes what it reads.

    Args:
        repo: where.
        stream_object: the object of the splitstream.
        start: bytes that are left out at the beginning; what lies before is looked at as little as can be.

    Raises:
        MissingObject: the splitstream or an object of it is not there.
        FormatError, UnsupportedError: it is no splitstream, or its parts have another size than it says.
        SystemFailure: the system refused to read; a corrupt file on a secure repository is such.
    """
    with opened(repo, stream_object) as stream:
        for block in _blocks(repo, stream, start):
            let_go(stream)
            yield block


def _blocks(repo: ReadRepo, stream: SplitStream, start: int) -> Iterator[bytes]:
    skip = start
    total = 0
    parts: list[bytes] = []
    gathered = 0
    root = repo.fd
    for piece in splitstream.chunks(stream):
        if isinstance(piece, bytes):
            size = len(piece)
            total += size
            if skip:
                if skip >= size:
                    skip -= size
                    continue
                piece = piece[skip:]
                size, skip = size - skip, 0
            parts.append(piece)
            gathered += size
        else:
            try:
                fd = os.open(f"objects/{piece[:2]}/{piece[2:]}", _FILE, dir_fd=root)
            except OSError:
                fd = repo.open_object(piece, "a layer")  # says what is wrong
            try:
                size = os.fstat(fd).st_size
                total += size
                if total > stream.stream_size:
                    _wrong_size(stream.stream_size, f"{total} or more")
                if skip >= size:
                    skip -= size
                    continue
                left = size - skip
                if left < BLOCK_SIZE:
                    data = os.pread(fd, left, skip)
                    if len(data) != left:
                        _wrong_size(size, "an object that became shorter")
                    skip = 0
                    parts.append(data)
                    gathered += left
                else:
                    position, skip = skip, 0
                    while position < size:
                        data = os.pread(fd, min(BLOCK_SIZE, size - position), position)
                        if not data:
                            _wrong_size(size, "an object that became shorter")
                        position += len(data)
                        parts.append(data)
                        gathered += len(data)
                        if gathered >= BLOCK_SIZE:
                            yield b"".join(parts)
                            parts, gathered = [], 0
            except OSError as error:
                raise SystemFailure.of(error, "read", os.path.join(repo.path, layout.object_path(piece))) from error
            finally:
                os.close(fd)
        if gathered >= BLOCK_SIZE:
            yield b"".join(parts)
            parts, gathered = [], 0
    if total != stream.stream_size:
        _wrong_size(stream.stream_size, str(total))
    if parts:
        yield b"".join(parts)


def _wrong_size(wanted: int, found: str) -> None:
    raise FormatError(structure="splitstream body", offset=0, wanted=f"{wanted} bytes in all", found=found)
