"""Directories that others than the owner of a repository can change."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fsck.damage import check, facts

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.mark.parametrize("place", ["objects", "streams/refs", "cfs-tags/journal", "streams/refs/oci/nested/deeper"])
def test_a_directory_of_another_user_is_named(repo: Path, place: str) -> None:
    (repo / place).mkdir(parents=True, exist_ok=True)
    os.chown(repo / place, 4711, 4711)

    (found,) = facts(repo, "foreign-directory")

    assert (found.path, found.message) == (place, "it belongs to user 4711, the repository to user 0")


def test_a_healthy_repository_has_no_such_finding(repo: Path) -> None:
    codes = {one.code for one in check(repo).findings}

    assert not codes & {"foreign-directory", "open-to-group", "open-to-everybody"}
