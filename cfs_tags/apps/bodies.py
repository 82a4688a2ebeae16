"""The bytes of a stream on their way into a socket: in slices of time, in bounded memory.

A body is pumped by a worker thread for as long as the socket takes what it gets.  Small files and inline bytes are
gathered in one buffer; of a large file the kernel moves the pages itself (``sendfile``).  What a body holds is that
buffer twice, the window of the decompression (2 MiB with cfsctl's streams) and one open file, whatever the size of the layer.
"""

from __future__ import annotations

import io
import os
import socket
import struct
from concurrent.futures import wait
from time import monotonic
from typing import TYPE_CHECKING

from cfs_tags.apps.tarstream import opened
from cfs_tags.errors import FormatError, MissingObject
from cfs_tags.formats import layout, splitstream
from cfs_tags.values import ObjectId

if TYPE_CHECKING:
    from collections.abc import Generator
    from concurrent.futures import Executor, Future

    from cfs_tags.formats.splitstream import SplitStream
    from cfs_tags.repo.store import ReadRepo

    _Piece = memoryview | tuple[io.FileIO, int]

__all__ = ["Body"]

BUFFER = 512 << 10
"""Bytes that are gathered before they are sent."""
_ROOM = 128 << 10
"""Bytes of the buffer that are left for a file, at least; else it is sent first."""
_SENDFILE = 128 << 10
"""Bytes left of a file from which on the kernel moves them."""
_AT_ONCE = 8 << 20
"""Bytes that the kernel is given in one go: between two of them the time is looked at."""
_PATIENCE = 0.02
"""Seconds that a worker waits for a socket before it lets others have the thread."""
_PATIENCE_TIMEVAL = struct.pack("@ll", 0, int(_PATIENCE * 1_000_000))  # struct timeval

_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class Body:
    """Bytes ``start`` to ``start + length`` of what a splitstream stands for, after ``head``.

    Args:
        repo: where.
        stream: object of the splitstream.
        reader: reads ahead while the socket takes what was read before.
        start: first byte.
        length: how many.
        head: what goes before them, in the same breath: the head of the response.

    Attributes:
        sent: bytes that the socket took, ``head`` included.
    """

    def __init__(self, repo: ReadRepo, stream: ObjectId, reader: Executor, start: int, length: int, head: bytes) -> None:
        self._repo = repo
        self._reader = reader
        self._stream = stream
        self._start = start
        self._length = length
        self._head = head
        self._steps = self._make()
        self._ahead: Future[_Piece | None] | None = None
        self._pending: _Piece | None = None
        self.sent = 0

    def pump(self, connection: socket.socket, seconds: float) -> bool:
        """Send for a while.  Nothing is read any more when this returns.

        Args:
            connection: non-blocking; it is again when this returns.
            seconds: after which others have their turn.

        Returns:
            whether everything is sent.  If not, the socket was full or the time was over.

        Raises:
            DamagedError: the stream, or what it is made of, is not as it should be.  The response is cut short then.
            OSError: the connection is gone.
        """
        until = monotonic() + seconds
        # the kernel waits for room by itself: every wake-up of this thread would cost the one that reads
        connection.setblocking(True)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _PATIENCE_TIMEVAL)
        try:
            while True:
                if self._pending is None:
                    self._pending = (self._ahead or self._read_ahead()).result()
                    self._ahead = None
                    if self._pending is None:
                        return True
                if self._ahead is None:
                    self._ahead = self._read_ahead()
                if isinstance(self._pending, memoryview):
                    self._send(connection, self._pending)
                else:
                    self._send_file(connection, *self._pending)
                if monotonic() >= until:
                    return False
        except (BlockingIOError, TimeoutError):
            return False
        finally:
            if self._ahead is not None:
                wait((self._ahead,))
            connection.setblocking(False)

    def close(self) -> None:
        """Let go of everything.  Harmless when repeated."""
        self._steps.close()
        read = self._ahead.result() if self._ahead is not None and self._ahead.exception() is None else None
        for piece in (self._pending, read):
            if isinstance(piece, tuple):
                piece[0].close()
        self._pending = self._ahead = None

    def _read_ahead(self) -> Future[_Piece | None]:
        return self._reader.submit(next, self._steps, None)

    def _send(self, connection: socket.socket, data: memoryview) -> None:
        count = connection.send(data)
        self.sent += count
        self._pending = data[count:] if count < len(data) else None

    def _send_file(self, connection: socket.socket, file: io.FileIO, left: int) -> None:
        before = file.tell()
        connection.settimeout(_PATIENCE)
        try:
            connection.sendfile(file, before, min(left, _AT_ONCE))
        finally:
            connection.setblocking(True)
            count = file.tell() - before
            self.sent += count
            left -= count
            self._pending = (file, left) if left else None
            if not left:
                file.close()
        if count == 0:
            raise self._damaged("more of an object", "its end")

    def _make(self) -> Generator[_Piece, None, None]:
        """What is to be sent, in order.  A piece must be sent when the next but one is asked for."""
        objects = self._repo.directory(layout.OBJECTS)
        if objects is None:
            raise MissingObject(object=self._stream, needed_by="a layer")
        try:
            with opened(self._repo, self._stream) as stream:
                yield from self._pieces(stream, objects)
        finally:
            os.close(objects)

    def _pieces(self, stream: SplitStream, objects: int) -> Generator[_Piece, None, None]:
        # tens of thousands of rounds for a layer: a small file is to take three system calls, and little besides
        capacity = max(BUFFER, len(self._head))
        # two, so that one can be filled while the other is sent
        buffer, other = memoryview(bytearray(capacity)), memoryview(bytearray(capacity))
        fill = len(self._head)
        buffer[:fill] = self._head
        skip, left = self._start, self._length
        open_file, read, close = os.open, os.preadv, os.close
        for chunk in splitstream.chunks(stream):
            if left == 0:
                break
            if not isinstance(chunk, ObjectId):
                if skip:
                    chunk, skip = chunk[skip:], max(0, skip - len(chunk))
                piece = memoryview(chunk)[:left]
                left -= len(piece)
                while len(piece) > capacity - fill:
                    room = capacity - fill
                    buffer[fill:] = piece[:room]
                    piece = piece[room:]
                    yield buffer
                    buffer, other, fill = other, buffer, 0
                end = fill + len(piece)
                buffer[fill:end] = piece
                fill = end
                continue
            if skip:
                size = self._size_of(chunk)
                if skip >= size:
                    skip -= size
                    continue
            try:
                fd = open_file(f"{chunk[:2]}/{chunk[2:]}", _FILE, dir_fd=objects)
            except OSError:
                fd = self._repo.open_object(chunk, "a layer")  # says what is wrong
            try:
                if capacity - fill < _ROOM:
                    yield buffer[:fill]
                    buffer, other, fill = other, buffer, 0
                room = min(capacity - fill, left)
                offset, skip = skip, 0
                count = read(fd, (buffer[fill : fill + room],), offset)
                fill += count
                left -= count
                if count < room or not left:
                    continue  # a read comes back short at the end of a file, and only there
                offset += count
                rest = min(os.fstat(fd).st_size - offset, left)
                left -= rest
                if rest:
                    yield buffer[:fill]
                    buffer, other, fill = other, buffer, 0
                if rest >= _SENDFILE:
                    file = io.FileIO(os.dup(fd))
                    file.seek(offset)
                    yield file, rest  # who sends it closes it
                    continue
                while rest > 0:
                    count = read(fd, (buffer[fill : fill + rest],), offset)
                    if count == 0:
                        raise self._damaged(f"{rest} more bytes of an object", "its end")
                    fill += count
                    offset += count
                    rest -= count
            finally:
                close(fd)
        if left or skip:
            raise self._damaged(f"{self._start + self._length} bytes", f"{left + skip} fewer")
        if fill:
            yield buffer[:fill]

    def _size_of(self, object_id: ObjectId) -> int:
        try:
            return os.stat(layout.object_path(object_id), dir_fd=self._repo.fd, follow_symlinks=False).st_size
        except FileNotFoundError:
            raise MissingObject(object=object_id, needed_by="a layer") from None

    def _damaged(self, wanted: str, found: str) -> FormatError:
        return FormatError(structure="layer", offset=0, wanted=wanted, found=found, path=self._stream)
