"""The client of registries: names, credentials, and a registry that is hostile."""

from __future__ import annotations

import base64
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cfs_tags.errors import CfsTagsError, DamagedError, FormatError, RefusedError, SystemFailure, UsageError
from cfs_tags.remote import credentials
from cfs_tags.remote.client import Client
from cfs_tags.remote.credentials import Challenge, Credentials
from cfs_tags.remote.names import Access, Place, parse_place, place_of
from cfs_tags.values import Digest
from support.mending import answering

PLACE = Place("registry.example", "org/os")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("quay.io/org/os", Place("quay.io", "org/os")),
        ("docker://quay.io/org/os", Place("quay.io", "org/os")),
        ("localhost/os", Place("localhost", "os")),
        ("localhost:5000/a/b/c", Place("localhost:5000", "a/b/c")),
        ("10.0.0.1:5000/os", Place("10.0.0.1:5000", "os")),
        ("[::1]:5000/os", Place("[::1]:5000", "os")),
    ],
)
def test_names_of_repositories(text: str, wanted: Place) -> None:
    assert parse_place(text) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "",
        "os",
        "org/os",
        "quay.io",
        "quay.io/",
        "quay.io/Org/os",
        "quay.io/org/os:1",
        "quay.io/org/os@sha256:0",
        "a b/c",
        "quay.io//os",
    ],
)
def test_what_names_no_repository_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_place(text)


def test_the_repository_of_an_image() -> None:
    assert place_of("quay.io/org/os:41") == Place("quay.io", "org/os")
    assert place_of("localhost:5000/os@sha256:00") == Place("localhost:5000", "os")
    assert place_of("localhost:5000/os") == Place("localhost:5000", "os")
    assert place_of("os:41") is None


# -- credentials ----------------------------------------------------------------------------------------------------------


def auth(user: str, password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


def found(tmp_path: Path, *documents: Any, place: Place = PLACE) -> Credentials | None:
    files = []
    for number, document in enumerate(documents):
        path = tmp_path / f"{number}.json"
        path.write_text(document if isinstance(document, str) else json.dumps(document))
        files.append(str(path))
    return credentials.find(place, [str(tmp_path / "absent"), *files])


@pytest.mark.parametrize(
    ("auths", "user"),
    [
        ({"registry.example": auth("host", "p")}, "host"),
        ({"registry.example": auth("host", "p"), "registry.example/org": auth("org", "p")}, "org"),
        ({"registry.example/org": auth("org", "p"), "registry.example/org/os": auth("os", "p")}, "os"),
        ({"registry.example/or": auth("or", "p")}, None),
        ({"https://registry.example/v1/": auth("old", "p")}, "old"),
        ({"other.example": auth("other", "p")}, None),
        ({"registry.example": {}}, None),
        ({}, None),
    ],
)
def test_the_most_exact_entry_counts(auths: Any, user: str | None, tmp_path: Path) -> None:
    known = found(tmp_path, {"auths": auths})
    assert (known.user if known is not None else None) == user


def test_the_first_file_with_an_entry_counts(tmp_path: Path) -> None:
    known = found(
        tmp_path, {}, "", {"auths": {"registry.example": auth("one", "a:b")}}, {"auths": {"registry.example": auth("two", "p")}}
    )
    assert known == Credentials("one", "a:b")
    assert known.basic == "Basic " + base64.b64encode(b"one:a:b").decode()


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{",
        '{"auths":[1]}',
        '{"auths":{"registry.example":{"auth":"!"}}}',
        '{"auths":{"registry.example":{"auth":"YQ=="}}}',
    ],
)
def test_a_file_that_makes_no_sense_is_an_error_that_names_it(text: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError) as caught:
        found(tmp_path, text)
    assert str(caught.value.path).endswith("0.json")


def test_a_program_that_keeps_them_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "docker-credential-test"
    program.write_text(
        '#!/bin/sh\nread -r server\ncase "$server" in registry.example) echo \'{"Username":"u","Secret":"s"}\';;\n'
        'token.example) echo \'{"Username":"<token>","Secret":"t"}\';;\n'
        "none.example) echo 'credentials not found in native keychain'; exit 1;;\n*) echo broken; exit 1;; esac\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    helpers = {"credHelpers": {f"{name}.example": "test" for name in ("registry", "token", "none", "bad")}}
    assert found(tmp_path, helpers) == Credentials("u", "s")
    assert found(tmp_path, {"credsStore": "test"}) == Credentials("u", "s")
    assert found(tmp_path, helpers, place=Place("token.example", "os")) == Credentials("", "", "t")
    assert found(tmp_path, helpers, place=Place("none.example", "os")) is None
    with pytest.raises(CfsTagsError) as caught:
        found(tmp_path, helpers, place=Place("bad.example", "os"))
    assert caught.value.code == "program-failed"
    with pytest.raises(SystemFailure):
        found(tmp_path, {"credsStore": "absent"})
    with pytest.raises(FormatError):
        found(tmp_path, {"credsStore": "../../bin/sh"})


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        ("Basic", Challenge("basic")),
        ('Basic realm="x"', Challenge("basic", "x")),
        (
            'Bearer realm="https://t/a",service="s",scope="repository:a:pull"',
            Challenge("bearer", "https://t/a", "s", "repository:a:pull"),
        ),
        ("Bearer", None),
        ("Negotiate", None),
        ("", None),
    ],
)
def test_challenges(header: str, wanted: Challenge | None) -> None:
    assert credentials.parse_challenge(header) == wanted


# -- a hostile registry ---------------------------------------------------------------------------------------------------


class Hostile:
    """A server that answers as it is told: status, headers, body; a body may be an endless iterator."""

    def __init__(self) -> None:
        self.answer: Callable[[str, str, Any], tuple[int, dict[str, str], Any]] = lambda method, path, headers: (404, {}, b"")
        self.asked: list[tuple[str, str, str | None]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _serve(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                outer.asked.append((self.command, self.path, self.headers.get("Authorization")))
                status, headers, body = outer.answer(self.command, self.path, self.headers)
                self.send_response_only(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                if isinstance(body, bytes):
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    if self.command != "HEAD":
                        self.wfile.write(body)
                    return
                self.send_header("Connection", "close")
                self.end_headers()
                try:
                    for piece in body:
                        self.wfile.write(piece)
                except OSError:
                    pass
                self.close_connection = True

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_PATCH = _serve

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def hostile() -> Iterator[Hostile]:
    made = Hostile()
    yield made
    made.close()


@pytest.fixture
def client(hostile: Hostile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setattr("cfs_tags.remote.transport._BACKOFF", 0.01)
    files = tmp_path / "auth.json"
    files.write_text(json.dumps({"auths": {hostile.address: auth("user", "secret")}}))
    with closing(Client(Place(hostile.address, "os"), Access([str(files)]))) as made:
        yield made


def endless(piece: bytes = b"x" * 65536) -> Iterator[bytes]:
    while True:
        yield piece


def test_an_answer_without_an_end_is_cut(client: Client, hostile: Hostile) -> None:
    hostile.answer = lambda method, path, headers: (200, {}, endless())
    for ask in (lambda: client.get("latest"), client.tags, lambda: client.blob(Digest.of(b"x"), 1000)):
        with pytest.raises(FormatError):
            ask()
    hostile.answer = lambda method, path, headers: (500, {}, endless())
    with pytest.raises((CfsTagsError, FormatError)):
        client.get("latest")


def test_an_answer_that_trickles_is_cut(client: Client, hostile: Hostile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cfs_tags.remote.pool.WHOLE", 0.5)

    def slowly() -> Iterator[bytes]:
        while True:
            time.sleep(0.05)
            yield b" "

    hostile.answer = lambda method, path, headers: (200, {}, slowly())
    began = time.monotonic()
    with pytest.raises(FormatError):
        client.tags()
    assert time.monotonic() - began < 5


def test_pages_without_an_end_are_an_error(client: Client, hostile: Hostile) -> None:
    hostile.answer = lambda method, path, headers: (200, {"Link": f'<{path}>; rel="next"'}, b'{"tags":["a"]}')
    with pytest.raises(FormatError):
        client.tags()
    hostile.answer = lambda method, path, headers: (
        200,
        {"Link": '<http://127.0.0.1:1/v2/os/tags/list?last=a>; rel="next"'} if "last" not in path else {},
        b'{"tags":["a"]}',
    )
    assert client.tags() == ["a", "a"]  # the next page is asked of the same registry, whatever it says
    assert [path for _, path, _ in hostile.asked][-1] == "/v2/os/tags/list?last=a"


@pytest.mark.parametrize("path", ["//127.0.0.1:1/v2/os/tags/list?last=a", "http://127.0.0.1:1//127.0.0.1:1/x?last=a"])
def test_the_next_page_is_of_the_same_registry_however_it_is_written(path: str, client: Client, hostile: Hostile) -> None:
    link = {"Link": f'<{path}>; rel="next"'}
    hostile.answer = lambda method, path, headers: (200, {} if "last" in path else link, b'{"tags":["a"]}')
    assert client.tags() == ["a", "a"]


def test_what_can_be_no_tag_is_passed_over(client: Client, hostile: Hostile) -> None:
    """Pages of a few tags of many megabytes would fill the memory."""
    said = json.dumps({"tags": ["a", "b" * 129, "c" * 1_000_000, "", "d e", "host-\u00e9", "e"]}).encode()
    hostile.answer = lambda method, path, headers: (200, {}, said)
    assert client.tags() == ["a", "e"]


@pytest.mark.parametrize("body", [b"", b"[]", b'{"tags":[1]}', b'{"tags":{}}', b"\xff", b"[" * 100_000])
def test_lists_that_make_no_sense_are_errors(body: bytes, client: Client, hostile: Hostile) -> None:
    hostile.answer = lambda method, path, headers: (200, {}, body)
    with pytest.raises(FormatError):
        client.tags()


def test_another_manifest_than_that_of_the_digest_is_refused(client: Client, hostile: Hostile) -> None:
    hostile.answer = lambda method, path, headers: (200, {"Docker-Content-Digest": Digest.of(b"{}")}, b"[]")
    with pytest.raises(DamagedError):
        client.get(Digest.of(b"{}"))
    with pytest.raises(DamagedError):
        client.get("latest")
    with pytest.raises(DamagedError):
        client.blob(Digest.of(b"{}"), 100)


@pytest.mark.parametrize("said", ["", "sha256:0", "x" * 60_000, "sha256:" + "g" * 64])
def test_a_digest_that_is_none_is_an_error(said: str, client: Client, hostile: Hostile) -> None:
    hostile.answer = lambda method, path, headers: (200, {"Docker-Content-Digest": said}, b"")
    with pytest.raises(FormatError):
        client.head("latest")


def test_a_redirection_gets_no_credentials(client: Client, hostile: Hostile) -> None:
    other = Hostile()
    try:
        client.transport.challenge = Challenge("basic")
        body = b"{}"
        hostile.answer = lambda method, path, headers: (307, {"Location": f"http://{other.address}/blob"}, b"")
        other.answer = lambda method, path, headers: (200, {}, body)
        assert client.blob(Digest.of(body), 100) == body
        assert hostile.asked[0][2] == "Basic " + base64.b64encode(b"user:secret").decode()
        assert [one[2] for one in other.asked] == [None]
        hostile.answer = lambda method, path, headers: (307, {"Location": path}, b"")
        with pytest.raises(CfsTagsError):
            client.head("latest")
    finally:
        other.close()


def test_an_upload_that_is_sent_elsewhere_takes_no_credentials_along(client: Client, hostile: Hostile) -> None:
    other = Hostile()
    try:
        client.transport.challenge = Challenge("basic")
        hostile.answer = lambda method, path, headers: (202, {"Location": f"http://{other.address}/up"}, b"")
        other.answer = lambda method, path, headers: (201, {}, b"")
        client.upload(Digest.of(b"x"), [b"x"])
        assert [one[2] for one in other.asked] == [None]
    finally:
        other.close()


@pytest.mark.parametrize("challenge", ['Basic realm="x"', 'Bearer realm="http://{0}/token",service="s"'])
def test_a_server_that_the_registry_sends_us_to_is_not_told_the_password_though_it_asks(
    challenge: str, client: Client, hostile: Hostile
) -> None:
    other = Hostile()
    wanted = {"WWW-Authenticate": challenge.format(other.address)}
    other.answer = lambda method, path, headers: (200, {}, b'{"token":"t"}') if "token" in path else (401, wanted, b"")
    try:
        hostile.answer = lambda method, path, headers: (307, {"Location": f"http://{other.address}/blob"}, b"")
        with pytest.raises(RefusedError):
            client.get("latest")
        hostile.answer = lambda method, path, headers: (202, {"Location": f"http://{other.address}/up"}, b"")
        with pytest.raises(RefusedError):
            client.upload(Digest.of(b"x"), [b"x"])
        assert [one for one in other.asked if one[2] is not None or "token" in one[1]] == []
        assert client.transport.challenge is None
    finally:
        other.close()


@pytest.mark.parametrize("where", ["http://[::1", "//[", "http://a..b/", "http://127.0.0.1:99999/", "ftp://x/"])
def test_an_address_that_is_none_is_an_error(where: str, client: Client, hostile: Hostile) -> None:
    answers: list[tuple[int, dict[str, str], Callable[[], object]]] = [
        (307, {"Location": where}, lambda: client.get("latest")),
        (202, {"Location": where}, lambda: client.upload(Digest.of(b"x"), [b"x"])),
        (401, {"WWW-Authenticate": f'Bearer realm="{where}"'}, lambda: client.get("latest")),
    ]
    for status, headers, ask in answers:
        hostile.answer = lambda method, path, _, said=(status, headers, b""): said  # type: ignore[misc]
        with pytest.raises(CfsTagsError):
            ask()
    client.transport.challenge = None
    hostile.answer = lambda method, path, headers: (200, {"Link": '<http://[>; rel="next"'}, b'{"tags":["a"]}')
    with pytest.raises(FormatError):
        client.tags()


@pytest.mark.parametrize("said", ["soon", "-5", "1e9", "Wed, 99"])
def test_a_wait_that_makes_no_sense_is_not_taken(said: str, client: Client, hostile: Hostile) -> None:
    answers = iter([(429, {"Retry-After": said}, b""), (404, {}, b"")])
    hostile.answer = lambda method, path, headers: next(answers)
    assert client.head("latest") is None


def test_a_manifest_of_another_algorithm_is_checked_too(client: Client, hostile: Hostile) -> None:
    hostile.answer = lambda method, path, headers: (200, {}, b"{}")
    found = client.get(Digest.of(b"{}", "sha512"))
    assert found is not None
    assert found.data == b"{}"
    assert client.blob(Digest.of(b"{}", "sha384"), 100) == b"{}"
    for ask in (lambda: client.get(Digest.of(b"x", "sha512")), lambda: client.blob(Digest.of(b"x", "sha512"), 100)):
        with pytest.raises(DamagedError):
            ask()


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (b"HTTP/1.1 200 OK\r\n", b"x"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n", b"X: y\r\n" * 100),
    ],
    ids=["head", "continue", "trailer"],
)
def test_what_is_no_body_has_an_end_too(start: bytes, piece: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cfs_tags.remote.pool.WHOLE", 0.3)
    monkeypatch.setattr("cfs_tags.remote.transport._BACKOFF", 0.01)

    def trickle(connection: socket.socket, _: bytes) -> None:
        connection.sendall(start)
        while True:  # until it is closed there
            connection.sendall(piece)
            threading.Event().wait(0.05 if len(piece) == 1 else 0)

    with answering(trickle) as address, closing(Client(Place(address.partition("//")[2], "os"), Access())) as made:
        with pytest.raises(CfsTagsError) as caught:
            made.get("latest")
        assert caught.value.code == "registry-unreachable"


def test_waits_that_a_registry_asks_for_have_a_limit(client: Client, hostile: Hostile, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("cfs_tags.remote.transport.time.sleep", slept.append)
    hostile.answer = lambda method, path, headers: (429, {"Retry-After": "31536000"}, b"")
    with pytest.raises(CfsTagsError) as caught:
        client.head("latest")
    assert caught.value.code == "registry-failed"
    assert slept
    assert max(slept) <= 60


@pytest.mark.parametrize("realm", ["", "ftp://x/y", "/token", "file:///etc/passwd", "http://", "http://127.0.0.1:1/token"])
def test_a_token_server_that_is_none_is_an_error(realm: str, client: Client, hostile: Hostile) -> None:
    hostile.answer = lambda method, path, headers: (401, {"WWW-Authenticate": f'Bearer realm="{realm}",service="s"'}, b"")
    with pytest.raises(CfsTagsError):
        client.head("latest")


@pytest.mark.parametrize("body", [b"", b"{}", b'{"token":"a b"}', b'{"token":"a\\r\\nX: y"}', b'{"token":1}', b"x" * 100_000])
def test_a_token_that_is_none_is_an_error(body: bytes, client: Client, hostile: Hostile) -> None:
    def answer(method: str, path: str, headers: Any) -> tuple[int, dict[str, str], bytes]:
        if path.startswith("/token"):
            return 200, {}, body
        return 401, {"WWW-Authenticate": f'Bearer realm="http://{hostile.address}/token",service="s"'}, b""

    hostile.answer = answer
    with pytest.raises(FormatError):
        client.head("latest")


def test_credentials_that_are_never_enough_are_asked_for_once(client: Client, hostile: Hostile) -> None:
    def answer(method: str, path: str, headers: Any) -> tuple[int, dict[str, str], bytes]:
        if path.startswith("/token"):
            return 200, {}, b'{"token":"t"}'
        return 401, {"WWW-Authenticate": f'Bearer realm="http://{hostile.address}/token",service="s"'}, b""

    hostile.answer = answer
    with pytest.raises(RefusedError):
        client.head("latest")
    assert len(hostile.asked) == 3


def test_the_time_of_the_registry_may_be_anything(client: Client, hostile: Hostile) -> None:
    for date in ("", "yesterday", "Thu, 01 Jan 99999 00:00:00 GMT", "Thu, 01 Jan 1970 00:00:00 GMT"):
        hostile.answer = lambda method, path, headers, date=date: (404, {"Date": date}, b"")  # type: ignore[misc]
        assert client.head("latest") is None
    assert client.transport.offset is not None


def test_credentials_are_not_sent_without_tls_for_a_registry_with_it(tmp_path: Path) -> None:
    client = Client(Place("registry.example", "os"), Access())
    with pytest.raises(RefusedError):
        client.transport._token(Challenge("bearer", "http://token.example/", "s"), Credentials("u", "p"), ["x"])
