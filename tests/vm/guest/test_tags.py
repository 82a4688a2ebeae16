"""Tags of a repository that needs fs-verity, beside the real cfsctl."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cfs_tags.repo import fsops
from support.peers import Cfsctl
from vm.guest.rig import VERITY, Run, Shop, unguarded


def tags_by_us(cfs_tag: Run, repo: Path) -> dict[str, str]:
    return {row["name"]: row["digest"] for row in cfs_tag(repo, "list", "--json").result}


def test_tags_of_a_secure_repository_are_read_and_changed_and_cfsctl_agrees(cfs_tag: Run, cfsctl: Cfsctl, pulled: Shop) -> None:
    repo, first, second = pulled.path, pulled.first.manifest_digest, pulled.second.manifest_digest
    cfsctl.assert_healthy(repo)
    assert tags_by_us(cfs_tag, repo) == cfsctl.tags(repo) == {"first": first, "second": second}

    shown = cfs_tag(repo, "show", "first", "--json").result
    inspected = cfsctl.json(repo, "oci", "inspect", "first")
    assert (shown["digest"], shown["composefs_erofs"]) == (first, inspected["composefs_erofs"])
    assert cfs_tag(repo, "resolve", "second").out.strip() == second

    cfs_tag(repo, "create", "quay.io/shop/app:1", "first")
    cfs_tag(repo, "create", "quay.io/shop/app:1", "second", "--force")
    cfs_tag(repo, "delete", "second")
    cfs_tag(repo, "update", "--stdin", input=f"create also @{first}\nmove first @{second} {first}\n")

    wanted = {"quay.io/shop/app:1": second, "first": second, "also": first}
    assert tags_by_us(cfs_tag, repo) == cfsctl.tags(repo) == wanted
    log = cfs_tag(repo, "log", "quay.io/shop/app:1", "--json").result
    assert [(entry["old"], entry["new"]) for entry in log] == [(first, second), (None, first)]
    assert unguarded(repo) == []
    cfsctl.assert_healthy(repo)
    cfsctl(repo, "--require-verity", "oci", "fsck")


@pytest.mark.parametrize("kind", ["links", "files"])
def test_two_names_are_exchanged_in_one_step(kind: str) -> None:
    folder = VERITY / f"exchange-{kind}"
    folder.mkdir()
    for name in ("a", "b"):
        if kind == "links":
            (folder / name).symlink_to(f"was {name}")
        else:
            (folder / name).write_text(f"was {name}")
    fd = os.open(folder, os.O_RDONLY)
    try:
        fsops.exchange(fd, "a", "b")
    finally:
        os.close(fd)

    found = [os.readlink(folder / name) if kind == "links" else (folder / name).read_text() for name in ("a", "b")]
    assert found == ["was b", "was a"]
