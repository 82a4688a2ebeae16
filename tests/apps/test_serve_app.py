"""The registry as an application: called without a server, as any server would call it."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from cfs_tags import Repository
from cfs_tags.apps import layer_tar
from cfs_tags.registry.app import Limits, Registry
from cfs_tags.registry.catalog import Catalog
from cfs_tags.repo import layout
from cfs_tags.values import ContentId, Digest
from support.images import Image, Layer, build_image, directory, file, random_bytes
from support.importing import import_image

LIMITS = Limits(stall_seconds=0.3, linger_seconds=0.2)


class Call:
    """One request, and what was sent for it."""

    def __init__(self, target: str, method: str = "GET", headers: Mapping[str, str] | None = None, body: bytes = b"") -> None:
        path, _, query = target.partition("?")
        self.aborted = asyncio.Event()
        self.gone = asyncio.Event()
        self.takes = asyncio.Event()
        self.takes.set()
        self.sent: list[dict[str, Any]] = []
        self.body = body
        self.scope = {
            "type": "http",
            "http_version": "1.1",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "headers": [(name.encode(), value.encode()) for name, value in (headers or {}).items()],
            "client": ("192.0.2.1", 5),
            "state": {"abort": self._abort},
        }

    def _abort(self) -> None:
        self.aborted.set()
        self.gone.set()

    async def receive(self) -> dict[str, Any]:
        if self.body:
            piece, self.body = self.body[:10], self.body[10:]
            return {"type": "http.request", "body": piece, "more_body": bool(self.body)}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        await self.takes.wait()
        self.sent.append(message)

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.sent[0]["headers"]}

    @property
    def content(self) -> bytes:
        assert all(message["type"] == "http.response.body" for message in self.sent[1:])
        return b"".join(message.get("body", b"") for message in self.sent[1:])

    @property
    def is_complete(self) -> bool:
        return not self.sent[-1].get("more_body", True)


@pytest.fixture
def image(repo: Path, tmp_path: Path) -> Image:
    layer = Layer([directory("usr"), *[file(f"usr/{number}", random_bytes(str(number), 200_000)) for number in range(9)]])
    made = build_image(tmp_path / "layout", "app", [layer])
    import_image(repo, made.source, "app:1")
    return made


@asynccontextmanager
async def registry(repo: Path, limits: Limits = LIMITS) -> AsyncIterator[tuple[Registry, list[str]]]:
    log: list[str] = []
    with Repository.open(repo) as opened, closing(Registry(opened, Catalog(opened), log.append, limits)) as made:
        yield made, log


def call(repo: Path, *calls: tuple[Any, ...], limits: Limits = LIMITS) -> tuple[list[Call], list[str]]:
    """Make requests one after the other."""

    async def run() -> tuple[list[Call], list[str]]:
        async with registry(repo, limits) as (app, log):
            made = [Call(*words) for words in calls]
            for one in made:
                await app(one.scope, one.receive, one.send)
            return made, log

    return asyncio.run(run())


@pytest.fixture
def blob(image: Image) -> str:
    return f"/v2/app/blobs/{image.diff_ids[0]}"


def test_a_tag_is_noticed_where_time_stamps_count_seconds(repo: Path, image: Image) -> None:
    """The second change of a directory within a second leaves its time stamp as it is there."""

    def put_back(second: int) -> None:
        for path in [repo / "streams", *(repo / "streams/refs").rglob("*")]:
            if path.is_dir() and not path.is_symlink():
                os.utime(path, (second, second))

    with Repository.open(repo, write=True) as opened:
        catalog = Catalog(opened)
        time.sleep((1.5 - time.time() % 1) % 1)
        second = int(time.time())
        put_back(second)
        assert {row.tag.name for row in catalog.rows()} == {"app:1"}
        opened.tags.create("app:2", "app:1")
        put_back(second)

        assert {row.tag.name for row in catalog.rows()} == {"app:1", "app:2"}


def test_answers_have_a_start_a_body_of_its_length_and_an_end(repo: Path, image: Image, blob: str) -> None:
    tar = image.layers[0].tar
    calls, log = call(
        repo,
        ("/v2/",),
        ("/v2/app/tags/list?n=1",),
        ("/v2/app/manifests/1",),
        ("/v2/app/manifests/2",),
        (blob,),
        (blob, "HEAD"),
        (blob, "GET", {"range": "bytes=500000-1500000"}),
        (f"/v2/app/blobs/{image.config_digest}",),
        (blob, "GET", {"if-none-match": "*"}),
    )

    assert [one.status for one in calls] == [200, 200, 200, 404, 200, 200, 206, 200, 304]
    assert all(one.is_complete for one in calls)
    assert [int(one.headers["content-length"]) for one in calls[:8] if one is not calls[5]] == [
        len(one.content) for one in calls[:8] if one is not calls[5]
    ]
    assert (calls[5].content, calls[5].headers["content-length"]) == (b"", str(len(tar)))
    assert (calls[4].content, calls[6].content, calls[7].content) == (tar, tar[500_000:1_500_001], image.config_bytes)
    assert "content-length" not in calls[8].headers
    assert log[4].startswith(f'192.0.2.1:5 "GET {blob}" 200 {len(tar)} ')
    assert len(log) == len(calls)


def test_a_request_with_a_body_is_refused_and_is_the_last_of_its_connection(repo: Path, image: Image) -> None:
    with_body = {"content-length": "1000"}
    calls, _ = call(repo, ("/v2/", "PUT", with_body, b"x" * 1000), ("/v2/", "GET", with_body, b"x" * 1000))

    assert [(one.status, one.headers["connection"], one.body) for one in calls] == [(405, "close", b""), (400, "close", b"")]
    assert json.loads(calls[0].content)["errors"][0]["code"] == "UNSUPPORTED"


def test_a_head_is_as_long_as_it_was_sent(repo: Path, image: Image) -> None:
    head = len("GET /v2/ HTTP/1.1\r\nx: \r\n\r\n")
    calls, _ = call(repo, *[("/v2/", "GET", {"x": "y" * (16384 - head + more)}) for more in (0, 1)])

    assert [one.status for one in calls] == [200, 431]


def test_what_cannot_be_sent_is_cut_short_and_the_connection_closed(repo: Path, image: Image, blob: str) -> None:
    with Repository.open(repo) as opened:
        stream = opened.stream_object(ContentId.layer(Digest(image.diff_ids[0])))
        assert stream is not None
        gone = opened.stream(stream, "test").object_refs[5]
    (repo / layout.object_path(gone)).unlink()
    (one, after), log = call(repo, (blob,), ("/v2/",))

    assert 0 < len(one.content) < len(image.layers[0].tar)
    assert not one.is_complete
    assert one.aborted.is_set()
    assert f"cut short: object {gone}" in log[0]
    assert after.is_complete


def test_a_reader_that_takes_nothing_is_cut_off_and_gives_its_place_back(repo: Path, image: Image, blob: str) -> None:
    async def run() -> list[str]:
        async with registry(repo, LIMITS._replace(bodies=1)) as (app, log):
            stalled, other = Call(blob), Call(blob)
            task = asyncio.create_task(app(stalled.scope, stalled.receive, stalled.send))
            while len(stalled.sent) < 3:
                await asyncio.sleep(0)
            stalled.takes.clear()
            await app(other.scope, other.receive, other.send)
            await task
            assert stalled.aborted.is_set()
            assert other.content == image.layers[0].tar
            return log

    assert "cut short: the reader is too slow" in asyncio.run(run())[0]


@pytest.mark.parametrize("begun", [False, True])
def test_a_client_that_goes_is_noticed_wherever_it_waits(repo: Path, image: Image, blob: str, begun: bool) -> None:
    async def run() -> list[str]:
        async with registry(repo, LIMITS._replace(bodies=1, stall_seconds=60)) as (app, log):
            first, second = Call(blob), Call(blob)
            tasks = []
            for one in (first, second):
                tasks.append(asyncio.create_task(app(one.scope, one.receive, one.send)))
                while not first.sent:
                    await asyncio.sleep(0)
                first.takes.clear()
            await asyncio.sleep(0.1)
            gone, other = (tasks[0], tasks[1]) if begun else (tasks[1], tasks[0])
            (first if begun else second).gone.set()
            await asyncio.wait_for(gone, 5)
            first.takes.set()
            await asyncio.wait_for(other, 5)
            assert (second if begun else first).content == image.layers[0].tar
            return log

    status = 200 if begun else 499
    assert f" {status} 0 " in asyncio.run(run())[0]


def test_a_server_that_stops_ends_its_answers(repo: Path, image: Image, blob: str) -> None:
    async def run() -> list[str]:
        async with registry(repo, LIMITS._replace(stall_seconds=60)) as (app, log):
            one = Call(blob)
            task = asyncio.create_task(app(one.scope, one.receive, one.send))
            while len(one.sent) < 3:
                await asyncio.sleep(0)
            one.takes.clear()
            await asyncio.sleep(0.1)
            task.cancel()
            await asyncio.wait_for(task, 5)
            assert one.aborted.is_set()
            return log

    assert "cut short: the server stops" in asyncio.run(run())[0]


def test_a_fault_of_ours_is_logged_and_ends_the_request_alone(
    repo: Path, image: Image, blob: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*words: object, **more: object) -> list[str]:
        raise ValueError("\x1b[31m")

    monkeypatch.setattr(Catalog, "repositories", fail)
    (one, after), log = call(repo, ("/v2/_catalog",), ("/v2/",))
    assert (one.status, after.status) == (500, 200)
    assert "internal error: ValueError" in log[0]

    monkeypatch.setattr(layer_tar, "blocks", fail)
    (one, after), more = call(repo, (blob,), ("/v2/",))
    assert one.aborted.is_set()
    assert "internal error: ValueError" in more[0]
    assert after.status == 200
    assert all(line.isprintable() for line in log + more)
