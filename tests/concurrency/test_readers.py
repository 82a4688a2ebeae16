"""Who reads several refs sees of each transaction all or nothing, and misses none that is there; a lock is seldom needed."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from cfs_tags import Repository
from cfs_tags.errors import ExpectationFailed, LockConflict
from cfs_tags.registry.catalog import Catalog
from cfs_tags.repo import layout, refs
from cfs_tags.repo.lock import Lock
from cfs_tags.repo.transaction.run import transact
from cfs_tags.tags import edit, history, names, rows
from cfs_tags.tags.instructions import Instruction
from support import stock
from support.stock import PRIVATE, SHARED, before_call, digest_of, make_tag

IN_THE_MIDDLE = 0.3
"""Seconds that a transaction goes on after a reader was sent."""


@pytest.fixture
def other() -> Iterator[Executor]:
    """Another process."""
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
        pool.submit(os.getpid).result()
        yield pool


@pytest.fixture
def pair(stocked: Path) -> Path:
    """A repository with two tags of one value, whose last transaction is some time ago."""
    with Repository.open(stocked, write=True) as repo:
        move_pair(stocked, digest_of(stocked, "one"))
        repo.tags.create("third", f"@{digest_of(stocked, 'three')}")
    time.sleep(0.05)
    return stocked


def move_pair(path: Path, digest: str) -> None:
    """One transaction."""
    with Repository.open(path, write=True) as repo:
        moves = [Instruction("set", name, f"@{digest}") for name in ("pair/a", "pair/b")]
        transact(repo, lambda: edit.plan(repo, moves))


def listed(path: Path) -> dict[str, str | None]:
    with Repository.open(path) as repo:
        return {tag.name: tag.digest for tag in rows.list_tags(repo) if tag.name.startswith("pair/")}


def resolved(path: Path, name: str) -> str:
    with Repository.open(path) as repo:
        return names.resolve(repo, name)


def looks(path: Path) -> dict[str, Any]:
    """What all kinds of readers say of the pair."""
    with Repository.open(path) as repo:
        log = history.log(repo, "pair/a")
        return {
            "list": {tag.digest for tag in rows.list_tags(repo) if tag.name.startswith("pair/")},
            "everything": {link for ref, link in refs.everything(repo).items() if "/pair%2F" in ref},
            "log": [line.entry.action for line in log],
        }


def sent(other: Executor, made: list[Future[Any]], function: Callable[..., Any], *args: object) -> Callable[[], None]:
    """An action in the middle of a transaction: another process begins to read."""

    def send() -> None:
        made.append(other.submit(function, *args))
        time.sleep(IN_THE_MIDDLE)

    return send


# -- a transaction that is on its way ----------------------------------------------------------------------------------


def test_every_reader_waits_for_a_transaction_that_is_on_its_way(pair: Path, other: Executor) -> None:
    made: list[Future[Any]] = []
    two = digest_of(pair, "two")

    with before_call("exchange", sent(other, made, looks, pair), 2):
        move_pair(pair, two)

    found = made[0].result()
    assert found["list"] == {two}
    assert len(found["everything"]) == 1
    assert found["log"] == ["move", "create"]


def test_what_is_taken_back_is_not_seen(pair: Path, other: Executor) -> None:
    """A peer moves the old name, so that the new one, which has its value by then, gets its own back."""
    made: list[Future[Any]] = []
    one, two = digest_of(pair, "one"), digest_of(pair, "two")
    send = sent(other, made, resolved, pair, "pair/a")

    def act() -> None:
        assert resolved_by_hand(pair, "pair/a") == digest_of(pair, "three")
        make_tag(pair, "third", two)
        send()

    with before_call("rename", act), Repository.open(pair, write=True) as repo, pytest.raises(ExpectationFailed):
        repo.tags.rename("third", "pair/a", force=True)

    assert made[0].result() == one


def resolved_by_hand(path: Path, name: str) -> str:
    return os.readlink(path / SHARED / name.replace("/", "%2F")).rpartition("oci-manifest-")[2]


def test_a_writer_that_is_stopped_holds_up_no_reader_for_long(pair: Path, other: Executor) -> None:
    made = []

    def act() -> None:
        made.append(other.submit(listed, pair).result(timeout=60))

    with before_call("exchange", act, 2):
        move_pair(pair, digest_of(pair, "two"))

    assert sorted(made[0]) == ["pair/a", "pair/b"]


def test_a_server_neither_takes_the_lock_of_the_writers_nor_waits_for_it(pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks again at the next request, because the directories have just been changed."""
    served = []

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a lock was asked for")

    def act() -> None:
        with monkeypatch.context() as patched, Repository.open(pair) as repo:
            patched.setattr(Lock, "hold", refuse)
            served.append({row.tag.name for row in Catalog(repo).rows()})

    with before_call("exchange", act, 2):
        move_pair(pair, digest_of(pair, "two"))

    assert {"pair/a", "pair/b"} <= served[0]


# -- a transaction that comes in between -------------------------------------------------------------------------------


def once_after(monkeypatch: pytest.MonkeyPatch, place: object, name: str, when: Callable[[Any], bool], act: object) -> None:
    """Have ``act()`` run once, after the function said something of which ``when`` is true."""
    original, pending = getattr(place, name), [act]

    def watched(*args: Any, **named: Any) -> Any:
        said = original(*args, **named)
        if pending and when((args, said)):
            pending.pop()()  # type: ignore[operator]
        return said

    monkeypatch.setattr(place, name, watched)


def test_a_transaction_between_two_refs_of_a_list_is_seen_whole(
    pair: Path, other: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = digest_of(pair, "two")
    once_after(
        monkeypatch,
        *(os, "readlink", lambda call: "pair%2F" in str(call[0][0])),
        lambda: other.submit(move_pair, pair, two).result(),
    )

    assert listed(pair) == {"pair/a": two, "pair/b": two}


def test_a_tag_that_moves_to_another_home_is_not_missed(pair: Path, other: Executor, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes to the first place after that was looked at, and leaves the second before."""
    digest = digest_of(pair, "one")
    with Repository.open(pair, write=True) as repo:
        repo.tags.create("app", f"@{digest}", home="private")
    assert (pair / PRIVATE / "app").is_symlink()
    time.sleep(0.05)
    once_after(
        monkeypatch, rows, "link_at", lambda call: call[1] is None, lambda: other.submit(to_shared, pair, digest).result()
    )

    assert resolved(pair, "app") == digest
    assert not (pair / PRIVATE / "app").is_symlink()


def to_shared(path: Path, digest: str) -> None:
    with Repository.open(path, write=True) as repo:
        repo.tags.create("app", f"@{digest}", home="shared", force=True)


# -- without the lock --------------------------------------------------------------------------------------------------


def test_what_a_killed_writer_left_halfway_is_read_as_it_is_with_and_without_its_lock(pair: Path) -> None:
    pid = os.fork()
    if pid == 0:
        with before_call("exchange", lambda: os._exit(0), 2):
            move_pair(pair, digest_of(pair, "two"))
    os.waitpid(pid, 0)
    assert any(name.startswith("journal/") for name in stock.leftovers(pair))
    halfway = {"pair/a": digest_of(pair, "two"), "pair/b": digest_of(pair, "one")}

    assert listed(pair) == halfway
    (pair / "cfs-tags/refs.lock").unlink()
    assert listed(pair) == halfway


def test_no_lock_is_asked_for_where_nothing_happens(pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise LockConflict(path="", held="", wanted="")

    monkeypatch.setattr(Lock, "of", refuse)

    looks(pair)


# -- long directories --------------------------------------------------------------------------------------------------


def rename_over(directory: Path, targets: list[str], end: float) -> int:
    """What cfsctl does with one tag after another."""
    chance = random.Random(1)
    spare, count = directory / ".symlink-peer", 0
    while time.monotonic() < end:
        spare.symlink_to("../../oci-manifest-sha256:" + f"{count:064x}")
        spare.rename(directory / chance.choice(targets))
        count += 1
    return count


def test_a_name_in_a_long_directory_is_there_once_however_often_it_is_renamed_over(
    pair: Path, ram: Path, other: Executor
) -> None:
    """tmpfs, for one, gives it a new place in its order each time: one call of the system has it not yet, the next no more."""
    path = shutil.copytree(pair, ram / "long", symlinks=True)
    directory = path / layout.SHARED_TAGS
    tags = [f"quay.io%2Forganisation%2Fapp-{number:06d}" for number in range(2000)]
    for name in tags:
        (directory / name).symlink_to("../../oci-manifest-sha256:" + 64 * "0")
    writer = other.submit(rename_over, directory, tags, time.monotonic() + 4)
    looks = missed_by_hand = 0
    with Repository.open(path) as repo:
        while not writer.done():
            missed_by_hand += not set(tags) <= set(os.listdir(directory))
            found = Counter(entry.path.rpartition("/")[2] for entry in refs.walk(repo, layout.SHARED_TAGS))
            assert [name for name in tags if found[name] != 1] == []
            assert set(tags) <= set(repo.names(layout.SHARED_TAGS) or ())
            looks += 1
    assert writer.result() > 100
    assert looks > 1
    print(f"{looks} looks, {missed_by_hand} missed a name where one listing is believed")
