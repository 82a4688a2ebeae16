"""A deployment ref that is as it should be is on disk: the run that made its last part may have been killed before it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from cfs_tags import Repository
from cfs_tags.host import refs
from cfs_tags.host.sysroot import SysrootView
from cfs_tags.migrate import migrate
from cfs_tags.values import DeploymentId, Digest
from deployments.conftest import fill_three, sysroot_of
from support.interrupt import count_calls, every_stop, kill_after
from support.sysroots import Host
from support.trees import copy_tree

DIRECTORIES = {
    "streams/refs/cfs-tags/deployments",
    "streams/refs/cfs-tags/configs",
    "images/refs/cfs-tags/deployments",
}


def make(path: Path, host: Host) -> list[str]:
    """Make the ref of the newest deployment; gives what was synced, and says whether anything was changed."""
    deployed = host.pool.images["new"]
    with Repository.open(path, write=True) as repo, count_calls() as calls:
        refs.create(repo, DeploymentId(deployed.id), Digest(deployed.manifest), timeout=5)
    return [str(args[1]) for name, args in calls.made if name == "sync" and len(args) > 1]


def test_a_ref_that_is_made_again_is_on_disk(host: Host) -> None:
    fill_three(host)
    make(host.repo, host)

    assert set(make(host.repo, host)) == DIRECTORIES


@pytest.mark.parametrize("part", sorted(DIRECTORIES))
def test_a_part_that_a_killed_run_made_alone_is_on_disk_when_it_is_run_again(host: Host, tmp_path: Path, part: str) -> None:
    """One part is missing: it is a single new ref, which has no journal."""
    fill_three(host)
    make(host.repo, host)
    deployed = host.pool.images["new"]
    (host.repo / part / deployed.id).unlink()
    made = 0
    for attempt in every_stop(
        lambda number: copy_tree(host.repo, tmp_path / f"{number}"), lambda path: make(path, host), kill_after
    ):
        is_there = (attempt.subject / part / deployed.id).is_symlink()
        synced = make(attempt.subject, host)
        assert part in synced, attempt.number
        made += is_there and attempt.interrupted
    assert made


def test_a_migration_with_nothing_left_to_do_has_it_on_disk(host: Host) -> None:
    fill_three(host)
    with Repository.open(host.repo, write=True) as repo:
        migrate(repo, SysrootView.read(sysroot_of(host), repo.algorithm), timeout=5)
    with Repository.open(host.repo, write=True) as repo, count_calls() as calls:
        made = migrate(repo, SysrootView.read(sysroot_of(host), repo.algorithm), timeout=5)

    assert made.changes == ()
    assert {str(args[1]) for name, args in calls.made if name == "sync" and len(args) > 1} >= DIRECTORIES
