"""The real registry (distribution 3.1.2) for a test: started, stopped, collected, and what it was asked.

What it was asked is in its access log, one line for each request that reached it.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple
from urllib.error import HTTPError
from urllib.parse import parse_qs, urlsplit
from urllib.request import Request, urlopen

from support.peers import clean_environment

__all__ = ["Asked", "Between", "Distribution", "Response", "Tokens", "distribution"]

_LINE = re.compile(r'"(?P<method>[A-Z]+) (?P<path>\S+) HTTP/[\d.]+" (?P<status>\d{3}) (?P<size>\d+)')
_SECONDS = 20


class Asked(NamedTuple):
    """A request as the registry logged it: ``size`` is bytes of the body of its answer."""

    method: str
    path: str
    status: int
    size: int


class Response(NamedTuple):
    """What the registry said."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Distribution:
    """A registry with deletion on, in a directory of its own."""

    def __init__(self, program: Path, place: Path, auth: str = "", address: str = "127.0.0.1") -> None:
        self._program = program
        self._place = place
        place.mkdir(parents=True, exist_ok=True)
        self.log = place / "log"
        with socket.socket() as one:
            one.bind((address, 0))
            self.address = f"{address}:{one.getsockname()[1]}"
        self._config = place / "config.yml"
        self._config.write_text(
            f"""version: 0.1
log: {{level: error, accesslog: {{disabled: false}}}}
storage:
  filesystem: {{rootdirectory: {place / "data"}}}
  delete: {{enabled: true}}
http: {{addr: "{self.address}", secret: test}}
{auth}"""
        )
        self._process: subprocess.Popen[bytes] | None = None
        self.authorization = ""
        """What the test's own requests are sent with."""

    def start(self) -> None:
        """Start it and wait until it answers."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, "serve", self._config],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=clean_environment(self._place),
            )
        host, _, port = self.address.rpartition(":")
        end = time.monotonic() + _SECONDS
        while True:
            try:
                with socket.create_connection((host, int(port)), 1):
                    return
            except OSError:
                assert self._process.poll() is None, self.log.read_text()
                assert time.monotonic() < end, self.log.read_text()
                time.sleep(0.02)

    def stop(self) -> None:
        """Have it end."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def collect(self) -> None:
        """Delete what has no tag, as an operator does: with the registry stopped."""
        running = self._process is not None
        self.stop()
        self._collect(self._config)
        if running:
            self.start()

    @contextmanager
    def collecting_late(self, *, is_meant: bool = True) -> Iterator[None]:
        """A collection that has marked before the block, and deletes after it, with the registry running.

        What is marked is found out by collecting a copy.
        """
        if not is_meant:
            yield
            return
        copy = self._place / "copy"
        shutil.copytree(self._place / "data", copy)
        config = self._place / "copy.yml"
        config.write_text(self._config.read_text().replace(str(self._place / "data"), str(copy)))
        self._collect(config)
        try:
            yield
            for path in (self._place / "data/docker/registry/v2/blobs/sha256").glob("*/*"):
                if not (copy / path.relative_to(self._place / "data")).exists():
                    shutil.rmtree(path)
        finally:
            shutil.rmtree(copy)

    def _collect(self, config: Path) -> None:
        done = subprocess.run(
            [self._program, "garbage-collect", "--delete-untagged", "--quiet", config],
            capture_output=True,
            timeout=600,
            check=False,
            env=clean_environment(self._place),
        )
        assert done.returncode == 0, done.stderr.decode()

    def asked(self) -> list[Asked]:
        """What it was asked since it was made."""
        found = []
        for line in self.log.read_text(errors="replace").splitlines():
            match = _LINE.search(line)
            if match is not None:
                found.append(Asked(match["method"], match["path"], int(match["status"]), int(match["size"])))
        return found

    @contextmanager
    def counted(self) -> Iterator[list[Asked]]:
        """What it is asked while the block runs, in the list at its end."""
        before = len(self.asked())
        seen: list[Asked] = []
        yield seen
        time.sleep(0.02)  # the line comes after the answer
        seen += self.asked()[before:]

    def fetch(
        self, path: str, method: str = "GET", body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Response:
        """One request of the test's own."""
        accept = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json"
        url = path if path.startswith("http") else f"http://{self.address}{path}"
        given = {"Accept": accept, **({"Authorization": self.authorization} if self.authorization else {}), **(headers or {})}
        request = Request(url, body, given, method=method)
        try:
            with urlopen(request, timeout=_SECONDS) as answer:
                return Response(answer.status, dict(answer.headers), answer.read())
        except HTTPError as error:
            return Response(error.code, dict(error.headers), error.read())

    def tags(self, repository: str) -> set[str]:
        """The tags of a repository."""
        answer = self.fetch(f"/v2/{repository}/tags/list")
        return set(answer.json.get("tags") or ()) if answer.status == 200 else set()

    def manifests(self, repository: str) -> set[str]:
        """Digests of the manifests that it has, by its files."""
        top = self._place / "data/docker/registry/v2/repositories" / repository / "_manifests/revisions/sha256"
        return {f"sha256:{name}" for name in os.listdir(top) if (top / name / "link").exists()} if top.is_dir() else set()

    def blobs(self) -> set[str]:
        """Digests of all content that it has, by its files."""
        top = self._place / "data/docker/registry/v2/blobs/sha256"
        return {f"sha256:{path.parent.name}" for path in top.glob("*/*/data")}

    def is_pullable(self, repository: str, digest: str) -> bool:
        """Whether a manifest and all that it names are there."""
        found = self.fetch(f"/v2/{repository}/manifests/{digest}")
        if found.status != 200:
            return False
        parts = [found.json["config"], *found.json["layers"]]
        return all(self.fetch(f"/v2/{repository}/blobs/{part['digest']}", "HEAD").status == 200 for part in parts)

    def upload(self, repository: str, data: bytes) -> None:
        """Put a blob there."""
        from hashlib import sha256

        where = self.fetch(f"/v2/{repository}/blobs/uploads/", "POST", b"").headers["Location"]
        joint = "&" if "?" in where else "?"
        headers = {"Content-Type": "application/octet-stream"}
        done = self.fetch(f"{where}{joint}digest=sha256:{sha256(data).hexdigest()}", "PUT", data, headers)
        assert done.status == 201, done

    def tag(self, repository: str, tag: str, manifest: bytes) -> None:
        """Put a manifest there under a tag."""
        kind = {"Content-Type": "application/vnd.oci.image.manifest.v1+json"}
        done = self.fetch(f"/v2/{repository}/manifests/{tag}", "PUT", manifest, kind)
        assert done.status == 201, done


@contextmanager
def distribution(program: Path, place: Path, auth: str = "", address: str = "127.0.0.1") -> Iterator[Distribution]:
    """A registry that runs for the block."""
    made = Distribution(program, place, auth, address)
    made.start()
    try:
        yield made
    finally:
        made.stop()


# -- what stands between --------------------------------------------------------------------------------------------------


class Between:
    """A proxy in front of a registry that lets some requests fail.

    ``fault`` is asked for each request, with its method and path: None to let it pass, a status to answer with (and headers),
    or seconds to wait first.  ``twist`` is given what the registry answered, and gives bytes to be sent in its place, or None.
    """

    def __init__(self, behind: Distribution) -> None:
        self.fault: Callable[[str, str], int | float | tuple[int, dict[str, str]] | None] = lambda method, path: None
        self.twist: Callable[[str, str, int, dict[str, str], bytes], bytes | None] = lambda *answer: None
        self.asked: list[tuple[str, str, int]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _serve(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length)
                fault = outer.fault(self.command, self.path)
                if isinstance(fault, float):
                    time.sleep(fault)
                    fault = None
                if fault is not None:
                    status, headers = fault if isinstance(fault, tuple) else (fault, {})
                    self._answer(status, headers, b"")
                    return
                connection = http.client.HTTPConnection(behind.address, timeout=_SECONDS)
                try:
                    kept = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
                    connection.request(self.command, self.path, body or None, kept)
                    answer = connection.getresponse()
                    data = answer.read()
                    headers = dict(answer.getheaders())
                    raw = outer.twist(self.command, self.path, answer.status, headers, data)
                    if raw is None:
                        self._answer(answer.status, headers, data)
                    else:
                        self.wfile.write(raw)
                        self.close_connection = True
                except OSError:
                    self._answer(502, {}, b"")
                finally:
                    connection.close()

            def _answer(self, status: int, headers: Mapping[str, str], data: bytes) -> None:
                outer.asked.append((self.command, self.path, status))
                self.send_response_only(status)
                for name, value in headers.items():
                    if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                        self.send_header(name, value)
                size = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(data))
                self.send_header("Content-Length", size)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = do_DELETE = _serve

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        self._thread = Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


# -- tokens -------------------------------------------------------------------------------------------------------------


class Tokens:
    """A token server as the specification of distribution has it: users with passwords, and what each may do where.

    ``rights`` has actions by user and repository; ``seconds`` is how long a token lasts.
    """

    SERVICE = "test"

    def __init__(self, place: Path, openssl: str) -> None:
        self.users: dict[str, str] = {}
        self.rights: dict[tuple[str, str], set[str]] = {}
        self.seconds = 300
        self.given = 0
        self._openssl = openssl
        self._key, certificate = place / "key.pem", place / "certificate.pem"
        place.mkdir(parents=True, exist_ok=True)
        subject = ["-subj", "/CN=test", "-days", "2"]
        words: list[str | Path] = [
            openssl,
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-keyout",
            self._key,
            "-out",
            certificate,
            *subject,
        ]
        subprocess.run(words, check=True, capture_output=True)
        self._chain = "".join(certificate.read_text().splitlines()[1:-1])
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                status, data = outer._answer(self.path, self.headers.get("Authorization", ""))
                self.send_response_only(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.realm = f"http://127.0.0.1:{self._server.server_address[1]}/token"
        self.config = (
            f"auth:\n  token:\n    realm: {self.realm}\n    service: {self.SERVICE}\n    issuer: test\n"
            f"    rootcertbundle: {certificate}\n"
        )
        Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, path: str, authorization: str) -> tuple[int, bytes]:
        user = ""
        if authorization.startswith("Basic "):
            user, _, password = base64.b64decode(authorization[6:]).decode().partition(":")
            if self.users.get(user) != password:
                return 401, b'{"errors":[{"code":"UNAUTHORIZED","message":"wrong password"}]}'
        access = []
        for scope in parse_qs(urlsplit(path).query).get("scope", []):
            kind, name, actions = scope.split(":")
            allowed = self.rights.get((user, name), set()) & set(actions.split(","))
            access.append({"type": kind, "name": name, "actions": sorted(allowed)})
        self.given += 1
        return 200, json.dumps({"token": self.token(user, access, self.seconds)}).encode()

    def token(self, user: str, access: list[dict[str, Any]], seconds: int) -> str:
        now = int(time.time())
        head = {"typ": "JWT", "alg": "RS256", "x5c": [self._chain]}
        body = {
            "iss": "test",
            "sub": user,
            "aud": self.SERVICE,
            "exp": now + seconds,
            "nbf": now - 1000,
            "iat": now - 1000,
            "jti": str(self.given),
            "access": access,
        }
        text = b".".join(_part(json.dumps(one).encode()) for one in (head, body))
        words: list[str | Path] = [self._openssl, "dgst", "-sha256", "-sign", self._key]
        signed = subprocess.run(words, input=text, check=True, capture_output=True).stdout
        return (text + b"." + _part(signed)).decode()


def _part(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")
