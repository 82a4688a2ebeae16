"""Processes that read what is sent: a layer of small files is three system calls for each of them.

Threads would wait for each other there (every call lets go of the interpreter and has to get it back), so the reading is
done by processes, forked at the start.  Each has a control socket, through which it is given jobs; a job has a socket of its
own.  A byte on that asks for the next piece; the answer says what it is, and bytes are in shared memory then.  A job has two
buffers there: one is filled while the other is sent.  The processes take no lock, because whoever asks for a piece holds it
until the answer is there; and they end when their control socket does, so when we end, however we end.
"""

from __future__ import annotations

import mmap
import os
import pickle
import selectors
import signal
import socket
from multiprocessing import get_context
from struct import Struct
from threading import Lock
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from cfs_tags.apps.tarstream import let_go, opened
from cfs_tags.errors import CfsTagsError, FormatError, InternalError, MissingObject, SystemFailure
from cfs_tags.formats import layout, splitstream
from cfs_tags.values import ObjectId

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from types import TracebackType
    from typing import Self

    from cfs_tags.formats.splitstream import SplitStream
    from cfs_tags.repo.store import ReadRepo

__all__ = ["BUFFER", "FilePart", "FillerGone", "Fillers", "Job"]

BUFFER = 1 << 20
"""Bytes that are gathered before they are sent."""
_ROOM = 128 << 10
"""Bytes of the buffer that are left for a file, at least; else it is sent first."""
_LARGE = 128 << 10
"""Bytes left of a file from which on the kernel is to move them."""
_STEP = 0.02
"""Seconds that one job looks for where its bytes begin, before another has its turn."""
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK

_ANSWER = Struct("<BBQQ")  # kind; half of the job's memory; then by kind
_BYTES, _PART, _DONE, _FAILED = range(4)
_JOB = Struct("<IQQ")  # slot, start, length; then the object of the splitstream
_MAX_MESSAGE = 4096
_ASK = b"?"


class FillerGone(InternalError):
    """One of the processes has ended, and so can its jobs."""


class FilePart(NamedTuple):
    """So many bytes of an object, from an offset: a large file, which is sent without being read."""

    object: ObjectId
    offset: int
    length: int


class _Filled(NamedTuple):
    """So many bytes in one half of the job's memory."""

    half: int
    length: int


class Fillers:
    """The processes.  A context manager; entered before there are threads, because it forks.

    Args:
        repo: which.
        slots: jobs at a time, at most.
        count: of processes.
        unwanted: sockets that they should not have with them.
    """

    def __init__(self, repo: ReadRepo, slots: int, count: int = 2, unwanted: Sequence[socket.socket] = ()) -> None:
        self._repo = repo
        self._memory = mmap.mmap(-1, slots * 2 * BUFFER)
        self._view = memoryview(self._memory)
        self._free = list(range(slots))
        self._lock = Lock()
        self._controls: list[socket.socket] = []
        self._jobs = [0] * count
        context = get_context("fork")
        self._processes = []
        for _ in range(count):
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._controls.append(ours)
            others = (*self._controls, *unwanted)
            process = context.Process(target=_serve, args=(repo, self._memory, theirs, others), daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)

    def open(self, stream: ObjectId, start: int, length: int) -> Job:
        """Have bytes ``start`` to ``start + length`` of what a splitstream stands for read, piece by piece.

        Raises:
            FillerGone: somebody has ended the process.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with self._lock:
            slot = self._free.pop()
            number = self._jobs.index(min(self._jobs))
            self._jobs[number] += 1
        try:
            order = _JOB.pack(slot, start, length) + stream.encode("ascii")
            socket.send_fds(self._controls[number], [order], [theirs.fileno()])
        except OSError as error:
            self._closed(slot, number)
            ours.close()
            raise _gone() from error
        finally:
            theirs.close()
        return Job(self, ours, slot, number)

    def half(self, slot: int, half: int) -> memoryview:
        """One of the two buffers of a job."""
        return _half(self._view, slot, half)

    def _closed(self, slot: int, number: int) -> None:
        with self._lock:
            self._free.append(slot)
            self._jobs[number] -= 1

    def close(self) -> None:
        """End the processes.  Harmless when repeated."""
        for control in self._controls:
            control.close()
        for process in self._processes:
            process.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class Job:
    """One body that is read.  Close it."""

    def __init__(self, fillers: Fillers, connection: socket.socket, slot: int, number: int) -> None:
        self._fillers = fillers
        self._socket = connection
        self._place = slot, number
        self._is_asked = False

    def ask(self) -> None:
        """Have the next piece read, if that was not asked for already.  What was given before the last one is lost."""
        if not self._is_asked:
            self._is_asked = True
            try:
                self._socket.send(_ASK)
            except OSError as error:
                raise _gone() from error

    def wait(self) -> None:
        """Return when nothing is being read any more."""
        if self._is_asked:
            self._socket.recv(1, socket.MSG_PEEK)

    def take(self) -> memoryview | FilePart | None:
        """The piece that was asked for, None after the last; an empty one while the beginning is still looked for.

        Raises:
            DamagedError: the stream, or what it is made of, is not as it should be.
            SystemFailure: the system refused to read.
            FillerGone: somebody has ended the process.
        """
        answer = self._socket.recv(_MAX_MESSAGE)
        self._is_asked = False
        if len(answer) < _ANSWER.size:
            raise _gone()
        kind, half, first, second = _ANSWER.unpack_from(answer)
        rest = answer[_ANSWER.size :]
        if kind == _BYTES:
            return self._fillers.half(self._place[0], half)[:first]
        if kind == _PART:
            return FilePart(ObjectId(rest.decode("ascii")), first, second)
        if kind == _FAILED:
            raise pickle.loads(rest)
        return None

    def close(self) -> None:
        """Let go of it.  Harmless when repeated."""
        if self._socket.fileno() >= 0:
            self._socket.close()
            self._fillers._closed(*self._place)


def _gone() -> FillerGone:
    return FillerGone(kind="FillerGone", text="a process that reads was killed")


def _half(memory: memoryview, slot: int, half: int) -> memoryview:
    start = (2 * slot + half) * BUFFER
    return memory[start : start + BUFFER]


# -- in the process ----------------------------------------------------------------------------------------------------


def _serve(repo: ReadRepo, memory: mmap.mmap, control: socket.socket, others: tuple[socket.socket, ...]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # what is being answered when the server is stopped is finished
    for other in others:
        other.close()
    view = memoryview(memory)
    jobs: dict[int, tuple[socket.socket, Generator[_Filled | FilePart, None, None]]] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(control, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fd == control.fileno():
                    order, fds, _, _ = socket.recv_fds(control, _MAX_MESSAGE, 1)
                    if not order:
                        return
                    slot, start, length = _JOB.unpack_from(order)
                    stream = ObjectId(order[_JOB.size :].decode("ascii"))
                    halves = _half(view, slot, 0), _half(view, slot, 1)
                    connection = socket.socket(fileno=fds[0])
                    jobs[fds[0]] = connection, _pieces(repo, stream, start, length, halves)
                    selector.register(connection, selectors.EVENT_READ)
                    continue
                connection, steps = jobs[key.fd]
                try:
                    if connection.recv(1):
                        connection.send(_step(steps))
                        continue
                except OSError:
                    pass  # nobody wants it any more
                selector.unregister(connection)
                del jobs[key.fd]
                steps.close()
                connection.close()


def _step(steps: Generator[_Filled | FilePart, None, None]) -> bytes:
    """The answer for the next piece."""
    try:
        piece = next(steps, None)
    except CfsTagsError as error:
        return _failed(error)
    except OSError as error:
        return _failed(SystemFailure.of(error, "read", "an object of a layer"))
    except Exception as error:
        return _failed(InternalError(kind=type(error).__name__, text=str(error)))
    if piece is None:
        return _ANSWER.pack(_DONE, 0, 0, 0)
    if isinstance(piece, FilePart):
        return _ANSWER.pack(_PART, 0, piece.offset, piece.length) + piece.object.encode("ascii")
    return _ANSWER.pack(_BYTES, piece.half, piece.length, 0)


def _failed(error: CfsTagsError) -> bytes:
    data = pickle.dumps(error)
    if len(data) > _MAX_MESSAGE - _ANSWER.size:
        data = pickle.dumps(InternalError(kind=type(error).__name__, text=str(error)[:1000]))
    return _ANSWER.pack(_FAILED, 0, 0, 0) + data


def _pieces(
    repo: ReadRepo, object_id: ObjectId, start: int, length: int, halves: tuple[memoryview, memoryview]
) -> Generator[_Filled | FilePart, None, None]:
    """Fill one half after the other; large files are only named."""
    objects = repo.directory(layout.OBJECTS)
    if objects is None:
        raise MissingObject(object=object_id, needed_by="a layer")
    try:
        with opened(repo, object_id) as stream:
            for piece in _fill(repo, stream, objects, start, length, halves):
                let_go(stream)
                yield piece
    finally:
        os.close(objects)


def _fill(
    repo: ReadRepo, stream: SplitStream, objects: int, skip: int, left: int, halves: tuple[memoryview, memoryview]
) -> Generator[_Filled | FilePart, None, None]:
    # tens of thousands of rounds for a layer: a small file is to take three system calls, and little besides
    open_file, read, close = os.open, os.preadv, os.close
    half, buffer, fill = 0, halves[0], 0
    until = monotonic() + _STEP
    for chunk in splitstream.chunks(stream):
        if left == 0:
            break
        if skip and monotonic() > until:  # a layer may have a million files before the first that is wanted
            yield _Filled(half, 0)
            until = monotonic() + _STEP
        if not isinstance(chunk, ObjectId):
            if skip:
                chunk, skip = chunk[skip:], max(0, skip - len(chunk))
            size = min(len(chunk), left)
            if fill + size > BUFFER:
                yield _Filled(half, fill)
                half ^= 1
                buffer, fill = halves[half], 0
            end = fill + size
            buffer[fill:end] = chunk if size == len(chunk) else chunk[:size]
            fill = end
            left -= size
            continue
        if skip:
            size = _size_of(repo, chunk)
            if skip >= size:
                skip -= size
                continue
        try:
            fd = open_file(f"{chunk[:2]}/{chunk[2:]}", _FILE, dir_fd=objects)
        except OSError:
            fd = repo.open_object(chunk, "a layer")  # says what is wrong
        try:
            if BUFFER - fill < _ROOM:
                yield _Filled(half, fill)
                half ^= 1
                buffer, fill = halves[half], 0
            room = min(BUFFER - fill, left)
            offset, skip = skip, 0
            count = read(fd, (buffer[fill : fill + room],), offset)
            fill += count
            left -= count
            if count < room or not left:
                continue  # a read comes back short at the end of a file, and only there
            offset += count
            rest = min(os.fstat(fd).st_size - offset, left)
            if rest <= 0:
                continue
            left -= rest
            yield _Filled(half, fill)
            half ^= 1
            buffer, fill = halves[half], 0
            if rest >= _LARGE:
                yield FilePart(chunk, offset, rest)
                continue
            while rest:
                count = read(fd, (buffer[fill : fill + rest],), offset)
                if count == 0:
                    raise _wrong_size(f"{rest} more bytes of an object", "its end")
                fill += count
                offset += count
                rest -= count
        finally:
            close(fd)
    if left or skip:
        raise _wrong_size("as many bytes as the splitstream says", f"{left + skip} fewer")
    if fill:
        yield _Filled(half, fill)


def _size_of(repo: ReadRepo, object_id: ObjectId) -> int:
    try:
        return os.stat(layout.object_path(object_id), dir_fd=repo.fd, follow_symlinks=False).st_size
    except FileNotFoundError:
        raise MissingObject(object=object_id, needed_by="a layer") from None


def _wrong_size(wanted: str, found: str) -> FormatError:
    return FormatError(structure="splitstream body", offset=0, wanted=wanted, found=found)
