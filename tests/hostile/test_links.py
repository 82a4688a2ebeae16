"""Links that the owner of a repository put there: root follows none of them, and changes no file that has another name.

Each is tried as what it would be used for, root in a repository of another user, and again in root's own repository,
where nothing but the way in which paths are followed keeps root inside.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from hostile.conftest import APP, USER, Outside, Result, give, needs_root, run

pytestmark = needs_root

Repositories = pytest.mark.parametrize("owner", [0, USER], ids=["of root's own", "of another user"])


def commands(repo: Path, image: Path) -> dict[str, list[str]]:
    """Every command that writes, by a name, with the words that are wanted behind the repository's."""
    digest = os.readlink(repo / APP).rpartition("oci-manifest-")[2]
    away = ["--boot", str(repo.parent / "boot"), "--esp", "none", "--run", str(repo.parent / "run"), "--booted", "none"]
    return {
        "create": ["create", "made", f"@{digest}"],
        "create --expires": ["create", "leased", f"@{digest}", "--expires", "1d"],
        "delete": ["delete", "app"],
        "delete --keep-for": ["delete", "made", "--keep-for", "1d"],
        "restore": ["restore", "app"],
        "rename": ["rename", "app", "other"],
        "import": ["import", f"oci:{image}:fresh", "fresh"],
        "import --force": ["import", f"oci:{image}:app", "app", "--force"],
        "migrate": ["migrate", *away],
        "migrate --write-origin": ["migrate", "--write-origin", *away],
        "migrate --undo": ["migrate", "--undo", *away],
        "retire": ["retire", *away],
        "gc": ["gc", *away],
        "fsck --repair": ["fsck", "--repair"],
    }


def all_of(repo: Path, image: Path) -> list[Result]:
    return [run("--repo", repo, *words, "--lock-timeout", "5") for words in commands(repo, image).values()]


def replace(path: Path, target: Path) -> None:
    """Put a link in the place of whatever is there."""
    if path.exists() or path.is_symlink():
        path.rename(path.with_name(f"{path.name}.was"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


@Repositories
@pytest.mark.parametrize(
    "place",
    [
        "objects",
        "streams",
        "images",
        "streams/refs",
        "streams/refs/oci",
        "streams/refs/cfs-tags",
        "streams/refs/cfs-tags/tags",
        "streams/refs/cfs-tags/deployments",
        "streams/refs/cfs-tags/leases",
        "images/refs",
        "images/refs/cfs-tags",
        "cfs-tags",
        "cfs-tags/tmp",
        "cfs-tags/journal",
        "cfs-tags/reflog",
        "cfs-tags/undo",
        "cfs-tags/quarantine",
    ],
)
def test_a_directory_that_is_a_link_leads_no_command_outside(
    repo: Path, image: Path, outside: Callable[[], Outside], place: str, owner: int
) -> None:
    beside = outside()
    replace(repo / place, beside.path / place)
    give(repo, owner)

    results = all_of(repo, image)

    assert beside.changed() == []
    assert [one for one in results if not one.is_sound] == []
    assert any(one.status for one in results)  # it was in the way of some of them


@Repositories
def test_an_import_writes_nothing_where_directories_of_objects_are_links(
    repo: Path, image: Path, outside: Callable[[], Outside], owner: int
) -> None:
    beside = outside()
    for number in range(256):
        replace(repo / f"objects/{number:02x}", beside.path / f"objects/{number:02x}")
    give(repo, owner)

    results = all_of(repo, image)

    assert beside.changed() == []
    assert [one for one in results if not one.is_sound] == []


@Repositories
def test_a_collection_deletes_nothing_where_directories_of_objects_are_links(
    repo: Path, image: Path, outside: Callable[[], Outside], owner: int
) -> None:
    beside = outside()
    for number in range(0, 256, 2):
        replace(repo / f"objects/{number:02x}", beside.path / f"objects/{number:02x}")
    give(repo, owner)

    result = run("--repo", repo, "gc", "--no-sysroot")

    assert (result.status, beside.changed()) == (6, [])


@Repositories
def test_undoing_a_migration_removes_nothing_where_a_link_leads(
    repo: Path, image: Path, outside: Callable[[], Outside], owner: int
) -> None:
    beside = outside()
    for place in ("empty", "deployments", "configs"):
        (beside.path / "streams/refs/cfs-tags" / place).mkdir(parents=True, exist_ok=True)
    replace(repo / "streams/refs/cfs-tags", beside.path / "streams/refs/cfs-tags")
    (repo / "cfs-tags/undo").mkdir(parents=True, exist_ok=True)
    record = {
        "refs": [],
        "directories": [f"streams/refs/cfs-tags/{name}" for name in ("empty", "deployments", "configs")],
        "origins": [],
        "finished": True,
    }
    (repo / "cfs-tags/undo/migration.json").write_text(json.dumps(record))
    give(repo, owner)

    result = run("--repo", repo, *commands(repo, image)["migrate --undo"])

    assert (result.is_sound, result.status != 0) == (True, True)
    assert all((beside.path / "streams/refs/cfs-tags" / name).is_dir() for name in ("empty", "deployments", "configs"))


FILES = ["cfs-tags/gc.stamp", "cfs-tags/refs.lock", "cfs-tags/seen.json", "cfs-tags/undo/migration.json", "meta.json"]


@Repositories
@pytest.mark.parametrize("kind", ["hard link", "link"])
@pytest.mark.parametrize("place", ["cfs-tags/reflog/*", *FILES])
def test_a_file_that_is_one_of_roots_under_another_name_keeps_owner_and_content(
    repo: Path, image: Path, outside: Callable[[], Outside], place: str, kind: str, owner: int
) -> None:
    beside = outside()
    secret = beside.path / "secret"
    give(repo, owner)
    for path in [place.replace("*", f"{number:02x}") for number in range(256)] if "*" in place else [place]:
        (repo / path).parent.mkdir(parents=True, exist_ok=True)
        os.chown((repo / path).parent, owner, owner)
        (repo / path).unlink(missing_ok=True)
        if kind == "link":
            (repo / path).symlink_to(secret)
        else:
            os.link(secret, repo / path)
    before = secret.stat()

    results = all_of(repo, image)

    after = secret.stat()
    assert secret.read_text() == "root's\n"
    assert (after.st_uid, after.st_gid, after.st_mode, after.st_size) == (0, 0, before.st_mode, before.st_size)
    assert [one for one in results if not one.is_sound] == []


@Repositories
@pytest.mark.parametrize(
    "name", ["cfs-tags/tmp/fsck", "cfs-tags/tmp/quarantine", "cfs-tags/tmp/object-1", "cfs-tags/seen.json.new"]
)
def test_a_temporary_file_that_is_there_already_is_not_written_through(
    repo: Path, image: Path, outside: Callable[[], Outside], name: str, owner: int
) -> None:
    beside = outside()
    (repo / name).parent.mkdir(parents=True, exist_ok=True)
    (repo / name).symlink_to(beside.path / "secret")
    (repo / "streams/refs/oci/dangling").symlink_to("../../oci-manifest-sha256:" + "0" * 64)
    give(repo, owner)

    results = all_of(repo, image)

    assert beside.changed() == []
    assert [one for one in results if not one.is_sound] == []
