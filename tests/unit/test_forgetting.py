"""Entries of the log that are old are forgotten: which, when, and what stays whatever its age is."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cfs_tags import Repository
from cfs_tags.gc import GcOptions, collect
from cfs_tags.repo import clock, forgetting, reflog
from cfs_tags.repo.store import WriteRepo
from cfs_tags.repo.transaction.change import NO_NOTE
from cfs_tags.tags.history import log
from support import tagging
from support.stock import digest_of

DAY = 86400.0
KEEP = 90 * DAY


def ago(days: float) -> object:
    now = time.time()
    return patch.object(time, "time", lambda: now - days * DAY)


@pytest.fixture
def old(stocked: Path) -> Path:
    """A repository with tags that moved long ago, some of them lately as well."""
    one, two = digest_of(stocked, "one"), digest_of(stocked, "two")
    with Repository.open(stocked, write=True) as mine:
        with ago(300):
            for name in ("still", "moved", "gone", "back"):
                tagging.create(mine, name, f"@{one}")
            collect(mine, GcOptions(keep_log=None))
        with ago(200):
            tagging.create(mine, "still", f"@{two}", force=True)
            tagging.delete(mine, ["gone", "back"])
            collect(mine, GcOptions(keep_log=None))
        with ago(100):  # a host that is in use: a clock that leaps half a year is not believed
            clock.advance(mine)
        with ago(10):
            tagging.create(mine, "moved", f"@{two}", force=True)
            tagging.create(mine, "back", f"@{two}")
        (stocked / "cfs-tags/forgotten").unlink(missing_ok=True)
    return stocked


def actions(repo: Repository, name: str) -> list[str]:
    return [line.entry.action for line in log(repo, name)]


def forget(repo: WriteRepo, keep: float | None = KEEP) -> int:
    return forgetting.forget(repo, keep, NO_NOTE, 30)


def test_old_entries_go_and_the_last_of_a_ref_that_is_there_stays(old: Path) -> None:
    with Repository.open(old, write=True) as mine:
        assert forgetting.plan(mine, KEEP).entries == 7
        assert forget(mine) == 7
        assert actions(mine, "still") == ["move"]
        assert actions(mine, "moved") == ["move"]
        assert actions(mine, "back") == ["create"]
        with pytest.raises(Exception, match="gone"):
            log(mine, "gone")
        assert [entry.action for entry in reflog.all_entries(mine).entries if entry.ref == reflog.WHOLE] == ["collect"]
        assert not [entry for entry in reflog.all_entries(mine).entries if entry.action == reflog.FOUND]
        assert reflog.damage(mine) == {}
        tagging.delete(mine, ["still"])
        assert actions(mine, "still") == ["delete", "move"]


def test_a_collection_forgets_and_a_dry_run_says_what_it_would(old: Path) -> None:
    from cfs_tags.gc import plan

    with Repository.open(old, write=True) as mine:
        assert plan(mine).forgotten == 7
        assert collect(mine, GcOptions(keep_log=None)).forgotten == 0
        assert collect(mine).forgotten == 8, "the collections before the last one, too"
        assert collect(mine).forgotten == 0
        assert len(reflog.all_entries(mine).entries) == 6


def test_it_is_done_once_a_day(old: Path) -> None:
    with Repository.open(old, write=True) as mine:
        forget(mine)
        assert forgetting.plan(mine, DAY) == forgetting.NOTHING
        now = time.time() - 2 * DAY
        os.utime(old / "cfs-tags/forgotten", (now, now))
        assert forget(mine, DAY) == 0, "all that is left is the last entry of something that is there"


def test_nothing_is_forgotten_by_a_clock_that_is_not_believed(old: Path) -> None:
    with Repository.open(old, write=True) as mine:
        with ago(-3652):
            assert forget(mine) == 0
        with ago(3652):
            assert forget(mine) == 0
        assert len(reflog.all_entries(mine).entries) > 10
        with ago(-3652):
            clock.believe(mine)
            assert forget(mine) >= 7


def test_what_cannot_be_read_stays(old: Path) -> None:
    with Repository.open(old, write=True) as mine:
        path = next(
            path
            for path in reflog.paths(mine)
            if b'"still"' in (old / path).read_bytes() or b"/still" in (old / path).read_bytes()
        )
        with (old / path).open("ab") as file:
            file.write(b"torn\n")
        forget(mine)
        assert reflog.damage(mine) == {path: 1}
        assert actions(mine, "still") == ["move"]


def test_a_file_with_a_hole_stays_as_it_is(old: Path) -> None:
    with Repository.open(old, write=True) as mine:
        path = old / reflog.paths(mine)[0]
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size + (1 << 20))
        before = path.read_bytes()
        forget(mine)
        assert path.read_bytes() == before


def test_a_full_disk_forgets_nothing_and_stops_no_collection(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    from cfs_tags.repo import fsops

    replace: Callable[..., None] = fsops.replace_file

    def full(fd: int, path: str, *rest: object) -> None:
        if "reflog" in path:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(fd, path, *rest)

    monkeypatch.setattr(fsops, "replace_file", full)
    with Repository.open(old, write=True) as mine:
        assert collect(mine).forgotten == 0
        monkeypatch.undo()
        assert collect(mine).forgotten == 8


MOVES = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["one", "two", None]), st.integers(0, 60)), max_size=12)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(MOVES, st.integers(1, 60))
def test_what_is_left_is_the_end_of_what_was_there(stocked: Path, moves: list[tuple[str, str | None, int]], keep: int) -> None:
    """Of each ref; nothing younger goes, nothing is found that nobody did, and once more changes nothing."""
    for path in (stocked / "cfs-tags").rglob("*"):
        if path.is_file():
            path.unlink()
    with Repository.open(stocked, write=True) as mine:
        for name, target, day in sorted(moves, key=lambda move: -move[2]):
            with ago(day):
                if target is None:
                    tagging.delete(mine, [name]) if mine.tags.get(name) else None
                else:
                    tagging.create(mine, name, f"@{digest_of(stocked, target)}", force=True)
        before = {ref: reflog.history(mine, ref).entries for ref in {e.ref for e in reflog.all_entries(mine).entries}}
        first = reflog.timestamp(time.time() - keep * DAY)
        forget(mine, keep * DAY)
        for ref, entries in before.items():
            left = reflog.history(mine, ref).entries
            assert left == entries[len(entries) - len(left) :]
            assert all(entry.time < first for entry in entries[: len(entries) - len(left)])
            if mine.read_link(ref) is not None:
                assert left
        (stocked / "cfs-tags/forgotten").unlink(missing_ok=True)
        assert forget(mine, keep * DAY) == 0
        for name in "abc":
            if mine.tags.get(name) is not None:
                tagging.delete(mine, [name])


def test_a_file_that_is_not_whole_when_it_is_written_stays(old: Path) -> None:
    with Repository.open(old, write=True) as mine:
        made = forgetting._plan(mine, reflog.timestamp(time.time() - KEEP))
        before = {path: (old / path).read_bytes() for path in made.files}
        with patch.object(reflog, "lines_of", lambda repo, path: ([], False)):
            forgetting._write(mine, made, reflog.timestamp(time.time() - KEEP))
    assert made.files
    assert {path: (old / path).read_bytes() for path in made.files} == before
