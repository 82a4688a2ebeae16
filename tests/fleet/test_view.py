"""Reading a fleet from the real registry: who runs what, what is odd, and what it costs.

``CFS_TAGS_PROOF=long`` has 10,000 hosts publish, else it is 60.
"""

from __future__ import annotations

import json
import os
import random
import time
import tracemalloc
from collections.abc import Callable
from datetime import timedelta
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest

from cfs_tags.api.fleet import Fleets
from cfs_tags.errors import FormatError, TargetNotFound
from cfs_tags.fleet import hosts
from cfs_tags.fleet.hosts import Booted, Host, Use
from cfs_tags.fleet.shared import Shared
from cfs_tags.values import Digest
from cli.conftest import Run, Said
from report.test_report import browse
from support.fleets import Build, Version, Walker
from support.registries import Distribution

OS = "example/os"
MANIFEST = Digest.of(b"an image")
LONG = os.environ.get("CFS_TAGS_PROOF") == "long"
MANY = 10_000 if LONG else 60
HOSTILE = "evil</script><img src=x onerror=alert(1)>\x1b[31m&amp;%{label}"


@pytest.fixture
def build(shop: Distribution) -> Build:
    return Build(shop, OS, random.Random(7))


@pytest.fixture
def walk(shop: Distribution, build: Build, tmp_path: Path) -> Callable[[str, Version], Walker]:
    """Makes a host that booted a version and has published it."""

    def make(name: str, version: Version) -> Walker:
        made = Walker(name, shop.address, OS, tmp_path / f"state/{name}", version, build)
        made.publish()
        return made

    return make


@pytest.fixture
def fleet(call: Run, shop: Distribution, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Said]:
    monkeypatch.setattr("cfs_tags.cli.registries.cache_directory", lambda: str(tmp_path / "cache"))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "auth.json"))

    def run(*words: str) -> Said:
        action = words[:1] if words and words[0] in ("what-if", "report") else ()
        return call("fleet", *action, f"{shop.address}/{OS}", *words[len(action) :], "--json")

    return run


def put(shop: Distribution, name: str, artifact: bytes | hosts.Artifact, tag: str | None = None) -> None:
    """Put an artifact there, as anyone with rights can."""
    if isinstance(artifact, hosts.Artifact):
        shop.upload(OS, artifact.document)
        artifact = artifact.manifest
    shop.tag(OS, tag or f"host-{name}", artifact)


def rows(said: Said) -> dict[str, Any]:
    return {row["name"]: row for row in said.result["hosts"]}


def test_who_runs_what_and_what_drifts(fleet: Any, walk: Any, build: Build, shop: Distribution) -> None:
    old, new = build.make(), build.make()
    for name, version in (("a", old), ("b", new), ("c", old)):
        walk(name, version)
    staged = walk("d", old)
    staged.staged = new
    staged.publish()
    said = fleet("--wanted", "latest")
    assert {name: row["state"] for name, row in rows(said).items()} == {
        "a": "drift",
        "b": "wanted",
        "c": "drift",
        "d": "staged",
    }
    assert [(row["version"], row["hosts"]) for row in said.result["versions"]] == [("41.1", 3), ("41.2", 1)]
    assert all(row["problems"] == [] for row in rows(said).values())
    assert fleet("--wanted", "nothing").status == 3


def test_unchanged_hosts_cost_no_request(fleet: Any, walk: Any, build: Build, shop: Distribution) -> None:
    first = build.make()
    fleet_of = [walk(f"host-{number}", first) for number in range(12)]
    with shop.counted() as asked:
        assert fleet().result["fetched"] == 12
    assert [one.method for one in asked] == ["GET"] * 13
    with shop.counted() as asked:
        again = fleet()
    assert again.result["fetched"] == 0
    assert len(asked) == 1
    fleet_of[3].staged = build.make()
    fleet_of[3].publish()
    with shop.counted() as asked:
        changed = fleet()
    assert len(asked) == 2
    assert [use["slot"] for use in rows(changed)["host-3"]["document"]["uses"]] == ["booted", "staged"]
    assert rows(fleet("--no-cache")) == rows(changed)


def test_a_host_that_speaks_for_another_is_shown(fleet: Any, walk: Any, build: Build, shop: Distribution) -> None:
    version = build.make()
    for name in ("a", "b", "c", "d"):
        walk(name, version)
    lie = Host("a", "20260101T000000Z", "liar", "linux/amd64", (Use("booted", Digest.of(b"x"), None, "66.6"),))
    put(shop, "a", hosts.artifact(lie, None))  # in its place, and its seen- tag says so
    put(shop, "b", hosts.artifact(lie, None))  # another's document under b's name
    made = hosts.artifact(lie._replace(name="c"), None)
    put(shop, "c", made)
    put(shop, "c", made, hosts.seen_tag("c", "20260101T000000Z", made.digest))
    found = rows(fleet())
    assert found["a"]["problems"][0] == "seen-differs"
    assert found["b"]["problems"][0] == "names-another"
    assert "several-claims" in found["c"]["problems"]
    assert found["d"]["problems"] == []


def test_times_are_the_registrys_and_odd_ones_are_said(fleet: Any, build: Build, shop: Distribution) -> None:
    version = build.make()

    def say(name: str, days: float, clock: int = 0) -> None:
        at = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(time.time() + days * 86400))
        use = Use("booted", version.digest, None, version.name, repository=OS, health=("no-ref",) if name == "ill" else ())
        made = hosts.artifact(Host(name, at, "test", "linux/amd64", (use,), clock=clock), None)
        put(shop, name, made)
        put(shop, name, made, hosts.seen_tag(name, at, made.digest))

    say("well", -1)
    say("old", -9)
    say("future", 3)
    say("clock", -1, 4 * 86400)
    say("ill", 0)
    found = {name: row["problems"] for name, row in rows(fleet()).items()}
    assert found == {
        "well": [],
        "old": ["not-seen"],
        "future": ["time-in-future"],
        "clock": ["clock-wrong"],
        "ill": ["no-ref"],
    }
    assert rows(fleet("--unseen", "10d"))["old"]["problems"] == []
    assert list(rows(fleet("--problems"))) == ["clock", "future", "ill", "old"]


def _document(**changes: Any) -> bytes:
    base = hosts.to_json(Host("x", "20260101T000000Z", "p", "linux/amd64", ()))
    return json.dumps({**base, **changes}).encode()


USE = {"slot": "booted", "manifest": "sha256:" + "0" * 64}


@pytest.mark.parametrize(
    "data",
    [
        b"{",
        b"[]",
        b'{"schema":2}',
        _document(host="A"),
        _document(host="a/../b"),
        _document(time="yesterday"),
        _document(time="99999999T999999Z"),
        _document(uses=[USE] * 501),
        _document(uses=[{**USE, "slot": "x" * 1000}]),
        _document(uses=[{**USE, "manifest": "sha256:0"}]),
        _document(uses=[{**USE, "version": "v" * 513}]),
        _document(uses=[{**USE, "health": ["x"] * 101}]),
        _document(uses={"a": 1}),
        _document(layers=["0" * 16] * 8001),
        _document(layers=["../../etc"]),
        _document(space={"bytes": -1, "free_bytes": 0}),
        _document(clock=1 << 70),
        _document(clock=1.5),
        _document(history=[{"time": "20260101T000000Z", "manifest": USE["manifest"]}] * 51),
        _document(program=json.loads("[" * 120 + "]" * 120)),
        b'{"schema":' + b"[" * 100_000,
        b'{"schema":1,"schema":1}',
        b" " * (256 << 10) + b"{}",
        b"\xff\xfe",
    ],
)
def test_a_document_that_is_not_what_it_should_be_is_an_error_that_says_so(data: bytes) -> None:
    with pytest.raises(FormatError):
        hosts.parse_document(data)


def test_hostile_artifacts_are_rows_and_hide_no_other(fleet: Any, walk: Any, build: Build, shop: Distribution) -> None:
    walk("well", build.make())
    config = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": "", "size": 2}
    shop.upload(OS, b"{}")
    config["digest"] = Digest.of(b"{}")
    plain = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config, "layers": []}
    put(shop, "image", json.dumps(plain).encode())
    put(
        shop,
        "empty",
        json.dumps({**plain, "config": {**config, "mediaType": "application/vnd.cfs-tags.host.v1+json"}}).encode(),
    )
    lying = {**config, "mediaType": "application/vnd.cfs-tags.host.v1+json", "data": "AAAA"}
    put(shop, "lying", json.dumps({**plain, "config": lying}).encode())
    huge = {**lying, "data": "A" * (3 << 20)}
    put(shop, "huge", json.dumps({**plain, "config": huge}).encode())
    found = {name: row["problems"] for name, row in rows(fleet()).items()}
    assert found == {"well": [], **{name: ["unreadable"] for name in ("image", "empty", "lying", "huge")}}


def test_text_of_hosts_is_data_on_terminals_and_in_pages(
    call: Run,
    fleet: Any,
    shop: Distribution,
    build: Build,
    chromium: Path,
    tmp_path: Path,
) -> None:
    version = build.make()
    at = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    use = Use("booted", version.digest, HOSTILE, HOSTILE, repository=OS, health=(HOSTILE,))
    history = (Booted("20260101T000000Z", version.digest, HOSTILE), Booted("20260601T000000Z", version.digest, "2"))
    put(shop, "evil", hosts.artifact(Host("evil", at, HOSTILE, "linux/amd64", (use,), history=history), None))
    said = call("fleet", f"{shop.address}/{OS}", "--no-cache", ok=True)
    assert "\x1b" not in said.out
    assert "evil" in said.out
    page = tmp_path / "fleet.html"
    assert fleet("report", str(page)).status == 0
    shown = browse(chromium, page, tmp_path)
    assert shown.console == ()
    assert shown.asked_for == frozenset()
    assert not any(tag == "img" for tag, _ in shown.elements)
    assert shown.drawn("js-line", "path") >= 3


def test_what_if_says_who_loses_a_rollback_and_what_is_fetched(fleet: Any, walk: Any, build: Build, shop: Distribution) -> None:
    old, new, newest = build.make(), build.make(), build.make()
    walk("a", old)
    back = walk("b", new)
    back.rollback = old
    back.publish()
    walk("c", newest)
    said = fleet("what-if", old.digest).result["what_if"]
    assert {row["host"]: (row["slots"], row["loses_rollback"]) for row in said["hosts"]} == {
        "a": (["booted"], False),
        "b": (["rollback"], True),
        "c": ([], False),
    }
    said = fleet("what-if", "latest").result["what_if"]
    base = len(newest.manifest) + len(newest.blobs[0])
    assert {row["host"]: (row["bytes"], row["layers"]) for row in said["hosts"]} == {
        "a": (base + 2000, {"all": 3, "there": 1}),
        "b": (base + 2000, {"all": 3, "there": 1}),
        "c": (0, {"all": 3, "there": 3}),
    }
    assert fleet("what-if", "sha256:" + "0" * 64).json["error"]["code"] == "target-not-found"


def test_what_if_asks_for_the_images_of_an_index_that_hosts_could_have(
    fleet: Any, walk: Any, build: Build, shop: Distribution
) -> None:
    version = build.make()
    walk("a", version)
    kinds = [("amd64", build.make()), ("arm64", build.make()), ("s390x", build.make())]
    entries = [
        {
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": made.digest,
            "size": len(made.manifest),
            "platform": {"os": "linux", "architecture": kind},
        }
        for kind, made in kinds
    ]
    media_type = "application/vnd.oci.image.index.v1+json"
    index = json.dumps({"schemaVersion": 2, "mediaType": media_type, "manifests": entries}).encode()
    assert shop.fetch(f"/v2/{OS}/manifests/all", "PUT", index, {"Content-Type": media_type}).status == 201
    fleet()
    with shop.counted() as asked:
        (row,) = fleet("what-if", "all").result["what_if"]["hosts"]
    assert row["manifest"] == kinds[0][1].digest
    assert len(asked) == 3  # tags, the index, one image


def test_a_tag_with_a_time_that_is_none_says_nothing(fleet: Any, build: Build, shop: Distribution, tmp_path: Path) -> None:
    version = build.make()
    use = Use("booted", version.digest, None, version.name, repository=OS)
    made = hosts.artifact(Host("a", "20260101T000000Z", "test", "linux/amd64", (use,)), None)
    put(shop, "a", made)
    put(shop, "a", made, hosts.seen_tag("a", "99999999T999999Z", made.digest))
    assert rows(fleet())["a"]["seen"] == "2026-01-01T00:00:00Z"
    assert fleet("report", str(tmp_path / "page.html")).status == 0


def test_many_hosts_cost_a_request_each_where_nothing_has_changed(shop: Distribution, build: Build, tmp_path: Path) -> None:
    """Every host publishes, really: requests by the registry's log, bytes are those of bodies."""
    version = build.make()
    fleet = [Walker(f"host-{number}", shop.address, OS, tmp_path / "state", version, build) for number in range(MANY)]
    for text in ("first", "again"):
        began = time.monotonic()
        with shop.counted() as asked:
            done = [host.publish() for host in fleet]
        sizes = [host.bytes for host in fleet]
        seconds = time.monotonic() - began
        print(f"{MANY} hosts publish {text}: {len(asked)} requests, {sum(sizes)} bytes, {seconds:.1f} s")
    assert all(one.plan.is_unchanged for one in done)
    assert len(asked) == MANY
    assert all(host.requests == 1 for host in fleet)
    assert sum(sizes) == 0
    first = _read(shop, tmp_path)
    again = _read(shop, tmp_path)
    print(f"fleet of {MANY} hosts: (requests, bytes, seconds) first {first}, again {again}")
    assert first[0] <= 1.1 * MANY
    assert again[0] <= 1 + 3 * MANY / 1000 + 1


def _read(shop: Distribution, place: Path) -> tuple[int, int, float]:
    """Requests, bytes received and seconds of one reading."""
    began = time.monotonic()
    with shop.counted() as asked, Fleets(f"{shop.address}/{OS}", cache=str(place / "cache")) as fleets:
        fleet = fleets.read(unseen=timedelta(days=1))
        received = fleets._client.transport.received
    assert len(fleet.rows) == MANY
    assert all(not row.problems for row in fleet.rows)
    return len(asked), received, round(time.monotonic() - began, 2)


def _says(number: int, layers: int) -> Host:
    """A host that is like no other but for its manifest; the name of its image is that digest, too."""
    own = (Booted(f"2026010{number % 9 + 1}T000000Z", MANIFEST, "1"),)
    beginnings = tuple(f"{number:08x}{layer:08x}" for layer in range(layers))
    return Host(
        f"host-{number}", "20260101T000000Z", "p", "o", (Use("booted", MANIFEST, str(MANIFEST)),), beginnings, history=own
    )


def test_hosts_share_what_they_say_alike() -> None:
    shared = Shared()
    for last in range(2):
        said = _says(0, 50)._replace(name=f"host-{last}")
        taken = shared.take(hosts.parse_document(hosts.encoded(said)))
        assert taken == said
        if last == 0:
            first = taken
    assert first is not None
    assert taken is not None
    assert taken.layers is first.layers
    assert taken.uses is first.uses
    assert [type(taken.uses[0].manifest), type(taken.uses[0].image)] == [Digest, str]


def test_all_documents_together_have_a_limit() -> None:
    shared, limit = Shared(1 << 20), 1 << 20
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    taken = [shared.take(hosts.parse_document(hosts.encoded(_says(number, 200)))) for number in range(200)]
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert 20 < sum(one is not None for one in taken) < 100
    assert used < limit


def test_a_host_for_which_there_is_no_room_is_a_row(
    fleet: Any, walk: Any, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = build.make()
    for name in ("a", "b"):
        walk(name, version)
    full = fleet("--no-cache").result
    monkeypatch.setattr(Shared, "__init__", partialmethod(Shared.__init__, 1))
    said = fleet()
    assert sorted(row["problems"] for row in rows(said).values()) == [[], ["unreadable"]]
    monkeypatch.undo()
    assert full["fetched"] == said.result["fetched"]


def test_a_cache_that_is_cut_short_costs_the_requests_of_what_is_lost(
    fleet: Any, walk: Any, build: Build, tmp_path: Path
) -> None:
    version = build.make()
    for number in range(8):
        walk(f"host-{number}", version)
    whole = rows(fleet())
    (file,) = (tmp_path / "cache").glob("*.json")
    data = file.read_bytes()
    for part, fetched in ((b"", 8), (data[: len(data) // 2], None), (data[:-8] + bytes(8), 0), (b"{" + data, 8)):
        file.write_bytes(part)
        said = fleet()
        assert rows(said) == whole
        assert fetched is None or said.result["fetched"] == fetched


def test_the_library_has_what_the_command_has(walk: Any, build: Build, shop: Distribution) -> None:
    version = build.make()
    walk("a", version)
    with Fleets(f"{shop.address}/{OS}") as fleets:
        fleet = fleets.read(wanted=version.digest)
        assert [(row.name, row.state) for row in fleet.rows] == [("a", "wanted")]
        assert fleets.what_if(fleet, "latest").rows[0].slots == ("booted",)
        with pytest.raises(TargetNotFound):
            fleets.read(wanted="nothing")
