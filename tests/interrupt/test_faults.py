"""The system refuses one change, or all from some point on: a clear error and nothing changed, or everything done."""

from __future__ import annotations

import errno
import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from cfs_tags import Repository
from cfs_tags.errors import SystemFailure
from cfs_tags.formats import splitstream, splitwriter
from cfs_tags.repo import fsops, reflog
from cfs_tags.repo.object_store import ObjectStore
from cfs_tags.repo.store import WriteRepo
from cfs_tags.values import Algorithm, ContentId
from support import stock
from support.interrupt import fail_after
from support.kinds import KINDS, Subject, write_next
from support.peers import Cfsctl
from support.stock import disk_full_after, error_of, leftovers, tags, without_exchange
from support.trees import Node, tree


def content(path: Path) -> dict[str, Node]:
    """All but directories and our own state."""
    return {name: node for name, node in tree(path, exclude=["cfs-tags"]).items() if node.kind != "dir"}


def fault(kind: str, number: int) -> AbstractContextManager[Any]:
    """A context in which change ``number`` fails; its value tells whether one did."""
    if kind == "full disk":
        return disk_full_after(number)
    return fail_after(number, getattr(errno, kind), once=True)


def happened(seen: Any) -> bool:
    return bool(seen["failed"]) if isinstance(seen, dict) else bool(seen.interrupted)


@pytest.mark.parametrize(
    ("what", "exchange"), [("full disk", True), ("ENOSPC", True), ("EIO", True), ("full disk", False), ("EIO", False)]
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_change_that_fails_is_a_failure_that_changed_nothing(
    stocked: Path, ram: Path, kind: str, what: str, exchange: bool
) -> None:
    subject = Subject(KINDS[kind], stocked, ram)
    before = content(subject.template)
    failures = 0
    for number in range(500):
        path = subject.fresh()
        with fault(what, number) as seen, without_exchange() if not exchange else stock.before_call("sync", lambda: None):
            error = error_of(lambda path=path: subject.act(path))  # type: ignore[misc]
        if not happened(seen):
            assert error is None
            break
        if error is not None:
            failures += 1
            assert isinstance(error, SystemFailure), number
            assert (error.code, error.status) == ("system-failure", 1)
            assert error.errno == (errno.EIO if what == "EIO" else errno.ENOSPC)
            assert str(path) in error.path
            assert content(path) == before, number
            assert leftovers(path) == [], number
        else:  # what came after the last change, and was not cleared away
            assert tags(path) == subject.new, number
        assert_log_is_true(path, subject)
        assert write_next(path) == ()
        assert tags(path) == (subject.old if error is not None else subject.new)
        assert leftovers(path) == []
    assert failures >= 5


def assert_log_is_true(path: Path, subject: Subject) -> None:
    found = stock.refs(path)
    with Repository.open(path) as repo:
        for ref in subject.touched:
            last = reflog.last_value(repo, ref)
            assert (last.new if last is not None else None) == found.get(ref), ref
        assert reflog.all_entries(repo).damaged == 0


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("kind", KINDS)
def test_a_disk_that_fails_for_good_leaves_what_the_next_writer_makes_all_or_nothing(
    stocked: Path, ram: Path, cfsctl: Cfsctl, kind: str, number: int
) -> None:
    """Not even undoing works: the next writer, on a disk that works again, finds the journal."""
    subject = Subject(KINDS[kind], stocked, ram)
    for place in range(500):
        path = subject.fresh()
        with fail_after(place, number) as calls:
            error = error_of(lambda path=path: subject.act(path))  # type: ignore[misc]
        assert error.facts()["errno"] == number if error is not None else tags(path) == subject.new
        write_next(path)
        assert tags(path) in (subject.old, subject.new), place
        assert leftovers(path) == []
        if not calls.interrupted:
            break
    cfsctl.assert_healthy(path)


def test_a_recovery_that_fails_says_so_and_is_repeated(stocked: Path, ram: Path) -> None:
    from support.interrupt import stopped_after

    subject = Subject(KINDS["batch"], stocked, ram)
    for number in (9, 12):
        for place in range(500):
            path = subject.fresh()
            assert stopped_after(number, lambda path=path: subject.act(path))  # type: ignore[misc]
            with fail_after(place, errno.EIO, once=True) as calls:
                error = error_of(lambda path=path: write_next(path))  # type: ignore[misc]
            assert error is None or isinstance(error, SystemFailure)
            write_next(path)
            assert tags(path) in (subject.old, subject.new), (number, place)
            assert leftovers(path) == []
            if not calls.interrupted:
                break


@pytest.mark.parametrize("what", ["full disk", "ENOSPC", "EIO"])
def test_content_that_could_not_be_written_is_not_named(stocked: Path, ram: Path, cfsctl: Cfsctl, what: str) -> None:
    writer = splitwriter.Writer(Algorithm.SHA512, splitstream.CONTENT_TYPE_BLOB)
    writer.add_external(_measured(b"\xa5" * 5000), 5000)
    data = writer.finish()
    named = f"streams/{ContentId('oci-blob-sha256:' + '0' * 64)}"
    for number in range(50):
        path = stock.hard_copy(stocked, ram / "attempt")
        with fault(what, number) as seen, Repository.open(path, write=True) as repo:
            error = error_of(lambda repo=repo: _store(repo, named, data))  # type: ignore[misc]
        if error is None:
            assert (path / named).exists()
        else:
            assert error.facts()["errno"] == (errno.EIO if what == "EIO" else errno.ENOSPC)
            assert not os.path.lexists(path / named) or number > 8, number
        cfsctl(path, "fsck")
        if not happened(seen):
            break
    assert number > 4


def _store(repo: WriteRepo, named: str, data: bytes) -> None:
    ObjectStore(repo).add(b"\xa5" * 5000)
    ObjectStore(repo).add_stream(ContentId(named.removeprefix("streams/")), data)


def _measured(data: bytes) -> Any:
    from cfs_tags.formats import fsverity

    return fsverity.measure(data, Algorithm.SHA512)


def test_every_operation_that_needs_room_is_known_to_the_tests() -> None:
    without = {
        "exchange",
        "rename",
        "remove",
        "remove_directory",
        "truncate",
        "enable_verity",
        "sync",
        "sync_filesystem",
        "date",
        "date_link",
    }
    assert set(stock.NEED_ROOM) | without == set(fsops.MUTATING)
