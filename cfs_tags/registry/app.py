"""The registry as an ASGI application: it sends what the protocol says (``answers.py``), with little memory, however many
clients there are and however slow they read.

It needs no socket: whatever calls it with a scope and two functions gets the answers (`ASGI 3
<https://asgi.readthedocs.io/en/latest/specs/www.html>`_).

**No lock is held.**  What a tag leads to is not collected.  What is untagged and collected while it is being sent is cut
short, which a client notices by length and digest, and its next request is answered with 404.

**Who waits for whom.**  Look-ups are done by one thread; one that has to read many manifests is done in parts, and others
have their turn in between.  A body is read a block at a time: at once where that is a matter of milliseconds, else (a disk
that has to turn) in a thread.  The decompressor of a layer takes 2 MiB and more, so only so many long bodies are sent at a
time, and others wait for their turn.  A reader that takes too little is cut off.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from cfs_tags.apps import layer_tar
from cfs_tags.errors import CfsTagsError, printable
from cfs_tags.registry import routes
from cfs_tags.registry.answers import Answer, Part, answer, error
from cfs_tags.registry.catalog import Catalog
from cfs_tags.registry.manifests import Paused
from cfs_tags.registry.routes import Problem, Route, problem

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Mapping, MutableMapping, Sequence

    from cfs_tags.repo.store import ReadRepo

    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]

_SMALL = 64 << 10
"""Bytes of a body that is read as a whole, and sent without a place."""
_NEAR = 1 << 20
"""Bytes of a layer within which such a body must lie: to get to a part far behind, every file before it is looked at."""
_READERS = 4
_AT_ONCE = 0.01
"""Seconds that reading a block may have taken for the next one to be read without a thread."""
_SHOWN = 200
"""Characters of a request's target that are logged."""
_TRY_LATER = ("Retry-After", "5")


class Limits(NamedTuple):
    """What clients may take.

    Attributes:
        head: bytes of the head of a request.
        bodies: bodies of more than 64 KiB that are sent at once; one address has three quarters of them at most.
        queue: requests that wait for the place of a body; of one address three quarters of them.
        queue_seconds: for which they wait.
        look_up_seconds: after which a look-up pauses for others.
        patience: seconds after which a look-up whose turn has not come is given up.
        stall_seconds: after which a reader that takes nothing is cut off.
        grace_seconds: that a reader may make us wait in all, whatever it takes.
        slowest: bytes a second that it has to take after that.
        linger_seconds: that a client has to finish sending what is not read.
    """

    head: int = 16 << 10
    bodies: int = 16
    queue: int = 100
    queue_seconds: float = 300.0
    look_up_seconds: float = 1.0
    patience: float = 30.0
    stall_seconds: float = 20.0
    grace_seconds: float = 30.0
    slowest: int = 64 << 10
    linger_seconds: float = 2.0


class Registry:
    """The application.  Close it when its server has ended.

    Args:
        repo: the repository.
        catalog: what is shown of it.
        log: called with one line for each request and for what goes wrong; it is safe on a terminal.
        limits: for clients.
    """

    def __init__(self, repo: ReadRepo, catalog: Catalog, log: Callable[[str], None], limits: Limits | None = None) -> None:
        self.repo = repo
        self.log = log
        self.limits = limits or Limits()
        self.places = Places(self.limits)
        self.readers = ThreadPoolExecutor(_READERS, "read")
        self._catalog = catalog
        self._look_ups = ThreadPoolExecutor(1, "look-up")

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request.

        Where the server gives ``scope["state"]["abort"]``, that is called for a connection that is to be closed at once.
        """
        assert scope["type"] == "http"
        await _Exchange(self, scope, receive, send).run()

    async def look_up(self, wanted: Route | Problem, headers: Mapping[str, str]) -> Answer:
        """The answer to a request, or that there is none now."""
        if isinstance(wanted, Problem) or wanted.kind == "base":
            return answer(self._catalog, wanted, headers)
        while True:
            asked = monotonic()
            try:
                return await asyncio.wrap_future(self._look_ups.submit(self._look_up, wanted, headers, asked))
            except Paused:
                continue
            except TimeoutError:
                return error(problem("UNAVAILABLE", "too much is being looked up"), _TRY_LATER)
            except Exception as wrong:
                is_ours = not isinstance(wrong, CfsTagsError | OSError)
                self.log(f"cfs-tag: internal error: {printable(repr(wrong))}" if is_ours else printable(wrong))
                return error(problem("UNKNOWN", "the repository cannot be read; the server's log says why"))

    def _look_up(self, wanted: Route, headers: Mapping[str, str], asked: float) -> Answer:
        now = monotonic()
        if now - asked > self.limits.patience:
            raise TimeoutError
        self._catalog.manifests.until = now + self.limits.look_up_seconds
        found = answer(self._catalog, wanted, headers)
        if isinstance(found.body, Part) and found.body.length <= _SMALL and found.body.start <= _NEAR:
            stream, start, length = found.body
            return found._replace(body=b"".join(layer_tar.blocks(self.repo, stream, start=start, length=length)))
        return found

    def doubt(self) -> None:
        """Content that the catalog says is there could not be sent: have it look again."""
        self._look_ups.submit(self._catalog.manifests.doubt)

    def close(self) -> None:
        """End the threads."""
        self._look_ups.shutdown(cancel_futures=True)
        self.readers.shutdown(cancel_futures=True)


class _Exchange:
    """One request and its answer."""

    def __init__(self, registry: Registry, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        self._registry = registry
        self._limits = registry.limits
        self._receive = receive
        self._send = send
        self._abort: Callable[[], None] | None = scope.get("state", {}).get("abort")
        client = scope.get("client")
        self._address = network(client)
        self._peer = f"{client[0]}:{client[1]}" if client else "unix"
        self._method: str = scope["method"]
        self._target = (scope.get("raw_path") or scope["path"].encode()).decode("ascii", "backslashreplace")
        if scope["query_string"]:
            self._target += "?" + scope["query_string"].decode("ascii", "backslashreplace")
        self._headers: dict[str, str] = {}
        for name, value in scope["headers"]:
            self._headers.setdefault(name.decode("latin-1"), value.decode("latin-1"))
        self._has_body = "transfer-encoding" in self._headers or self._headers.get("content-length", "0") != "0"
        self._body_has_ended = asyncio.Event()
        # as the request was most likely sent: method, target, version, and the headers in lines of their own
        size = sum(len(name) + len(value) + 4 for name, value in scope["headers"])
        self._head = len(self._method) + len(self._target) + len(" HTTP/1.1\r\n") + 1 + size + 2
        self._version: str = scope["http_version"]
        self._began = monotonic()
        self._status = 0
        self._length = self._sent = 0  # bytes of the body
        self._waited = 0.0  # for the reader
        self._deadline = asyncio.timeout(None)  # of what is being sent

    async def run(self) -> None:
        """Answer, unless the client goes before that is done."""
        work = asyncio.ensure_future(self._respond())
        gone = asyncio.ensure_future(self._until_gone())
        note = ""
        try:
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
            if not work.done() and not (self._status and self._sent == self._length):
                note = "the client is gone"
        except asyncio.CancelledError:
            note = "the server stops"
        if note:
            work.cancel()
        try:
            await work
        except asyncio.CancelledError:
            pass
        except CfsTagsError as wrong:
            note = str(wrong)
            self._registry.doubt()
        except TimeoutError:
            note = "the reader is too slow"
        except OSError as wrong:
            note = str(wrong.strerror or wrong)
        except Exception as wrong:
            note = f"internal error: {wrong!r}"
        if note:
            self._log(f" cut short: {printable(note)}")
            if self._abort is not None:
                self._abort()
                await gone
        gone.cancel()

    async def _until_gone(self) -> None:
        """Throw away what the client sends beside its request, until it has enough."""
        while (message := await self._receive())["type"] != "http.disconnect":
            if not message.get("more_body", False):
                self._body_has_ended.set()

    def _log(self, note: str = "") -> None:
        words = f'"{printable(_cut(self._method))} {printable(_cut(self._target))}"'
        status = self._status or 499  # as nginx has it for a client that did not wait
        self._registry.log(f"{self._peer} {words} {status} {self._sent} {monotonic() - self._began:.3f}s{note}")

    # -- what is answered ----------------------------------------------------------------------------------------------

    async def _respond(self) -> None:
        wanted = routes.route(self._method, self._target)
        if not self._version.startswith("1."):
            wanted = problem("UNSUPPORTED", "no such HTTP", 505)
        elif self._head > self._limits.head:
            wanted = problem("UNSUPPORTED", f"the head has more than {self._limits.head} bytes", 431)
        elif self._has_body and self._method in ("GET", "HEAD"):
            wanted = problem("UNSUPPORTED", "a request has no body here", 400)
        if self._method != "GET":
            self._headers.pop("range", None)  # it means nothing then (RFC 9110, section 14.2)
        found = await self._registry.look_up(wanted, self._headers)
        if self._method == "HEAD" or (isinstance(found.body, bytes) and found.length <= _SMALL):
            await self._give(found)
            return
        del found  # it is not kept for the time that the wait takes
        async with self._registry.places.of(self._address) as has_one:
            if has_one:
                found = await self._registry.look_up(wanted, self._headers)
            else:
                found = error(problem("TOOMANYREQUESTS", "too many at once"), _TRY_LATER)
            await self._give(found)

    async def _give(self, found: Answer) -> None:
        headers = [
            *found.headers,
            ("Docker-Distribution-API-Version", "registry/2.0"),
            ("X-Content-Type-Options", "nosniff"),
        ]
        if found.status != 304:
            headers.append(("Content-Length", str(found.length)))
        is_last = self._has_body or found.status in (431, 505)
        if is_last:
            headers.append(("Connection", "close"))
        self._status = found.status
        self._length = found.length if self._method != "HEAD" else 0
        encoded = [(name.lower().encode(), value.encode()) for name, value in headers]
        async with self._deadline:
            await self._give_all(found, encoded)

    async def _give_all(self, found: Answer, headers: list[tuple[bytes, bytes]]) -> None:
        await self._put({"type": "http.response.start", "status": found.status, "headers": headers})
        if self._method != "HEAD":
            if isinstance(found.body, Part):
                await self._give_part(found.body)
            else:
                view = memoryview(found.body)
                for start in range(0, len(view), layer_tar.BLOCK_SIZE):
                    await self._give_block(bytes(view[start : start + layer_tar.BLOCK_SIZE]))
        if self._has_body:
            # closed at once, what the client still sends would have its system throw the answer away
            await _within(self._limits.linger_seconds, self._body_has_ended.wait())
        self._log()
        await self._put({"type": "http.response.body", "body": b"", "more_body": False})

    async def _give_part(self, part: Part) -> None:
        blocks = layer_tar.blocks(self._registry.repo, part.stream, start=part.start, length=part.length)
        reading = self._registry.readers.submit(_timed, blocks)
        try:
            block, seconds = await asyncio.wrap_future(reading)
            while block is not None:
                if block:
                    await self._give_block(block)
                await asyncio.sleep(0)  # others have their turn, however fast this reader is
                if seconds < _AT_ONCE:
                    block, seconds = _timed(blocks)
                else:
                    reading = self._registry.readers.submit(_timed, blocks)
                    block, seconds = await asyncio.wrap_future(reading)
        finally:
            reading.add_done_callback(lambda _: blocks.close())  # a thread may still use it

    async def _give_block(self, block: bytes) -> None:
        """Send a block, and wait until the system has all of it; that the reader makes us wait is counted."""
        began = monotonic()
        await self._put({"type": "http.response.body", "body": block, "more_body": True})
        await self._put({"type": "http.response.body", "more_body": True})  # waits for what was put before
        self._waited += monotonic() - began
        self._sent += len(block)
        if self._waited > self._limits.grace_seconds + self._sent / self._limits.slowest:
            raise TimeoutError

    async def _put(self, message: Message) -> None:
        self._deadline.reschedule(asyncio.get_running_loop().time() + self._limits.stall_seconds)
        await self._send(message)
        self._deadline.reschedule(None)


class Places:
    """The places of long bodies, and the requests that wait for one; never are all taken by one address."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._taken: Counter[str] = Counter()
        self._waiting: Counter[str] = Counter()
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def of(self, address: str) -> AsyncIterator[bool]:
        """Have a place for the block; False where there is none to be had."""
        if not self._has_room(self._waiting, self._limits.queue, address):
            yield False
            return
        self._waiting[address] += 1
        try:
            has_one = await _within(self._limits.queue_seconds, self._take(address))
        finally:
            self._waiting[address] -= 1
        try:
            yield has_one
        finally:
            if has_one:
                self._taken[address] -= 1
                async with self._changed:
                    self._changed.notify_all()

    async def _take(self, address: str) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self._has_room(self._taken, self._limits.bodies, address))
            self._taken[address] += 1

    @staticmethod
    def _has_room(some: Counter[str], count: int, address: str) -> bool:
        return some.total() < count and some[address] < max(1, count - count // 4)


async def _within(seconds: float, work: Awaitable[Any]) -> bool:
    """Whether something is done in time; it is cancelled if not."""
    try:
        async with asyncio.timeout(seconds):
            await work
    except TimeoutError:
        return False
    return True


def _timed(blocks: Generator[bytes]) -> tuple[bytes | None, float]:
    """The next block, None after the last, and the seconds that it took."""
    began = monotonic()
    block = next(blocks, None)
    return block, monotonic() - began


def network(client: Sequence[Any] | None) -> str:
    """Whose limits a client is under, by its host and port: the address, of IPv6 the network that one host is given; all of a
    Unix socket, which has none, are one."""
    host = str(client[0]) if client else "unix"
    if ":" not in host:
        return host
    import ipaddress

    address = ipaddress.IPv6Address(host.partition("%")[0])
    return str(address.ipv4_mapped or address.packed[:8].hex())


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
