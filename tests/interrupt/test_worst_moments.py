"""An error or a stop at the worst moment: before the look at what came out, and before a peer or the same command.

What a change has come to is read from the disk, so each of these is tried at every place where it can come.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from cfs_tags import Repository
from cfs_tags.errors import CfsTagsError, ExpectationFailed
from cfs_tags.repo import beneath, fsops, reflog
from cfs_tags.repo.store import ReadRepo, WriteRepo
from cfs_tags.tags import edit
from support import tagging
from support.interrupt import Interruption, count_calls, every_stop, fail_after, kill_after, stopped_after, torn_kill_after
from support.kinds import EXPIRES, KINDS, Kind, Subject, write_next
from support.peers import Cfsctl
from support.stock import (
    before_call,
    dangling,
    digest_of,
    error_of,
    hard_copy,
    leftovers,
    link_to,
    refs,
    tags,
    without_exchange,
)

AGAIN = {
    **KINDS,
    "create where it is absent": Kind(
        lambda repo, d: None, lambda repo, d: tagging.create(repo, "app", f"@{d['one']}", expected="absent")
    ),
    "move where it is expected": Kind(
        lambda repo, d: tagging.create(repo, "app", f"@{d['one']}"),
        lambda repo, d: tagging.create(repo, "app", f"@{d['two']}", force=True, expected=d["one"]),
    ),
    "move to a value of the log": Kind(
        lambda repo, d: [tagging.create(repo, "app", f"@{d[name]}", force=True) for name in ("three", "two", "one")],
        lambda repo, d: tagging.create(repo, "app", "app@{1}", force=True),
    ),
    "restore what is in no trash": Kind(
        lambda repo, d: (
            [tagging.create(repo, "app", f"@{d[name]}", force=True) for name in ("three", "two")],
            tagging.delete(repo, ["app"]),
        ),
        lambda repo, d: tagging.restore(repo, "app"),
    ),
    "restore the value before": Kind(
        lambda repo, d: [tagging.create(repo, "app", f"@{d[name]}", force=True) for name in ("three", "two", "one")],
        lambda repo, d: tagging.restore(repo, "app"),
    ),
}
"""The kinds of changes, and those that would come to something else if they were carried out twice."""


@pytest.fixture
def mine(stocked: Path, ram: Path) -> Path:
    """A copy of the stock that a test may change."""
    return hard_copy(stocked, ram / "mine")


class Reads:
    """How often a link was read or looked at, and whether one of these failed."""

    def __init__(self) -> None:
        self.count = 0
        self.failed = False


@contextmanager
def reads_fail(number: int, *, once: bool = True) -> Iterator[Reads]:
    """Context in which the look at a link fails, number ``number`` or all from there on.

    They count from the first change or sync of a run on: a plan that cannot read is no change.
    """
    seen = Reads()
    started: list[bool] = []

    def start(original: Callable[..., Any]) -> Callable[..., Any]:
        def started_by(*args: Any, **named: Any) -> Any:
            started.append(True)
            return original(*args, **named)

        return started_by

    def watch(original: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any) -> Any:
            seen.count += bool(started)
            if started and seen.count > number and not (once and seen.failed):
                seen.failed = True
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return original(*args)

        return watched

    starts = {name: start(getattr(fsops, name)) for name in ("sync", "make_link", "rename")}
    reads = {name: watch(getattr(beneath, name)) for name in ("read_link", "status")}
    with patch.multiple(fsops, **starts), patch.multiple(beneath, **reads):
        yield seen


def assert_nothing_is_lost(path: Path, subject: Subject, number: int) -> None:
    write_next(path)
    found = tags(path)
    assert found in (subject.old, subject.new), number
    assert leftovers(path) == []
    assert dangling(path) == []
    with Repository.open(path) as repo:
        for ref in subject.touched:
            last = reflog.last_value(repo, ref)
            assert (last.new if last is not None else None) == refs(path).get(ref), (number, ref)


# -- an error when links are looked at ---------------------------------------------------------------------------------


@pytest.mark.parametrize("once", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_look_that_fails_loses_no_ref(stocked: Path, ram: Path, kind: str, once: bool) -> None:
    subject = Subject(KINDS[kind], stocked, ram)
    failed = 0
    for number in range(1000):
        path = subject.fresh()
        with reads_fail(number, once=once) as seen:
            error = error_of(lambda path=path: subject.act(path))  # type: ignore[misc]
        if not seen.failed:
            break
        failed += error is not None
        if error is None:
            assert tags(path) == subject.new
        assert_nothing_is_lost(path, subject, number)
    assert failed


@pytest.mark.parametrize("once", [True, False])
@pytest.mark.parametrize(
    ("kind", "operation", "ref"),
    [
        ("move", "exchange", "streams/refs/oci/app"),
        ("delete", "rename", "streams/refs/oci/app"),
        ("into the trash", "rename", "streams/refs/oci/app"),
        ("rename over another", "exchange", "streams/refs/oci/b"),
        ("restore from the log", "exchange", "streams/refs/oci/app"),
    ],
)
def test_a_peers_value_that_came_out_is_put_back_when_the_look_at_it_fails(
    stocked: Path, ram: Path, kind: str, operation: str, ref: str, once: bool
) -> None:
    subject = Subject(KINDS[kind], stocked, ram)
    theirs = digest_of(subject.template, "four")
    raced = 0
    for number in range(1000):
        path = subject.fresh()
        came: list[bool] = []

        def peer(path: Path = path, came: list[bool] = came) -> None:
            came.append(True)
            (path / ref).unlink()
            (path / ref).symlink_to(link_to(theirs))

        with before_call(operation, peer), reads_fail(number, once=once) as seen, suppress(CfsTagsError):
            subject.act(path)
        if not seen.failed:
            break
        if not came:
            continue
        raced += 1

        write_next(path)

        assert tags(path).get(ref) == theirs, number
        assert {name: digest for name, digest in tags(path).items() if name != ref} == {
            name: digest for name, digest in subject.old.items() if name != ref
        }, number
        assert leftovers(path) == []
    assert raced > 1


def test_a_tag_that_a_peer_makes_first_with_the_same_value_is_not_taken_back(mine: Path) -> None:
    """The making fails because it is there, and what has failed is taken back: but that one is the peer's."""
    one = digest_of(mine, "one")
    made = mine / "streams/refs/oci/new"
    with (
        Repository.open(mine, write=True) as repo,
        before_call("make_link", lambda: made.symlink_to(link_to(one))),
        pytest.raises(ExpectationFailed),
    ):
        tagging.create(repo, "new", f"@{one}")

    assert tags(mine)["streams/refs/oci/new"] == one
    assert leftovers(mine) == []


# -- a stop, then a peer -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["old", "new"])
@pytest.mark.parametrize("kind", [name for name in KINDS if name not in ("create", "create private", "lease")])
def test_what_a_peer_sets_anew_after_a_stop_stays(stocked: Path, ram: Path, cfsctl: Cfsctl, kind: str, to: str) -> None:
    """To the very value that the change was from, or to: a value tells nothing of whether the change was made."""
    subject = Subject(KINDS[kind], stocked, ram)
    wanted = subject.old if to == "old" else subject.new
    for ref in [ref for ref in subject.touched if ref in subject.old]:
        for attempt in every_stop(subject.fresh, subject.act, stopped_after):
            path = attempt.subject
            (path / ref).unlink(missing_ok=True)
            if ref in wanted:
                (path / ref).symlink_to(link_to(wanted[ref], ref.count("/") - 1))

            write_next(path)

            assert tags(path).get(ref) == wanted.get(ref), (ref, attempt.number)
            assert leftovers(path) == []
            assert dangling(path) == []
    cfsctl.assert_healthy(path)


@pytest.mark.parametrize("kind", ["move", "delete", "into the trash", "rename"])
def test_a_pull_after_a_stop_is_not_undone_where_nothing_tells(stocked: Path, ram: Path, cfsctl: Cfsctl, kind: str) -> None:
    """A stop before the first change; then a peer that finds the tag as it wants it, and writes nothing."""
    subject = Subject(KINDS[kind], stocked, ram)
    for attempt in every_stop(subject.fresh, subject.act, stopped_after):
        path = attempt.subject
        if tags(path) != subject.old:
            break
        cfsctl(path, "oci", "tag", subject.old["streams/refs/oci/app"], "app")

        assert write_next(path) == ()

        assert tags(path) == subject.old, attempt.number
    assert attempt.number > 2


# -- what the log says of what was taken back --------------------------------------------------------------------------


def assert_log_is_true(path: Path, touched: Sequence[str]) -> None:
    found = refs(path)
    with Repository.open(path) as repo:
        for ref in touched:
            last = reflog.last_value(repo, ref)
            assert (last.new if last is not None else None) == found.get(ref), ref
        assert reflog.all_entries(repo).damaged == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_signal_when_the_log_is_written_leaves_a_log_that_says_what_the_refs_are(stocked: Path, ram: Path, kind: str) -> None:
    """The log names what was made, and then all of it is taken back."""
    subject = Subject(KINDS[kind], stocked, ram)
    path = subject.fresh()
    append, came = reflog.append, []

    def signalled(*words: Any) -> None:
        append(*words)
        came.append(words)
        if len(came) == 1:
            raise KeyboardInterrupt

    with patch.object(reflog, "append", signalled), pytest.raises(KeyboardInterrupt):
        subject.act(path)

    assert tags(path) == subject.old
    assert leftovers(path) == []
    assert_log_is_true(path, subject.touched)


def test_what_is_taken_back_after_a_part_of_it_was_logged_is_logged_also_when_that_fails_at_first(
    stocked: Path, ram: Path
) -> None:
    """A kill between two files of the log, content that is gone then, and a recovery that meets an error."""
    subject = Subject(KINDS["batch"], stocked, ram)
    target = f"streams/oci-manifest-{subject.digests['three']}"
    link = os.readlink(subject.template / target)
    told: Counter[str] = Counter()
    with count_calls() as calls:
        subject.act(subject.fresh())
    appends = [number for number, name in enumerate(calls.names) if name == "append"]
    assert len(appends) > 3
    for stop in appends[1:]:
        for place in range(500):
            path = subject.fresh()
            assert stopped_after(stop, lambda path=path: subject.act(path))  # type: ignore[misc]
            (path / target).unlink()
            with fail_after(place, errno.EIO, once=True) as failing:
                error_of(lambda path=path: write_next(path))  # type: ignore[misc]
            write_next(path)
            (path / target).symlink_to(link)
            assert tags(path) == subject.old, (stop, place)
            assert_log_is_true(path, subject.touched)
            assert leftovers(path) == []
            with Repository.open(path) as repo:
                told.update(entry.action for entry in reflog.all_entries(repo).entries)
            if not failing.interrupted:
                break
    assert told["transaction-abandoned"] > 100


# -- a stop, then the same command -------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [stopped_after, kill_after, torn_kill_after])
@pytest.mark.parametrize("kind", [name for name in AGAIN if name != "lease"])  # that of a lease would have a later end
def test_a_command_that_was_stopped_and_is_run_again_comes_to_the_same(
    stocked: Path, ram: Path, kind: str, how: Interruption
) -> None:
    subject = Subject(AGAIN[kind], stocked, ram)
    for attempt in every_stop(subject.fresh, subject.act, how):
        if not attempt.interrupted:
            break
        path = attempt.subject

        subject.act(path)

        assert tags(path) == subject.new, attempt.number
        assert leftovers(path) == []
        assert dangling(path) == []
    assert attempt.number > 3


@pytest.mark.parametrize("kind", ["restore from the log", "rename", "delete two", "create where it is absent"])
def test_a_command_that_is_stopped_twice_comes_to_the_same(stocked: Path, ram: Path, kind: str) -> None:
    subject = Subject(AGAIN[kind], stocked, ram)
    for number in range(100):
        path = subject.fresh()
        if not stopped_after(number, lambda path=path: subject.act(path)):  # type: ignore[misc]
            break

        def prepare(_: int, number: int = number) -> Path:
            path = subject.fresh()
            assert stopped_after(number, lambda: subject.act(path))
            return path

        for attempt in every_stop(prepare, subject.act, kill_after, sample=3):
            if attempt.interrupted:
                subject.act(attempt.subject)
            assert tags(attempt.subject) == subject.new, (number, attempt.number)
            assert leftovers(attempt.subject) == []
    assert number > 5


def test_without_exchange_a_stopped_command_comes_to_the_same_too(stocked: Path, ram: Path) -> None:
    subject = Subject(AGAIN["restore the value before"], stocked, ram)

    def act(path: Path) -> None:
        with without_exchange():
            subject.act(path)

    for attempt in every_stop(subject.fresh, act, kill_after):
        if attempt.interrupted:
            act(attempt.subject)
        assert tags(attempt.subject) == subject.new, attempt.number


def test_a_finished_transaction_is_reported_and_the_result_is_that_of_the_command(stocked: Path, ram: Path) -> None:
    subject = Subject(KINDS["restore from the trash"], stocked, ram)
    told = 0
    for attempt in every_stop(subject.fresh, subject.act, kill_after):
        if not attempt.interrupted:
            break
        changed = tags(attempt.subject) != subject.old
        with Repository.open(attempt.subject, write=True) as repo:
            result = tagging.restore(repo, "app")
            recovered = [error for error in repo.recovered if error.code == "transaction-finished"]
        assert (result.name, result.done, result.new) == ("app", "restored", subject.digests["one"])
        assert bool(recovered) == changed, attempt.number
        for error in recovered:
            assert error.message.startswith("recovered: ")
            assert "streams/refs/oci/app" in error.message
            told += 1
    assert told > 2


@pytest.mark.parametrize(("kind", "again"), [("delete", "absent"), ("restore the value before", "two")])
def test_a_command_is_carried_out_anew_where_a_peer_moved_the_tag_since(
    stocked: Path, ram: Path, kind: str, again: str
) -> None:
    subject = Subject(AGAIN[kind], stocked, ram)
    for attempt in every_stop(subject.fresh, subject.act, kill_after):
        path = attempt.subject
        if not attempt.interrupted or tags(path) == subject.old:
            continue
        place = path / "streams/refs/oci/app"
        place.unlink(missing_ok=True)
        place.symlink_to(link_to(digest_of(path, "four")))

        subject.act(path)

        wanted = None if again == "absent" else subject.digests[again]
        assert tags(path).get("streams/refs/oci/app") == wanted, attempt.number


def test_another_command_is_not_taken_for_the_one_that_was_stopped(stocked: Path, ram: Path) -> None:
    subject = Subject(KINDS["restore from the log"], stocked, ram)
    for attempt in every_stop(subject.fresh, subject.act, kill_after):
        if not attempt.interrupted or tags(attempt.subject) == subject.old:
            continue
        with Repository.open(attempt.subject, write=True) as repo:
            assert tagging.restore(repo, "app@{0}").done == "unchanged"
            assert [error.code for error in repo.recovered] in ([], ["transaction-finished"])
        assert tags(attempt.subject) == subject.new


# -- what says that it is unchanged ------------------------------------------------------------------------------------


def syncs(path: Path, act: Callable[[WriteRepo], object]) -> list[str]:
    with Repository.open(path, write=True) as repo, count_calls() as calls:
        act(repo)
    return [str(args[1]) for name, args in calls.made if name == "sync" and len(args) > 1]


@pytest.mark.parametrize("home", ["shared", "private"])
def test_a_tag_that_is_unchanged_is_on_disk(mine: Path, home: str) -> None:
    one = digest_of(mine, "one")

    def create(repo: WriteRepo) -> object:
        return tagging.create(repo, "app", f"@{one}", home=home)

    syncs(mine, create)

    top = "streams/refs/oci" if home == "shared" else "streams/refs/cfs-tags/tags"
    assert syncs(mine, create) == [top]
    with Repository.open(mine, write=True) as repo:
        assert tagging.create(repo, "app", f"@{one}", home=home).done == "unchanged"


def test_where_others_of_a_batch_change_what_is_unchanged_is_on_disk_too(mine: Path) -> None:
    one = digest_of(mine, "one")
    with Repository.open(mine, write=True) as repo:
        tagging.create(repo, "a", f"@{one}", home="private")

    found = syncs(mine, lambda repo: tagging.create(repo, "b", f"@{one}", home="shared"))
    both = syncs(mine, lambda repo: _create(repo, one, "a", "c"))

    assert "streams/refs/cfs-tags/tags" not in found
    assert {"streams/refs/cfs-tags/tags", "streams/refs/oci"} <= set(both)


def _create(repo: WriteRepo, digest: str, *names: str) -> object:
    from cfs_tags.repo.transaction import run
    from cfs_tags.tags.instructions import Instruction

    return run.transact(repo, lambda: edit.plan(repo, [Instruction("create", name, f"@{digest}") for name in names]))


def test_a_restore_that_changes_nothing_is_on_disk(mine: Path) -> None:
    one, two = digest_of(mine, "one"), digest_of(mine, "two")
    with Repository.open(mine, write=True) as repo:
        tagging.create(repo, "app", f"@{one}")
        tagging.create(repo, "app", f"@{two}", force=True)

    assert syncs(mine, lambda repo: tagging.restore(repo, "app@{0}")) == ["streams/refs/oci"]


# -- what is to be kept ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ENOMEM])
@pytest.mark.parametrize("where", ["streams/oci-manifest-", "objects/"])
def test_what_cannot_be_looked_at_is_not_deleted_without_being_kept(mine: Path, where: str, number: int) -> None:
    one = digest_of(mine, "one")
    with Repository.open(mine, write=True) as repo:
        tagging.create(repo, "app", f"@{one}")
    before = refs(mine)

    def refuse(original: Callable[..., Any]) -> Callable[..., Any]:
        def refused(at: Any, path: str) -> Any:
            if path.startswith(where):
                raise OSError(number, os.strerror(number))
            return original(at, path)

        return refused

    with (
        Repository.open(mine, write=True) as repo,
        patch.object(beneath, "read_link", refuse(beneath.read_link)),
        patch.object(ReadRepo, "status", refuse(ReadRepo.status)),
        pytest.raises(CfsTagsError),
    ):
        tagging.delete(repo, ["app"], expires=EXPIRES)

    assert refs(mine) == before


def test_a_link_that_leads_to_no_object_is_a_reason_to_refuse(mine: Path) -> None:
    one = digest_of(mine, "one")
    with Repository.open(mine, write=True) as repo:
        tagging.create(repo, "app", f"@{one}")
        link = mine / f"streams/oci-manifest-{one}"
        link.unlink()
        link.write_text("no link")
        before = refs(mine)

        with pytest.raises(CfsTagsError):
            tagging.delete(repo, ["app"], expires=EXPIRES)

        assert refs(mine) == before
        tagging.delete(repo, ["app"])


def test_what_a_tag_keeps_is_kept_although_it_is_no_manifest(mine: Path) -> None:
    config = next(name for name in os.listdir(mine / "streams") if name.startswith("oci-config-"))
    (mine / "streams/refs/oci/odd").symlink_to(f"../../{config}")

    with Repository.open(mine, write=True) as repo:
        tagging.delete(repo, ["odd"], expires=EXPIRES)

    assert refs(mine)[f"streams/refs/cfs-tags/trash/{EXPIRES}.0/odd"] == f"../../../../{config}"
    assert dangling(mine) == []
