"""What an import says of its layers to other hosts: while it lives, and where its tag would be shown."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cfs_tags import Repository
from cfs_tags.apps.importing.source.http import LayerState, Server
from cfs_tags.repo import arriving
from cfs_tags.repo.arriving import Announcement, Layer
from cfs_tags.repo.incoming import INCOMING
from cfs_tags.values import Digest, ObjectId
from support.serving import serving

ROOT = Path(__file__).parent.parent.parent
ONE, OTHER = Digest.of(b"one"), Digest.of(b"other")


def said(repo: Path, *allow: str) -> dict[Digest, LayerState]:
    with serving(repo, allow) as served:
        return Server(f"http://{served.address}").states([ONE, OTHER])


@pytest.fixture
def empty(new_repo: Callable[..., Path], tmp_path: Path) -> Path:
    return new_repo(tmp_path / "empty")


def test_layers_are_told_of_while_the_import_lives(empty: Path) -> None:
    with Repository.open(empty, write=True) as repo:
        with Announcement(repo, ["quay.io/org/app:1"]) as mine:
            mine.say({ONE: Layer("wanted")})
            assert said(empty) == {ONE: LayerState("wanted", mine.by)}
            mine.say({ONE: Layer("fetching"), OTHER: Layer("claiming")})
            assert said(empty)[ONE] == LayerState("fetching", mine.by)
            assert said(empty)[OTHER] == LayerState("claiming", mine.by)
        assert said(empty) == {}
    assert list((empty / INCOMING).iterdir()) == []


def test_of_two_imports_the_one_that_is_farther_counts(empty: Path) -> None:
    with Repository.open(empty, write=True) as repo, Announcement(repo, ["a"]) as first, Announcement(repo, ["b"]) as second:
        first.say({ONE: Layer("fetching")})
        second.say({ONE: Layer("wanted")})
        assert said(empty)[ONE].by == first.by


def test_nothing_is_told_where_the_tag_would_not_be_shown(empty: Path) -> None:
    with Repository.open(empty, write=True) as repo, Announcement(repo, ["quay.io/secret/app:1"]) as mine:
        mine.say({ONE: Layer("wanted")})
        assert said(empty, "quay.io/public/*") == {}
        assert ONE in said(empty, "quay.io/secret/*")


@pytest.mark.parametrize(
    ("names", "allow"),
    [
        (["localhost/bootc-os:1"], []),
        (["localhost:5000/app:1"], []),
        (["Mine"], []),
        (["quay.io/org/app:1", "quay.io/org/app:1-linux-arm64"], ["*:1"]),
        ([], []),
    ],
)
def test_nothing_is_told_of_layers_of_which_some_would_not_be_shown_afterwards(
    names: list[str], allow: list[str], empty: Path
) -> None:
    with Repository.open(empty, write=True) as repo, Announcement(repo, names) as mine:
        mine.say({ONE: Layer("fetching")})
        assert said(empty, *allow) == {}


def test_what_a_killed_import_left_is_not_told(empty: Path) -> None:
    code = (
        "import sys; from cfs_tags import Repository; from cfs_tags.values import Digest\n"
        "from cfs_tags.repo.arriving import Announcement, Layer\n"
        "repo = Repository.open(sys.argv[1], write=True)\n"
        "with Announcement(repo, ['a']) as mine:\n"
        "    mine.say({Digest.of(b'one'): Layer('fetching')}); print('ready', flush=True); sys.stdin.read()\n"
    )
    words = [sys.executable, "-c", code, str(empty)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        assert ONE in said(empty)
        child.kill()
    assert len(list((empty / INCOMING).iterdir())) == 1
    assert said(empty) == {}


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b'{"by": 1}',
        json.dumps({"by": "x", "names": ["a"], "layers": []}).encode(),
        json.dumps({"by": "x", "names": 1, "layers": {}}).encode(),
        json.dumps({"by": "x", "names": ["a"], "layers": {"no digest": ["here", None]}}).encode(),
        json.dumps({"by": "x", "names": ["a"], "layers": {ONE: ["elsewhere", None]}}).encode(),
        json.dumps({"by": "x", "names": ["a"], "layers": {ONE: "here"}}).encode(),
        json.dumps({"by": "x", "names": ["a"], "layers": {ONE: ["here", "../../etc"]}}).encode(),
    ],
)
def test_what_makes_no_sense_is_left_out(empty: Path, text: bytes) -> None:
    with Repository.open(empty, write=True) as repo, Announcement(repo, ["a"]) as mine:
        mine.say({})
        (file,) = (empty / INCOMING).glob("*/layers.json")
        file.write_bytes(text)
        assert list(arriving.announced(repo)) == []
        assert said(empty) == {}


def test_a_layer_that_is_said_to_be_here_and_is_not_is_not_found(empty: Path) -> None:
    with Repository.open(empty, write=True) as repo, Announcement(repo, ["a"]) as mine:
        mine.say({ONE: Layer("here", ObjectId("0" * 128))})
        assert said(empty) == {}
