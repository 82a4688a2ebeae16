"""The log of refs: every move of ours, what others did in between, and damage that costs one line alone."""

from __future__ import annotations

import errno
import json
import os
import re
import time
from pathlib import Path
from unittest.mock import patch
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfs_tags import Repository
from cfs_tags.errors import TagNotFound
from cfs_tags.repo import reflog
from cfs_tags.repo.transaction.change import Note
from cfs_tags.tags import rows
from cfs_tags.tags.history import log
from cfs_tags.tags.names import resolve
from support import tagging
from support.interrupt import Stopped, fail_after, stop_after
from support.peers import Cfsctl
from support.raising import raises
from support.stock import SHARED, digest_of
from support.trees import tree

REF = f"{SHARED}/app"


@pytest.fixture
def digests(stocked: Path) -> dict[str, str]:
    return {name: digest_of(stocked, name) for name in ("one", "two", "three", "four")}


def entry(ref: str = REF, old: str | None = None, new: str | None = "../../x", transaction: str = "t1") -> reflog.Entry:
    return reflog.Entry(ref, old, new, "create" if old is None else "move", reflog.timestamp(), transaction)


def log_file(repo: Path, ref: str = REF) -> Path:
    return repo / "cfs-tags" / "reflog" / f"{crc32(os.fsencode(ref)) & 0xFF:02x}"


def history(repo: Path, name: str = "app") -> list[tuple[str, str | None, str | None]]:
    """Action, old and new of a tag's log, newest first; digests by name."""
    with Repository.open(repo) as mine:
        lines = log(mine, name)
    names = {digest_of(repo, name): name for name in ("one", "two", "three", "four")}
    assert [line.number for line in lines] == list(range(len(lines)))
    return [
        (line.entry.action, names.get(line.old, line.old) if line.old else None, names.get(line.new) if line.new else None)
        for line in lines
    ]


# -- what is recorded --------------------------------------------------------------------------------------------------


def test_every_move_is_recorded_with_its_values_time_reason_and_author(stocked: Path, digests: dict[str, str]) -> None:
    began = reflog.timestamp()
    with Repository.open(stocked, write=True) as mine:
        tagging.create(mine, "app", f"@{digests['one']}", note=Note("first", "ann"))
        tagging.create(mine, "app", f"@{digests['two']}", force=True)
        tagging.delete(mine, ["app"], note=Note(None, "bob"))
        lines = log(mine, "app")

    assert history(stocked) == [("delete", "two", None), ("move", "one", "two"), ("create", None, "one")]
    assert [(line.entry.reason, line.entry.by) for line in lines] == [(None, "bob"), (None, None), ("first", "ann")]
    assert len({line.entry.transaction for line in lines}) == 3
    assert began <= lines[2].entry.time <= lines[1].entry.time <= lines[0].entry.time <= reflog.timestamp()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", lines[0].entry.time)


def test_what_changes_nothing_is_not_recorded(stocked: Path, digests: dict[str, str]) -> None:
    with Repository.open(stocked, write=True) as mine:
        tagging.create(mine, "app", f"@{digests['one']}")
        assert tagging.create(mine, "app", f"@{digests['one']}").done == "unchanged"

    assert history(stocked) == [("create", None, "one")]


def test_a_deletion_of_a_tag_that_a_peer_made_is_the_newest_entry_after_the_found_one(
    stocked: Path, digests: dict[str, str], cfsctl: Cfsctl
) -> None:
    cfsctl(stocked, "oci", "tag", digests["one"], "app")

    with Repository.open(stocked, write=True) as mine:
        tagging.delete(mine, ["app"])

    assert history(stocked) == [("delete", "one", None), ("found", None, "one")]


def test_what_a_peer_did_between_two_of_our_moves_is_recorded_as_found(
    stocked: Path, digests: dict[str, str], cfsctl: Cfsctl
) -> None:
    with Repository.open(stocked, write=True) as mine:
        tagging.create(mine, "app", f"@{digests['one']}")
        cfsctl(stocked, "oci", "tag", digests["two"], "app")
        tagging.create(mine, "app", f"@{digests['three']}", force=True)
        cfsctl(stocked, "oci", "untag", "app")
        tagging.create(mine, "app", f"@{digests['four']}")

    assert history(stocked) == [
        ("create", None, "four"),
        ("found", "three", None),
        ("move", "two", "three"),
        ("found", "one", "two"),
        ("create", None, "one"),
    ]


def test_what_a_peer_did_last_is_shown_and_not_written(stocked: Path, digests: dict[str, str], cfsctl: Cfsctl) -> None:
    with Repository.open(stocked, write=True) as mine:
        tagging.create(mine, "app", f"@{digests['one']}")
    cfsctl(stocked, "oci", "tag", digests["two"], "app")
    before = tree(stocked)

    assert history(stocked) == [("found", "one", "two"), ("create", None, "one")]
    assert history(stocked, "held/one") == [("found", None, "one")]
    assert tree(stocked) == before


def test_a_move_between_homes_is_one_entry(stocked: Path, digests: dict[str, str]) -> None:
    with Repository.open(stocked, write=True) as mine:
        tagging.create(mine, "app", f"@{digests['one']}")
        tagging.create(mine, "app", f"@{digests['one']}", home="private")
        tagging.create(mine, "app", f"@{digests['two']}", home="shared", force=True)

    assert history(stocked) == [("move", "one", "two"), ("move", "one", "one"), ("create", None, "one")]


def test_a_move_between_homes_of_a_tag_that_a_peer_made_tells_both(
    stocked: Path, digests: dict[str, str], cfsctl: Cfsctl
) -> None:
    cfsctl(stocked, "oci", "tag", digests["one"], "app")
    with Repository.open(stocked, write=True) as mine:
        tagging.create(mine, "app", f"@{digests['two']}", home="private", force=True)

    assert history(stocked) == [("move", "one", "two"), ("found", None, "one")]


def test_a_tag_that_never_was_has_no_log(stocked: Path) -> None:
    with Repository.open(stocked) as mine, pytest.raises(TagNotFound) as caught:
        log(mine, "never")
    assert (caught.value.code, caught.value.status) == ("tag-not-found", 3)


def test_a_deleted_lease_still_has_its_log(stocked: Path, digests: dict[str, str]) -> None:
    with Repository.open(stocked, write=True) as mine:
        tagging.create(mine, "app", f"@{digests['one']}", expires=rows.expiry(60))
        assert history(stocked) == [("create", None, "one")]
        tagging.delete(mine, ["app"])

    assert history(stocked) == [("delete", "one", None), ("create", None, "one")]


def test_the_newest_entry_is_the_last_written_one_whatever_the_clock_says(stocked: Path, digests: dict[str, str]) -> None:
    now = time.time()
    with Repository.open(stocked, write=True) as mine:
        for number, name in enumerate(("one", "two", "three")):
            with patch.object(time, "time", lambda number=number: now - 3600 * number):  # the clock is set back twice
                tagging.create(mine, "app", f"@{digests[name]}", force=True)

    assert history(stocked) == [("move", "two", "three"), ("move", "one", "two"), ("create", None, "one")]


def test_numbers_count_back_from_the_present(stocked: Path, digests: dict[str, str]) -> None:
    with Repository.open(stocked, write=True) as mine:
        for name in ("one", "two"):
            tagging.create(mine, "app", f"@{digests[name]}", force=True)
        tagging.delete(mine, ["app"])
        tagging.create(mine, "app", f"@{digests['three']}")

        assert resolve(mine, "app@{0}") == digests["three"]
        assert resolve(mine, "app@{2}") == digests["two"]
        assert resolve(mine, "app@{3}") == digests["one"]
        for number in (1, 4, 999_999_999):  # absent then; no such entry
            with raises("reflog-entry-not-found") as caught:
                resolve(mine, f"app@{{{number}}}")
            error = caught.value
            assert (error.code, error.status, error.number, error.entries) == ("reflog-entry-not-found", 3, number, 4)
        with pytest.raises(TagNotFound):
            resolve(mine, "never@{0}")


def test_a_tag_whose_name_looks_numbered_comes_first(stocked: Path, digests: dict[str, str]) -> None:
    with Repository.open(stocked, write=True) as mine:
        tagging.create(mine, "app", f"@{digests['one']}")
        tagging.create(mine, "app@{0}", f"@{digests['two']}")

        assert resolve(mine, "app@{0}") == digests["two"]


def test_losing_the_log_loses_history_alone(stocked: Path, digests: dict[str, str]) -> None:
    with Repository.open(stocked, write=True) as mine:
        tagging.create(mine, "app", f"@{digests['one']}")
        log_file(stocked).unlink()
        tagging.create(mine, "app", f"@{digests['two']}", force=True)

    assert history(stocked) == [("move", "one", "two"), ("found", None, "one")]


# -- bytes -------------------------------------------------------------------------------------------------------------


def test_a_line_is_a_checksum_and_a_json_object(stocked: Path, digests: dict[str, str]) -> None:
    with Repository.open(stocked, write=True) as mine:
        tagging.create(mine, "app", f"@{digests['one']}", note=Note("a\nb\u2028\x1b[31m", None))

    [line] = log_file(stocked).read_bytes().splitlines()
    checksum, _, body = line.partition(b" ")
    document = json.loads(body)

    assert int(checksum, 16) == crc32(body)
    assert next(iter(document)) == "ref"
    assert document["ref"] == REF
    assert document["old"] is None
    assert document["reason"] == "a\nb\u2028\x1b[31m"
    assert "by" not in document
    assert line.isascii()


@pytest.mark.parametrize("damage", ["flip the middle", "flip the ref", "flip the checksum", "cut", "noise", "empty"])
def test_a_damaged_line_is_counted_and_costs_no_other(stocked: Path, digests: dict[str, str], damage: str) -> None:
    with Repository.open(stocked, write=True) as mine:
        for name in ("one", "two", "three"):
            tagging.create(mine, "app", f"@{digests[name]}", force=True)
        path = log_file(stocked)
        lines = path.read_bytes().splitlines()
        place = {"flip the middle": len(lines[1]) // 2, "flip the ref": 20, "flip the checksum": 3}
        if damage in place:
            broken = bytearray(lines[1])
            broken[place[damage]] ^= 1
            lines[1] = bytes(broken)
        else:
            lines[1] = {"cut": lines[1][:40], "noise": b"\xff\xfe{}", "empty": b""}[damage]
        path.write_bytes(b"\n".join([*lines, b""]))

        found = reflog.history(mine, REF)
        assert [entry.new for entry in found.entries] == [f"../../oci-manifest-{digests[name]}" for name in ("one", "three")]
        assert found.damaged == (damage != "empty")
        assert reflog.all_entries(mine).damaged == (damage != "empty")
        tagging.delete(mine, ["app"])
        assert reflog.history(mine, REF).entries[-1].new is None


def test_a_line_that_a_crash_tore_is_closed_by_the_next_writer(stocked: Path, digests: dict[str, str]) -> None:
    with Repository.open(stocked, write=True) as mine:
        tagging.create(mine, "app", f"@{digests['one']}")
        path = log_file(stocked)
        path.write_bytes(path.read_bytes()[:-20])
        tagging.create(mine, "app", f"@{digests['two']}", force=True)

        found = reflog.history(mine, REF)
        assert found.damaged == 1
        assert [(entry.action, entry.new) for entry in found.entries] == [
            ("found", f"../../oci-manifest-{digests['one']}"),
            ("move", f"../../oci-manifest-{digests['two']}"),
        ]


def test_refs_that_share_a_file_do_not_see_each_other(repo: Path) -> None:
    names = [f"{SHARED}/{number}" for number in range(600)]
    shared = [name for name in names if log_file(repo, name) == log_file(repo, names[0])]
    assert len(shared) > 1
    with Repository.open(repo, write=True) as mine:
        mine.make_directories(reflog.DIRECTORY)
        reflog.append(mine, [entry(name, new=f"../../{number}") for number, name in enumerate(shared)])

        for number, name in enumerate(shared):
            assert [found.new for found in reflog.history(mine, name).entries] == [f"../../{number}"]
            last = reflog.last_value(mine, name)
            assert last is not None
            assert last.new == f"../../{number}"
        assert len(reflog.all_entries(mine).entries) == len(shared)


def test_a_ref_named_in_the_words_of_another_entry_is_not_mistaken(repo: Path) -> None:
    other = next(f"{SHARED}/{n}" for n in range(10_000) if log_file(repo, f"{SHARED}/{n}") == log_file(repo))
    words = f' {{"ref":"{REF}","old":null,"new":"x"}}\n12345678 {{"ref":"{REF}",'
    with Repository.open(repo, write=True) as mine:
        mine.make_directories(reflog.DIRECTORY)
        reflog.append(mine, [entry(other)._replace(reason=words)])

        assert reflog.history(mine, REF) == ((), 0)
        assert reflog.last_value(mine, REF) is None


def test_a_ref_with_bytes_that_are_no_text_is_logged(repo: Path) -> None:
    name = f"{SHARED}/{os.fsdecode(bytes([0xFF, 0x1B, 0x0A, 0x22]))}"
    with Repository.open(repo, write=True) as mine:
        mine.make_directories(reflog.DIRECTORY)
        reflog.append(mine, [entry(name)])

        assert [found.ref for found in reflog.history(mine, name).entries] == [name]


def test_the_same_entry_of_a_repeated_recovery_is_written_once(repo: Path) -> None:
    with Repository.open(repo, write=True) as mine:
        mine.make_directories(reflog.DIRECTORY)
        for _ in range(3):
            reflog.append(mine, [entry()])

        assert len(reflog.history(mine, REF).entries) == 1


@pytest.mark.parametrize("torn", [False, True])
def test_an_append_that_fails_leaves_the_files_as_they_were(repo: Path, torn: bool) -> None:
    names = [f"{SHARED}/{number}" for number in range(8)]
    with Repository.open(repo, write=True) as mine:
        mine.make_directories(reflog.DIRECTORY)
        reflog.append(mine, [entry(name) for name in names[:4]])
        before = {path: path.read_bytes() for path in (repo / reflog.DIRECTORY).iterdir()}
        for number in range(len({log_file(repo, name) for name in names})):
            with fail_after(number, errno.ENOSPC, once=True), pytest.raises(OSError, match="No space"):
                reflog.append(mine, [entry(name, "../../x", "../../y", "t2") for name in names])
            after = {path: path.read_bytes() for path in (repo / reflog.DIRECTORY).iterdir()}
            assert {path: data for path, data in after.items() if data} == before


@pytest.mark.parametrize("number", [0, 1])
def test_a_crash_in_the_middle_of_an_append_costs_no_earlier_entry(repo: Path, number: int) -> None:
    with Repository.open(repo, write=True) as mine:
        mine.make_directories(reflog.DIRECTORY)
        reflog.append(mine, [entry()])
        with pytest.raises(Stopped), stop_after(number, torn=True):  # the order, then the file
            reflog.append(mine, [entry(REF, "../../x", "../../y", "t2")])

        assert [found.new for found in reflog.history(mine, REF).entries] == ["../../x"]
        assert (reflog.history(mine, REF).damaged, reflog.all_entries(mine).damaged) == (number, 1)
        reflog.append(mine, [entry(REF, "../../x", "../../z", "t3")])
        assert [found.new for found in reflog.all_entries(mine).entries] == ["../../x", "../../z"]


@given(data=st.binary(max_size=400) | st.lists(st.sampled_from([b"00000000 {}", b"[", b'{"ref":1}', b"\r"])).map(b"\n".join))
def test_any_bytes_are_read_as_entries_or_damage(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    lines = [b"%08x %s" % (crc32(line), line) for line in data.split(b"\n")]
    for content in (data, b"\n".join(lines)):
        path = tmp_path_factory.getbasetemp() / "any-bytes"
        (path / "objects").mkdir(parents=True, exist_ok=True)
        (path / "meta.json").write_text('{"version": 1, "algorithm": "fsverity-sha512-12"}')
        log_file(path).parent.mkdir(parents=True, exist_ok=True)
        log_file(path).write_bytes(content)
        with Repository.open(path) as mine:
            assert reflog.all_entries(mine).entries == ()
            assert reflog.history(mine, REF).entries == ()
            assert reflog.last_value(mine, REF) is None


def test_timestamps_are_utc_with_microseconds() -> None:
    assert reflog.timestamp(0) == "1970-01-01T00:00:00.000000Z"
    assert reflog.timestamp(1_767_225_600.25) == "2026-01-01T00:00:00.250000Z"
