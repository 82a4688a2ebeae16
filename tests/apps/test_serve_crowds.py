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
from cfs_tags.apps import layer_tar
from cfs_tags.registry import manifests
from cfs_tags.registry.app import Limits, Places
from cfs_tags.registry.catalog import Catalog
from cfs_tags.registry.server import ConnectionLimits
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


class Visitor:
    """A client that waits for a place and keeps it until told to leave."""

    def __init__(self, places: Places, address: str) -> None:
        self.address = address
        self.has_one: bool | None = None
        self.leave = asyncio.Event()
        self.task = asyncio.create_task(self._stay(places))

    async def _stay(self, places: Places) -> None:
        async with places.of(self.address) as self.has_one:
            await self.leave.wait()


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_one_address_never_has_all_places_and_a_closed_client_leaves_the_queue() -> None:
    async def run() -> None:
        places = Places(Limits(bodies=4, queue=4, queue_seconds=5))
        greedy = [Visitor(places, "greedy") for _ in range(7)]
        await settle()
        assert [one.has_one for one in greedy] == [True, True, True, None, None, None, False]
        modest = Visitor(places, "modest")
        await settle()
        assert modest.has_one
        late = Visitor(places, "late")
        await settle()
        assert late.has_one is None
        greedy[3].task.cancel()
        await settle()
        again = Visitor(places, "greedy")
        modest.leave.set()
        await settle()
        assert (late.has_one, again.has_one) == (True, None)
        greedy[0].leave.set()
        await settle()
        assert [one.has_one for one in greedy[4:6]] == [True, None]
        for one in (*greedy, modest, late, again):
            one.task.cancel()
        await settle()

    asyncio.run(run())


def test_a_client_that_waits_too_long_gets_an_error() -> None:
    async def run() -> None:
        places = Places(Limits(bodies=1, queue=4, queue_seconds=0.01))
        first, second = Visitor(places, "a"), Visitor(places, "b")
        await asyncio.sleep(0.1)
        assert (first.has_one, second.has_one) == (True, False)
        first.leave.set()
        second.leave.set()
        await asyncio.gather(first.task, second.task)

    asyncio.run(run())


@given(
    st.integers(1, 6),
    st.integers(1, 6),
    st.lists(st.tuples(st.sampled_from(["come", "leave", "cancel"]), st.sampled_from("abc")), max_size=60),
)
def test_no_place_is_lost_or_taken_twice(count: int, queue: int, steps: list[tuple[str, str]]) -> None:
    async def run() -> None:
        places = Places(Limits(bodies=count, queue=queue, queue_seconds=100))
        visitors: list[Visitor] = []
        for step, address in steps:
            if step == "come":
                visitors.append(Visitor(places, address))
            elif step == "leave" and visitors:
                visitors.pop(0).leave.set()
            elif step == "cancel" and visitors:
                visitors.pop().task.cancel()
            await settle()
            assert sum(one.has_one is True for one in visitors) <= count
            assert sum(one.has_one is None for one in visitors) <= queue
        for one in visitors:
            one.task.cancel()
        await settle()
        fresh = [Visitor(places, str(number)) for number in range(count + 1)]
        await settle()
        assert [one.has_one for one in fresh] == [True] * count + [None]
        for one in fresh:
            one.task.cancel()
        await settle()

    asyncio.run(run())


# -- connections -------------------------------------------------------------------------------------------------------


def test_a_thousand_connections_that_each_want_a_layer_shut_no_client_out(repo: Path, large: Image, tmp_path: Path) -> None:
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
        assert 10 <= statuses[b"HTTP/1.1 200"] <= Limits().bodies
        assert statuses[b"none"] <= Limits().queue
        assert running.stop() == 0


def test_a_connection_is_not_closed_for_another_while_it_is_young(repo: Path, large: Image) -> None:
    limits = ConnectionLimits(connections=5, young_seconds=1.5)
    with serving(repo, connections=limits) as running, crowd(running.address, 5) as made:
        with pytest.raises((http.client.HTTPException, ConnectionError)):
            fetch(running.address, "/v2/")
        time.sleep(1.6)
        assert fetch(running.address, "/v2/").status == 200
        made[-1].sendall(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n")
        assert made[-1].recv(12) == b"HTTP/1.1 200"
        assert made[0].recv(1) == b""


def test_one_address_never_has_all_connections(repo: Path, large: Image) -> None:
    with serving(repo, connections=ConnectionLimits(connections=12)) as running, crowd(running.address, 30) as made:
        assert from_elsewhere(running.address, "/v2/")[0] == 200
        assert [connection.recv(1) for connection in made[11:]] == [b""] * 19
        made[0].sendall(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n")
        assert made[0].recv(12) == b"HTTP/1.1 200"


# -- readers -----------------------------------------------------------------------------------------------------------


def test_readers_of_one_address_leave_places_for_those_of_others(repo: Path, large: Image) -> None:
    with serving(repo, limits=Limits(bodies=4)) as running, crowd(running.address, 10, path_of(large)):
        time.sleep(0.3)
        assert from_elsewhere(running.address, path_of(large)) == (200, len(large.layers[0].tar))


def test_a_client_that_finds_the_queue_full_gets_an_error_at_once(repo: Path, large: Image) -> None:
    with serving(repo, limits=Limits(bodies=1, queue=4)) as running, crowd(running.address, 4, path_of(large)) as made:
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


def test_a_reader_that_takes_too_little_is_cut_off(repo: Path, large: Image) -> None:
    with serving(repo, limits=Limits(grace_seconds=1.0, slowest=32 << 20)) as running:
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


def test_a_reader_that_rests_for_less_than_the_limit_gets_everything(repo: Path, large: Image) -> None:
    with serving(repo, limits=Limits(stall_seconds=2.0)) as running:
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
    plain, size_of = layer_tar.blocks, layer_tar._size_of

    def near_only(opened: Any, stream: Any, *, start: int = 0, length: int | None = None) -> Any:
        assert start < len(tar) - 3000 or not threading.current_thread().name.startswith("look-up")
        return plain(opened, stream, start=start, length=length)

    def slow(opened: Any, name: Any) -> int:
        time.sleep(0.01)
        return size_of(opened, name)

    monkeypatch.setattr(layer_tar, "blocks", near_only)
    monkeypatch.setattr(layer_tar, "_size_of", slow)
    tar = image.layers[0].tar
    path = f"/v2/many/blobs/{image.diff_ids[0]}"
    limits = Limits(grace_seconds=0.5, slowest=1 << 30)  # who waits for us is not slow
    with serving(repo, limits=limits) as running, ThreadPoolExecutor(4) as readers:
        found = [
            readers.submit(fetch, running.address, path, "GET", {"Range": f"bytes={len(tar) - 2000 - number}-"})
            for number in range(4)
        ]
        time.sleep(0.3)
        began = time.monotonic()
        assert fetch(running.address, "/v2/many/tags/list").json["tags"] == ["1"]
        assert fetch(running.address, path, headers={"Range": "bytes=0-511"}).body == tar[:512]
        assert fetch(running.address, path).body == tar
        assert exclusive(repo, 5) < 0.5
        assert time.monotonic() - began < 3.0
        assert not any(one.done() for one in found)
        gone = client(running.address)
        gone.request("GET", path, headers={"Range": "bytes=1800000-"})
        time.sleep(0.2)
        gone.close()
        for number, one in enumerate(found):
            assert (one.result().status, one.result().body) == (206, tar[-2000 - number :])
    assert sum("cut short: the client is gone" in line for line in running.log) == 1


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
    load = manifests.manifest

    def wait(repo: Any, digest: Digest) -> Any:
        read.append(digest)
        time.sleep(0.1)
        return load(repo, digest)

    monkeypatch.setattr(manifests, "manifest", wait)
    return read


def absent(number: int) -> Digest:
    return Digest(f"sha256:{number:064x}")


def test_of_every_manifest_as_much_is_remembered_as_says_what_blobs_it_names(
    repo: Path, many: list[Image], slow: list[Digest]
) -> None:
    with Repository.open(repo) as opened:
        shown = Catalog(opened, cache=1)
        assert shown.blob("app", absent(1)) is None
        assert len(slow) == len(many)
        for number in range(20):
            assert shown.blob("app", absent(number)) is None
            assert shown.by_digest("app", absent(number)) is None
        assert len(slow) == len(many)
        import_image(repo, many[0].source, "other:1")  # what is shown changes
        assert shown.blob("app", absent(1)) is None
        assert len(slow) == len(many)
        found = shown.blob("app", Digest(many[7].config_digest))
        assert found is not None
        assert len(slow) == len(many) + 1


def test_a_long_look_up_lets_others_have_their_turn_and_goes_on(repo: Path, many: list[Image], slow: list[Digest]) -> None:
    with serving(repo, limits=Limits(look_up_seconds=0.2)) as running, ThreadPoolExecutor(1) as other:
        long = other.submit(fetch, running.address, f"/v2/app/blobs/{absent(1)}")
        time.sleep(0.5)
        began = time.monotonic()
        assert fetch(running.address, "/v2/app/manifests/29").status == 200
        assert time.monotonic() - began < 1.5
        assert not long.done()
        assert long.result(20).status == 404
    assert len(slow) <= len(many) + 1


def test_look_ups_that_wait_for_each_other_keep_no_collector_waiting(repo: Path, many: list[Image], slow: list[Digest]) -> None:
    with serving(repo, limits=Limits(look_up_seconds=0.2)) as running, ThreadPoolExecutor(40) as others:
        asked = [others.submit(fetch, running.address, f"/v2/app/blobs/{absent(number)}") for number in range(40)]
        time.sleep(0.3)
        assert exclusive(repo, 2) < 0.5
        assert not all(one.done() for one in asked)
        assert {one.result(30).status for one in asked} == {404}


def test_a_look_up_whose_turn_does_not_come_is_answered_with_retry_after(
    repo: Path, many: list[Image], slow: list[Digest]
) -> None:
    with serving(repo, limits=Limits(patience=0.3)) as running, ThreadPoolExecutor(1) as other:
        long = other.submit(fetch, running.address, f"/v2/app/blobs/{absent(1)}")
        time.sleep(0.2)
        answer = fetch(running.address, "/v2/app/manifests/29")
        assert (answer.status, answer.code, answer.headers["retry-after"]) == (503, "UNAVAILABLE", "5")
        assert fetch(running.address, "/v2/").status == 200
        assert long.result(20).status == 404
