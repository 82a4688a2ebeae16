"""Stopped at every single change to the disk: all or nothing, whatever a peer or a collector did before the next writer."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from cfs_tags import Repository
from cfs_tags.errors import ExpectationFailed
from cfs_tags.repo import fsops, reflog
from cfs_tags.tags import history
from support import stock
from support.interrupt import Interruption, every_stop, kill_after, stopped_after, torn_kill_after
from support.kinds import KINDS, Subject, write_next
from support.peers import Cfsctl
from support.stock import before_call, dangling, digest_of, leftovers, let_go, link_to, tags, without_exchange


@pytest.fixture
def collectable(stocked: Path, ram: Path) -> Path:
    """The same, but nothing except the refs under test holds ``one``, ``two`` and ``three``."""
    path = ram / "collectable"
    if not path.exists():
        stock.hard_copy(stocked, path)
        let_go(path, "one", "two", "three")
    return path


def assert_log_is_true(path: Path, subject: Subject) -> None:
    """What was recorded last of each ref is what it is, but for a ref whose making was cut off before the record."""
    found = stock.refs(path)
    with Repository.open(path) as repo:
        for ref in subject.touched:
            last = reflog.last_value(repo, ref)
            recorded = last.new if last is not None else None
            assert recorded == found.get(ref) or (subject.kind.makes_one and recorded is None), ref


def remake(path: Path, ref: str, digest: str | None) -> None:
    """A peer moves (``digest``) or removes a ref."""
    place = path / ref
    place.unlink(missing_ok=True)
    if digest is not None:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(link_to(digest, ref.count("/") - 1))


def changes(refs: Mapping[str, str], but: str = "") -> dict[str, str]:
    return {path: digest for path, digest in refs.items() if path != but}


# -- alone -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [stopped_after, kill_after, torn_kill_after])
@pytest.mark.parametrize("kind", KINDS)
def test_the_next_writer_finds_all_or_nothing(stocked: Path, ram: Path, cfsctl: Cfsctl, kind: str, how: Interruption) -> None:
    subject = Subject(KINDS[kind], stocked, ram)
    seen = set()
    for attempt in every_stop(subject.fresh, subject.act, how):
        path = attempt.subject
        if how is stopped_after:
            cfsctl(path, "gc", "-n")  # correct at any instant, before any recovery
            assert dangling(path) == []
        assert write_next(path) == ()

        found = tags(path)
        assert found in (subject.old, subject.new), attempt.number
        seen.add(found == subject.new)
        assert leftovers(path) == []
        assert_log_is_true(path, subject)
    assert seen == {False, True}
    cfsctl.assert_healthy(path)


@pytest.mark.parametrize("kind", KINDS)
def test_without_exchange_too(stocked: Path, ram: Path, cfsctl: Cfsctl, kind: str) -> None:
    subject = Subject(KINDS[kind], stocked, ram)

    def act(path: Path) -> None:
        with without_exchange():
            subject.act(path)

    for attempt in every_stop(subject.fresh, act, kill_after):
        path = attempt.subject
        with without_exchange():
            write_next(path)
        assert tags(path) in (subject.old, subject.new), attempt.number
        assert leftovers(path) == []
        assert_log_is_true(path, subject)
    cfsctl.assert_healthy(path)


@pytest.mark.parametrize("kind", ["batch", "rename over another", "into the trash"])
def test_a_recovery_that_is_stopped_itself_is_finished_by_the_next(stocked: Path, ram: Path, kind: str) -> None:
    subject = Subject(KINDS[kind], stocked, ram)
    for number in (6, 10):

        def prepare(_: int, number: int = number) -> Path:
            path = subject.fresh()
            stopped_after(number, lambda: subject.act(path))
            return path

        for attempt in every_stop(prepare, write_next, kill_after):
            path = attempt.subject
            write_next(path)
            assert tags(path) in (subject.old, subject.new), (number, attempt.number)
            assert leftovers(path) == []
            assert_log_is_true(path, subject)


@pytest.mark.parametrize("kind", KINDS)
def test_a_signal_right_after_any_change_leaves_all_or_nothing_at_once(stocked: Path, ram: Path, kind: str) -> None:
    """Control-C is raised between two instructions: the change may be made and not yet recorded."""
    subject = Subject(KINDS[kind], stocked, ram)

    def interrupted(number: int, function: Callable[[], object]) -> bool:
        seen = {"calls": 0}

        def watch(original: Callable[..., object]) -> Callable[..., object]:
            def watched(*args: object, **keywords: object) -> object:
                seen["calls"] += 1
                result = original(*args, **keywords)
                if seen["calls"] == number + 1:
                    raise KeyboardInterrupt
                return result

            return watched

        watched_all: dict[str, Any] = {name: watch(getattr(fsops, name)) for name in fsops.MUTATING}
        with patch.multiple("cfs_tags.repo.fsops", **watched_all), suppress(KeyboardInterrupt):
            function()
        return seen["calls"] > number

    for attempt in every_stop(subject.fresh, subject.act, interrupted):
        path = attempt.subject
        found = tags(path)
        assert found in (subject.old, subject.new), attempt.number
        write_next(path)
        assert tags(path) == found, "decided once"
        assert leftovers(path) == []


# -- with a peer -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("removes", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_ref_that_a_peer_moved_stays_and_the_rest_is_all_or_nothing(
    stocked: Path, ram: Path, cfsctl: Cfsctl, kind: str, removes: bool
) -> None:
    subject = Subject(KINDS[kind], stocked, ram)
    for place in range(len(subject.touched)):
        ref = subject.touched[place]
        for attempt in every_stop(subject.fresh, subject.act, stopped_after):
            if attempt.number % len(subject.touched) != place and len(subject.touched) > 3:
                continue  # every call, and every ref, but not every pair
            path = attempt.subject
            middle = tags(path)
            theirs = None if removes else digest_of(path, "four")
            remake(path, ref, theirs)

            abandoned = write_next(path)

            found = tags(path)
            assert changes(found, ref) in (changes(subject.old, ref), changes(subject.new, ref)), attempt.number
            if theirs not in (subject.old.get(ref), subject.new.get(ref)):
                assert found.get(ref) == theirs, attempt.number
            assert leftovers(path) == []
            assert dangling(path) == []
            with Repository.open(path) as repo:
                logged = {entry.ref for entry in reflog.all_entries(repo).entries if entry.action == "transaction-abandoned"}
            put_back = {
                name for name in subject.touched if name != ref and middle.get(name) == subject.new.get(name) != found.get(name)
            }
            assert put_back <= logged
            assert bool(abandoned) or not logged
        cfsctl(path, "gc", "-n")


@pytest.mark.parametrize("kind", KINDS)
def test_after_a_collection_no_ref_names_what_is_gone(collectable: Path, ram: Path, cfsctl: Cfsctl, kind: str) -> None:
    subject = Subject(KINDS[kind], collectable, ram, collects=True)
    for attempt in every_stop(subject.fresh, subject.act, stopped_after):
        path = attempt.subject
        cfsctl(path, "gc")
        here = {name.removeprefix("oci-manifest-") for name in os.listdir(path / "streams")}

        abandoned = write_next(path)

        found = tags(path)
        assert dangling(path) == []
        if not abandoned:
            assert found in (subject.old, subject.new), attempt.number
        for ref in subject.touched:
            old, new = subject.old.get(ref), subject.new.get(ref)
            wanted = (old, new) if not abandoned else (old,) if old is None or old in here else (new, None)
            assert found.get(ref) in wanted, (attempt.number, ref)
        assert changes(found).keys() <= subject.old.keys() | subject.new.keys()
        assert leftovers(path) == []
        assert_log_is_true(path, subject)
        cfsctl(path, "gc", "-n")


# -- with a faster peer ------------------------------------------------------------------------------------------------

RACES = [
    ("move", "exchange", 1, "streams/refs/oci/app"),
    ("delete", "rename", 1, "streams/refs/oci/app"),
    ("delete two", "rename", 2, "streams/refs/oci/b"),
    ("into the trash", "rename", 1, "streams/refs/oci/app"),
    ("rename", "make_link", 1, "streams/refs/oci/b"),
    ("rename", "rename", 1, "streams/refs/oci/app"),
    ("rename over another", "exchange", 1, "streams/refs/oci/b"),
    ("home", "rename", 1, "streams/refs/oci/app"),
    ("restore from the log", "exchange", 1, "streams/refs/oci/app"),
    ("batch", "exchange", 1, "streams/refs/oci/a"),
    ("batch", "exchange", 2, "streams/refs/oci/c"),
    ("batch", "rename", 1, "streams/refs/oci/b"),
    ("batch", "rename", 2, "streams/refs/oci/d"),
    ("batch", "make_link", 4, "streams/refs/oci/made%2Ftoo"),
]


@pytest.mark.parametrize("collects", [False, True])
@pytest.mark.parametrize(("kind", "operation", "which", "ref"), RACES)
def test_a_peer_that_was_faster_keeps_its_value_wherever_we_are_stopped(
    stocked: Path, collectable: Path, ram: Path, cfsctl: Cfsctl, kind: str, operation: str, which: int, ref: str, collects: bool
) -> None:
    """The peer moves the ref right before our step; we are stopped anywhere after it, its value still in our hands."""
    subject = Subject(KINDS[kind], collectable if collects else stocked, ram, collects=collects)
    theirs = digest_of(subject.template, "three" if collects and kind != "batch" else "four")
    came: list[bool] = []

    def act(path: Path) -> None:
        came.clear()

        def peer() -> None:
            came.append(True)
            remake(path, ref, theirs)

        with before_call(operation, peer, which), suppress(ExpectationFailed):
            subject.act(path)

    raced = 0
    for attempt in every_stop(subject.fresh, act, stopped_after):
        path = attempt.subject
        if not came:
            continue
        raced += 1
        if collects:
            cfsctl(path, "gc")
        there = (path / "streams" / f"oci-manifest-{theirs}").exists()

        write_next(path)

        found = tags(path)
        if there:
            assert found.get(ref) == theirs, attempt.number
            if not collects:
                assert changes(found, ref) == changes(subject.old, ref), attempt.number
        assert dangling(path) == []
        assert leftovers(path) == []
        cfsctl(path, "gc", "-n")
    assert raced > 2


@pytest.mark.parametrize("kind", ["move", "delete"])
def test_the_log_tells_what_a_faster_peer_did(stocked: Path, ram: Path, kind: str) -> None:
    subject = Subject(KINDS[kind], stocked, ram)
    path = subject.fresh()
    operation = "exchange" if kind == "move" else "rename"
    theirs = digest_of(path, "four")
    with before_call(operation, lambda: remake(path, "streams/refs/oci/app", theirs)), pytest.raises(ExpectationFailed):
        subject.act(path)

    with Repository.open(path) as repo:
        newest = history.log(repo, "app")[0]
    assert (newest.entry.action, newest.new) == ("found", theirs)
