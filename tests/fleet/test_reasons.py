"""What is said where the other side gives nothing: the cause, in plain words, for both clients of registries."""

from __future__ import annotations

import re
import shutil
import socket
import ssl
import struct
import subprocess
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import pytest

from cfs_tags.apps.importing.source import http
from cfs_tags.errors import CfsTagsError, UsageError
from cfs_tags.remote.client import Client
from cfs_tags.remote.names import Access, parse_place
from support.importing import import_image
from support.mending import answering
from support.peers import no_peer

LEAKS = re.compile(r"Error|Exception|Errno|_[a-zA-Z]|Incomplete|BadStatus|Remote[A-Z]|[()\[\]{}<>]|\\r|\d{3}\b")
"""What no message has: names of classes, numbers of errors, values as a program sees them."""

Answer = Callable[[socket.socket, bytes], None]


def reset(connection: socket.socket, _: bytes) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def said(data: bytes) -> Answer:
    return lambda connection, _: connection.sendall(data)


def silent(connection: socket.socket, _: bytes) -> None:
    with suppress(OSError):
        connection.recv(1)  # until it is closed there


OK = b"HTTP/1.1 200 OK\r\n"
CASES: dict[str, tuple[Answer, str]] = {
    "reset": (reset, "the connection was broken off"),
    "closed": (said(b""), "the connection was closed without an answer"),
    "silent": (silent, "there is no answer in time"),
    "another protocol": (said(b"SSH-2.0-OpenSSH_9\r\n\r\n"), "what answers there does not speak HTTP"),
    "cut short": (said(OK + b"Content-Length: 50\r\n\r\nabc"), "broke"),
    "chunks that are none": (said(OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc"), "the answer was broken off"),
    "a long line": (said(OK + b"X: " + b"a" * 100_000 + b"\r\n\r\n"), "the head of the answer is too long"),
    "many lines": (said(OK + b"X: a\r\n" * 200 + b"\r\n"), "the head of the answer is too long"),
}


def ask(address: str, access: Access) -> None:
    with closing(Client(parse_place(f"{address}/os"), access, again=0)) as client:
        client.get("latest")


def fetch(address: str, scheme: str = "http") -> None:
    http.Server(f"{scheme}://{address}", 0.3).small("/v2/", 1000)


def check(address: str, wanted: str, access: Access, scheme: str = "http") -> None:
    for call in (lambda: ask(address, access), lambda: fetch(address, scheme)):
        with pytest.raises(CfsTagsError) as caught:
            call()
        assert caught.value.code in ("registry-unreachable", "source-failed")
        text = caught.value.message.partition(address)[2]
        assert wanted in text, text
        assert LEAKS.search(text) is None, text


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cfs_tags.remote.transport._READ", 0.3)
    monkeypatch.setattr("cfs_tags.remote.transport._BACKOFF", 0.01)


@pytest.mark.parametrize("what", CASES)
def test_a_server_that_gives_nothing(what: str) -> None:
    answer, wanted = CASES[what]
    with answering(answer) as address:
        check(address.removeprefix("http://"), wanted, Access(plain=True))


def test_nothing_that_listens() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        check(f"127.0.0.1:{bound.getsockname()[1]}", "the connection is refused, nothing listens there", Access(plain=True))


@pytest.mark.parametrize(
    ("number", "wanted"),
    [(socket.EAI_NONAME, "its name is not known"), (socket.EAI_AGAIN, "no server of names answers")],
)
def test_a_name_that_is_not_known(number: int, wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def look(*_: object, **__: object) -> object:
        raise socket.gaierror(number, "whatever the system says")

    monkeypatch.setattr(socket, "getaddrinfo", look)
    check("registry.example:5000", wanted, Access(plain=True))


def test_a_network_that_leads_nowhere() -> None:
    check("[fe80::1]:5000", "no network leads there", Access(plain=True))  # names no link


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    openssl = shutil.which("openssl") or no_peer("openssl")
    key, made = tmp_path / "key.pem", tmp_path / "certificate.pem"
    words = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", made]
    subprocess.run([*words, "-subj", "/CN=other.example", "-days", "2"], check=True, capture_output=True)
    return key, made


@pytest.fixture
def registry_name(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a registry that is on this machine and not known to be."""
    look = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *words, **more: look("127.0.0.1", *words, **more))
    return "registry.example"


def test_a_certificate_that_is_not_trusted(certificate: tuple[Path, Path], registry_name: str) -> None:
    key, made = certificate
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made, key)

    def greet(connection: socket.socket, hello: bytes) -> None:
        came, to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
        came.write(hello)
        with suppress(ssl.SSLWantReadError):
            context.wrap_bio(came, to_send, server_side=True).do_handshake()
        connection.sendall(to_send.read())

    with answering(greet) as address:
        there = f"{registry_name}:{address.rpartition(':')[2]}"
        check(there, "its certificate is not trusted, self-signed certificate", Access(), "https")


def test_a_server_without_tls(registry_name: str) -> None:
    with answering(said(b"HTTP/1.1 400 no\r\n\r\n")) as address:
        there = f"{registry_name}:{address.rpartition(':')[2]}"
        check(there, "what answers there does not speak TLS", Access(), "https")


def test_a_file_that_is_no_certificate(tmp_path: Path) -> None:
    place = tmp_path / "registry.example"
    place.mkdir()
    (place / "ca.crt").write_text("nothing")
    with pytest.raises(CfsTagsError) as caught:
        ask("registry.example", Access(certificates=[str(tmp_path)]))
    assert LEAKS.search(caught.value.message) is None, caught.value.message


def test_a_proxy_that_is_away() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        proxy = f"http://127.0.0.1:{bound.getsockname()[1]}"
        for access in (Access(plain=True, proxies={"http": proxy}), Access(proxies={"https": proxy})):
            with pytest.raises(CfsTagsError, match="its proxy does not help, the connection is refused") as caught:
                ask("registry.example", access)
            assert LEAKS.search(caught.value.message) is None, caught.value.message


@pytest.mark.parametrize(
    "source", ["http://127.0.0.1:99999/app:1", "http://ho st:1/app:1", "http://user@127.0.0.1:1/app:1", "http:///app"]
)
def test_an_address_that_is_none_is_called_what_it_was_given_as(source: str, repo: Path) -> None:
    with pytest.raises(UsageError) as caught:
        import_image(repo, source, "web")
    assert caught.value.facts()["argument"] == "SOURCE"
    with pytest.raises(UsageError) as caught:
        http.Server(source)
    assert caught.value.facts()["argument"] == "peer"
