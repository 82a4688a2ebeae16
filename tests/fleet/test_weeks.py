"""Weeks of a fleet: hosts upgrade, go back, pin and publish; each week the registry collects what has no tag.

``CFS_TAGS_PROOF=long`` runs twelve weeks, else it is two.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

from support.fleets import Build, Version, Walker
from support.registries import Distribution

LONG = os.environ.get("CFS_TAGS_PROOF") == "long"
WEEKS = 12 if LONG else 2
HOSTS = 50
OS = "example/os"


def test_weeks_of_fifty_hosts_and_a_registry_that_collects(shop: Distribution, tmp_path: Path) -> None:
    chance = random.Random(int(os.environ.get("CFS_TAGS_SEED", "1")))
    build = Build(shop, OS, chance)
    first = build.make()
    fleet = [Walker(f"host-{number}", shop.address, OS, tmp_path / f"state/{number}", first, build) for number in range(HOSTS)]
    latest = first
    moves = unchanged = asked_unchanged = 0
    for week in range(WEEKS):
        for _ in range(2):
            for host in chance.sample(fleet, HOSTS):
                what = host.step(chance, latest)
                done = host.publish()
                assert not done.lost, (week, host.name, what)
                moves += not done.plan.is_unchanged
                if done.plan.is_unchanged:
                    unchanged += 1
                    asked_unchanged += host.requests
            latest = build.make()
        shop.collect()
        check(shop, fleet, latest, week)
    assert asked_unchanged == unchanged
    assert moves > HOSTS * WEEKS


def check(shop: Distribution, fleet: list[Walker], latest: Version, week: int) -> None:
    """What hosts use is whole, and besides it there are ``latest`` and the artifacts, and nothing else."""
    used = {version.digest: version for host in fleet for version in host.used()} | {latest.digest: latest}
    for digest in used:
        assert shop.is_pullable(OS, digest), (week, digest)
    artifacts = {}
    for host in fleet:
        found = shop.fetch(f"/v2/{OS}/manifests/host-{host.name}")
        artifacts[found.headers["Docker-Content-Digest"]] = found.json
        assert (
            shop.fetch(f"/v2/{OS}/manifests/deployed-{host.name}-booted", "HEAD").headers["Docker-Content-Digest"]
            == host.booted.digest
        )
    assert shop.manifests(OS) == used.keys() | artifacts.keys()
    contents = set[str]().union(*(version.contents() for version in used.values()))
    contents |= artifacts.keys() | {artifact["config"]["digest"] for artifact in artifacts.values()}
    assert shop.blobs() == contents
