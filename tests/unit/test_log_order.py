"""The log is in the order in which it was written, whatever the clock said; and says what was done to the repository."""

from __future__ import annotations

import json
import os
from pathlib import Path
from unittest.mock import patch
from zlib import crc32

import pytest

from cfs_tags import Repository
from cfs_tags.gc import collect
from cfs_tags.repo import reflog
from cfs_tags.repo.store import WriteRepo
from cfs_tags.repo.transaction import run
from cfs_tags.repo.transaction.change import Note
from cfs_tags.tags.history import log
from support import tagging
from support.stock import SHARED, digest_of

ORDER = "cfs-tags/reflog/order"
NAMES = [f"app-{number}" for number in range(12)]


def at(moment: float) -> object:
    return patch.object(reflog.time, "time", lambda: moment)


@pytest.fixture
def stepping_back(stocked: Path) -> Path:
    """A repository with tags that were made one after the other, each an hour earlier than the one before."""
    one = digest_of(stocked, "one")
    with Repository.open(stocked, write=True) as mine:
        for number, name in enumerate(NAMES):
            with at(1_800_000_000 - 3600 * number):
                tagging.create(mine, name, f"@{one}")
    return stocked


def names(repo: Path) -> list[str]:
    with Repository.open(repo) as mine:
        return [entry.ref.rpartition("/")[2] for entry in reflog.all_entries(mine).entries]


def line(**keys: object) -> bytes:
    body = json.dumps(keys, separators=(",", ":")).encode()
    return b"%08x %s\n" % (crc32(body), body)


def test_entries_of_several_files_are_in_the_order_of_writing_though_the_clock_was_set_back(stepping_back: Path) -> None:
    assert names(stepping_back) == NAMES


def test_without_the_order_the_times_say_it(stepping_back: Path) -> None:
    (stepping_back / ORDER).unlink()

    assert names(stepping_back) == NAMES[::-1]


def test_entries_of_an_older_version_stand_where_their_time_says(stepping_back: Path) -> None:
    order = stepping_back / ORDER
    places = order.read_bytes().splitlines(keepends=True)
    order.write_bytes(b"".join(places[6:]))  # the first six were written by a version that kept no order, before the others

    with at(1_800_000_000 - 100 * 3600), Repository.open(stepping_back, write=True) as mine:
        tagging.delete(mine, [NAMES[8]])

    found = names(stepping_back)
    assert [name for name in found if name in NAMES[6:]] == [*NAMES[6:], NAMES[8]]
    assert [name for name in found if name in NAMES[:6]] == NAMES[5::-1]


def test_the_log_of_a_tag_that_went_to_another_home_is_in_the_order_of_writing(stocked: Path) -> None:
    one, two = digest_of(stocked, "one"), digest_of(stocked, "two")
    with Repository.open(stocked, write=True) as mine:
        with at(1_800_000_000):
            tagging.create(mine, "app", f"@{one}", home="private")
        with at(1_700_000_000):
            tagging.create(mine, "app", f"@{one}", home="shared", force=True)
        with at(1_600_000_000):
            tagging.create(mine, "app", f"@{two}", force=True)
        found = [(found.entry.action, found.new) for found in log(mine, "app")]

    assert found == [("move", two), ("move", one), ("create", one)]


def test_what_was_done_to_the_repository_is_an_entry_with_facts_in_its_place(stocked: Path) -> None:
    one = digest_of(stocked, "one")
    with Repository.open(stocked, write=True) as mine:
        tagging.create(mine, "before", f"@{one}")
        made = collect(mine, note=Note("to make room", "ann"))
        tagging.create(mine, "after", f"@{one}")
        entries = reflog.all_entries(mine).entries

    assert [entry.ref for entry in entries] == [f"{SHARED}/before", reflog.WHOLE, f"{SHARED}/after"]
    assert (entries[1].action, entries[1].reason, entries[1].by) == ("collect", "to make room", "ann")
    assert entries[1].facts is not None
    assert entries[1].facts["objects"] == made.swept.objects
    assert entries[0].facts is entries[2].facts is None


def test_the_order_is_bounded_and_what_it_forgets_is_still_in_the_log(stocked: Path) -> None:
    one = digest_of(stocked, "one")
    with Repository.open(stocked, write=True) as mine:
        tagging.create(mine, "app", f"@{one}")
        for number in range(9):
            run.record(mine, "check", {"objects": number}, Note("x" * 600_000, None))
        tagging.create(mine, "late", f"@{one}")
        entries = reflog.all_entries(mine).entries

    sizes = {path.name: path.stat().st_size for path in (stocked / ORDER).parent.glob("order*")}
    assert set(sizes) == {"order", "order.old"}
    assert max(sizes.values()) < 2 << 20
    checks = [entry.facts["objects"] for entry in entries if entry.facts is not None]
    assert 0 < len(checks) < 9
    assert checks == list(range(9))[-len(checks) :], "the newest"
    assert [entry.ref for entry in entries if entry.facts is None] == [f"{SHARED}/app", f"{SHARED}/late"]
    assert entries[-1].ref == f"{SHARED}/late"


@pytest.mark.parametrize(
    "bad",
    [
        b"00000000 {}\n",
        b"torn",
        line(transaction=["x"]),
        line(ref=f"{SHARED}/app", old=None, new=None, action="create", time="x", transaction="t"),
        line(ref=reflog.WHOLE, old=None, new=None, action="check", time="x", transaction="t", facts={"deep": {"x": 1}}),
        line(ref=reflog.WHOLE, old=None, new=None, action="check", time="x", transaction="t", facts={"many": ["x"] * 65}),
        line(ref=reflog.WHOLE, old=None, new=None, action="check", time="x", transaction="t", facts=[]),
    ],
    ids=["checksum", "torn", "no text", "a ref", "deep", "many", "a list"],
)
def test_a_line_that_is_not_ours_costs_no_other_and_is_counted(stepping_back: Path, bad: bytes) -> None:
    order = stepping_back / ORDER
    places = order.read_bytes().splitlines(keepends=True)
    order.write_bytes(b"".join([*places[:5], bad, b"\n", *places[5:]]))

    assert names(stepping_back) == NAMES
    with Repository.open(stepping_back) as mine:
        assert reflog.all_entries(mine).damaged == 1
        assert reflog.damage(mine) == {ORDER: 1}


def test_facts_belong_to_the_repository_and_to_no_ref(stocked: Path) -> None:
    ref = f"{SHARED}/app"
    path = stocked / "cfs-tags/reflog" / f"{crc32(os.fsencode(ref)) & 0xFF:02x}"
    path.parent.mkdir(parents=True)
    path.write_bytes(line(ref=ref, old=None, new="../../x", action="create", time="x", transaction="t", facts={"objects": 1}))

    with Repository.open(stocked) as mine:
        assert reflog.all_entries(mine) == reflog.History((), 1)


def test_a_file_larger_than_any_of_ours_is_read_at_its_end(stepping_back: Path) -> None:
    order = stepping_back / ORDER
    places = order.read_bytes()
    with order.open("wb") as file:
        file.truncate(1 << 40)
        file.seek(0, os.SEEK_END)
        file.write(b"\n" + places)

    assert names(stepping_back) == NAMES
    make(stepping_back, "next")
    assert names(stepping_back)[-1] == "next"


@pytest.mark.parametrize("name", [ORDER, f"{ORDER}.old"])
@pytest.mark.parametrize("kind", ["directory", "pipe", "link"])
def test_what_is_no_file_is_set_aside_and_stops_nobody(stepping_back: Path, name: str, kind: str) -> None:
    path = stepping_back / name
    path.unlink(missing_ok=True)
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/etc/passwd")
    if name != ORDER:
        (stepping_back / ORDER).write_bytes(b"\n" * (1 << 20))

    make(stepping_back, "next")

    assert names(stepping_back)[-1] == "app-0"  # by time alone
    assert "next" in names(stepping_back)
    assert (stepping_back / ORDER).is_file()


def make(repo: Path, name: str) -> None:
    one = digest_of(repo, "one")
    with at(1_700_000_000), Repository.open(repo, write=True) as mine:
        tagging.create(mine, name, f"@{one}")


def test_a_record_that_cannot_be_written_is_a_warning(stocked: Path) -> None:
    from support.stock import disk_full_after

    with Repository.open(stocked, write=True) as mine:
        tagging.create(mine, "app", f"@{digest_of(stocked, 'one')}")
        with disk_full_after(0, operations=("append",)):
            run.record(mine, "check", {"objects": 1}, Note(None, None))
        assert [error.code for error in mine.recovered] == ["not-recorded"]
        assert str(mine.recovered[0]) == "the check is done, and is not in the log: No space left on device"


def test_a_lock_that_is_held_is_a_warning_too(stocked: Path) -> None:
    with Repository.open(stocked, write=True) as mine:
        tagging.create(mine, "app", f"@{digest_of(stocked, 'one')}")
        held_by_another(mine)


def held_by_another(mine: WriteRepo) -> None:
    import fcntl

    with open(f"{mine.path}/{run.LOCK_FILE}") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        run.record(mine, "check", {"objects": 1}, Note(None, None), timeout=0.0)
    assert [error.code for error in mine.recovered] == ["not-recorded"]


def test_the_last_move_of_many_refs_is_never_before_what_was_written_earlier(stepping_back: Path) -> None:
    with at(1_800_000_000 - 20 * 3600), Repository.open(stepping_back, write=True) as mine:
        tagging.delete(mine, [NAMES[3]], note=Note('it said ","time":"9999-01-01","transaction":"x', "me"))

    with Repository.open(stepping_back) as mine:
        entries = reflog.all_entries(mine).entries
        refs = [entry.ref for entry in entries]
        found = reflog.last_moves(mine, [*refs, "streams/refs/oci/never"])

        latest, wanted = "", {}
        for entry in entries:
            latest = max(latest, entry.time)
            wanted[entry.ref] = (latest, entry.new)
        assert found == wanted
        assert {time for time, _ in found.values()} == {reflog.timestamp(1_800_000_000)}, "the clock only went back"
