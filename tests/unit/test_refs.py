"""Changing refs: compare-and-swap, the journal, and what is refused before anything is touched."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from cfs_tags import Repository, gc
from cfs_tags.errors import CfsTagsError, ExpectationFailed, FormatError, SystemFailure
from cfs_tags.fsck.check import fsck
from cfs_tags.repo import refs
from cfs_tags.repo.store import WriteRepo
from cfs_tags.repo.transaction import run
from cfs_tags.repo.transaction.change import NO_NOTE, Note, RefChange
from cfs_tags.tags import edit, history, rows
from support import stock
from support.interrupt import count_calls, fail_after
from support.peers import Cfsctl
from support.refusing import refused
from support.stock import (
    PRIVATE,
    SHARED,
    before_call,
    digest_of,
    error_of,
    leftovers,
    link_to,
    make_tag,
    without_exchange,
)
from support.trees import tree

APP = f"{SHARED}/app"
DB = f"{SHARED}/db"


@pytest.fixture
def links(stocked: Path) -> dict[str, str]:
    return {name: link_to(digest_of(stocked, name)) for name in stock.IMAGES}


class Plan:
    """The least that a plan is."""

    def __init__(self, *changes: RefChange) -> None:
        self.changes = changes


def transact(path: Path, *changes: RefChange, note: Note = NO_NOTE) -> list[CfsTagsError]:
    """Makes the changes; gives what was recovered before."""
    with Repository.open(path, write=True) as repo:
        run.transact(repo, lambda: Plan(*changes), note)
        return repo.recovered


def change(path: str, old: str | None, new: str | None) -> RefChange:
    return RefChange(path, old, new, "test")


# -- one ref -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exchange", [True, False])
def test_a_ref_is_made_moved_and_removed(stocked: Path, links: dict[str, str], exchange: bool) -> None:
    context = before_call("exchange", lambda: None) if exchange else without_exchange()
    with context:
        for old, new in ((None, links["one"]), (links["one"], links["two"]), (links["two"], None)):
            transact(stocked, change(APP, old, new))
            assert stock.refs(stocked).get(APP) == new
            assert leftovers(stocked) == []


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize(
    ("there", "old", "new"),
    [
        ("one", None, "two"),
        ("one", "two", "three"),
        ("one", "two", None),
        (None, "one", "two"),
        (None, "one", None),
    ],
)
def test_a_ref_that_is_not_what_was_expected_stays(
    stocked: Path, links: dict[str, str], there: str | None, old: str | None, new: str | None, exchange: bool
) -> None:
    if there is not None:
        make_tag(stocked, "app", digest_of(stocked, there))
    before = stock.refs(stocked)
    wanted = change(APP, links[old] if old else None, links[new] if new else None)

    with before_call("exchange", lambda: None) if exchange else without_exchange(), pytest.raises(ExpectationFailed) as caught:
        transact(stocked, wanted)

    error = caught.value
    assert (error.code, error.status, error.ref) == ("expectation-failed", 4, APP)
    assert error.wanted == (f"oci-manifest-{digest_of(stocked, old)}" if old else "absent")
    assert error.found == (f"oci-manifest-{digest_of(stocked, there)}" if there else "absent")
    assert stock.refs(stocked) == before
    assert leftovers(stocked) == []


@pytest.mark.parametrize("kind", ["file", "pipe", "directory"])
@pytest.mark.parametrize("act", ["make", "move", "remove"])
def test_what_is_no_link_is_not_taken_for_an_expected_one(stocked: Path, links: dict[str, str], kind: str, act: str) -> None:
    place = stocked / APP
    {"file": place.touch, "pipe": lambda: os.mkfifo(place), "directory": place.mkdir}[kind]()
    if kind == "directory":
        (place / "below").symlink_to(f"../{links['one']}")
    before = tree(stocked, exclude=["cfs-tags"])
    old, new = {"make": (None, "one"), "move": ("one", "two"), "remove": ("one", None)}[act]

    with pytest.raises(ExpectationFailed) as caught:
        transact(stocked, change(APP, links[old] if old else None, links[new] if new else None))

    assert caught.value.found == "something that is no link"
    assert tree(stocked, exclude=["cfs-tags"]) == before
    assert leftovers(stocked) == []


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.EACCES])
def test_a_directory_that_the_system_does_not_say_to_be_one_is_not_left_out(
    stocked: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """What stands in it would be taken for absent."""
    (stocked / PRIVATE / "below").mkdir(parents=True)
    look = os.stat

    def refused(path: object, *args: object, **named: object) -> os.stat_result:
        if path == "below":
            raise OSError(number, os.strerror(number))
        return look(path, *args, **named)  # type: ignore[call-overload, no-any-return]

    with Repository.open(stocked) as repo:
        monkeypatch.setattr(os, "stat", refused)
        with pytest.raises(SystemFailure) as caught:
            list(refs.walk(repo, PRIVATE))

    assert caught.value.errno == number


def test_a_change_to_what_is_there_already_touches_nothing(stocked: Path, links: dict[str, str]) -> None:
    make_tag(stocked, "app", digest_of(stocked, "one"))
    before = tree(stocked)

    transact(stocked, change(APP, links["one"], links["one"]))

    assert {name: node for name, node in tree(stocked).items() if not name.startswith("cfs-tags")} == before


def test_a_planner_that_raises_changes_nothing(stocked: Path) -> None:
    def plan() -> Plan:
        raise ExpectationFailed(ref="x", wanted="a", found="b")

    before = stock.refs(stocked)
    with Repository.open(stocked, write=True) as repo, pytest.raises(ExpectationFailed):
        run.transact(repo, plan)
    assert stock.refs(stocked) == before
    assert leftovers(stocked) == []


# -- several -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exchange", [True, False])
def test_several_refs_change_together(stocked: Path, links: dict[str, str], exchange: bool) -> None:
    for name in ("a", "b"):
        make_tag(stocked, name, digest_of(stocked, "one"))
    with before_call("exchange", lambda: None) if exchange else without_exchange():
        transact(
            stocked,
            change(APP, None, links["two"]),
            change(f"{SHARED}/a", links["one"], links["two"]),
            change(f"{SHARED}/b", links["one"], None),
            change(f"{PRIVATE}/c", None, "../" + links["three"]),
        )
    found = stock.refs(stocked)
    assert found[APP] == found[f"{SHARED}/a"] == links["two"]
    assert f"{SHARED}/b" not in found
    assert found[f"{PRIVATE}/c"] == "../" + links["three"]
    assert leftovers(stocked) == []


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("last", ["make", "move", "remove"])
def test_when_the_last_of_several_is_refused_the_others_are_put_back(
    stocked: Path, links: dict[str, str], last: str, exchange: bool
) -> None:
    for name in ("a", "b", "z"):
        make_tag(stocked, name, digest_of(stocked, "one"))
    before = stock.refs(stocked)
    old, new = {"make": (None, "two"), "move": ("two", "three"), "remove": ("two", None)}[last]

    with before_call("exchange", lambda: None) if exchange else without_exchange(), pytest.raises(ExpectationFailed):
        transact(
            stocked,
            change(APP, None, links["two"]),
            change(f"{SHARED}/a", links["one"], links["two"]),
            change(f"{SHARED}/b", links["one"], None),
            change(f"{SHARED}/z", links[old] if old else None, links[new] if new else None),
        )

    assert stock.refs(stocked) == before
    assert leftovers(stocked) == []
    with Repository.open(stocked) as repo:
        assert [line.entry.action for line in history.log(repo, "a")] == ["found"]


# -- the journal -------------------------------------------------------------------------------------------------------


def journal(path: Path, document: object, name: str = "00000000000000aa") -> Path:
    """A journal as a crash left it."""
    where = path / "cfs-tags" / "journal" / f"{name}.json"
    where.parent.mkdir(parents=True, exist_ok=True)
    where.write_text(document if isinstance(document, str) else json.dumps(document))
    return where


def document(*changes: object, transaction: str = "00000000000000aa") -> dict[str, object]:
    return {"transaction": transaction, "note": [None, None], "changes": changes}


def write_something(path: Path) -> list[CfsTagsError]:
    """The next writer; gives the transactions that were taken back before."""
    recovered = transact(path, change(f"{SHARED}/next", None, link_to(digest_of(path, "four"))))
    return [one for one in recovered if one.code == "transaction-abandoned"]


def test_what_a_crash_left_is_finished_before_the_next_change(stocked: Path, links: dict[str, str]) -> None:
    make_tag(stocked, "app", digest_of(stocked, "one"))
    journal(stocked, document([APP, links["one"], links["two"], "move"], [DB, None, links["three"], "create"]))

    assert write_something(stocked) == []

    found = stock.refs(stocked)
    assert (found[APP], found[DB]) == (links["two"], links["three"])
    assert leftovers(stocked) == []


def test_a_transaction_that_cannot_be_finished_is_taken_back_and_reported(stocked: Path, links: dict[str, str]) -> None:
    make_tag(stocked, "app", digest_of(stocked, "two"))
    absent = link_to("sha256:" + "0" * 64)
    journal(stocked, document([APP, links["one"], links["two"], "move"], [DB, None, absent, "create"]))

    [abandoned] = write_something(stocked)

    assert (abandoned.code, abandoned.status, abandoned.facts()["transaction"]) == (
        "transaction-abandoned",
        4,
        "00000000000000aa",
    )
    assert abandoned.facts()["reasons"] == (f"streams/oci-manifest-sha256:{'0' * 64} is gone",)
    assert stock.refs(stocked)[APP] == links["one"]
    assert DB not in stock.refs(stocked)
    with Repository.open(stocked) as repo:
        newest = history.log(repo, "app")[0]
    assert (newest.entry.action, newest.new) == ("transaction-abandoned", digest_of(stocked, "one"))


def test_a_peers_value_that_came_out_and_whose_target_has_gone_is_not_named_again(stocked: Path, links: dict[str, str]) -> None:
    """Neither when the transaction is finished nor when it is taken back."""
    for suffix, left in ((".json", None), (".back", links["one"])):
        where = journal(stocked, document([APP, links["one"], None, "delete"]))
        where.rename(where.with_suffix(suffix))
        spare = stocked / "cfs-tags" / "tmp" / "00000000000000aa.0"
        spare.parent.mkdir(exist_ok=True)
        spare.symlink_to(link_to("sha256:" + "0" * 64))

        abandoned = write_something(stocked)

        assert bool(abandoned) is (suffix == ".back")
        assert stock.refs(stocked).get(APP) == left
        assert stock.dangling(stocked) == []
        assert leftovers(stocked) == []
        (stocked / SHARED / "next").unlink()


@pytest.mark.parametrize("done", [True, False])
def test_what_was_being_taken_back_is_never_finished(stocked: Path, links: dict[str, str], done: bool) -> None:
    """The command has said that nothing was changed."""
    make_tag(stocked, "app", digest_of(stocked, "two" if done else "one"))
    where = journal(stocked, document([APP, links["one"], links["two"], "move"], [DB, None, links["three"], "create"]))
    where.rename(where.with_suffix(".back"))

    [abandoned] = write_something(stocked)

    assert abandoned.facts()["reasons"] == ("an error had stopped it",)
    assert stock.refs(stocked)[APP] == links["one"]
    assert DB not in stock.refs(stocked)
    assert leftovers(stocked) == []


def test_a_ref_whose_old_target_has_gone_keeps_the_new_one(stocked: Path, links: dict[str, str]) -> None:
    make_tag(stocked, "app", digest_of(stocked, "two"))
    gone, absent = link_to("sha256:" + "1" * 64), link_to("sha256:" + "0" * 64)
    journal(stocked, document([APP, gone, links["two"], "move"], [DB, None, absent, "create"]))

    assert len(write_something(stocked)) == 1

    assert stock.refs(stocked)[APP] == links["two"]
    assert stock.dangling(stocked) == []


def test_a_ref_whose_old_and_new_target_have_gone_goes(stocked: Path) -> None:
    gone, absent = "sha256:" + "1" * 64, "sha256:" + "0" * 64
    make_tag(stocked, "app", absent)
    journal(stocked, document([APP, link_to(gone), link_to(absent), "move"]))

    assert len(write_something(stocked)) == 1

    assert APP not in stock.refs(stocked)
    assert stock.dangling(stocked) == []


def test_a_transaction_in_the_log_was_done_whatever_others_did_since(stocked: Path, links: dict[str, str]) -> None:
    """A crash after the last step but before the journal went; then a peer moves one of the refs."""
    make_tag(stocked, "app", digest_of(stocked, "one"))
    with before_call("remove", _stop), pytest.raises(Stopped):
        transact(stocked, change(APP, links["one"], links["two"]), change(DB, None, links["three"]))
    assert leftovers(stocked)
    make_tag(stocked, "app", digest_of(stocked, "four"))

    assert write_something(stocked) == []

    found = stock.refs(stocked)
    assert (found[APP], found[DB]) == (links["four"], links["three"])
    assert leftovers(stocked) == []


class Stopped(BaseException):
    pass


def _stop() -> None:
    raise Stopped


def test_a_directory_that_a_peer_removes_during_the_change_is_made_again(stocked: Path, links: dict[str, str]) -> None:
    lease = "streams/refs/cfs-tags/leases/20990101T000000Z.0/app"
    journal(stocked, document([lease, None, f"../../{links['one']}", "create"], [DB, None, links["two"], "create"]))

    assert write_something(stocked) == []

    assert {lease, DB} <= set(stock.refs(stocked))


def test_without_exchange_a_crashed_move_is_finished_too(stocked: Path, links: dict[str, str]) -> None:
    make_tag(stocked, "app", digest_of(stocked, "one"))
    journal(stocked, document([APP, links["one"], links["two"], "move"], [DB, None, links["three"], "create"]))

    with without_exchange():
        assert write_something(stocked) == []

    found = stock.refs(stocked)
    assert (found[APP], found[DB]) == (links["two"], links["three"])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        '{"transaction": "00000000000000aa"',
        "[]",
        "null",
        '{"transaction":"00000000000000aa","note":[],"changes":[[1]]}',
        "[" * 100_000,
    ],
)
def test_a_torn_journal_is_dropped_because_nothing_had_been_changed(stocked: Path, text: str) -> None:
    before = stock.refs(stocked)
    journal(stocked, text)

    assert write_something(stocked) == []

    assert {path: link for path, link in stock.refs(stocked).items() if not path.endswith("/next")} == before
    assert leftovers(stocked) == []


@pytest.mark.parametrize(
    "changes",
    [
        ["../victim", "", None, "delete"],
        ["streams/refs/../../../victim", "", None, "delete"],
        ["streams/refs/oci/../../../../victim", "", None, "delete"],
        ["/{parent}/victim", "", None, "delete"],
        ["streams/refs", "", None, "delete"],
        ["streams/refs/", "", None, "delete"],
        ["streams/refs/oci", "", None, "delete"],
        ["streams/{manifest}", "{link}", None, "delete"],
        ["meta.json", "", None, "delete"],
        ["objects/refs/x", None, "../x", "create"],
        ["streams/refs/oci/x\0", None, "../x", "create"],
        ["streams/refs/oci/new", None, "", "create"],
        ["streams/refs/oci/new", 5, "../../x", "create"],
        [None, None, "../../x", "create"],
        ["streams/refs/oci/new", None, "../../x", None],
    ],
)
def test_a_journal_that_we_would_never_write_moves_nothing(stocked: Path, changes: list[object]) -> None:
    """Root writes in repositories of users, who can put anything into the journal."""
    victim = stocked.parent / "victim"
    victim.write_text("precious")
    manifest = f"oci-manifest-{digest_of(stocked, 'one')}"
    facts = {
        "{manifest}": manifest,
        "{link}": os.readlink(stocked / "streams" / manifest),
        "{parent}": str(stocked.parent),
    }
    for place, value in enumerate(changes):
        for key, fact in facts.items():
            if isinstance(value, str):
                value = changes[place] = value.replace(key, fact)
    before = tree(stocked.parent, exclude=["composefs", "pristine"]), tree(stocked, exclude=["cfs-tags"])
    journal(stocked, document(changes))

    error = error_of(lambda: write_something(stocked))
    assert error is None or error.status == 4
    (stocked / SHARED / "next").unlink(missing_ok=True)

    assert victim.read_text() == "precious"
    assert (tree(stocked.parent, exclude=["composefs", "pristine"]), tree(stocked, exclude=["cfs-tags"])) == before


def test_a_journal_under_another_name_than_its_own_is_dropped(stocked: Path, links: dict[str, str]) -> None:
    journal(stocked, document([APP, None, links["one"], "create"], transaction="../../x"), name="b")

    write_something(stocked)

    assert APP not in stock.refs(stocked)
    assert leftovers(stocked) == []


def test_a_left_over_in_tmp_is_cleared(stocked: Path) -> None:
    write_something(stocked)
    (stocked / "cfs-tags" / "tmp" / "0123.0").symlink_to("../../streams/x")
    (stocked / "cfs-tags" / "tmp" / "0123.journal").write_bytes(b"{")

    transact(stocked, change(APP, None, link_to(digest_of(stocked, "one"))))

    assert leftovers(stocked) == []


# -- what reaches the disk when ----------------------------------------------------------------------------------------


def calls_of(path: Path, *changes: RefChange) -> list[tuple[str, str]]:
    """Operation and path of every change to the disk, our set-up left out."""
    with Repository.open(path, write=True) as repo:
        run.transact(repo, lambda: Plan())
        with count_calls() as calls:
            run.transact(repo, lambda: Plan(*changes))
    return [(name, str(args[1]) if len(args) > 1 else ".") for name, args in calls.made if name != "make_directory"]


def test_a_ref_is_made_after_its_target_is_on_disk_and_is_then_synced_itself(stocked: Path, links: dict[str, str]) -> None:
    calls = [call for call in calls_of(stocked, change(APP, None, links["one"])) if call[0] != "create_file"]

    assert [name for name, _ in calls] == ["sync", "make_link", "sync", "append", "append", "date"]
    assert [where for _, where in calls[:3]] == ["streams", APP, SHARED]


def test_a_journal_is_on_disk_before_the_first_of_several_changes_and_goes_after_the_last_is(
    stocked: Path, links: dict[str, str]
) -> None:
    for name in ("a", "b"):
        make_tag(stocked, name, digest_of(stocked, "one"))
    calls = calls_of(
        stocked,
        change(APP, None, links["two"]),
        change(f"{SHARED}/a", links["one"], links["two"]),
        change(f"{SHARED}/b", links["one"], None),
    )
    steps = [
        f"{name} {'journal' if where.endswith('.json') else 'tmp' if where.startswith('cfs-tags/tmp') else where}"
        for name, where in calls
    ]

    assert [step for step in steps if not step.startswith(("append", "create_file", "date"))] == [
        "sync streams",
        "replace_file journal",
        "sync cfs-tags/journal",
        f"make_link {APP}",
        "make_link tmp",
        "exchange tmp",
        f"rename {SHARED}/b",
        f"sync {SHARED}",
        "remove journal",
        "sync cfs-tags/journal",
        "remove tmp",
        "remove tmp",
    ]
    assert [step.split()[0] for step in steps].index("append") < steps.index("remove journal")


def test_a_refs_parents_are_on_disk_before_it(stocked: Path, links: dict[str, str]) -> None:
    with Repository.open(stocked, write=True) as repo, count_calls() as calls:
        run.transact(repo, lambda: Plan(change(f"{PRIVATE}/x", None, "../" + links["one"])))
    made = [str(args[1]) for name, args in calls.made if name == "make_directory"]
    synced = [str(args[1]) for name, args in calls.made if name == "sync"]

    assert made[-2:] == ["streams/refs/cfs-tags", PRIVATE]
    assert synced.index("streams/refs") < synced.index("streams/refs/cfs-tags") < synced.index(PRIVATE)


# -- walking -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["tmp", "journal"])
def test_a_foreign_directory_in_our_state_stays_and_stops_no_command(stocked: Path, links: dict[str, str], place: str) -> None:
    (stocked / "cfs-tags" / place / "dir/sub").mkdir(parents=True)

    transact(stocked, change(APP, None, links["one"]))

    assert stock.refs(stocked)[APP] == links["one"]
    assert (stocked / "cfs-tags" / place / "dir/sub").is_dir()


def walked(path: Path, top: str = "streams/refs") -> dict[str, str | None]:
    with Repository.open(path) as repo:
        return dict(refs.walk(repo, top))


def test_everything_below_refs_is_walked_links_as_links_and_the_rest_as_no_link(stocked: Path) -> None:
    base = stocked / SHARED
    (base / "sub" / "deep").mkdir(parents=True)
    (base / "sub" / "deep" / "x").symlink_to("anything")
    (base / "sub" / "file").touch()
    os.mkfifo(base / "sub" / "pipe")
    (base / "sub" / "to-directory").symlink_to("deep")
    (base / "empty").mkdir()
    strange = os.fsdecode(b"\xff\x1b[31m")
    (base / strange).symlink_to("x")

    found = {path: link for path, link in walked(stocked).items() if "held" not in path}

    assert found == {
        f"{SHARED}/sub/deep/x": "anything",
        f"{SHARED}/sub/file": None,
        f"{SHARED}/sub/pipe": None,
        f"{SHARED}/sub/to-directory": "deep",
        f"{SHARED}/{strange}": "x",
    }


def test_what_is_not_there_is_walked_as_nothing(repo: Path) -> None:
    assert walked(repo) == {}
    assert walked(repo, "images/refs") == {}


def test_a_loop_of_links_is_not_walked_into(stocked: Path) -> None:
    (stocked / SHARED / "loop").symlink_to(".")
    (stocked / SHARED / "up").symlink_to("../..")

    assert {path for path in walked(stocked) if "held" not in path} == {f"{SHARED}/loop", f"{SHARED}/up"}


@pytest.mark.parametrize(("depth", "name"), [(70, "d"), (80, "d" * 200)])
def test_a_ref_at_any_depth_is_one_as_it_is_for_cfsctl(stocked: Path, cfsctl: Cfsctl, depth: int, name: str) -> None:
    """Deeper than 64, and deeper than any path may be: then nothing but a walk reaches it."""
    manifest = link_to(digest_of(stocked, "one")).rpartition("/")[2]
    for ref in stock.refs(stocked):
        (stocked / ref).unlink()
    fd = os.open(stocked / SHARED, os.O_RDONLY)
    try:
        for _ in range(depth):
            os.mkdir(name, dir_fd=fd)
            inner = os.open(name, os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = inner
        os.symlink("../" * (depth + 2) + manifest, "ref", dir_fd=fd)
    finally:
        os.close(fd)
    said = cfsctl(stocked, "--no-upgrade", "gc", "--dry-run").stdout

    (path,) = walked(stocked)

    assert path == f"{SHARED}/{f'{name}/' * depth}ref"
    with Repository.open(stocked) as repo:
        (tag,) = rows.list_tags(repo)
        assert (f"oci-manifest-{tag.digest}", tag.problem) == (manifest, None)
        assert not [one for one in fsck(repo).findings if one.fails]
        with repo.locked("shared"):
            dead = gc.plan(repo).swept
    assert f"Objects: {dead.objects} removed" in said
    shutil.rmtree(stocked / SHARED / name)


def test_a_directory_of_refs_that_is_a_file_is_damage(stocked: Path) -> None:
    (stocked / "streams" / "refs" / "cfs-tags").touch()

    with Repository.open(stocked) as repo, pytest.raises(FormatError) as caught:
        list(refs.walk(repo, "streams/refs/cfs-tags"))
    assert caught.value.status == 6


def test_the_collector_of_cfsctl_runs_with_our_state_beside(stocked: Path, cfsctl: Cfsctl) -> None:
    write_something(stocked)
    cfsctl.assert_healthy(stocked)
    cfsctl(stocked, "gc")
    cfsctl.assert_healthy(stocked)


def test_a_change_fails_with_the_error_of_the_system(stocked: Path, links: dict[str, str]) -> None:
    before = stock.refs(stocked)
    with fail_after(0, errno.EIO), pytest.raises(SystemFailure) as caught:
        transact(stocked, change(APP, None, links["one"]))
    error = caught.value
    assert (error.code, error.status, error.errno, error.reason) == ("system-failure", 1, errno.EIO, "Input/output error")
    assert stock.refs(stocked) == before


def test_the_writer_is_not_offered_without_its_locks(stocked: Path) -> None:
    with Repository.open(stocked, write=True) as repo:
        assert not [name for name in dir(repo) if "ref" in name.lower() and not name.startswith("_")]
        assert isinstance(repo, WriteRepo)


def test_tags_use_transactions(stocked: Path) -> None:
    with Repository.open(stocked, write=True) as repo:
        made = run.transact(repo, lambda: edit.plan(repo, []))
        assert (made.changes, made.results) == ((), ())
        assert repo.recovered == []


def test_a_directory_that_is_not_given_at_the_first_look_is_walked_all_the_same(
    repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repo / "streams/refs/a/b").mkdir(parents=True)
    (repo / "streams/refs/a/b/c").symlink_to("../../../oci-manifest-sha256:" + "0" * 64)
    readlink = os.readlink

    def refuses(name: str, *, dir_fd: int) -> str:
        if name == "a":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return readlink(name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "readlink", refuses)
    with Repository.open(repo) as opened:
        assert [entry.path for entry in refs.walk(opened, "streams/refs")] == ["streams/refs/a/b/c"]


def test_a_directory_that_is_not_given_at_any_look_is_no_ref(stocked: Path) -> None:
    """What stands in it would be left out."""
    make_tag(stocked, "app", digest_of(stocked, "one"), home=f"{PRIVATE}/below")
    with Repository.open(stocked) as repo:
        with refused("below"), pytest.raises(SystemFailure):
            refs.everything(repo)
        with refused("app"):
            assert refs.everything(repo)[f"{PRIVATE}/below/app"] == ""


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO])
def test_where_it_is_not_known_whether_a_transaction_is_on_its_way_refs_are_read_with_the_lock(
    stocked: Path, number: int
) -> None:
    transact(stocked)
    held = []

    def read() -> None:
        (lock,) = [path for path in Path("/proc/self/fd").iterdir() if os.path.realpath(path).endswith("refs.lock")] or [None]
        held.append(lock is not None)

    with Repository.open(stocked) as repo, refused("journal", number):
        refs.read_at_once(repo, read)

    assert held == [True]
