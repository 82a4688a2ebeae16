"""The bytes of a stream on their way into a socket: in slices of time, in bounded memory.

A body is pumped by a worker thread for as long as the socket takes what it gets.  Small files and inline bytes are
gathered in one buffer; of a large file the kernel moves the pages itself (``sendfile``).  What a body holds is that
buffer, the window of the decompression (2 MiB with cfsctl's streams) and one open file, whatever the size of the layer.
"""

from __future__ import annotations

import io
import os
from time import monotonic
from typing import TYPE_CHECKING

from cfs_tags.errors import FormatError, MissingObject
from cfs_tags.formats import layout, splitstream

if TYPE_CHECKING:
    import mmap
    from collections.abc import Iterator
    from socket import socket

    from cfs_tags.repo.store import ReadRepo
    from cfs_tags.values import ObjectId

__all__ = ["Body", "map_object"]

BUFFER = 256 << 10
"""Bytes that are gathered before they are sent."""
_SENDFILE = 128 << 10
"""Bytes left of a file from which on the kernel moves them."""
_AT_ONCE = 8 << 20
"""Bytes that the kernel is given in one go: between two of them the time is looked at."""
_PATIENCE = 0.005
"""Seconds that a worker waits for a socket before it lets others have the thread."""


def map_object(repo: ReadRepo, object_id: ObjectId, needed_by: str) -> mmap.mmap:
    """An object's bytes, mapped into memory.  They are let go of when nothing refers to them.

    Raises:
        MissingObject: it is not there.
        FormatError: it is empty, or no file.
    """
    import mmap

    fd = repo.open_object(object_id, needed_by)
    try:
        if os.fstat(fd).st_size == 0:
            raise FormatError(structure="object", offset=0, wanted="a splitstream", found="nothing", path=object_id)
        return mmap.mmap(fd, 0, prot=mmap.PROT_READ)
    finally:
        os.close(fd)


class Body:
    """Bytes ``start`` to ``start + length`` of what a splitstream stands for, after ``head``.

    Args:
        repo: where.
        stream: object of the splitstream.
        start: first byte.
        length: how many.
        head: what goes before them, in the same breath: the head of the response.

    Attributes:
        sent: bytes that the socket took, ``head`` included.
    """

    def __init__(self, repo: ReadRepo, stream: ObjectId, start: int, length: int, head: bytes) -> None:
        self._repo = repo
        self._stream = stream
        self._start = start
        self._length = length
        self._head = head
        self._steps: Iterator[memoryview | tuple[io.FileIO, int]] | None = None
        self._pending: memoryview | tuple[io.FileIO, int] | None = None
        self.sent = 0

    def pump(self, connection: socket, seconds: float) -> bool:
        """Send for a while.

        Args:
            connection: non-blocking; it is again when this returns.
            seconds: after which others have their turn.

        Returns:
            whether everything is sent.  If not, the socket was full or the time was over.

        Raises:
            DamagedError: the stream, or what it is made of, is not as it should be.  The response is cut short then.
            OSError: the connection is gone.
        """
        if self._steps is None:
            self._steps = self._make()
        until = monotonic() + seconds
        connection.settimeout(_PATIENCE)
        try:
            while True:
                if self._pending is None:
                    self._pending = next(self._steps, None)
                    if self._pending is None:
                        return True
                if isinstance(self._pending, memoryview):
                    self._send(connection, self._pending)
                else:
                    self._send_file(connection, *self._pending)
                if monotonic() >= until:
                    return False
        except TimeoutError:
            return False
        finally:
            connection.settimeout(0)

    def close(self) -> None:
        """Let go of everything.  Harmless when repeated."""
        self._pending = None
        if self._steps is not None:
            self._steps.close()  # type: ignore[attr-defined]

    def _send(self, connection: socket, data: memoryview) -> None:
        count = connection.send(data)
        self.sent += count
        self._pending = data[count:] if count < len(data) else None

    def _send_file(self, connection: socket, file: io.FileIO, left: int) -> None:
        before = file.tell()
        try:
            connection.sendfile(file, before, min(left, _AT_ONCE))
        finally:
            count = file.tell() - before
            self.sent += count
            left -= count
            self._pending = (file, left) if left else None
        if count == 0:
            raise self._damaged("more of an object", "its end")

    def _make(self) -> Iterator[memoryview | tuple[io.FileIO, int]]:
        """What is to be sent, in order.  A view is of the one buffer, so it must be sent before the next step."""
        stream = splitstream.parse(map_object(self._repo, self._stream, "a layer"), self._repo.algorithm)
        buffer = memoryview(bytearray(max(BUFFER, len(self._head))))
        fill = len(self._head)
        buffer[:fill] = self._head
        skip, left = self._start, self._length
        for chunk in splitstream.chunks(stream):
            if left == 0:
                break
            if isinstance(chunk, bytes):
                size = len(chunk)
                if skip >= size:
                    skip -= size
                    continue
                piece = memoryview(chunk)[skip : skip + left]
                skip = 0
                left -= len(piece)
                while len(piece) > len(buffer) - fill:
                    room = len(buffer) - fill
                    buffer[fill:] = piece[:room]
                    piece = piece[room:]
                    yield buffer
                    fill = 0
                buffer[fill : fill + len(piece)] = piece
                fill += len(piece)
                continue
            if skip:
                size = self._size_of(chunk)
                if skip >= size:
                    skip -= size
                    continue
            fd = self._repo.open_object(chunk, "a layer")
            with io.FileIO(fd) as file:
                offset, skip = skip, 0
                while left:
                    room = min(len(buffer) - fill, left)
                    count = os.preadv(fd, [buffer[fill : fill + room]], offset)
                    fill += count
                    left -= count
                    offset += count
                    if count < room or not left:
                        break  # the end of the file, as reading a regular file says it
                    yield buffer
                    fill = 0
                    rest = min(os.fstat(fd).st_size - offset, left)
                    if rest >= _SENDFILE:
                        file.seek(offset)
                        yield file, rest
                        offset += rest
                        left -= rest
        if left or skip:
            raise self._damaged(f"{self._start + self._length} bytes", f"{left} fewer")
        if fill:
            yield buffer[:fill]

    def _size_of(self, object_id: ObjectId) -> int:
        try:
            return os.stat(layout.object_path(object_id), dir_fd=self._repo.fd, follow_symlinks=False).st_size
        except FileNotFoundError:
            raise MissingObject(object=object_id, needed_by="a layer") from None

    def _damaged(self, wanted: str, found: str) -> FormatError:
        return FormatError(structure="layer", offset=0, wanted=wanted, found=found, path=self._stream)
