"""Another host that answers what it should not, at any moment: an import, one with its help, and a repair end soon, with an
error that has a code or with an image that is whole.

``CFS_TAGS_PROOF=long`` takes 1,000 runs, ``ci`` 100, else it is 15.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from cfs_tags import Repository
from cfs_tags.apps.importing.source import http, shared
from cfs_tags.cli.main import main
from cfs_tags.errors import CfsTagsError
from cfs_tags.repo import images
from cfs_tags.values import Digest
from support.images import Image, app_image
from support.importing import import_image
from support.mending import layers, objects
from support.registries import Between
from support.serving import serving
from support.twisting import twisted

RUNS = {"long": 1000, "ci": 100}.get(os.environ.get("CFS_TAGS_PROOF", ""), 15)
SEED = int(os.environ.get("CFS_TAGS_SEED", "1"))
SOON = 60.0
"""Seconds, on a machine with other work."""


@pytest.fixture
def image(tmp_path: Path) -> Image:
    return app_image(tmp_path / "layout", "app", layers(3, "app"))


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http.Server.__init__, "__defaults__", (0.5,))
    for module, name, value in (
        (http, "_GRACE", 0.5),
        (shared, "_PATIENCE", 0.3),
        (shared, "_TURN", 0.2),
        (shared, "_POLL", 0.05),
    ):
        monkeypatch.setattr(module, name, value)


def test_whatever_another_host_answers_an_import_and_a_repair_end_with_a_code_or_whole(
    image: Image, new_repo: Callable[..., Path], tmp_path: Path
) -> None:
    other, empty = new_repo(tmp_path / "other"), new_repo(tmp_path / "empty")
    import_image(other, image.source, "quay.io/org/app:1")
    codes: Counter[str] = Counter()
    seen: list[bytes] = []
    with serving(other, ["*"]) as served, closing(Between(served)) as between:
        for number in range(RUNS):
            chance = random.Random(SEED * 1_000_003 + number)
            often = chance.choice([0.1, 0.3, 1.0])

            def twist(method: str, path: str, status: int, headers: dict[str, str], data: bytes) -> bytes | None:
                if len(seen) < 100:
                    seen.append(data)
                return twisted(chance, status, headers, data, seen) if chance.random() < often else None  # noqa: B023

            between.twist = twist
            what = chance.choice(["import", "peer", "repair"])
            mine = tmp_path / "mine"
            shutil.rmtree(mine, ignore_errors=True)
            shutil.copytree(other if what == "repair" else empty, mine, symlinks=True)
            host = f"http://{between.address}"
            began = time.monotonic()
            code = "ok"
            if what == "repair":
                for path in chance.sample(objects(mine), 3):
                    path.unlink()
                status = main(["--repo", str(mine), "fsck", "--repair", "--from", host, "--json"])
                assert status in (0, 6), (number, status)
                code = f"status {status}"
            else:
                source, peers = (f"{host}/quay.io/org/app:1", []) if what == "import" else (image.source, [host])
                try:
                    with Repository.open(mine, write=True) as repo:
                        repo.import_image(source, "app", peers=peers)
                except CfsTagsError as error:
                    code = error.code
                assert code == "ok" or what == "import", (number, code)  # a peer costs time, and never the image
            took = time.monotonic() - began
            codes[f"{what} {code}"] += 1
            assert took < SOON, (number, what, took)
            if code in ("ok", "status 0"):
                with Repository.open(mine) as repo:
                    for tag in repo.tags.list():
                        assert images.missing_lines(repo, Digest(repo.tags.resolve(tag.name))) == (), (number, what)
    print(RUNS, dict(codes))
    assert codes["peer ok"]
