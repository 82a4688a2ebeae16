"""Weeks of a fleet: hosts upgrade, go back, pin and publish, all at once and each from a network namespace of its own.  The
registry collects what has no tag, each week in the midst of that, and again when all is quiet.

``CFS_TAGS_PROOF=long`` has fifty hosts and twelve weeks, else there are eight and two.  Where this machine makes no namespaces,
hosts are threads.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from cfs_tags.errors import CfsTagsError
from cfs_tags.fleet.publish import Published
from support import networks
from support.fleets import Build, Version, Walker
from support.registries import Distribution, distribution

LONG = os.environ.get("CFS_TAGS_PROOF") == "long"
HOSTS, WEEKS = (50, 12) if LONG else (8, 2)
OS = "example/os"
PATIENCE = 120.0


@contextmanager
def places() -> Iterator[tuple[str, list[networks.Inside]]]:
    """The address for the registry, and where the hosts are."""
    with ExitStack() as stack:
        address, names = "127.0.0.1", [None] * HOSTS
        if networks.why_not() is None:
            address, names = f"{networks.NET}.1", stack.enter_context(networks.linked(HOSTS)).names
        found = [networks.Inside(name) for name in names]
        for place in found:
            stack.callback(place.close)
        yield address, found


def published(host: Walker) -> Published:
    """Publish, and again where the registry is away, as a timer does."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return host.publish()
        except CfsTagsError as error:
            if error.code not in ("registry-unreachable", "registry-failed") or time.monotonic() > end:
                raise
            time.sleep(0.1)


class Watch:
    """Looks all the time whether what hosts use can be pulled, while there is a registry."""

    def __init__(self, shop: Distribution, fleet: Sequence[Walker]) -> None:
        self.gone: list[tuple[str, str]] = []
        self.looks = 0
        self._shop = shop
        self._fleet = fleet
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._done.wait(0.02):
            for version in used(self._fleet):
                with suppress(OSError):  # it is being collected
                    self.looks += 1
                    missing = self._missing(version)
                    if missing is not None and version in used(self._fleet):
                        self.gone.append((version.name, missing))

    def _missing(self, version: Version) -> str | None:
        paths = [f"manifests/{version.digest}", *(f"blobs/{one}" for one in version.contents() if one != version.digest)]
        return next((path for path in paths if self._shop.fetch(f"/v2/{OS}/{path}", "HEAD").status == 404), None)


def used(fleet: Sequence[Walker]) -> list[Version]:
    """What hosts use, each once."""
    return list({version.digest: version for host in fleet for version in host.used()}.values())


def test_weeks_of_hosts_in_namespaces_and_a_registry_that_collects(registry: Path, tmp_path: Path) -> None:
    chance = random.Random(int(os.environ.get("CFS_TAGS_SEED", "1")))
    with places() as (address, inside), distribution(registry, tmp_path / "registry", address=address) as shop:
        build = Build(shop, OS, chance)
        latest = first = build.make()
        names = [f"host-{number}" for number in range(HOSTS)]
        fleet = [Walker(name, shop.address, OS, tmp_path / "state", first, build, plain=True) for name in names]
        changed = unchanged = asked = 0
        with Watch(shop, fleet) as watch:
            for week in range(WEEKS):
                for is_disturbed in (False, True):
                    for host in fleet:
                        host.step(chance, latest)
                    running = [place.do(published, host) for place, host in zip(inside, fleet, strict=True)]
                    if is_disturbed:
                        time.sleep(chance.random() / 2)
                        shop.collect()
                    for one, host in zip(running, fleet, strict=True):
                        done = one.result()
                        assert not done.lost, (week, host.name)
                        changed += not done.plan.is_unchanged
                        if done.plan.is_unchanged and not is_disturbed:
                            unchanged += 1
                            asked += host.requests
                    latest = build.make()
                shop.collect()
                check(shop, fleet, latest, week)
                assert watch.gone == []
    print(f"{HOSTS} hosts, {WEEKS} weeks: {changed} published, {unchanged} unchanged, {watch.looks} looks at a version")
    assert asked == unchanged
    assert changed > HOSTS


def check(shop: Distribution, fleet: list[Walker], latest: Version, week: int) -> None:
    """What hosts use is whole, and besides it there are ``latest`` and the artifacts, and nothing else."""
    wanted = {version.digest: version for version in (*used(fleet), latest)}
    for digest in wanted:
        assert shop.is_pullable(OS, digest), (week, digest)
    artifacts = {}
    for host in fleet:
        found = shop.fetch(f"/v2/{OS}/manifests/host-{host.name}")
        artifacts[found.headers["Docker-Content-Digest"]] = found.json
        booted = shop.fetch(f"/v2/{OS}/manifests/deployed-{host.name}-booted", "HEAD")
        assert booted.headers["Docker-Content-Digest"] == host.booted.digest
    assert shop.manifests(OS) == wanted.keys() | artifacts.keys()
    contents = set[str]().union(*(version.contents() for version in wanted.values()))
    contents |= artifacts.keys() | {artifact["config"]["digest"] for artifact in artifacts.values()}
    assert shop.blobs() == contents
