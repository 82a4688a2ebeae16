"""A second process that stores objects: hashing takes most of the time of an import, and threads would wait for each other.

The process is forked.  Content goes to it through a ring of shared memory, orders through a socket, digests come back
through it, in the order of the orders.  It holds no lock and changes no name but those of objects; when we end,
however we end, its socket ends and so does it.
"""

from __future__ import annotations

import mmap
import pickle
import signal
import socket
from collections import deque
from contextlib import suppress
from multiprocessing import get_context
from struct import Struct
from typing import NoReturn

from cfs_tags.errors import CfsTagsError, SystemFailure
from cfs_tags.repo.object_store import ObjectStore, ObjectWriter
from cfs_tags.repo.store import WriteRepo
from cfs_tags.values import ObjectId

_RING = 8 << 20
"""Bytes of content that are on their way at most."""

_ORDER = Struct("<BQI")
_WHOLE, _BEGIN, _PIECE, _END = range(4)
_COUNTS = Struct("<QQ")
_DONE, _FAILED = b"\0", b"\1"
_AHEAD = 150
"""Orders that are on their way at most: the socket holds more, so that neither process waits for the other to read."""
_SOME = 40
"""Orders on their way below which it is not worth while to ask for answers."""


class Helper:
    """The process, as its parent sees it.  Close it.

    Attributes:
        written: objects that were not there before; known after :meth:`close`.
        written_bytes: bytes of those.
    """

    def __init__(self, repo: WriteRepo) -> None:
        self.written = 0
        self.written_bytes = 0
        self._width = repo.algorithm.size
        self._ring = mmap.mmap(-1, _RING)
        self._head = 0  # where the next content goes
        self._used: deque[tuple[int, bool]] = deque()  # bytes of the ring for each order, and whether an object comes of it
        self._taken = 0
        self._partial = b""
        self._answers = b""
        self._closed = False
        self._socket, theirs = socket.socketpair()
        context = get_context("fork")
        self._process = context.Process(target=_serve, args=(repo, self._ring, theirs, self._socket), daemon=True)
        self._process.start()
        theirs.close()

    def offer(self, data: memoryview) -> bool:
        """Have an object stored, if it can be taken at once; False where the process has enough to do.

        Raises:
            CfsTagsError: it failed to store an earlier one.
        """
        place = self._place(len(data))
        if place is None:
            return False
        self._send(_WHOLE, place, data)
        return True

    def begin(self) -> None:
        """Start an object that comes in pieces: it is stored here, and nothing else can be offered before its end.

        Raises:
            CfsTagsError: as :meth:`offer`.
        """
        self._order(_BEGIN, 0, 0, 0, answers=False)

    def piece(self, data: memoryview) -> None:
        """The next bytes of it."""
        most = _RING // 4
        for start in range(0, len(data), most):
            part = data[start : start + most]
            while (place := self._place(len(part))) is None:
                self._read(block=True)
            self._send(_PIECE, place, part)

    def end(self) -> None:
        """It is complete."""
        self._order(_END, 0, 0, 0, answers=True)

    def results(self, wait: bool) -> list[ObjectId]:
        """Digests of objects that were offered, in their order: some of them; all that are outstanding where ``wait``."""
        if len(self._used) > _SOME:
            self._read(block=False)
        while wait and self._used:
            self._read(block=True)
        if len(self._answers) < self._width:
            return []
        count = len(self._answers) // self._width
        found = [ObjectId(self._answers[i * self._width : (i + 1) * self._width].hex()) for i in range(count)]
        self._answers = self._answers[count * self._width :]
        return found

    def close(self) -> None:
        """End the process; content without an answer may or may not be stored.  Harmless when repeated."""
        if self._closed:
            return
        self._closed = True
        tail = b""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
            while piece := self._socket.recv(65536):
                tail += piece
        self._process.join()
        self._socket.close()
        self._ring.close()
        if len(tail) >= _COUNTS.size and self._process.exitcode == 0:
            self.written, self.written_bytes = _COUNTS.unpack(tail[-_COUNTS.size :])

    # -- details -------------------------------------------------------------------------------------------------------

    def _place(self, size: int) -> int | None:
        """Where in the ring ``size`` bytes in a row are free."""
        if len(self._used) >= _AHEAD:
            self._read(block=False)
            if len(self._used) >= _AHEAD:
                return None
        if self._taken + self._skipped(size) + size > _RING:
            self._read(block=False)
            if not self._used:
                self._head = self._taken = 0
            if self._taken + self._skipped(size) + size > _RING:
                return None
        return 0 if self._head + size > _RING else self._head

    def _skipped(self, size: int) -> int:
        """Bytes at the end of the ring that are left out, because ``size`` bytes do not fit there in a row."""
        return _RING - self._head if self._head + size > _RING else 0

    def _send(self, kind: int, place: int, data: memoryview) -> None:
        size = len(data)
        taken = self._skipped(size) + size
        self._ring[place : place + size] = data
        self._head = place + size
        self._order(kind, place, size, taken, answers=kind == _WHOLE)

    def _order(self, kind: int, place: int, size: int, taken: int, *, answers: bool) -> None:
        try:
            self._socket.sendall(_ORDER.pack(kind, place, size))
        except OSError:
            self._fail()
        self._used.append((taken, answers))
        self._taken += taken

    def _read(self, *, block: bool) -> None:
        """Take what was answered: one digest for each object, and a digest of zeros for each other order."""
        try:
            data = self._socket.recv(65536, 0 if block else socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._fail()
        self._partial += data
        width = 1 + self._width
        whole = len(self._partial) // width
        kept = []
        for start in range(0, whole * width, width):
            if self._partial[start]:
                self._fail()
            taken, answers = self._used.popleft()
            self._taken -= taken
            if answers:
                kept.append(self._partial[start + 1 : start + width])
        self._partial = self._partial[whole * width :]
        self._answers += b"".join(kept)

    def _fail(self) -> NoReturn:
        """Raise what ended the process: it says so after a mark, and then nothing more."""
        said = self._partial
        with suppress(OSError):
            while piece := self._socket.recv(65536):
                said += piece
        width = 1 + self._width
        at = next((start for start in range(0, len(said), width) if said[start]), len(said))
        error: object = None
        with suppress(Exception):
            error, *counts = pickle.loads(said[at + 1 :])
            self.written, self.written_bytes = counts
        self.close()
        if isinstance(error, CfsTagsError):
            raise error
        reason = f"it ended with status {self._process.exitcode}"
        raise SystemFailure(operation="store objects in", path="a second process", reason=reason, errno=0)


def _serve(repo: WriteRepo, ring: mmap.mmap, orders: socket.socket, parent: socket.socket) -> None:
    """What the process does."""
    parent.close()  # so that its end is our end
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # our parent hears it, and closes the socket
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    error: CfsTagsError
    store: ObjectStore | None = None
    try:
        store = ObjectStore(repo)
        _work(store, ring, orders, repo.algorithm.size)
        orders.sendall(_COUNTS.pack(store.written, store.written_bytes))
        return
    except CfsTagsError as failed:
        error = failed
    except ConnectionError:
        return
    except Exception as failed:
        error = CfsTagsError("internal", kind=type(failed).__name__, text=str(failed))
    with suppress(OSError):
        counts = (store.written, store.written_bytes) if store is not None else (0, 0)
        orders.sendall(_FAILED + pickle.dumps((error, *counts)))


def _work(store: ObjectStore, ring: mmap.mmap, orders: socket.socket, width: int) -> None:
    nothing = bytes(width)
    view = memoryview(ring)
    pending = b""
    size = _ORDER.size
    writer: ObjectWriter | None = None
    while data := orders.recv(size * 64):
        pending += data
        end = len(pending) // size * size
        for kind, place, length in _ORDER.iter_unpack(pending[:end]):
            answer = nothing
            if kind == _WHOLE:
                answer = bytes.fromhex(store.add(view[place : place + length]))
            elif kind == _BEGIN:
                writer = store.writer()
            elif kind == _PIECE and writer is not None:
                writer.write(view[place : place + length])
            elif writer is not None:
                answer = bytes.fromhex(writer.finish())
                writer = None
            orders.sendall(_DONE + answer)
        pending = pending[end:]
