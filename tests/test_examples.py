"""The scripts of ``examples/`` do on a copy of the recorded host what they say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cfs_tags import Repository
from cfs_tags.tags import history
from support.peers import Cfsctl
from support.stock import link_to
from support.trees import tree, unpack

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
FACTS = json.loads((EXAMPLES / "host.json").read_text())
WEB, DB = ("quay.io/apps/web:1", "quay.io/apps/db:2")
DIGESTS = {tag: facts["manifest"] for tag, facts in FACTS["apps"].items()}


@pytest.fixture
def composefs(tmp_path: Path) -> Path:
    unpack(EXAMPLES / "host.tar.gz", tmp_path)
    return tmp_path / "composefs"


def run(script: str, *args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", str(EXAMPLES / script), *map(str, args)]
    environment = {"PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8"}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)


def lines(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_listing_shows_tags_owners_digests_and_layers_and_writes_nothing(composefs: Path) -> None:
    (composefs / "streams/refs/oci/broken").symlink_to("/etc")
    before = tree(composefs)

    shown = lines(run("list_tags.py", composefs))

    assert f"{WEB}  app  {DIGESTS[WEB]}  {len(FACTS['apps'][WEB]['layers'])} layers" in shown
    assert "broken  app  broken: an absolute link leads out of the repository" in shown
    assert sum("  bootc  " in line for line in shown) == 3
    assert tree(composefs) == before


def test_creating_makes_moves_and_tells_the_log(composefs: Path, cfsctl: Cfsctl) -> None:
    assert lines(run("create_tag.py", composefs, "app:stable", WEB)) == [
        f"app:stable: created, absent -> {DIGESTS[WEB]}",
        f"app:stable@{{0}} create {DIGESTS[WEB]}",
    ]
    assert lines(run("create_tag.py", composefs, "app:stable", DB)) == [
        f"app:stable: moved, {DIGESTS[WEB]} -> {DIGESTS[DB]}",
        f"app:stable@{{0}} move {DIGESTS[DB]}",
        f"app:stable@{{1}} create {DIGESTS[WEB]}",
    ]
    assert cfsctl.tags(composefs)["app:stable"] == DIGESTS[DB]


def test_creating_says_why_it_cannot(composefs: Path) -> None:
    done = run("create_tag.py", composefs, "app:stable", "absent")

    assert (done.returncode, done.stdout) == (3, "")
    assert "no tag 'absent'" in done.stderr


def test_a_release_moves_everything_or_nothing(composefs: Path, cfsctl: Cfsctl) -> None:
    oci = composefs / "streams/refs/oci"
    for name, digest in (("web:candidate", DIGESTS[WEB]), ("web:stable", DIGESTS[DB]), ("db:candidate", DIGESTS[DB])):
        (oci / name).symlink_to(link_to(digest))
    before = tree(composefs, exclude=["cfs-tags"])

    refused = run("transaction.py", composefs, "web", "absent")
    assert refused.returncode == 3
    assert tree(composefs, exclude=["cfs-tags"]) == before

    assert lines(run("transaction.py", composefs, "web", "db")) == [
        f"web:stable: moved, now {DIGESTS[WEB]}",
        f"web:previous: created, now {DIGESTS[DB]}",
        "web:candidate: deleted, now absent",
        f"db:stable: created, now {DIGESTS[DB]}",
        "db:candidate: deleted, now absent",
    ]
    found = cfsctl.tags(composefs)
    assert {name: found.get(name) for name in ("web:stable", "web:previous", "db:stable", "web:candidate")} == {
        "web:stable": DIGESTS[WEB],
        "web:previous": DIGESTS[DB],
        "db:stable": DIGESTS[DB],
        "web:candidate": None,
    }
    with Repository.open(composefs) as repo:
        newest = history.log(repo, "web:stable")[0]
    assert newest.entry.reason == "release of web, db"
    cfsctl.assert_healthy(composefs)
