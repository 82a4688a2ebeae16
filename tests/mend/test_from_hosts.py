"""``fsck --repair --from http://…``: another host's ``cfs-tag serve``, and a registry of another kind."""

from __future__ import annotations

import os
import random
import socket
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from cfs_tags import Repository
from cfs_tags.apps.importing.source import http
from cfs_tags.errors import SourceFailed, SourceNotFound, UsageError
from cfs_tags.values import Digest
from mend.conftest import Repair
from support.images import app_image, base_layer, random_bytes
from support.importing import import_image
from support.mending import Layers, answering, assert_whole, everything, head
from support.peers import Cfsctl
from support.serving import serving
from support.trees import copy_tree

SEED = int(os.environ.get("CFS_TAGS_SEED", "0"))


@pytest.fixture
def other(repo: Path, tmp_path: Path) -> Path:
    """The repository of another host."""
    return copy_tree(repo, tmp_path / "other")


@pytest.mark.parametrize("attempt", range(4))
def test_what_is_lost_at_random_comes_back_from_another_host(
    attempt: int, repo: Path, other: Path, repair: Repair, cfsctl: Cfsctl
) -> None:
    chance = random.Random(SEED + attempt)
    whole = Layers(repo)
    for path in chance.sample(everything(repo), 6):
        path.unlink()
    lacking = whole.lacking(repo)
    plain = sum(whole.plain[digest] for digest in lacking)
    with serving(other, ["*"]) as served:
        done = repair(repo, "--from", f"http://{served.address}")
    assert_whole(cfsctl, repo)
    assert done["mended"]["left"] == []
    fetched = sum(one["bytes"] for one in done["mended"]["fetched"])
    assert fetched <= 1.2 * plain, (fetched, plain)


def test_tags_alone_are_enough_and_digests_stay(repo: Path, other: Path, repair: Repair, cfsctl: Cfsctl) -> None:
    """The other host serves its layers uncompressed, under another manifest; the one that an image came with is had, too."""
    for path in everything(repo):
        path.unlink()
    with serving(other, ["*"]) as served:
        done = repair(repo, "--from", f"http://{served.address}")
    assert done["mended"]["left"] == []
    assert_whole(cfsctl, repo)


def test_nothing_comes_of_what_the_other_host_does_not_show(repo: Path, other: Path, repair: Repair) -> None:
    for path in everything(repo):
        path.unlink()
    with serving(other, ["quay.io/apps/web*"]) as served:
        done = repair(repo, "--from", f"http://{served.address}", status=6)
    assert len(done["mended"]["images"]) == 2  # and its signature
    assert {one["code"] for one in done["mended"]["left"]} == {"source-not-found"}


def test_an_image_is_imported_from_another_host_under_the_manifest_that_it_came_with(
    new_repo: Callable[..., Path], other: Path, tmp_path: Path, cfsctl: Cfsctl
) -> None:
    mine = new_repo(tmp_path / "mine")
    with serving(other) as served:
        import_image(mine, f"http://{served.address}/quay.io/apps/web:1", "web")
    with Repository.open(mine) as opened, Repository.open(other) as origin:
        assert opened.tags.resolve("web") == origin.tags.resolve("quay.io/apps/web:1")
    cfsctl.assert_healthy(mine)


def test_a_layer_that_is_there_already_is_not_asked_for_in_a_form_that_the_other_host_does_not_have(
    new_repo: Callable[..., Path], other: Path, tmp_path: Path
) -> None:
    mine = new_repo(tmp_path / "mine")
    import_image(mine, app_image(tmp_path / "layout", "base", [base_layer(size=90_000)]).source, "base")
    with Repository.open(mine, write=True) as opened:
        opened.tags.delete("base")
    for path in (mine / "streams").glob("oci-manifest-*"):
        path.unlink()  # what proves which blob the layer is
    with serving(other) as served:
        import_image(mine, f"http://{served.address}/quay.io/apps/web:1", "web")


# -- hosts that mean ill -----------------------------------------------------------------------------------------------


ILL: dict[str, Callable[[socket.socket, bytes], None]] = {
    "says nothing": lambda connection, _: None,
    "is no HTTP": lambda connection, _: connection.sendall(b"SSH-2.0-none\r\n" * 5),
    "fails": lambda connection, _: connection.sendall(head("500 No", "Content-Length: 0")),
    "leads elsewhere": lambda connection, _: connection.sendall(head("307 No", "Location: http://127.0.0.1:1/x")),
    "asks for a password": lambda connection, _: connection.sendall(head("401 No", "WWW-Authenticate: Basic")),
    "breaks off": lambda connection, _: connection.sendall(head("200 OK", "Content-Length: 100000") + b"x" * 100),
    "gives other bytes": lambda connection, _: connection.sendall(head("200 OK", "Content-Length: 10") + b"0123456789"),
    "has a long head": lambda connection, _: connection.sendall(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 10_000),
    "gives without end": lambda connection, _: endless(connection),
}


def endless(connection: socket.socket) -> None:
    connection.sendall(head("200 OK"))
    while True:  # until it is closed there
        connection.sendall(random_bytes("endless", 1 << 16))


@pytest.mark.parametrize("ill", ILL)
def test_a_host_that_means_ill_is_passed_over_and_the_next_is_asked(
    ill: str, repo: Path, other: Path, repair: Repair, cfsctl: Cfsctl
) -> None:
    for path in random.Random(SEED).sample(everything(repo), 9):
        path.unlink()
    with answering(ILL[ill]) as address, serving(other, ["*"]) as served:
        done = repair(repo, "--from", address, "--from", f"http://{served.address}")
    assert done["mended"]["left"] == []
    assert_whole(cfsctl, repo)


def read_to_the_end(body: http.Body) -> None:
    while body.read(1000):
        pass


def test_a_host_that_is_too_slow_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_GRACE", 0.2)

    def slowly(connection: socket.socket, _: bytes) -> None:
        connection.sendall(head("200 OK", "Content-Length: 1000000"))
        for _ in range(40):
            connection.sendall(b"x")
            threading.Event().wait(0.05)

    with (
        answering(slowly) as address,
        closing(http.Server(address).blob(Digest.of(b""))) as body,
        pytest.raises(SourceFailed, match="too slow"),
    ):
        read_to_the_end(body)


def trickle(connection: socket.socket, start: bytes, piece: bytes) -> None:
    connection.sendall(start)
    while True:  # until it is closed there
        connection.sendall(piece)
        threading.Event().wait(0.05 if len(piece) < 100 else 0)


CHUNKED = head("200 OK", "Transfer-Encoding: chunked")
NO_BODY: dict[str, tuple[bytes, bytes]] = {
    "a head that trickles": (b"HTTP/1.1 200 OK\r\n", b"x"),
    "a head that never begins": (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
    "an error that trickles": (head("500 No"), b"x"),
    "the size of a chunk": (CHUNKED, b"1"),
    "a trailer": (CHUNKED + b"3\r\nabc\r\n0\r\n", b"X: y\r\n" * 100),
    "a trailer that trickles": (CHUNKED + b"3\r\nabc\r\n0\r\n", b"X: y\r\n"),
}


@pytest.mark.parametrize("what", NO_BODY)
def test_what_is_no_body_has_an_end_too(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_GRACE", 0.3)
    start, piece = NO_BODY[what]
    with (
        answering(lambda connection, _: trickle(connection, start, piece)) as address,
        pytest.raises(SourceFailed),
        closing(http.Server(address).blob(Digest.of(b""))) as body,
    ):
        read_to_the_end(body)


def test_chunks_of_one_byte_are_taken() -> None:
    data = b"1\r\nx\r\n" * 400_000 + b"0\r\n\r\n"
    with answering(lambda connection, _: connection.sendall(CHUNKED + data)) as address:
        assert http.Server(address).small("/", 1 << 20) == b"x" * 400_000


@pytest.mark.parametrize("source", ["http://127.0.0.1:1", "http://127.0.0.1:1/", "http://127.0.0.1:1/:1"])
def test_a_host_alone_is_no_image_to_import(source: str, repo: Path) -> None:
    with pytest.raises(UsageError, match="names no image"):
        import_image(repo, source, "web")


@pytest.mark.parametrize("host", ["a..b", ".a", "a" * 64 + ".example"])
def test_a_name_that_no_host_can_have_is_a_stable_error(host: str) -> None:
    with pytest.raises(SourceFailed):
        http.HttpSource(f"http://{host}/app:1")


def test_a_host_that_stays_silent_is_given_up() -> None:
    silent = threading.Event()
    with answering(lambda connection, _: silent.wait(2) and None) as address:
        with pytest.raises(SourceFailed, match="in time"):
            http.Server(address, patience=0.2).blob(Digest.of(b""))
        silent.set()


def test_a_host_that_stays_silent_is_waited_for_once(
    repo: Path, other: Path, repair: Repair, cfsctl: Cfsctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http.Server.__init__, "__defaults__", (0.5,))
    asked = []

    def silent(connection: socket.socket, request: bytes) -> None:
        asked.append(request)
        threading.Event().wait(0.8)

    for path in random.Random(SEED).sample(everything(repo), 20):
        path.unlink()
    with answering(silent) as address, serving(other, ["*"]) as served:
        done = repair(repo, "--from", address, "--from", f"http://{served.address}")
    assert done["mended"]["left"] == []
    assert len(asked) == 1
    assert_whole(cfsctl, repo)


def test_a_host_that_is_not_there_is_a_stable_error() -> None:
    with pytest.raises(SourceFailed) as raised:
        http.HttpSource("http://127.0.0.1:1").document(Digest.of(b""))
    assert raised.value.code == "source-failed"
    with pytest.raises(SourceFailed):
        http.HttpSource("http://127.0.0.1:1/app:1")


def test_what_is_not_there_is_not_found(other: Path) -> None:
    with serving(other) as served, pytest.raises(SourceNotFound):
        http.HttpSource(f"http://{served.address}").open(Digest.of(b"nothing"))


def test_memory_is_bounded_whatever_a_host_says_of_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    def states(connection: socket.socket, _: bytes) -> None:
        connection.sendall(head("200 OK") + b'{"layers":{' + b'"a":' * 100_000)

    with answering(states) as address, pytest.raises(SourceFailed):
        http.Server(address).states([Digest.of(b"")])
