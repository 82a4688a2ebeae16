"""A small HTTP server for one purpose: many readers, large answers, nothing that anybody could send in.

h11 reads requests and writes heads; the bytes of blobs go from files to sockets without it.  One event loop waits for
all connections; a thread looks things up; a few threads pump bodies, for as long as their sockets take them.

**Who waits for whom.**  No client can hold anything up for long:

* a request has :data:`HEAD_SECONDS` to arrive, in :data:`HEAD_BYTES`; a connection without one is closed after
  :data:`IDLE_SECONDS`, and earlier where all :data:`CONNECTIONS` are taken: the one that has been idle longest goes,
  unless it is younger than :data:`YOUNG_SECONDS`;
* who takes nothing for :data:`STALL_SECONDS` is cut off, and so is who takes less than :data:`SLOWEST` bytes a second, after
  :data:`GRACE_SECONDS`;
* at most :data:`BODIES` long bodies are under way at a time, which bounds the memory; :data:`QUEUE` others wait for their
  turn, for :data:`QUEUE_SECONDS` at most, and who comes then is told to come back later;
* no address has all connections, bodies or places in the queue: a part is kept for others (``places.py``);
* a look-up that takes long is done in parts of :data:`LOOK_UP_SECONDS`, and the next one has its turn in between.

**The lock.**  The repository lock is held, shared, while something is looked up or sent, and never while a request waits
for its turn to be; a body whose reader stalls gives it back after :data:`LOCK_STALL` and takes it again before it reads on.
Collectors get their turn, see ``turns.py``.  Content that goes in such a pause was no tag's any more; its response is cut
short, which every client notices by its length and digest.
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
import socket
from collections import Counter, OrderedDict
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from email.utils import formatdate
from http import HTTPStatus
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

import h11

from cfs_tags.apps import routes
from cfs_tags.apps.bodies import Body
from cfs_tags.apps.filling import FillerGone
from cfs_tags.apps.places import Full, Places, share_of_one
from cfs_tags.apps.registry import Answer, Part, answer, error
from cfs_tags.apps.routes import Base, Problem, problem
from cfs_tags.apps.served import Paused
from cfs_tags.apps.tarstream import layer_chunks
from cfs_tags.apps.turns import Turns
from cfs_tags.errors import CfsTagsError, LockTimeout, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
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
YOUNG_SECONDS = 10.0
"""Seconds for which a connection is not closed to make room for another."""
GRACE_SECONDS = 30.0
SLOWEST = 64 << 10
STALL_SECONDS = 20.0
BODIES = 20
QUEUE = 100
QUEUE_SECONDS = 300.0
LOOK_UP_SECONDS = 1.0
LOCK_STALL = 1.0
STOP_SECONDS = 10.0
"""Seconds that answers under way have when the server is stopped."""

_MAPPED = bytes(10) + b"\xff\xff"
"""How an IPv6 address starts that stands for one of IPv4 (RFC 4291, section 2.5.5.2)."""
_PUMPS = 8
_SLICE = 0.1
_SMALL = 64 << 10
"""Bytes of a body that is read as a whole and sent as it is."""
_NEAR = 1 << 20
"""Bytes of a layer within which such a body must lie: to get to a part far behind, every file before it is looked at."""
_LINGER_SECONDS = 2.0
_LINGER_BYTES = 1 << 20
_OTHERS = 12
"""One in so many connections is kept for other addresses than the one that has all the rest."""
_SHOWN = 200
"""Characters of a request's target that are logged."""
_TRY_LATER = ("Retry-After", "5")


T = TypeVar("T")


class _TooSlow(Exception):
    """A reader that takes too little."""


class _Gone(Exception):
    """Nobody waits for the answer any more."""


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
        self.bodies = Places(BODIES, QUEUE)
        self.stopping = asyncio.Event()
        self.idle: OrderedDict[asyncio.Task[None], float] = OrderedDict()
        self._looking = asyncio.Lock()
        self._fillers = fillers
        self._listeners = listeners
        self._reader = ThreadPoolExecutor(1, "look-up")
        self._pumps = ThreadPoolExecutor(_PUMPS, "pump")
        self._connections: dict[asyncio.Task[None], tuple[socket.socket, str]] = {}
        self._peers: Counter[str] = Counter()
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

    async def look_up(
        self, wanted: routes.Route | Problem, headers: dict[str, str], share: Share, is_gone: Callable[[], bool]
    ) -> Answer:
        """The answer; a small body is read already.  The share is taken when the turn has come, and kept.

        Raises:
            TimeoutError: the turn did not come in time.
            LockTimeout: the lock was not to be had.
        """
        if isinstance(wanted, Base | Problem):
            return answer(self.catalog, wanted, headers)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.turns.timeout
        while True:
            async with asyncio.timeout_at(deadline):
                await self._looking.acquire()
            try:
                if is_gone():
                    raise _Gone
                await share.take()
                return await _finish(self._reader.submit(self._look_up, wanted, headers))
            except Paused:
                share.give_back()
            finally:
                self._looking.release()

    def _look_up(self, wanted: routes.Route | Problem, headers: dict[str, str]) -> Answer:
        self.catalog.until = monotonic() + LOOK_UP_SECONDS
        found = answer(self.catalog, wanted, headers)
        if isinstance(found.body, Part) and found.body.length <= _SMALL and found.body.start <= _NEAR:
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
                self._room.clear()
                wait = self._make_room(None)
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._room.wait()
            try:
                accepted, address = await loop.sock_accept(listener)
            except OSError as wrong:  # the client is gone again, or there is no descriptor left: later, then
                self.log(f"cannot accept a connection: {printable(wrong.strerror or wrong)}")
                await asyncio.sleep(0.1)
                continue
            connection = _Connection(self, accepted, address)
            peer = connection.address
            if self._peers[peer] >= share_of_one(CONNECTIONS, CONNECTIONS // _OTHERS) and self._make_room(peer) is not None:
                self.log(f"{connection.peer} is refused: there are {self._peers[peer]} connections from there")
                accepted.close()
                continue
            task = asyncio.create_task(connection.run())
            self._connections[task] = accepted, peer
            self._peers[peer] += 1
            self.idle[task] = connection.began
            task.add_done_callback(self._ended)

    def _make_room(self, peer: str | None) -> float | None:
        """Close the connection that has been idle longest, of a peer or of all; None where there is one, else the seconds
        until it is worth trying again."""
        oldest = monotonic() - YOUNG_SECONDS
        wait = YOUNG_SECONDS
        for task, began in self.idle.items():
            if peer is None or self._connections[task][1] == peer:
                if began <= oldest:
                    del self.idle[task]
                    task.cancel()
                    return None
                wait = min(wait, began - oldest)
        return max(wait, 0.01)

    def _ended(self, task: asyncio.Task[None]) -> None:
        connection, peer = self._connections.pop(task)
        connection.close()  # a task that was cancelled before it began has not closed it
        self.idle.pop(task, None)
        self._peers[peer] -= 1
        if not self._peers[peer]:
            del self._peers[peer]
        self._room.set()
        if not task.cancelled() and (wrong := task.exception()) is not None:
            self.log(f"internal error: {printable(repr(wrong))}")


class _Connection:
    """One connection: requests and their answers, one after the other."""

    def __init__(self, server: Server, connection: socket.socket, address: Any) -> None:
        self._server = server
        self._socket = connection
        self.peer = f"{address[0]}:{address[1]}" if isinstance(address, tuple) else "unix"
        self.address = _network(address)
        self.began = monotonic()
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES)
        self._loop = asyncio.get_running_loop()
        self._is_first = True

    async def run(self) -> None:
        """Until the client has enough, or is to be got rid of."""
        with self._socket, suppress(ConnectionError, TimeoutError, _TooSlow, _Gone):
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
        # a body has no meaning here: it is not read, where it ends is no matter, and so nothing can follow it
        is_last = _has_body(request)
        with suppress(h11.RemoteProtocolError):
            self._http.next_event()
        is_last = is_last or self._http.their_state is not h11.DONE
        goes_on = await self._answer(request, is_last)
        if is_last:
            await self._linger()
        self._server.idle[task] = self.began
        return goes_on and not self._server.stopping.is_set()

    # -- in ------------------------------------------------------------------------------------------------------------

    async def _request(self) -> h11.Request | Problem | None:
        """The next request; None where the client has gone, or been silent for too long."""
        has_begun = False
        come = len(self._http.trailing_data[0])
        async with asyncio.timeout(HEAD_SECONDS if self._is_first else IDLE_SECONDS) as limit:
            while True:
                try:
                    event = self._http.next_event()
                except h11.RemoteProtocolError as wrong:
                    return problem("UNSUPPORTED", str(wrong), wrong.error_status_hint)
                if isinstance(event, h11.Request):
                    if come - len(self._http.trailing_data[0]) > HEAD_BYTES:
                        return problem("UNSUPPORTED", f"the head has more than {HEAD_BYTES} bytes", 431)
                    return event if event.http_version.startswith(b"1.") else problem("UNSUPPORTED", "no such HTTP", 505)
                if event is not h11.NEED_DATA:
                    return None
                data = await self._loop.sock_recv(self._socket, HEAD_BYTES)
                if not has_begun and not self._is_first:
                    limit.reschedule(self._loop.time() + HEAD_SECONDS)
                has_begun = True
                come += len(data)
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
        if _has_body(request) and method in ("GET", "HEAD"):
            wanted = problem("UNSUPPORTED", "a request has no body here", 400)
        if method != "GET":
            headers.pop("range", None)  # it means nothing then (RFC 9110, section 14.2)
        began = monotonic()
        with self._server.turns.share() as share, ExitStack() as stack, self._told_if_gone(method, target, began):
            found = await self._look_up(wanted, headers, share)
            if method != "HEAD" and _is_long(found) and not self._enter(stack):
                # what was found is not kept for the time that this takes
                found = error(problem("TOOMANYREQUESTS", "too many at once"), _TRY_LATER)
                share.give_back()
                if await self._has_turn(stack):
                    found = await self._look_up(wanted, headers, share)
            if isinstance(found.body, bytes):
                share.give_back()
            return await self._send(found, method, target, began, is_last=is_last, share=share)

    async def _look_up(self, wanted: routes.Route | Problem, headers: dict[str, str], share: Share) -> Answer:
        try:
            return await self._server.look_up(wanted, headers, share, self._is_gone)
        except LockTimeout as late:
            self._server.log(str(late))
            return error(problem("UNAVAILABLE", "the repository is being changed"), _TRY_LATER)
        except TimeoutError:
            return error(problem("UNAVAILABLE", "too much is being looked up"), _TRY_LATER)
        except (CfsTagsError, OSError) as wrong:
            self._server.log(printable(wrong))
            return error(problem("UNKNOWN", "the repository cannot be read; the server's log says why"))

    def _enter(self, stack: ExitStack) -> bool:
        """Take the place of a long body, if there is one; the stack gives it back."""
        found = self._server.bodies.enter(self.address)
        if found:
            stack.callback(self._server.bodies.leave, self.address)
        return found

    async def _has_turn(self, stack: ExitStack) -> bool:
        """Wait for the place of a long body; the stack gives it back."""
        try:
            found = await self._server.bodies.wait(self.address, QUEUE_SECONDS, self._is_gone)
        except Full:
            return False
        if found:
            stack.callback(self._server.bodies.leave, self.address)
        elif self._is_gone():
            raise _Gone
        return found

    @contextmanager
    def _told_if_gone(self, method: str, target: str, began: float) -> Iterator[None]:
        try:
            yield
        except _Gone:
            self._log(method, target, 499, 0, began, " the client is gone")
            raise

    def _log(self, method: str, target: str, status: int, sent: int, began: float, note: str) -> None:
        seconds = monotonic() - began if began else 0.0
        words = f'"{printable(_cut(method))} {printable(_cut(target))}" {status} {sent} {seconds:.3f}s'
        self._server.log(f"{self.peer} {words}{printable(note)}")

    def _is_gone(self) -> bool:
        """Whether the client has closed the connection; one that closed its half only will not be missed."""
        poll = select.poll()
        poll.register(self._socket, select.POLLRDHUP)
        return bool(poll.poll(0))

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
                        await self._send_body(body, share)
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
                self._log(method, target, found.status, sent, began, note)
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

    async def _send_body(self, body: Body, share: Share) -> None:
        since = monotonic()
        before = -1
        while True:
            asked = monotonic()
            await share.take()
            since += monotonic() - asked  # no fault of the reader's
            if not body.has_begun:
                since = monotonic()
                if self._is_gone():
                    raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
            if await self._server.pump(body, self._socket):
                return
            if monotonic() - since > GRACE_SECONDS + body.sent / SLOWEST:
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
    """Whether the body is one of those of which only so many are sent at a time: long, or to be looked for."""
    return found.length > _SMALL or isinstance(found.body, Part)


def _network(address: Any) -> str:
    """Whose limits a client is under: its address, of IPv6 the network that one host is given."""
    if not isinstance(address, tuple):
        return "unix"
    host = str(address[0])
    if ":" not in host:
        return host
    packed = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
    return host if packed[:12] == _MAPPED else packed[:8].hex()


def _has_body(request: h11.Request) -> bool:
    """Whether a request says that something follows its head, or says it in more than one way."""
    return any(name == b"transfer-encoding" or (name == b"content-length" and value != b"0") for name, value in request.headers)


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


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
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait((future,))
        except asyncio.CancelledError as wanted:  # more than once, where the server is told twice to stop
            cancelled = wanted
    if cancelled is not None:
        future.exception()
        raise cancelled
    return future.result()


def _first(blocks: Any, length: int) -> list[bytes]:
    """As much of the blocks as makes ``length`` bytes."""
    found: list[bytes] = []
    for block in blocks:
        found.append(block[:length])
        length -= len(found[-1])
        if length == 0:
            break
    return found
