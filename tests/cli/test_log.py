"""``cfs-tag log``: what was done to tags and to the repository, chosen by time and by action."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from unittest.mock import patch

import pytest

from cli.conftest import Run
from support.images import app_image
from support.trees import tree

WEB = "quay.io/apps/web:1"
NOON = 1_800_000_000
HOUR = 3600


@pytest.fixture
def logged(run: Run) -> Run:
    """A repository in which ``app`` was made three days ago, moved a day ago, and deleted an hour ago."""
    for ago, words in (
        (72, ("create", "app", WEB)),
        (24, ("create", "app", "quay.io/apps/db:2", "--force")),
        (1, ("delete", "app")),
    ):
        with patch("time.time", lambda ago=ago: NOON - ago * HOUR):
            run(*words, ok=True)
    return run


def actions(run: Run, *words: str) -> list[str]:
    with patch("time.time", lambda: NOON):
        return [row["action"] for row in run("log", *words, "--json").result]


@pytest.mark.parametrize(
    ("since", "found"),
    [
        ("2h", ["delete"]),
        ("1d12h", ["delete", "move"]),
        ("2 days ago", ["delete", "move"]),
        ("4 days", ["delete", "move", "create"]),
        ("1 week ago", ["delete", "move", "create"]),
        ("2027-01-13T12:00:00Z", ["delete", "move"]),
        ("20270113T120000Z", ["delete", "move"]),
        ("2027-01-15T06:00:00+00:00", ["delete"]),
        ("2027-01-12", ["delete", "move", "create"]),
        ("2030-01-01", []),
        ("1969-01-01", ["delete", "move", "create"]),
    ],
)
def test_since_a_time_or_so_long_ago(logged: Run, since: str, found: list[str]) -> None:
    assert actions(logged, "--since", since) == found
    assert actions(logged, "app", "--since", since) == found


def test_a_time_without_a_zone_is_the_machines(logged: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    made = datetime.fromtimestamp(NOON - 24 * HOUR, UTC).replace(tzinfo=None)
    try:
        for zone, found in (("UTC0", ["delete", "move"]), ("WEST9", ["delete"]), ("EAST-9", ["delete", "move"])):
            monkeypatch.setenv("TZ", zone)
            time.tzset()
            assert actions(logged, "--since", made.isoformat()) == found, zone
    finally:
        monkeypatch.undo()
        time.tzset()


def test_today_and_yesterday_begin_at_midnight(logged: Run) -> None:
    assert actions(logged, "--since", "today") == ["delete"]
    assert actions(logged, "--since", "yesterday") == ["delete", "move"]


@pytest.mark.parametrize("since", ["", "soon", "2026-13-01", "7x", "-1d", "99999-01-01", "now\x1b[31m"])
def test_what_is_no_time_is_a_usage_error(run: Run, since: str) -> None:
    said = run("log", "--since", since, "--json")

    assert (said.status, said.json["error"]["code"]) == (2, "invalid-argument")
    assert said.json["error"]["facts"]["argument"] == "--since"


def test_actions_are_chosen_before_the_newest_are_counted(logged: Run) -> None:
    assert actions(logged, "--action", "create", "--action", "delete") == ["delete", "create"]
    assert actions(logged, "--action", "create", "--limit", "1") == ["create"]
    assert logged("log", "--action", "made").status == 2


def test_a_collection_a_check_and_an_import_are_in_the_log_with_what_came_of_them(run: Run, tmp_path: Path) -> None:
    image = app_image(tmp_path / "layout", "x", size=100_000)
    run("create", "app", WEB, ok=True)
    run("import", image.source, "quay.io/x:1", "--reason", "asked for", ok=True)
    run("fsck", ok=True)
    run("gc", "--no-sysroot", "--reason", "to make room", ok=True)

    rows = [row for row in run("log", "--json").result if row["name"] == "(repository)"]

    assert [(row["action"], row["reason"]) for row in rows] == [
        ("collect", "to make room"),
        ("check", None),
        ("import", "asked for"),
    ]
    collect, check, imported = (row["facts"] for row in rows)
    assert {"objects", "bytes", "streams", "images", "refs", "stopped"} == set(collect)
    assert (check["errors"], check["warnings"], check["repaired"], check["content"]) == (0, 0, 0, 0)
    assert imported["names"] == ["quay.io/x:1"]
    assert imported["source"] == image.source
    assert imported["bytes"] > 100_000
    text = run("log").out
    assert f"quay.io/x:1 from {image.source}: {imported['objects']} objects" in text
    assert f"nothing wrong in {check['objects']} objects" in text
    assert f"{collect['objects']} objects deleted" in text


def test_an_import_that_changes_nothing_is_not_recorded(run: Run, tmp_path: Path) -> None:
    image = app_image(tmp_path / "layout", "x")
    for _ in range(3):
        run("import", image.source, "quay.io/x:1", ok=True)

    assert [row["action"] for row in run("log", "--action", "import", "--json").result] == ["import"]


def test_a_check_leaves_no_trace_where_cfs_tag_has_not_written(run: Run, repo: Path) -> None:
    before = tree(repo)

    run("fsck", ok=True)

    assert tree(repo) == before


def test_a_dry_run_and_a_refused_collection_are_not_recorded(run: Run, repo: Path) -> None:
    run("create", "app", WEB, ok=True)
    run("gc", "--no-sysroot", "--dry-run", ok=True)
    run("fsck", "--repair", "--dry-run", ok=True)
    (repo / "streams/refs/oci/dangling").symlink_to("../../oci-manifest-sha256:" + "0" * 64)
    assert run("gc", "--no-sysroot").status == 6

    assert [row["action"] for row in run("log", "--json").result] == ["create"]


def test_a_check_that_finds_damage_says_how_much(run: Run, repo: Path) -> None:
    run("create", "app", WEB, ok=True)
    (repo / "streams/refs/oci/dangling").symlink_to("../../oci-manifest-sha256:" + "0" * 64)
    assert run("fsck").status == 6
    run("fsck", "--repair")

    checks = [row["facts"] for row in run("log", "--action", "check", "--json").result]
    assert [(facts["errors"], facts["repaired"]) for facts in checks] == [(0, 1), (1, 0)]


# -- what a tag named at a time ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("when", "found"),
    [
        ("2d", "web"),
        ("48 hours ago", "web"),
        ("yesterday", "web"),  # midnight, and it was moved at noon
        ("24h", "db"),
        ("today", "db"),
        ("2027-01-13", "web"),
        ("2027-01-14", "web"),
        ("2027-01-15", "db"),
        ("2027-01-14T12:00:00Z", "db"),
        ("2027-01-14T07:59:59.999999Z", "web"),
        ("2027-01-14T09:00:00+01:00", "db"),
    ],
)
def test_a_time_stands_for_what_the_tag_named_then(logged: Run, web: str, db: str, when: str, found: str) -> None:
    with patch("time.time", lambda: NOON):
        assert logged("resolve", f"app@{{{when}}}", ok=True).out.strip() == {"web": web, "db": db}[found]


@pytest.mark.parametrize(
    "words", [("show",), ("resolve",), ("why",), ("create", "y"), ("restore",), ("diff", WEB)], ids=" ".join
)
def test_a_time_is_taken_wherever_a_name_is(logged: Run, words: tuple[str, ...]) -> None:
    with patch("time.time", lambda: NOON):
        logged(*words, "app@{yesterday}", ok=True)


def test_a_tag_comes_back_as_it_was_at_a_time(logged: Run, web: str) -> None:
    with patch("time.time", lambda: NOON):
        assert logged("restore", "app@{2 days ago}", ok=True).out.startswith("restored: app")
        assert logged("resolve", "app", ok=True).out.strip() == web


def test_where_the_tag_was_absent_or_the_log_begins_later_there_is_no_value(logged: Run) -> None:
    with patch("time.time", lambda: NOON):
        absent, before = logged("resolve", "app@{now}", "--json"), logged("resolve", "app@{2026-11-01}", "--json")

    assert (absent.status, absent.json["error"]["code"]) == (3, "reflog-entry-not-found")
    newest = logged("log", "app", "--json").result[0]
    said = f"'app' named no image then: entry 0 of its log is 'delete' of {newest['time']}"
    assert (newest["action"], absent.json["error"]["message"]) == ("delete", said)
    assert (before.status, before.json["error"]["code"]) == (3, "before-the-log")
    assert before.json["error"]["facts"]["begins"].startswith("2027-01-12T08:00:00")
    assert logged("resolve", "never@{yesterday}").status == 3


def test_a_time_after_all_years_is_after_the_last_entry(run: Run, web: str) -> None:
    run("create", "app", WEB, ok=True)
    assert run("resolve", "app@{9999-12-31T23:59:59-14:00}", ok=True).out.strip() == web


def test_what_is_neither_a_number_nor_a_time_is_a_usage_error(logged: Run) -> None:
    for inner in ("", "soon", "-1", "2026-13-01", "99999-01-01", "1_0"):
        said = logged("resolve", f"app@{{{inner}}}", "--json")
        assert (said.status, said.json["error"]["code"]) == (2, "invalid-argument"), inner


def test_a_tag_whose_name_looks_like_a_time_comes_first(logged: Run, web: str) -> None:
    logged("create", "app@{yesterday}", WEB, ok=True)

    assert logged("resolve", "app@{yesterday}", ok=True).out.strip() == web
    assert logged("create", "app@{soon}", WEB, ok=True).out.startswith("created")


def test_a_clock_that_was_set_back_does_not_mix_up_what_came_after_what(run: Run, web: str, db: str) -> None:
    for hours, target in ((0, WEB), (48, "quay.io/apps/db:2"), (24, WEB)):
        with patch("time.time", lambda hours=hours: NOON + hours * HOUR):
            run("create", "x", target, "--force", ok=True)

    with patch("time.time", lambda: NOON + 72 * HOUR):
        assert run("resolve", "x@{1h}", ok=True).out.strip() == web, "the last move counts, not the latest time"
        assert run("resolve", "x@{60h}", ok=True).out.strip() == web


def test_who_restores_what_was_collected_is_told_where_it_came_from(run: Run, tmp_path: Path) -> None:
    image = app_image(tmp_path / "layout", "x", size=10_000)
    run("import", image.source, "quay.io/x:1", ok=True)
    run("delete", "quay.io/x:1", ok=True)
    run("gc", "--no-sysroot", ok=True)

    said = run("restore", "quay.io/x:1", "--json")
    assert (said.status, said.json["error"]["code"], said.json["error"]["facts"]["source"]) == (
        3,
        "tag-collected",
        image.source,
    )
    assert f"import {image.source} quay.io/x:1" in said.json["error"]["hint"]
    run("import", image.source, "quay.io/x:1", ok=True)
