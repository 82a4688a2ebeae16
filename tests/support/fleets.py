"""Fleets for tests: a build that makes versions of an image, and hosts that upgrade, go back, pin and publish.

A host here is what it uses, a value as the product publishes it; the registry is the real one, and so is every request.
"""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

from cfs_tags.fleet import hosts, publish
from cfs_tags.fleet.hosts import Host, Use
from cfs_tags.fleet.memory import Memory
from cfs_tags.fleet.publish import Published, Remembered
from cfs_tags.remote.client import Client
from cfs_tags.remote.names import Access, Place, parse_place
from cfs_tags.values import Digest
from support.registries import Distribution

__all__ = ["MANIFEST", "Build", "Version", "Walker"]

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
CONFIG = "application/vnd.oci.image.config.v1+json"


class Version:
    """An image: its manifest and blobs."""

    def __init__(self, name: str, layers: list[bytes]) -> None:
        self.name = name
        config = json.dumps({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}, "v": name})
        self.blobs = [config.encode(), *layers]
        parts: list[dict[str, Any]] = [{"mediaType": LAYER, "digest": digest(data), "size": len(data)} for data in layers]
        self.manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": {"mediaType": CONFIG, "digest": digest(self.blobs[0]), "size": len(self.blobs[0])},
                "layers": parts,
            }
        ).encode()
        self.digest = Digest.of(self.manifest)
        self.layers = tuple(part["digest"][7:23] for part in parts)

    def contents(self) -> set[str]:
        """Digests of all that is needed for it."""
        return {self.digest, *map(digest, self.blobs)}


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Build:
    """Makes versions and pushes them under ``latest``, which leaves the one before."""

    def __init__(self, shop: Distribution, repository: str, chance: random.Random) -> None:
        self._shop = shop
        self._repository = repository
        self._chance = chance
        self._base = chance.randbytes(4000)
        self.versions: dict[Digest, Version] = {}

    def make(self) -> Version:
        number = len(self.versions) + 1
        if number % 5 == 0:
            self._base = self._chance.randbytes(4000)
        made = Version(f"41.{number}", [self._base, self._chance.randbytes(1500), self._chance.randbytes(500)])
        self.versions[made.digest] = made
        for data in made.blobs:
            self._shop.upload(self._repository, data)
        self._shop.tag(self._repository, "latest", made.manifest)
        return made


class Walker:
    """A host that changes."""

    def __init__(
        self, name: str, address: str, repository: str, place: Path, first: Version, builds: Build, plain: bool = False
    ) -> None:
        self.name = name
        self.access = Access(plain=plain)
        self.booted = first
        self.staged: Version | None = None
        self.rollback: Version | None = None
        self.pinned: list[Version] = []
        self.builds = builds
        self.address = address
        self.place: Place = parse_place(f"{address}/{repository}")
        self.memory = Memory(str(place), f"publish {name}", publish.MAX_MEMORY)
        self.requests = self.bytes = 0

    def step(self, chance: random.Random, latest: Version) -> str:
        """Do something that hosts do."""
        what = chance.choice(["stage", "stage", "boot", "boot", "back", "pin", "unpin", "nothing"])
        if what == "stage" and latest is not self.booted:
            self.staged = latest
        elif what == "boot" and self.staged is not None:
            self.booted, self.rollback, self.staged = self.staged, self.booted, None
        elif what == "back" and self.rollback is not None:
            self.booted, self.rollback = self.rollback, self.booted
        elif what == "pin" and len(self.pinned) < 2:
            self.pinned.append(self.booted)
        elif what == "unpin" and self.pinned:
            self.pinned.pop(0)
        return what

    def used(self) -> list[Version]:
        return [one for one in (self.booted, self.staged, self.rollback, *self.pinned) if one is not None]

    def value(self) -> Host:
        image = f"{self.place}:latest"
        slots = {"booted": self.booted, "staged": self.staged, "rollback": self.rollback}
        slots |= {hosts.slot("pin", one.digest): one for one in self.pinned}
        uses = tuple(Use(slot, one.digest, image, one.name) for slot, one in slots.items() if one is not None)
        layers = sorted({layer for one in self.used() for layer in one.layers})
        return Host(self.name, "", "test", "linux/amd64", uses, tuple(layers), 1 << 36, 1 << 35)

    def publish(self) -> Published:
        """Publish, as the command does."""
        known = Remembered.of(self.memory)
        client = Client(self.place, self.access, known.challenge)
        try:
            plan = publish.plan(client, self.place, self.value(), known)
            done = publish.publish(client, plan, self.memory, known, self._raw)
            self.requests, self.bytes = client.transport.requests, client.transport.sent + client.transport.received
            return done
        finally:
            client.close()

    def _raw(self, digest: Digest) -> bytes | None:
        version = self.builds.versions.get(digest)
        return version.manifest if version is not None else None
