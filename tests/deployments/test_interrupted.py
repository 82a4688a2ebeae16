"""Migrating, retiring and undoing, stopped at every change of the disk: the repository is sound, and running again finishes.

A stop comes before a change and lets nothing after it happen; a kill is the same in a forked child, where nothing is tidied
up either.  In between the real cfsctl must be able to collect, and afterwards everything is as it is after a run that
nobody interrupted.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from cfs_tags import Repository
from cfs_tags.errors import CfsTagsError, NotFoundError
from cfs_tags.host import refs
from cfs_tags.host.sysroot import SysrootView
from cfs_tags.migrate import migrate, undo
from cfs_tags.values import DeploymentId, Digest
from deployments.conftest import fill_three, sysroot_of
from support.interrupt import Interruption, every_stop, fail_after, failed_after, stopped_after, torn_kill_after
from support.peers import Cfsctl
from support.sysroots import Host, Pool, link_tree, new_host
from support.trees import copy_tree

if TYPE_CHECKING:
    from cfs_tags.repo.store import WriteRepo


def with_repo(host: Host, do: Callable[[WriteRepo, SysrootView], object]) -> None:
    with Repository.open(host.repo, write=True) as repo:
        do(repo, SysrootView.read(sysroot_of(host), repo.algorithm))


def do_migrate(host: Host) -> None:
    with_repo(host, lambda repo, view: migrate(repo, view, write_origin=True, timeout=5))


def do_undo(host: Host) -> None:
    with_repo(host, lambda repo, view: undo(repo, view, timeout=5))


def do_retire(host: Host) -> None:
    with Repository.open(host.repo, write=True) as repo:

        def view() -> SysrootView:
            return SysrootView.read(sysroot_of(host), repo.algorithm)

        refs.adopt(repo, view(), timeout=5)
        refs.retire(repo, view, grace=0, timeout=5)


def do_create(host: Host) -> None:
    deployed = host.pool.images["new"]
    with_repo(host, lambda repo, view: refs.create(repo, DeploymentId(deployed.id), Digest(deployed.manifest), timeout=5))


def as_three(host: Host) -> None:
    fill_three(host)


def migrated(host: Host) -> None:
    fill_three(host)
    do_migrate(host)


def half_gone(host: Host) -> None:
    """``old`` has a ref and is gone; ``same`` and ``new`` are there and have none yet."""
    fill_three(host)
    with_repo(host, lambda repo, view: refs.create(repo, DeploymentId(host.id("old")), view=view, timeout=5))
    host.undeploy("old")


class Deed(NamedTuple):
    prepare: Callable[[Host], None]
    act: Callable[[Host], None]


DEEDS = {
    "migrate": Deed(as_three, do_migrate),
    "undo": Deed(migrated, do_undo),
    "retire": Deed(half_gone, do_retire),
    "create": Deed(as_three, do_create),
}


@pytest.fixture(autouse=True)
def _unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for the disk is a step that is counted and stopped like the others; the wait itself shows nothing here."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)


class Stage:
    """Copies of one prepared host, each for one attempt.

    The directory of objects, which nothing here changes, goes from each to the next.
    """

    def __init__(self, deed: Deed, pool: Pool, home: Path) -> None:
        self.deed = deed
        self._home = home
        self.pristine = new_host(home / "pristine", pool, copy_tree)
        deed.prepare(self.pristine)
        self._last = self.pristine.root
        self.before = outside(self.pristine)
        finished = self.copy(-1)
        deed.act(finished)
        self.after = outside(finished)
        assert self.after != self.before

    def copy(self, number: int) -> Host:
        # what is outside our state is replaced and never written into, so hard links will do; our logs are appended to
        def copy(source: str, target: str) -> object:
            ours = "/composefs/cfs-tags/" in source
            return shutil.copy2(source, target) if ours else os.link(source, target, follow_symlinks=False)

        def objects(parent: str, names: list[str]) -> list[str]:
            return ["objects"] if parent.endswith("/composefs") else []

        target = self._home / f"attempt{number}"
        shutil.copytree(self.pristine.root, target, symlinks=True, copy_function=copy, ignore=objects)
        (self._last / "composefs/objects").rename(target / "composefs/objects")
        if self._last != self.pristine.root:
            shutil.rmtree(self._last)
        self._last = target
        return Host(target, self.pristine.pool, booted=self.pristine.booted)


def outside(host: Host) -> dict[str, str]:
    """Everything but our own state: targets of links, bytes of files; of objects, whose bytes never change, the names."""
    found = {}
    for parent, directories, files in os.walk(host.root):
        if parent == f"{host.repo}":
            directories.remove("cfs-tags") if "cfs-tags" in directories else None
        for name in [*directories, *files]:
            path = os.path.join(parent, name)
            if os.path.islink(path):
                what = os.readlink(path)
            elif "/composefs/objects/" in path or name in directories:
                what = ""
            else:
                what = Path(path).read_bytes().decode("latin-1")
            found[os.path.relpath(path, host.root)] = what
    return found


def links_of(state: dict[str, str]) -> dict[str, str]:
    return {path: what for path, what in state.items() if "refs/" in path and what.startswith("../")}


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory where there is one: hundreds of copies are made and removed."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else tmp_path) as name:
        yield Path(name)


@pytest.fixture(params=DEEDS)
def stage(request: pytest.FixtureRequest, pools: Callable[[str], Pool], memory: Path) -> Stage:
    return Stage(DEEDS[request.param], pools("sha512"), memory)


def again(stage: Stage, host: Host) -> None:
    try:
        stage.deed.act(host)
    except NotFoundError as error:
        if error.code != "nothing-to-undo":
            raise
        assert stage.deed.act is do_undo  # the record went last: all had been done


def leftovers(host: Host) -> list[str]:
    """What an interrupted transaction must not leave for ever."""
    found = [path.name for name in ("tmp", "journal") for path in (host.repo / "cfs-tags" / name).glob("*")]
    return found + [path.name for path in host.root.glob("state/deploy/*/*cfs-tag*")]


@pytest.mark.parametrize("how", [stopped_after, torn_kill_after], ids=["stopped", "killed"])
def test_run_again_it_ends_as_if_nothing_had_happened(stage: Stage, cfsctl: Cfsctl, how: Interruption) -> None:
    attempts = 0
    for attempt in every_stop(stage.copy, stage.deed.act, how):
        host = attempt.subject
        if how is torn_kill_after:
            cfsctl(host.repo, "--no-upgrade", "gc", "--dry-run")
            assert all((host.repo / "images" / host.id(name)).exists() for name in host.pool.images)

        again(stage, host)

        assert outside(host) == stage.after, f"interrupted after {attempt.number} changes"
        assert leftovers(host) == []
        attempts += 1
    assert attempts > 10


def test_a_collection_right_after_a_kill_takes_nothing_that_is_deployed(stage: Stage, cfsctl: Cfsctl, memory: Path) -> None:
    """For real, and with the tags of bootc's still there, which is all that keeps what has no ref yet."""
    for attempt in every_stop(stage.copy, stage.deed.act, torn_kill_after):
        if attempt.number % 8 != 7:
            continue
        host = attempt.subject
        collected = link_tree(host.root, memory / "collected")
        host = Host(collected, host.pool)

        cfsctl(host.repo, "gc")

        hashes = host.object_hashes()
        for name in ("same", "new"):
            lacking = host.missing(name, hashes=hashes)
            assert lacking in ([], ["the EROFS image"]), f"killed after {attempt.number} changes"
        shutil.rmtree(collected)


def failed_for_good(n: int, function: Callable[[], object]) -> bool:
    """Every change after the first ``n`` fails.  What only tidies up may fail in silence: the next writer does it."""
    with fail_after(n) as calls:
        try:
            function()
        except CfsTagsError:
            if not calls.interrupted:
                raise
    return calls.interrupted


@pytest.mark.parametrize("how", [failed_after(errno.EIO, once=True), failed_for_good], ids=["once", "for good"])
def test_a_failing_disk_is_an_error_of_ours_and_running_again_finishes(stage: Stage, how: Interruption) -> None:
    between = {**links_of(stage.before), **links_of(stage.after)}  # adopting is done, retiring is not
    for attempt in every_stop(stage.copy, lambda host: ours(stage.deed.act, host), how):
        host = attempt.subject
        if how is not failed_for_good:
            # a disk that fails for good keeps us from taking back as well: that is for the next run
            assert links_of(outside(host)) in (links_of(stage.before), between, links_of(stage.after)), (
                f"failed at {attempt.number}"
            )

        again(stage, host)

        assert outside(host) == stage.after, f"failed after {attempt.number} changes"
        assert leftovers(host) == []


def ours(act: Callable[[Host], None], host: Host) -> None:
    try:
        act(host)
    except OSError as error:
        raise AssertionError("a bare OSError came out") from error
