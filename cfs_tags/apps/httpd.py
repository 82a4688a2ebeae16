"""A small HTTP server for one purpose: many readers, large answers, nothing that anybody could send in.

h11 reads requests and writes heads; the bytes of blobs go from files to sockets without it.  One event loop waits for
all connections; a thread looks things up; a few threads pump bodies, for as long as their sockets take them.

**Who waits for whom.**  No client can hold anything up for long:

* a request has :data:`HEAD_SECONDS` to arrive, in :data:`HEAD_BYTES`; a connection without one is closed after
  :data:`IDLE_SECONDS`, and earlier where all :data:`CONNECTIONS` are taken: the one that has been idle longest goes;
* a response has :data:`GRACE_SECONDS`, and a second more for every :data:`SLOWEST` bytes of it; who takes nothing for
  :data:`STALL_SECONDS` is cut off;
* at most :data:`BODIES` long bodies are under way at a time, which bounds the memory; others wait for their turn, and
  after :data:`QUEUE_SECONDS` are told to come back later.

**The lock.**  The repository lock is held, shared, while a request is being answered, and never while none is; a body
whose reader stalls gives it back after :data:`LOCK_STALL` and takes it again before it reads on.  Collectors get their
turn, see ``turns.py``.  Content that goes in such a pause was no tag's any more; its response is cut short, which every
client notices by its length and digest.
"""

from __future__ import annotations

import asyncio
import socket
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from email.utils import formatdate
from http import HTTPStatus
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

import h11

from cfs_tags.apps import routes
from cfs_tags.apps.bodies import Body
from cfs_tags.apps.filling import FillerGone
from cfs_tags.apps.registry import Answer, Part, answer, error
from cfs_tags.apps.routes import Base, Problem, problem
from cfs_tags.apps.tarstream import layer_chunks
from cfs_tags.apps.turns import Turns
from cfs_tags.errors import CfsTagsError, LockTimeout, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future

    from cfs_tags.apps.filling import Fillers
    from cfs_tags.apps.served import Catalog
    from cfs_tags.apps.turns import Share
    from cfs_tags.repo.store import ReadRepo

__all__ = ["Server"]

HEAD_BYTES = 16 << 10
HEAD_SECONDS = 10.0
IDLE_SECONDS = 60.0
CONNECTIONS = 1200
GRACE_SECONDS = 30.0
SLOWEST = 64 << 10
STALL_SECONDS = 20.0
BODIES = 20
QUEUE_SECONDS = 300.0
LOCK_STALL = 1.0
STOP_SECONDS = 10.0
"""Seconds that answers under way have when the server is stopped."""

_PUMPS = 8
_SLICE = 0.1
_SMALL = 64 << 10
"""Bytes of a body that is read as a whole and sent as it is."""
_LINGER_SECONDS = 2.0
_LINGER_BYTES = 1 << 20
_TRY_LATER = ("Retry-After", "5")


T = TypeVar("T")


class _TooSlow(Exception):
    """A reader that takes too little."""


class Server:
    """Serves a catalog on sockets that listen.

    Args:
        repo: the repository.
        catalog: what is shown of it.
        fillers: of the same repository, with :data:`BODIES` slots; closed by whoever made them.
        listeners: bound and listening; closed at the end.
        log: called with one line for each request and for what goes wrong; it is safe on a terminal.
        lock_timeout: seconds that a request waits for the repository lock.

    Attributes:
        failure: why it has stopped by itself.
    """

    def __init__(
        self,
        repo: ReadRepo,
        catalog: Catalog,
        fillers: Fillers,
        listeners: Sequence[socket.socket],
        log: Callable[[str], None],
        lock_timeout: float = GRACE_SECONDS,
    ) -> None:
        self.repo = repo
        self.catalog = catalog
        self.log = log
        self.failure: CfsTagsError | None = None
        self.turns = Turns(repo, lock_timeout)
        self.bodies = asyncio.Semaphore(BODIES)
        self.stopping = asyncio.Event()
        self.idle: OrderedDict[asyncio.Task[None], None] = OrderedDict()
        self._fillers = fillers
        self._listeners = listeners
        self._reader = ThreadPoolExecutor(1, "look-up")
        self._pumps = ThreadPoolExecutor(_PUMPS, "pump")
        self._connections: dict[asyncio.Task[None], socket.socket] = {}
        self._room = asyncio.Event()

    def stop(self) -> None:
        """Take no more connections, finish what is under way and return from :meth:`run`; the second time: at once."""
        if self.stopping.is_set():
            for task in self._connections:
                task.cancel()
        self.stopping.set()

    async def run(self) -> None:
        """Serve until :meth:`stop`."""
        accepting = [asyncio.create_task(self._accept(listener)) for listener in self._listeners]
        try:
            await self.stopping.wait()
        finally:
            await _end(accepting)
            for listener in self._listeners:
                listener.close()
            await _end(list(self.idle))
            if self._connections:
                await asyncio.wait(self._connections, timeout=STOP_SECONDS)
            await _end(list(self._connections))
            self._pumps.shutdown()
            self._reader.shutdown()

    async def look_up(self, wanted: routes.Route | Problem, headers: dict[str, str]) -> Answer:
        """The answer; a small body is read already."""
        return await _finish(self._reader.submit(self._look_up, wanted, headers))

    def _look_up(self, wanted: routes.Route | Problem, headers: dict[str, str]) -> Answer:
        found = answer(self.catalog, wanted, headers)
        if isinstance(found.body, Part) and found.body.length <= _SMALL:
            stream, start, length = found.body
            data = b"".join(_first(layer_chunks(self.repo, stream, start=start), length))
            return found._replace(body=data)
        return found

    def body(self, part: Part, head: bytes) -> Body:
        """What sends a part of a blob after a head."""
        return Body(self.repo, self._fillers.open(*part), head)

    async def pump(self, body: Body, connection: socket.socket) -> bool:
        """Let a worker send for a while; whether all is sent."""
        return await _finish(self._pumps.submit(body.pump, connection, _SLICE))

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        listener.setblocking(False)
        while True:
            while len(self._connections) >= CONNECTIONS:
                if self.idle:
                    self.idle.popitem(last=False)[0].cancel()
                self._room.clear()
                await self._room.wait()
            try:
                accepted, address = await loop.sock_accept(listener)
            except OSError as wrong:  # the client is gone again, or there is no descriptor left: later, then
                self.log(f"cannot accept a connection: {printable(wrong.strerror or wrong)}")
                await asyncio.sleep(0.1)
                continue
            task = asyncio.create_task(_Connection(self, accepted, address).run())
            self._connections[task] = accepted
            self.idle[task] = None
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._connections.pop(task).close()  # a task that was cancelled before it began has not closed it
        self.idle.pop(task, None)
        self._room.set()
        if not task.cancelled() and (wrong := task.exception()) is not None:
            self.log(f"internal error: {printable(repr(wrong))}")


class _Connection:
    """One connection: requests and their answers, one after the other."""

    def __init__(self, server: Server, connection: socket.socket, address: Any) -> None:
        self._server = server
        self._socket = connection
        self._peer = f"{address[0]}:{address[1]}" if isinstance(address, tuple) else "unix"
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES)
        self._loop = asyncio.get_running_loop()
        self._is_first = True

    async def run(self) -> None:
        """Until the client has enough, or is to be got rid of."""
        with self._socket, suppress(ConnectionError, TimeoutError, _TooSlow):
            self._socket.setblocking(False)
            if self._socket.family != socket.AF_UNIX:
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while await self._one():
                self._http.start_next_cycle()
                self._is_first = False

    async def _one(self) -> bool:
        """Read a request and answer it; whether there may be another."""
        request = await self._request()
        if request is None:
            return False
        task = asyncio.current_task()
        assert task is not None
        self._server.idle.pop(task, None)
        if isinstance(request, Problem):
            await self._send(error(request), "(no request)", request.message, 0, is_last=True)
            await self._linger()
            return False
        # a body has no meaning here; it is not read, so nothing can follow it
        with suppress(h11.RemoteProtocolError):
            self._http.next_event()
        is_last = self._http.their_state is not h11.DONE
        goes_on = await self._answer(request, is_last)
        if is_last:
            await self._linger()
        self._server.idle[task] = None
        return goes_on and not self._server.stopping.is_set()

    # -- in ------------------------------------------------------------------------------------------------------------

    async def _request(self) -> h11.Request | Problem | None:
        """The next request; None where the client has gone, or been silent for too long."""
        has_begun = False
        async with asyncio.timeout(HEAD_SECONDS if self._is_first else IDLE_SECONDS) as limit:
            while True:
                try:
                    event = self._http.next_event()
                except h11.RemoteProtocolError as wrong:
                    return problem("UNSUPPORTED", str(wrong), wrong.error_status_hint)
                if isinstance(event, h11.Request):
                    return event if event.http_version.startswith(b"1.") else problem("UNSUPPORTED", "no such HTTP", 505)
                if event is not h11.NEED_DATA:
                    return None
                data = await self._loop.sock_recv(self._socket, HEAD_BYTES)
                if not has_begun and not self._is_first:
                    limit.reschedule(self._loop.time() + HEAD_SECONDS)
                has_begun = True
                with suppress(h11.RemoteProtocolError):  # said again by next_event
                    self._http.receive_data(data)

    async def _linger(self) -> None:
        """Let the client read the answer before what it still sends makes the system throw it away."""
        with suppress(OSError, TimeoutError):
            self._socket.shutdown(socket.SHUT_WR)
            async with asyncio.timeout(_LINGER_SECONDS):
                left = _LINGER_BYTES
                while left > 0 and (data := await self._loop.sock_recv(self._socket, HEAD_BYTES)):
                    left -= len(data)

    # -- out -----------------------------------------------------------------------------------------------------------

    async def _answer(self, request: h11.Request, is_last: bool) -> bool:
        method, target = request.method.decode("ascii"), request.target.decode("ascii", "backslashreplace")
        headers: dict[str, str] = {}
        for name, value in request.headers:
            headers.setdefault(name.decode("ascii"), value.decode("latin-1"))
        wanted = routes.route(method, target)
        began = monotonic()
        with self._server.turns.share() as share, ExitStack() as stack:
            found = await self._look_up(wanted, headers, share)
            if method != "HEAD" and _is_long(found):
                must_wait = self._server.bodies.locked()
                if must_wait:
                    # what was found is not kept for the time that this takes
                    found = error(problem("UNAVAILABLE", "not yet"))
                    share.give_back()
                if not await self._has_turn(stack):
                    found = error(problem("TOOMANYREQUESTS", "too many at once"), _TRY_LATER)
                elif must_wait:
                    found = await self._look_up(wanted, headers, share)
            if isinstance(found.body, bytes):
                share.give_back()
            return await self._send(found, method, target, began, is_last=is_last, share=share)

    async def _look_up(self, wanted: routes.Route | Problem, headers: dict[str, str], share: Share) -> Answer:
        try:
            if not isinstance(wanted, Base | Problem):
                await share.take()
            return await self._server.look_up(wanted, headers)
        except LockTimeout as late:
            self._server.log(str(late))
            return error(problem("UNAVAILABLE", "the repository is being changed"), _TRY_LATER)
        except (CfsTagsError, OSError) as wrong:
            self._server.log(printable(wrong))
            return error(problem("UNKNOWN", "the repository cannot be read; the server's log says why"))

    async def _has_turn(self, stack: ExitStack) -> bool:
        """Wait for the turn of a long body; the stack gives it back."""
        try:
            async with asyncio.timeout(QUEUE_SECONDS):
                await self._server.bodies.acquire()
        except TimeoutError:
            return False
        stack.callback(self._server.bodies.release)
        return True

    async def _send(
        self, found: Answer, method: str, target: str, began: float, *, is_last: bool, share: Share | None = None
    ) -> bool:
        """Send an answer and log it; whether the connection can be used again."""
        is_last = is_last or self._server.stopping.is_set()
        with ExitStack() as stack:
            sent, note = 0, ""
            head = self._head(found, is_last)
            try:
                if method == "HEAD":
                    await self._send_bytes(head)
                elif isinstance(found.body, bytes):
                    # many connections may be sent the same large manifest: a copy for each would be too much
                    await self._send_bytes(*((head, found.body) if _is_long(found) else (head + found.body,)))
                    sent = len(found.body)
                else:
                    assert share is not None
                    body = self._server.body(found.body, head)
                    stack.callback(body.close)
                    try:
                        await self._send_body(body, len(head) + found.body.length, share)
                    finally:
                        sent = max(0, body.sent - len(head))
                if sent:
                    self._http.send_with_data_passthrough(h11.Data(data=_Sized(sent)))  # type: ignore[arg-type]
                self._http.send(h11.EndOfMessage())
            except CfsTagsError as wrong:
                note = f" cut short: {wrong}"
                if isinstance(wrong, FillerGone):  # not one body in so many can be read: better another server
                    self._server.failure = wrong
                    self._server.stop()
            except _TooSlow:
                note = " cut short: the reader is too slow"
            except OSError as wrong:
                note = f" cut short: {wrong.strerror or wrong}"
            except asyncio.CancelledError:
                note = " cut short: the server stops"
                raise
            finally:
                seconds = monotonic() - began if began else 0.0
                words = f'"{printable(method)} {printable(target)}" {found.status} {sent} {seconds:.3f}s'
                self._server.log(f"{self._peer} {words}{printable(note)}")
        return not note and self._http.our_state is h11.DONE and self._http.their_state is h11.DONE

    def _head(self, found: Answer, is_last: bool) -> bytes:
        headers = [
            *found.headers,
            ("Docker-Distribution-API-Version", "registry/2.0"),
            ("X-Content-Type-Options", "nosniff"),
            ("Date", formatdate(usegmt=True)),
        ]
        if found.status != 304:
            headers.append(("Content-Length", str(found.length)))
        if is_last:
            headers.append(("Connection", "close"))
        reason = HTTPStatus(found.status).phrase
        return self._http.send(h11.Response(status_code=found.status, headers=headers, reason=reason)) or b""

    async def _send_bytes(self, *pieces: bytes) -> None:
        try:
            async with asyncio.timeout(GRACE_SECONDS + sum(map(len, pieces)) / SLOWEST):
                for piece in pieces:
                    await self._loop.sock_sendall(self._socket, piece)
        except TimeoutError:
            raise _TooSlow from None

    async def _send_body(self, body: Body, size: int, share: Share) -> None:
        deadline = monotonic() + GRACE_SECONDS + size / SLOWEST
        before = -1
        while True:
            await share.take()
            if await self._server.pump(body, self._socket):
                return
            if monotonic() > deadline:
                raise _TooSlow
            if share.is_over:
                share.give_back()
            if body.sent == before:
                await self._wait(share)
            before = body.sent

    async def _wait(self, share: Share) -> None:
        """Wait until the socket takes more; the lock is not held for that, but for a moment."""
        writable = self._loop.create_future()
        fd = self._socket.fileno()
        self._loop.add_writer(fd, _set, writable)
        try:
            done, _ = await asyncio.wait((writable,), timeout=LOCK_STALL)
            if not done:
                share.give_back()
                done, _ = await asyncio.wait((writable,), timeout=STALL_SECONDS - LOCK_STALL)
            if not done:
                raise _TooSlow
        finally:
            self._loop.remove_writer(fd)


class _Sized:
    """Stands for that many bytes, which h11 counts and does not touch."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length


def _is_long(found: Answer) -> bool:
    """Whether the body is one of those of which only so many are sent at a time."""
    return found.length > _SMALL


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _end(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _finish(work: Future[T]) -> T:
    """What a worker comes to.  It is waited for even if nobody wants it any more: it uses what the caller lets go of."""
    future = asyncio.wrap_future(work)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait((future,))
        raise


def _first(blocks: Any, length: int) -> list[bytes]:
    """As much of the blocks as makes ``length`` bytes."""
    found: list[bytes] = []
    for block in blocks:
        found.append(block[:length])
        length -= len(found[-1])
        if length == 0:
            break
    return found
