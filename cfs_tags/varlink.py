"""The varlink service ``org.cfstags``: the API for programs on the same machine that are not written in Python.

The library (``asyncvarlink``, ``cfs-tags[varlink]``) makes the description of the interface from the annotations here, so
they are not postponed.  Calls that wait for locks or look at many objects run in one thread, one after the other; the others
are answered meanwhile.

An error has the name of its code: ``tag-not-found`` is ``org.cfstags.TagNotFound``, with ``code``, ``message``, ``hint`` and
``status``.
"""

import asyncio
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, Literal, TypeVar

from asyncvarlink import (
    FileDescriptorArray,
    GenericVarlinkErrorReply,
    VarlinkInterface,
    VarlinkInterfaceRegistry,
    create_unix_server,
    varlinkmethod,
)
from asyncvarlink.serverprotocol import VarlinkInterfaceServerProtocol
from asyncvarlink.serviceinterface import VarlinkServiceInterface

from cfs_tags.api.repository import Repository
from cfs_tags.errors import CfsTagsError, SystemFailure
from cfs_tags.tags.instructions import Instruction

T = TypeVar("T")
_BY = "varlink"
_LONGEST = 4 << 20
"""Bytes of a call: the library would keep any number, and looks at all of them again with each piece that comes."""


@dataclass
class Tag:
    """A tag, as ``list`` shows it."""

    name: str
    digest: str | None
    home: str
    owner: str
    problem: str | None
    expires: str | None


@dataclass
class Change:
    """One change that is asked for, as a line of ``update`` says it."""

    verb: Literal["create", "move", "set", "delete", "verify"]
    name: str
    target: str | None
    expected: str | None


@dataclass
class Changed:
    """What became of a tag."""

    name: str
    done: str
    old: str | None
    new: str | None


@dataclass
class Deployment:
    """A deployment, as ``deployments`` shows it; ``health`` are codes of findings."""

    id: str
    state: str
    image: str | None
    version: str | None
    manifest: str | None
    ref: str
    health: list[str]


@dataclass
class Found:
    """Which manifest a deployment was made from, and how that is known."""

    id: str
    manifest: str | None
    source: str
    candidates: list[str]
    notes: list[str]


@dataclass
class Kept:
    """Why something is kept: the first name of each chain is a ref."""

    live: bool
    present: bool
    chains: list[list[str]]
    problems: list[str]


@dataclass
class Collected:
    """How far a collection is; the last answer says what was deleted."""

    done: int
    total: int
    objects: int | None
    bytes: int | None
    stopped: str | None


class _Service(VarlinkInterface, name="org.cfstags"):
    """The methods, each on the repository as it is when it is called."""

    def __init__(self, open_repository: Callable[..., Repository]) -> None:
        self._open = open_repository
        self._worker = ThreadPoolExecutor(1, "varlink")

    def _done_by(self, work: Callable[[Repository], T], write: bool) -> T:
        with _as_errors(), self._open(write=write) as repo:
            return work(repo)

    def _later(self, work: Callable[[Repository], T], *, write: bool = False) -> Awaitable[T]:
        """In the thread of work that may wait."""
        return asyncio.get_running_loop().run_in_executor(self._worker, partial(self._done_by, work, write))

    def _soon(self, work: Callable[[Repository], T]) -> Awaitable[T]:
        """In a thread of its own: it takes no lock."""
        return asyncio.to_thread(self._done_by, work, False)

    @varlinkmethod(return_parameter="tags")
    async def List(self, *, patterns: list[str] | None = None) -> list[Tag]:
        """Tags and deployment refs; those that fit one of the patterns, where there are any."""

        def read(repo: Repository) -> list[Tag]:
            found = repo.tags.list(patterns) if patterns is not None else repo.tags.list()
            return [Tag(tag.name, tag.digest, tag.home, tag.owner, tag.problem, tag.expires) for tag in found]

        return await self._soon(read)

    @varlinkmethod(return_parameter="digest")
    async def Resolve(self, *, name: str) -> str:
        """The digest that a name stands for."""
        return await self._soon(lambda repo: str(repo.tags.resolve(name)))

    @varlinkmethod(return_parameter="changed")
    async def Update(self, *, changes: list[Change], reason: str | None = None) -> list[Changed]:
        """Make, move and delete tags: all or nothing."""
        asked = [Instruction(one.verb, one.name, one.target, one.expected) for one in changes]

        def change(repo: Repository) -> list[Changed]:
            made = repo.tags.update(asked, reason=reason, by=_BY)
            return [Changed(one.name, one.done, one.old, one.new) for one in made]

        return await self._later(change, write=True)

    @varlinkmethod(return_parameter="deployments")
    async def Deployments(self) -> list[Deployment]:
        """Every deployment of the host."""

        def read(repo: Repository) -> list[Deployment]:
            return [
                Deployment(row.id, row.state, row.image, row.version, row.manifest, row.ref, [one.code for one in row.health])
                for row in repo.deployments.list()
            ]

        return await self._soon(read)

    @varlinkmethod(return_parameter="found")
    async def Lookup(self, *, deployment: str) -> Found:
        """Which manifest a deployment was made from."""

        def read(repo: Repository) -> Found:
            one = repo.deployments.look_up(deployment)
            return Found(one.id, one.digest, one.source, [str(digest) for digest in one.candidates], list(one.notes))

        return await self._soon(read)

    @varlinkmethod(return_parameter="name")
    async def Pin(self, *, target: str, name: str | None = None, days: int | None = None, reason: str | None = None) -> str:
        """Keep an image or a deployment, for some days or until it is unpinned; the answer is the name of the pin."""

        def pin(repo: Repository) -> str:
            until = None if days is None else timedelta(days=min(max(days, -1), timedelta.max.days))
            return repo.pins.pin(target, name=name, until=until, reason=reason, by=_BY).results[0].name

        return await self._later(pin, write=True)

    @varlinkmethod(return_parameter="kept")
    async def Why(self, *, target: str) -> Kept:
        """Why something is kept."""

        def read(repo: Repository) -> Kept:
            answer = repo.why(target)
            chains = [[str(step.name) for step in chain] for chain in answer.chains]
            return Kept(answer.live, answer.present, chains, list(answer.problems))

        return await self._later(read)

    @varlinkmethod(return_parameter="collected")
    async def Gc(self, *, free_bytes: int | None = None, reason: str | None = None) -> AsyncIterator[Collected]:
        """Collect what no ref leads to; to be called with "more", for answers that say how far it is."""
        loop = asyncio.get_running_loop()
        told: asyncio.Queue[tuple[int, int]] = asyncio.Queue()

        def tell(done: int, total: int) -> None:
            loop.call_soon_threadsafe(told.put_nowait, (done, total))

        def collect(repo: Repository) -> Any:
            return repo.gc.collect(
                free_bytes=free_bytes,
                reason=reason,
                by=_BY,
                progress=tell,
            )

        work = asyncio.ensure_future(self._later(collect, write=True))
        yield Collected(0, 0, None, None, None)
        while not work.done() or not told.empty():
            report = asyncio.ensure_future(told.get())
            await asyncio.wait({report, work}, return_when=asyncio.FIRST_COMPLETED)
            if not report.done():
                report.cancel()
                break
            yield Collected(*report.result(), None, None, None)
        made = await work
        yield Collected(1, 1, made.swept.objects, made.swept.allocated, made.stopped)


class _as_errors:
    """Errors of the library as varlink gives them."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            error = SystemFailure.of(error, "use", "the repository")
        if isinstance(error, CfsTagsError):
            name = "".join(word.capitalize() for word in error.code.split("-"))
            facts: dict[str, Any] = {"code": error.code, "message": str(error), "hint": error.hint, "status": error.status}
            raise GenericVarlinkErrorReply(f"org.cfstags.{name}", facts) from error


class _Protocol(VarlinkInterfaceServerProtocol):
    """A connection, which ends where what comes is no call: there is no telling where the next one would begin."""

    _waiting = 0
    _ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._end = transport.abort  # type: ignore[attr-defined]

    def message_received(self, data: bytes, fds: FileDescriptorArray | None) -> None:
        start = data.rfind(b"\0") + 1
        longest = self._waiting + data.find(b"\0") if start else self._waiting + len(data)
        self._waiting = len(data) - start if start else longest
        if self._ended or longest > _LONGEST:
            self._give_up()
            return
        try:
            super().message_received(data, fds)
        except (ValueError, RecursionError):  # not UTF-8, or too deep
            self._give_up()

    def request_received(self, obj: dict[str, Any], fds: FileDescriptorArray | None) -> asyncio.Future[None] | None:
        return None if self._ended else super().request_received(obj, fds)

    def error_received(self, err: Exception, data: bytes, fds: FileDescriptorArray | None) -> None:
        self._give_up()

    def _give_up(self) -> None:
        if not self._ended:
            self._ended = True
            asyncio.get_running_loop().call_soon(self._end)


async def serve(listener: socket.socket, open_repository: Callable[..., Repository]) -> None:
    """Answer until SIGTERM or SIGINT comes; what is being done then is done to its end.

    Args:
        listener: a socket of AF_UNIX that listens.
        open_repository: opens the repository, with ``write`` as a keyword.
    """
    from cfs_tags import __version__

    registry = VarlinkInterfaceRegistry()
    about = ("cfs-tags", "cfs-tag", __version__, "https://github.com/cfs-tags/cfs-tags")
    registry.register_interface(VarlinkServiceInterface(*about, registry))
    registry.register_interface(_Service(open_repository))
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    server = await create_unix_server(lambda: _Protocol(registry), sock=listener)
    await stop.wait()
    server.close()
    server.abort_clients()
