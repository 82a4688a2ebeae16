"""uvicorn, configured for many clients that are not trusted.

The library reads requests strictly (h11), keeps connections and ends gracefully.  What it does not have is added to its
class of a connection: a request has to arrive in time, connections are bounded in number, and what is no request is
answered in the registry's own form.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from functools import partial
from http import HTTPStatus
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from cfs_tags.errors import printable
from cfs_tags.registry.answers import error
from cfs_tags.registry.app import Registry, network
from cfs_tags.registry.routes import problem

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvicorn.protocols.http.h11_impl import RequestResponseCycle

_LINGER_BYTES = 1 << 20
"""Bytes that are still read, and thrown away, after something that is no request."""
_LOGGERS = ("uvicorn.error", "asyncio")


class ConnectionLimits(NamedTuple):
    """What connections may take.

    Attributes:
        head_seconds: that a request has to arrive.
        idle_seconds: after which a connection without one is closed.
        connections: how many; one address has eleven of twelve at most.
        young_seconds: for which a connection is not closed to make room for another.
        stop_seconds: that answers under way have when the server is stopped.
    """

    head_seconds: float = 10.0
    idle_seconds: int = 60
    connections: int = 1200
    young_seconds: float = 10.0
    stop_seconds: int = 10


def server(registry: Registry, limits: ConnectionLimits | None = None) -> uvicorn.Server:
    """A server for the application: ``run(sockets=…)`` serves on sockets that listen until SIGTERM or SIGINT come, and raises
    the signal again, for the handler that was there before; setting ``should_exit`` ends it, too.

    Args:
        registry: the application; its log also gets what the library has to say.
        limits: for clients.
    """
    limits = limits or ConnectionLimits()

    connection = partial(_Connection, registry=registry, limits=limits, crowd={})
    handler = _Handler(registry.log)
    for name in _LOGGERS:
        logging.getLogger(name).handlers = [handler]
        logging.getLogger(name).propagate = False
    config = uvicorn.Config(
        registry,
        interface="asgi3",
        http=cast(type[asyncio.Protocol], connection),
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level=logging.ERROR,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        h11_max_incomplete_event_size=registry.limits.head,
        timeout_keep_alive=limits.idle_seconds,
        timeout_graceful_shutdown=limits.stop_seconds,
    )
    return uvicorn.Server(config)


class _Handler(logging.Handler):
    """Gives what the library logs to a log of lines."""

    def __init__(self, log: Callable[[str], None]) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage().partition("\n")[0]
        wrong = record.exc_info[1] if record.exc_info else None
        self._log(f"cfs-tag: {printable(text)}{f': {printable(repr(wrong))}' if wrong is not None else ''}")


class _Connection(H11Protocol):
    """A connection; ``crowd`` has all of the server, in the order in which they came, and whose they are."""

    def __init__(
        self,
        *,
        registry: Registry,
        limits: ConnectionLimits,
        crowd: dict[_Connection, str],
        app_state: dict[str, Any],
        **more: Any,
    ) -> None:
        super().__init__(app_state={**app_state, "abort": self._abort}, **more)
        self._registry = registry
        self._limits = limits
        self._crowd = crowd
        self._since = monotonic()
        self._deadline: asyncio.TimerHandle | None = None
        self._left: int | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Make room for it, or refuse it."""
        super().connection_made(transport)
        # what the application has sent the system has then: so a reader that takes nothing is noticed
        transport.set_write_buffer_limits(high=0)
        self._start_clock()
        address = network(self.client)
        self._crowd[self] = address
        own = [one for one, other in self._crowd.items() if other == address]
        most = self._limits.connections
        if not (self._has_room(list(self._crowd), most) and self._has_room(own, most - most // 12)):
            self._registry.log(f"{self._peer} is refused: there are {len(own) - 1} connections from there")
            self._abort()

    def _has_room(self, crowd: list[_Connection], most: int) -> bool:
        """Whether there are not too many; the one that has been idle longest is closed for that."""
        if len(crowd) <= most:
            return True
        oldest = next((one for one in crowd if not one._is_busy), self)
        if monotonic() - oldest._since < self._limits.young_seconds:
            return False
        oldest._abort()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self._stop_clock()
        self._crowd.pop(self, None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Start the clock with the first byte of a request, and stop it with the last of its head."""
        if self._left is not None:
            self._left -= len(data)
            if self._left < 0:
                self._abort()
            return
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_clock()
        elif self._deadline is None:
            self._start_clock()

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are no request, with the reason that the library gives."""
        wrong = sys.exception()
        if self._is_busy:
            self._abort()  # it was the body of a request that is being answered
            return
        status = wrong.error_status_hint if isinstance(wrong, h11.RemoteProtocolError) else 400
        found = error(problem("UNSUPPORTED", str(wrong or msg), status))
        assert isinstance(found.body, bytes)
        headers = [*found.headers, ("Content-Length", str(found.length)), ("Connection", "close")]
        response = h11.Response(status_code=status, headers=headers, reason=HTTPStatus(status).phrase)
        for event in (response, h11.Data(data=found.body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self._registry.log(f'{self._peer} "(no request) {printable(wrong or msg)}" {status} {found.length} 0.000s')
        # closed at once, what the client still sends would have its system throw the answer away
        self.transport.write_eof()
        self._left = _LINGER_BYTES
        self._start_clock()

    @property
    def _peer(self) -> str:
        return f"{self.client[0]}:{self.client[1]}" if self.client else "unix"

    @property
    def _is_busy(self) -> bool:
        """Whether a request is being answered."""
        cycle: RequestResponseCycle | None = self.cycle  # there is none before the first request
        return cycle is not None and not cycle.response_complete

    def _start_clock(self) -> None:
        self._stop_clock()
        self._deadline = self.loop.call_later(self._limits.head_seconds, self._abort)

    def _stop_clock(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _abort(self) -> None:
        self._crowd.pop(self, None)
        self.transport.abort()
