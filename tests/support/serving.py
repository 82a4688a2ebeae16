"""Running the registry for a test: as the program, or inside the test's own process with other limits."""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cfs_tags import Repository
from cfs_tags.registry.app import Limits, Registry
from cfs_tags.registry.catalog import Catalog
from cfs_tags.registry.server import ConnectionLimits, server

__all__ = ["Program", "Response", "Served", "client", "exclusive", "fetch", "memory_of", "program", "serving"]

ROOT = Path(__file__).parent.parent.parent


class Response(NamedTuple):
    """A response: status, headers by name in lower case, body."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The code of the error that the body tells of."""
        return str(self.json["errors"][0]["code"])


def fetch(
    address: str, path: str, method: str = "GET", headers: Mapping[str, str] | None = None, body: bytes = b""
) -> Response:
    """One request on a connection of its own; the target is sent as it is."""
    connection = client(address)
    try:
        connection.putrequest(method, path, skip_accept_encoding=True)
        for name, value in (headers or {}).items():
            connection.putheader(name, value)
        if body:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body or None)
        response = connection.getresponse()
        return Response(response.status, {key.lower(): value for key, value in response.getheaders()}, response.read())
    finally:
        connection.close()


def client(address: str, timeout: float = 20.0) -> http.client.HTTPConnection:
    """A connection to ``HOST:PORT`` or ``unix:PATH``."""
    if not address.startswith("unix:"):
        return http.client.HTTPConnection(address, timeout=timeout)
    connection = http.client.HTTPConnection("localhost", timeout=timeout)
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.sock.settimeout(timeout)
    connection.sock.connect(address.removeprefix("unix:"))
    return connection


def exclusive(repo: Path, seconds: float) -> float:
    """Take the repository lock as a collector does that looks every 50 ms; how long it took."""
    began = time.monotonic()
    fd = os.open(repo, os.O_RDONLY | os.O_DIRECTORY)
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return time.monotonic() - began
            except BlockingIOError:
                if time.monotonic() - began > seconds:
                    pytest.fail(f"no exclusive lock within {seconds} s")
                time.sleep(0.05)
    finally:
        os.close(fd)


def memory_of(pid: int) -> int:
    """Bytes of memory that a process has for itself, its part of what it shares included (PSS)."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(next(line.split()[1] for line in rollup.splitlines() if line.startswith("Pss:"))) << 10


class Served(NamedTuple):
    """A registry in this process: its address and what it has logged."""

    address: str
    log: list[str]

    def get(self, path: str, method: str = "GET", headers: Mapping[str, str] | None = None, body: bytes = b"") -> Response:
        """See :func:`fetch`."""
        return fetch(self.address, path, method, headers, body)


@contextmanager
def serving(
    repo: Path, allow: Sequence[str] = (), limits: Limits | None = None, connections: ConnectionLimits | None = None
) -> Iterator[Served]:
    """Serve a repository from a thread of this process."""
    log: list[str] = []
    with Repository.open(repo) as opened, closing(Registry(opened, Catalog(opened, allow), log.append, limits)) as registry:
        listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        address = "{}:{}".format(*listener.getsockname())
        running = server(registry, connections)
        thread = threading.Thread(target=running.run, args=([listener],))
        thread.start()
        try:
            yield Served(address, log)
        finally:
            running.should_exit = True
            thread.join(30)
            assert not thread.is_alive()
            assert not [line for line in log if "internal error" in line]


class Program(NamedTuple):
    """The program itself, serving: its process, its address and the file that it logs to."""

    process: subprocess.Popen[bytes]
    address: str
    log: Path

    def get(self, path: str, method: str = "GET", headers: Mapping[str, str] | None = None) -> Response:
        """See :func:`fetch`."""
        return fetch(self.address, path, method, headers)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal to this very process, and wait for its exit status."""
        self.process.send_signal(number)
        return self.process.wait(30)


@contextmanager
def program(repo: Path, log: Path, *words: str, launcher: Sequence[str] = (), fds: Sequence[int] = ()) -> Iterator[Program]:
    """``cfs-tag serve`` on any free port, or where ``words`` say; ``launcher`` goes before the command line."""
    listen = [] if launcher or "--listen" in words else ["--listen", "127.0.0.1:0"]
    command = [*launcher, sys.executable, "-m", "cfs_tags", "--repo", str(repo), "serve", *listen, *words]
    environment = {"PATH": os.environ.get("PATH", ""), "PYTHONPATH": str(ROOT), "HOME": str(log.parent)}
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=sink, env=environment, pass_fds=fds
        )
    try:
        yield Program(process, _address(process, log), log)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(30)


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    for _ in range(1000):
        for line in log.read_text().splitlines():
            if " serving " in line:
                return line.rpartition(" at ")[2].removeprefix("http://")
        if process.poll() is not None:
            break
        threading.Event().wait(0.02)
    raise AssertionError(f"the server did not start: {log.read_text()}")
