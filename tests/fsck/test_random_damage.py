"""Any damage to any one path: no traceback, and what is found is so."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cfs_tags import Repository
from cfs_tags.errors import CfsTagsError
from cfs_tags.fsck.findings import Finding
from cfs_tags.fsck.repair import repair
from fsck.damage import check, measure
from support.stock import hard_copy, in_memory
from support.trees import tree

ACTIONS = ("delete", "flip", "cut", "empty", "file", "directory", "link", "pipe", "exchange")


@pytest.fixture
def memory() -> Iterator[Path]:
    with in_memory() as home:
        yield home


@pytest.fixture
def template(pristine: Path, memory: Path) -> Path:
    return Path(shutil.copytree(pristine, memory / "template", symlinks=True))


def paths(repo: Path) -> list[str]:
    """All but the directories of objects, of which there are too many to be interesting."""
    return [name for name, node in tree(repo).items() if node.kind != "dir" or name.count("/") != 1]


def damage(repo: Path, name: str, other: str, action: str, place: int) -> None:
    path = repo / name
    data = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
    if action == "exchange":
        spare = repo / "spare"
        if not f"{name}/".startswith(f"{other}/") and not f"{other}/".startswith(f"{name}/"):
            path.rename(spare)
            (repo / other).rename(path)
            spare.rename(repo / other)
        return
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
    match action:
        case "flip" if data:
            changed = bytearray(data)
            changed[place % len(data)] ^= 1 << place % 8
            path.write_bytes(changed)
        case "cut" if data:
            path.write_bytes(data[: place % len(data)])
        case "empty":
            path.write_bytes(b"")
        case "file":
            path.write_bytes(b"a file")
        case "directory":
            path.mkdir()
        case "link":
            path.symlink_to(("/", "..", "nowhere", path.name, "../../../../../..")[place % 5])
        case "pipe":
            os.mkfifo(path)


def assert_so(repo: Path, one: Finding) -> None:
    """What a finding says, looked at in the plainest way."""
    path = repo / one.path
    match one.code:
        case "wrong-object-digest":
            assert measure(path.read_bytes(), "sha512") != path.parent.name + path.name
        case "missing-object":
            assert not path.is_file() or path.is_symlink()
        case "broken-link":
            assert not path.is_file()
        case "dangling-ref":
            target = Path(os.path.normpath(path.parent / os.readlink(path)))
            assert not (target.is_symlink() and "/objects/" in os.readlink(target) and target.is_file())
        case "not-a-link":
            assert not path.is_symlink()
        case "looping-ref":
            assert not path.exists()


def test_any_damage_is_survived_and_what_is_found_is_so(template: Path, memory: Path) -> None:
    names = paths(template)

    @settings(max_examples=120)
    @given(
        st.lists(
            st.tuples(st.sampled_from(names), st.sampled_from(names), st.sampled_from(ACTIONS), st.integers(0, 100_000)),
            min_size=1,
            max_size=2,
        ),
        st.booleans(),
    )
    def tried(damages: list[tuple[str, str, str, int]], content: bool) -> None:
        repo = hard_copy(template, memory / "repo")
        for name, other, action, place in damages:
            if os.path.lexists(repo / name) and os.path.lexists(repo / other):
                damage(repo, name, other, action, place)
        before = _tree(repo)
        findings = _check(repo, content)
        if findings is None:
            return
        for one in findings:
            assert_so(repo, one)
        changed = _tree(repo)
        assert changed == before
        if any(_matters(name, template, repo) for name, *_ in damages) and content:
            assert findings
        _repair(repo)

    tried()


REFUSALS = ("malformed", "repository-not-found", "unsupported-feature", "unsupported-version")


def _check(repo: Path, content: bool) -> Sequence[Finding] | None:
    """What is found; None where the repository cannot be opened."""
    refused = None
    try:
        return check(repo, content=content).findings
    except CfsTagsError as error:
        refused = error.code
    assert refused in REFUSALS
    return None


def _repair(repo: Path) -> None:
    """A repair ends, and what it marks as repaired is found no more."""
    try:
        with Repository.open(repo, write=True) as opened:
            done = repair(opened, owners=("bootc", "deployment", "foreign"), jobs=1)
    except CfsTagsError:
        return
    left = {(one.code, one.path) for one in check(repo).findings}
    assert left.isdisjoint({(one.code, one.path) for one in done.findings if one.repaired})


def _matters(name: str, template: Path, repo: Path) -> bool:
    """Whether it is an object that has other bytes now."""
    path = repo / name
    return name.startswith("objects/") and path.is_file() and path.read_bytes() != (template / name).read_bytes()


def _tree(repo: Path) -> dict[str, Any]:
    return {
        name: (node.kind, node.target, node.sha256) if node.kind != "other" else node.kind for name, node in tree(repo).items()
    }
