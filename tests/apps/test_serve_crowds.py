"""The registry under many clients, slow ones and long look-ups: who gets what, and who has to wait or go."""

from __future__ import annotations

import asyncio
import http.client
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfs_tags import Repository
from cfs_tags.apps import filling, httpd, served, turns
from cfs_tags.apps.logs import Log
from cfs_tags.apps.places import Full, Places
from cfs_tags.apps.served import Catalog
from cfs_tags.values import Digest
from support.images import Image, Layer, build_image, directory, file, random_bytes
from support.importing import import_image
from support.serving import client, exclusive, fetch, program, serving

LARGE = 24_000_000
OTHER_ADDRESS = "127.0.0.2"


@pytest.fixture
def large(repo: Path, tmp_path: Path) -> Image:
    """An image with one layer that no socket takes at once."""
    layer = Layer([directory("usr"), file("usr/f", random_bytes("f", LARGE))], "none")
    image = build_image(tmp_path / "layout", "large", [layer])
    import_image(repo, image.source, "large:1")
    return image


def path_of(image: Image) -> str:
    return f"/v2/large/blobs/{image.diff_ids[0]}"


@contextmanager
def crowd(address: str, count: int, path: str | None = None) -> Iterator[list[socket.socket]]:
    """Connections that send a request for ``path``, if there is one, and read nothing."""
    host, _, port = address.rpartition(":")
    made: list[socket.socket] = []
    try:
        for _ in range(count):
            made.append(socket.create_connection((host, int(port)), 20))
            if path is not None:
                made[-1].sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        yield made
    finally:
        for connection in made:
            connection.close()


def from_elsewhere(address: str, path: str, timeout: float = 5.0) -> tuple[int, int]:
    """Status and length of what a client with another address gets."""
    host, _, port = address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=timeout, source_address=(OTHER_ADDRESS, 0))
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, len(response.read())
    finally:
        connection.close()


# -- places ------------------------------------------------------------------------------------------------------------


def never() -> bool:
    return False


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_a_place_goes_to_who_has_the_fewest_of_those_that_wait() -> None:
    async def run() -> list[str]:
        found = Places(4, 100)
        order: list[str] = []

        async def one(peer: str) -> None:
            if await found.wait(peer, 5, never):
                order.append(peer)

        assert [found.enter("greedy") for _ in range(4)] == [True, True, True, False]
        assert found.enter("modest")
        assert not found.enter("late")
        waiting = [asyncio.create_task(one(peer)) for peer in ("greedy", "modest", "late")]
        await settle()
        found.leave("greedy")
        await settle()
        found.leave("greedy")
        await settle()
        found.leave("greedy")
        await asyncio.gather(*waiting)
        return order

    assert asyncio.run(run())[0] == "late"


def test_the_queue_is_short_and_who_is_gone_is_not_in_it() -> None:
    async def run() -> None:
        found = Places(1, 2)
        assert found.enter("a")
        gone = False
        first = asyncio.create_task(found.wait("b", 5, lambda: gone))
        second = asyncio.create_task(found.wait("c", 5, never))
        await settle()
        with pytest.raises(Full):
            await found.wait("d", 5, never)
        gone = True
        assert not await first
        third = asyncio.create_task(found.wait("d", 0.01, never))
        await settle()
        assert not await third
        found.leave("a")
        assert await second
        assert not found.enter("a")
        found.leave("c")
        assert found.enter("a")

    asyncio.run(run())


@given(
    st.integers(1, 6),
    st.integers(1, 6),
    st.lists(st.tuples(st.sampled_from(["enter", "wait", "leave", "cancel"]), st.sampled_from("abc")), max_size=60),
)
def test_whatever_comes_and_goes_no_place_is_lost_or_had_twice(count: int, queue: int, steps: list[tuple[str, str]]) -> None:
    async def run() -> None:
        found = Places(count, queue)
        has: Counter[str] = Counter()
        waiting: list[tuple[str, asyncio.Task[bool]]] = []

        async def take() -> None:
            await settle()
            for peer, task in list(waiting):
                if task.done():
                    waiting.remove((peer, task))
                    if not task.cancelled() and task.exception() is None and task.result():
                        has[peer] += 1
            assert has.total() <= count

        for step, peer in steps:
            if step == "enter" and found.enter(peer):
                has[peer] += 1
            elif step == "wait":
                waiting.append((peer, asyncio.create_task(found.wait(peer, 100, never))))
            elif step == "leave" and has[peer]:
                has[peer] -= 1
                found.leave(peer)
            elif step == "cancel" and waiting:
                waiting[0][1].cancel()
            await take()
        for _, task in waiting:
            task.cancel()
        await take()
        for peer in list(has.elements()):
            found.leave(peer)
        assert all(found.enter(str(number)) for number in range(count))
        assert not found.enter("more")

    asyncio.run(run())


# -- connections -------------------------------------------------------------------------------------------------------


def test_a_thousand_connections_that_each_want_a_layer_shut_nobody_out(repo: Path, large: Image, tmp_path: Path) -> None:
    with program(repo, tmp_path / "log") as running, crowd(running.address, 1000, path_of(large)) as made:
        assert fetch(running.address, "/v2/").status == 200
        assert fetch(running.address, "/v2/large/manifests/1").status == 200
        assert fetch(running.address, path_of(large)).status == 429
        assert from_elsewhere(running.address, path_of(large)) == (200, len(large.layers[0].tar))
        statuses: Counter[bytes] = Counter()
        for connection in made:
            connection.settimeout(0.001)
            try:
                statuses[connection.recv(12)] += 1
            except TimeoutError:
                statuses[b"none"] += 1
        assert statuses[b"HTTP/1.1 429"] > 800
        assert 10 <= statuses[b"HTTP/1.1 200"] <= httpd.BODIES
        assert statuses[b"none"] <= httpd.QUEUE
        assert running.stop() == 0


def test_a_connection_is_not_closed_for_another_while_it_is_young(
    repo: Path, large: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(httpd, "CONNECTIONS", 5)
    monkeypatch.setattr(httpd, "YOUNG_SECONDS", 1.5)
    with serving(repo) as running, crowd(running.address, 5) as made:
        began = time.monotonic()
        assert fetch(running.address, "/v2/").status == 200  # waits until one is old enough
        assert time.monotonic() - began > 1
        made[-1].sendall(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n")
        assert made[-1].recv(12) == b"HTTP/1.1 200"
        assert made[0].recv(1) == b""


def test_one_address_never_has_all_connections(repo: Path, large: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(httpd, "CONNECTIONS", 12)
    with serving(repo) as running, crowd(running.address, 30) as made:
        assert from_elsewhere(running.address, "/v2/")[0] == 200
        assert [connection.recv(1) for connection in made[11:]] == [b""] * 19
        made[0].sendall(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n")
        assert made[0].recv(12) == b"HTTP/1.1 200"


# -- readers -----------------------------------------------------------------------------------------------------------


def test_readers_of_one_address_leave_places_for_those_of_others(
    repo: Path, large: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(httpd, "BODIES", 4)
    with serving(repo) as running, crowd(running.address, 10, path_of(large)):
        time.sleep(0.3)
        assert from_elsewhere(running.address, path_of(large)) == (200, len(large.layers[0].tar))


def test_who_finds_the_queue_full_is_told_at_once(repo: Path, large: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(httpd, "BODIES", 1)
    monkeypatch.setattr(httpd, "QUEUE", 4)
    with serving(repo) as running, crowd(running.address, 4, path_of(large)) as made:
        time.sleep(0.3)
        began = time.monotonic()
        answer = fetch(running.address, path_of(large))
        assert (answer.status, answer.headers["retry-after"]) == (429, "5")
        assert time.monotonic() - began < 1
        made[-1].close()  # who leaves is noticed, and its place in the queue is another's
        time.sleep(1.5)
        with crowd(running.address, 1, path_of(large)) as more:
            more[0].settimeout(0.5)
            with pytest.raises(TimeoutError):
                more[0].recv(12)


def test_a_reader_that_takes_too_little_is_cut_off(repo: Path, large: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(httpd, "GRACE_SECONDS", 1.0)
    monkeypatch.setattr(httpd, "SLOWEST", 32 << 20)
    with serving(repo) as running:
        connection = client(running.address)
        connection.request("GET", path_of(large))
        response = connection.getresponse()
        began = time.monotonic()
        size = 0
        with suppress(http.client.IncompleteRead, ConnectionError):
            while piece := response.read(50_000):
                size += len(piece)
                time.sleep(0.05)
                assert time.monotonic() - began < 15
        assert size < LARGE
        connection.close()
        assert "cut short: the reader is too slow" in running.log[-1]


def test_a_reader_that_rests_for_less_than_the_limit_gets_everything(
    repo: Path, large: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(httpd, "LOCK_STALL", 0.1)
    monkeypatch.setattr(httpd, "STALL_SECONDS", 2.0)
    with serving(repo) as running:
        connection = client(running.address)
        connection.request("GET", path_of(large))
        response = connection.getresponse()
        found = b""
        while piece := response.read(6_000_000):
            found += piece
            time.sleep(0.7)
        assert found == large.layers[0].tar
        connection.close()


def test_the_end_of_a_layer_of_many_files_is_looked_for_without_holding_up_others(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file before the part is looked at: that is no look-up, which is one at a time, and is done a little at a time."""
    files = [file(f"usr/{number}", b"%03d" % number * 1500) for number in range(400)]
    image = build_image(tmp_path / "layout", "app", [Layer([directory("usr"), *files], "none")])
    import_image(repo, image.source, "many:1")
    plain, size_of = httpd.layer_chunks, filling._size_of

    def near_only(opened: Any, stream: Any, *, start: int = 0) -> Any:
        assert start <= httpd._NEAR
        return plain(opened, stream, start=start)

    def slow(opened: Any, name: Any) -> int:
        time.sleep(0.01)
        return size_of(opened, name)

    monkeypatch.setattr(httpd, "layer_chunks", near_only)
    monkeypatch.setattr(filling, "_size_of", slow)
    monkeypatch.setattr(httpd, "GRACE_SECONDS", 0.5)  # who waits for us is not slow
    monkeypatch.setattr(turns, "TURN", 0.5)
    tar = image.layers[0].tar
    path = f"/v2/many/blobs/{image.diff_ids[0]}"
    with serving(repo) as running, ThreadPoolExecutor(4) as readers:
        found = [
            readers.submit(fetch, running.address, path, "GET", {"Range": f"bytes={len(tar) - 2000 - number}-"})
            for number in range(4)
        ]
        time.sleep(0.3)
        began = time.monotonic()
        assert fetch(running.address, "/v2/many/tags/list").json["tags"] == ["1"]
        assert fetch(running.address, path, headers={"Range": "bytes=0-511"}).body == tar[:512]
        assert fetch(running.address, path).body == tar
        assert exclusive(repo, 5) < 2.0
        assert time.monotonic() - began < 3.0
        assert not any(one.done() for one in found)
        gone = client(running.address)
        gone.request("GET", path, headers={"Range": "bytes=1800000-"})
        time.sleep(0.2)
        gone.close()
        for number, one in enumerate(found):
            assert (one.result().status, one.result().body) == (206, tar[-2000 - number :])
    assert sum("cut short: Connection reset by peer" in line for line in running.log) == 1


# -- look-ups ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def many(repo: Path, tmp_path: Path) -> list[Image]:
    """A repository of thirty images."""
    layer = Layer([directory("usr"), file("usr/f", b"x" * 70)], "none")
    made = []
    for number in range(30):
        made.append(build_image(tmp_path / "layout", "app", [layer], labels={"n": str(number)}))
        import_image(repo, made[-1].source, f"app:{number}")
    return made


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> list[Digest]:
    """Reading a manifest takes long; those that were read."""
    read: list[Digest] = []
    load = served._manifest

    def wait(repo: Any, digest: Digest) -> Any:
        read.append(digest)
        time.sleep(0.1)
        return load(repo, digest)

    monkeypatch.setattr(served, "_manifest", wait)
    return read


def absent(number: int) -> Digest:
    return Digest(f"sha256:{number:064x}")


def test_of_every_manifest_as_much_is_remembered_as_says_what_blobs_it_names(
    repo: Path, many: list[Image], slow: list[Digest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served, "_CACHE", 1)
    with Repository.open(repo) as opened:
        catalog = Catalog(opened)
        assert catalog.blob("app", absent(1)) is None
        assert len(slow) == len(many)
        for number in range(20):
            assert catalog.blob("app", absent(number)) is None
            assert catalog.by_digest("app", absent(number)) is None
        assert len(slow) == len(many)
        import_image(repo, many[0].source, "other:1")  # what is shown changes
        assert catalog.blob("app", absent(1)) is None
        assert len(slow) == len(many)
        found = catalog.blob("app", Digest(many[7].config_digest))
        assert found is not None
        assert len(slow) == len(many) + 1


def test_a_long_look_up_lets_others_have_their_turn_and_goes_on(
    repo: Path, many: list[Image], slow: list[Digest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(httpd, "LOOK_UP_SECONDS", 0.2)
    with serving(repo) as running, ThreadPoolExecutor(1) as other:
        long = other.submit(fetch, running.address, f"/v2/app/blobs/{absent(1)}")
        time.sleep(0.5)
        began = time.monotonic()
        assert fetch(running.address, "/v2/app/manifests/29").status == 200
        assert time.monotonic() - began < 1.5
        assert not long.done()
        assert long.result(20).status == 404
    assert len(slow) <= len(many) + 1


def test_look_ups_that_wait_for_each_other_leave_a_collector_its_turn(
    repo: Path, many: list[Image], slow: list[Digest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "TURN", 0.5)
    monkeypatch.setattr(httpd, "LOOK_UP_SECONDS", 0.2)
    with serving(repo, lock_timeout=20) as running, ThreadPoolExecutor(40) as others:
        asked = [others.submit(fetch, running.address, f"/v2/app/blobs/{absent(number)}") for number in range(40)]
        time.sleep(0.3)
        assert exclusive(repo, 2) < 2
        assert not all(one.done() for one in asked)
        assert {one.result(30).status for one in asked} == {404}


def test_a_look_up_whose_turn_does_not_come_is_told_to_come_back(repo: Path, many: list[Image], slow: list[Digest]) -> None:
    with serving(repo, lock_timeout=0.3) as running, ThreadPoolExecutor(1) as other:
        long = other.submit(fetch, running.address, f"/v2/app/blobs/{absent(1)}")
        time.sleep(0.2)
        answer = fetch(running.address, "/v2/app/manifests/29")
        assert (answer.status, answer.code, answer.headers["retry-after"]) == (503, "UNAVAILABLE", "5")
        assert fetch(running.address, "/v2/").status == 200
        assert long.result(20).status == 404


# -- ends --------------------------------------------------------------------------------------------------------------


def test_what_a_worker_uses_is_not_let_go_of_before_it_ends_however_often_it_is_told_to() -> None:
    end = threading.Event()

    async def run(pool: ThreadPoolExecutor) -> None:
        task = asyncio.create_task(httpd._finish(pool.submit(end.wait)))
        for _ in range(3):
            await asyncio.sleep(0.01)
            task.cancel()
        await asyncio.sleep(0.01)
        assert not task.done()
        end.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    with ThreadPoolExecutor(1) as pool:
        asyncio.run(run(pool))


def test_a_log_drops_what_is_not_read_and_says_so() -> None:
    read, go_on = [], threading.Event()

    def write(text: str) -> None:
        go_on.wait()
        read.extend(text.splitlines())

    with Log(write) as log:
        for number in range(5000):
            log(str(number))
        go_on.set()
    said = [line for line in read if "dropped" in line]
    dropped = sum(int(line.split()[1]) for line in said)
    assert dropped > 3000
    assert len(read) - len(said) == 5000 - dropped
