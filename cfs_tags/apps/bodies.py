"""A response on its way into a socket: in slices of time, in bounded memory.

A body is pumped by a worker thread for as long as the socket takes what it gets.  What is small was gathered in shared
memory by another process (``filling.py``); of a large file the kernel moves the pages itself (``sendfile``).
"""

from __future__ import annotations

import io
import socket
import struct
from time import monotonic
from typing import TYPE_CHECKING

from cfs_tags.apps.filling import FilePart
from cfs_tags.errors import FormatError

if TYPE_CHECKING:
    from cfs_tags.apps.filling import Job
    from cfs_tags.repo.store import ReadRepo

__all__ = ["Body"]

_AT_ONCE = 8 << 20
"""Bytes that the kernel is given in one go: between two of them the time is looked at."""
_PATIENCE = 0.02
"""Seconds that a worker waits for a socket before it lets others have the thread."""
_PATIENCE_TIMEVAL = struct.pack("@ll", 0, int(_PATIENCE * 1_000_000))  # struct timeval


class Body:
    """What a job reads, after ``head``.

    Args:
        repo: where.
        job: reads; closed with the body.
        head: what goes before: the head of the response.

    Attributes:
        sent: bytes that the socket took, ``head`` included.
        has_begun: whether the first of the bytes after ``head`` was found; before that the reader is not who is slow.
    """

    def __init__(self, repo: ReadRepo, job: Job, head: bytes) -> None:
        self._repo = repo
        self._job = job
        self._bytes: memoryview | None = memoryview(head)
        self._file: tuple[io.FileIO, int] | None = None
        self.sent = 0
        self.has_begun = False

    def pump(self, connection: socket.socket, seconds: float) -> bool:
        """Send for a while.  Nothing is read any more when this returns.

        Args:
            connection: non-blocking; it is again when this returns.
            seconds: after which others have their turn.

        Returns:
            whether everything is sent.  If not, the socket was full or the time was over.

        Raises:
            DamagedError: the stream, or what it is made of, is not as it should be.  The response is cut short then.
            CfsTagsError: it cannot be read.
            OSError: the connection is gone.
        """
        until = monotonic() + seconds
        # the kernel waits for room by itself
        connection.setblocking(True)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _PATIENCE_TIMEVAL)
        try:
            while True:
                self._job.ask()  # the next piece is read while this one is sent
                if self._bytes is not None:
                    count = connection.send(self._bytes)
                    self.sent += count
                    self._bytes = self._bytes[count:] if count < len(self._bytes) else None
                elif self._file is not None:
                    self._send_file(connection, *self._file)
                else:
                    piece = self._job.take()
                    if piece is None:
                        return True
                    self.has_begun = self.has_begun or isinstance(piece, FilePart) or len(piece) > 0
                    if isinstance(piece, FilePart):
                        self._file = self._open(piece)
                    else:
                        self._bytes = piece
                if monotonic() >= until:
                    return False
        except (BlockingIOError, TimeoutError):
            return False
        finally:
            self._job.wait()
            connection.setblocking(False)

    def close(self) -> None:
        """Let go of everything.  Harmless when repeated."""
        self._job.close()
        self._bytes = None
        if self._file is not None:
            self._file[0].close()
            self._file = None

    def _open(self, part: FilePart) -> tuple[io.FileIO, int]:
        file = io.FileIO(self._repo.open_object(part.object, "a layer"))
        file.seek(part.offset)
        return file, part.length

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
            self._file = (file, left) if left else None
            if not left:
                file.close()
        if count == 0:
            raise FormatError(structure="object", offset=before, wanted=f"{left} more bytes", found="the end")
