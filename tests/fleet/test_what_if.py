"""What ``fleet what-if`` predicts is what ``import`` then fetches, by the access log of the real registry.

``CFS_TAGS_PROOF=long`` takes 50 hosts, else it is 8.
"""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

from cfs_tags import Repository
from cfs_tags.api.fleet import Fleets
from cfs_tags.fleet import facts, hosts
from cfs_tags.fleet.hosts import Host, Use
from cfs_tags.values import Digest
from fleet.conftest import push
from support.images import Image, Layer, build_image, file, random_bytes
from support.registries import Distribution

OS = "example/os"
HOSTS = 50 if os.environ.get("CFS_TAGS_PROOF") == "long" else 8
WITHIN = 0.02


def layer(seed: str, size: int) -> Layer:
    return Layer([file(f"usr/{seed}-{number}", random_bytes(f"{seed} {number}", size // 4)) for number in range(4)]).compressed(
        "gzip"
    )


def versions(layout: Path, count: int) -> list[Image]:
    """Images that share layers as those of a distribution do: a base for several, and layers that change each time."""
    made = []
    for number in range(count):
        layers = [
            layer(f"base{number // 3}", 200_000),
            layer(f"desktop{number // 2}", 120_000),
            layer(f"update{number}", 60_000 + 7_000 * number),
            layer(f"config{number % 2}", 9_000),
        ]
        made.append(build_image(layout, f"v{number}", layers))
    return made


def test_the_prediction_is_what_a_pull_fetches(shop: Distribution, new_repo: Any, tmp_path: Path) -> None:
    chance = random.Random(int(os.environ.get("CFS_TAGS_SEED", "1")))
    images = versions(tmp_path / "layout", 7)
    for number, image in enumerate(images):
        push(shop, OS, image, f"v{number}")
    repos = {}
    for number in range(HOSTS):
        name = f"host-{number}"
        repos[name] = new_repo(tmp_path / name)
        have = chance.sample(images[:-1], chance.randint(1, 3))
        if number % 7 == 6:
            have.append(images[-1])
        with Repository.open(repos[name], write=True) as repo:
            for image in have:
                repo.import_image(f"http://{shop.address}/{OS}:{image.ref}", f"os:{image.ref}")
            layers = tuple(sorted(set(facts._layers(repo))))
        slots = ["booted", "rollback", *(hosts.slot("pin", Digest(image.manifest_digest)) for image in have[2:])]
        uses = tuple(Use(slot, Digest(image.manifest_digest), repository=OS) for slot, image in zip(slots, have, strict=False))
        made = hosts.artifact(Host(name, "20260101T000000Z", "test", "linux/amd64", uses, layers), None)
        shop.upload(OS, made.document)
        shop.tag(OS, hosts.host_tag(name), made.manifest)
    newest = images[-1]
    with Fleets(f"{shop.address}/{OS}") as fleets:
        answer = fleets.what_if(fleets.read(), newest.manifest_digest)
    predicted = {row.name: row.bytes for row in answer.rows}
    fetched = {}
    for name, path in repos.items():
        with Repository.open(path, write=True) as repo, shop.counted() as asked:
            repo.import_image(f"http://{shop.address}/{OS}:{newest.ref}", "os:newest")
        fetched[name] = sum(one.size for one in asked if one.method == "GET" and one.status == 200)
    worst = max(abs(predicted[name] - size) / max(size, 1) for name, size in fetched.items() if predicted[name])
    total = sum(predicted.values()), sum(size for name, size in fetched.items() if predicted[name])
    print(f"{HOSTS} hosts: predicted {total[0]}, fetched {total[1]}, worst {worst:.2%}")
    assert sum(not size for size in predicted.values()) == sum(number % 7 == 6 for number in range(HOSTS))
    for name, size in fetched.items():
        if predicted[name]:
            assert abs(predicted[name] - size) <= WITHIN * size, name
        else:
            assert size <= len(newest.manifest_bytes) + len(newest.config_bytes)  # it looks at the document, and no more
