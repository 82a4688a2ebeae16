"""A clock that was set back, or ten years forward: nothing goes early without a warning and ``--force``."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from cfs_tags import Repository
from cfs_tags.policy import files
from cfs_tags.repo import clock, fsops
from cfs_tags.tags.pins import list_pins
from cli.conftest import Run
from support.images import app_image
from support.refusing import refused

WEB, DB = "quay.io/apps/web:1", "quay.io/apps/db:2"
DAY = 86400.0
YEARS = 3652 * DAY
KEEP_ONE = '[[rule]]\ntags = ["quay.io/x/*"]\nkeep-last = 1\n'


@pytest.fixture(autouse=True)
def _no_policy_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_SYSTEM", str(tmp_path / "etc.toml"))


@contextmanager
def clock_moved(by: float) -> Iterator[None]:
    """The clock of the system is as much ahead, or behind."""
    real = time.time

    class Moved(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            return datetime.fromtimestamp(real() + by, tz)

    def make_link(fd: int, path: str, *rest: Any) -> None:
        makes(fd, path, *rest)
        os.utime(path, (time.time(), time.time()), dir_fd=fd, follow_symlinks=False)  # as a file system does it by that clock

    makes = fsops.make_link
    with (
        patch("time.time", lambda: real() + by),
        patch("time.time_ns", lambda: int((real() + by) * 1e9)),
        patch("cfs_tags.api.arguments.datetime", Moved),
        patch.object(fsops, "make_link", make_link),
    ):
        yield


def codes(said: Any) -> set[str]:
    return {warning["code"] for warning in said.json["warnings"]}


def expiries(run: Run) -> dict[str, datetime]:
    rows = [*run("list", "--json").result, *run("trash", "--json").result]
    return {row["name"]: datetime.fromisoformat(row["expires"]) for row in rows if row["expires"]}


@pytest.mark.parametrize(
    ("by", "code"),
    [
        (-YEARS, "clock-set-back"),
        (-3700.0, "clock-set-back"),
        (-3500.0, None),
        (0.0, None),
        (181 * DAY, None),
        (183 * DAY, "clock-ahead"),
        (YEARS, "clock-ahead"),
    ],
)
def test_when_a_clock_is_doubted(by: float, code: str | None, run: Run, repo: Path) -> None:
    run("create", "t", WEB, ok=True)

    with Repository.open(repo) as opened, clock_moved(by):
        doubt = clock.read(opened).doubt

    assert (doubt.code if doubt is not None else None) == code


def test_without_a_record_the_clock_is_believed(run: Run, repo: Path) -> None:
    run("create", "t", WEB, ok=True)
    (repo / "cfs-tags/clock").unlink()

    with clock_moved(YEARS), Repository.open(repo) as opened:
        assert clock.read(opened).seen is None
        assert clock.read(opened).doubt is None


@pytest.mark.parametrize("stamp", [-9e18, -1e14, -1e9, 0.0, 4e10, 1e14])
def test_any_time_of_the_record_is_borne(stamp: float, run: Run, repo: Path) -> None:
    run("create", "t", WEB, "--expires", "1d", ok=True)
    os.utime(repo / "cfs-tags/clock", (stamp, stamp))

    run("gc", "--no-sysroot", ok=True)
    run("create", "u", WEB, "--expires", "1d", ok=True)
    run("policy", "check", ok=True)
    assert run("resolve", "t").status == 0


def test_what_is_done_under_a_wrong_clock_does_not_make_it_a_right_one(run: Run) -> None:
    run("create", "t", WEB, ok=True)

    for by in (YEARS, -YEARS):
        with clock_moved(by):
            for name in ("a", "b", "c"):
                run("create", name, WEB, "--force", ok=True)
                run("gc", "--no-sysroot", ok=True)
            assert codes(run("gc", "--no-sysroot", "--json"))
    assert not codes(run("gc", "--no-sysroot", "--json")), "the clock is right again, and so is all"


def test_leases_and_trash_outlive_a_clock_that_is_ten_years_ahead(run: Run, repo: Path) -> None:
    run("create", "leased", WEB, "--expires", "30d", ok=True)
    run("create", "t", DB, ok=True)
    run("delete", "t", "--keep-for", "30d", ok=True)

    with clock_moved(YEARS):
        for words in (("gc", "--no-sysroot"), ("gc", "--no-sysroot", "--dry-run")):
            said = run(*words, "--json")
            assert codes(said) == {"clock-ahead"}
            assert said.result["refs"] == []
        assert run("gc", "--no-sysroot").err.count("warning") == 1
    assert set(expiries(run)) == {"leased", "@trash/t"}
    assert run("resolve", "leased").status == 0
    run("restore", "t", ok=True)


def test_with_force_they_go(run: Run) -> None:
    run("create", "leased", WEB, "--expires", "30d", ok=True)

    with clock_moved(YEARS):
        said = run("gc", "--no-sysroot", "--force", "--dry-run", "--json")
        assert (codes(said), len(said.result["refs"])) == (set(), 1)
        assert codes(run("gc", "--no-sysroot", "--json")) == {"clock-ahead"}, "a dry run believes nothing"
        said = run("gc", "--no-sysroot", "--force", "--json")
        assert (codes(said), len(said.result["refs"])) == (set(), 1)
        assert not codes(run("gc", "--no-sysroot", "--json")), "and the clock is believed from then on"


def test_what_ended_before_the_jump_goes_all_the_same(run: Run) -> None:
    run("create", "leased", WEB, "--expires", "1s", ok=True)
    time.sleep(2.1)
    run("create", "t", WEB, ok=True)

    with clock_moved(YEARS):
        assert len(run("gc", "--no-sysroot", "--json").result["refs"]) == 1


def test_what_is_made_while_the_clock_is_behind_does_not_end_when_it_is_right_again(run: Run, repo: Path) -> None:
    run("create", "t", DB, ok=True)

    with clock_moved(-YEARS):
        run("create", "leased", WEB, "--expires", "2d", ok=True)
        run("delete", "t", "--keep-for", "2d", ok=True)
        run("create", "quay.io/x/app:1", WEB, ok=True)
        with Repository.open(repo, write=True) as opened:
            opened.tags.create("built", WEB, expires=timedelta(days=2))
            opened.tags.delete("quay.io/x/app:1", keep_for=timedelta(days=2))

    soon, late = (datetime.now(UTC) + timedelta(days=days) for days in (1.9, 2.1))
    ends = expiries(run)
    assert set(ends) == {"leased", "built", "@trash/t", "@trash/quay.io/x/app:1"}
    assert all(soon < end < late for end in ends.values())
    assert run("gc", "--no-sysroot", "--json").result["refs"] == []


@pytest.mark.parametrize(("by", "code"), [(YEARS, "clock-ahead"), (-YEARS, "clock-set-back")])
def test_a_policy_deletes_nothing_by_a_clock_that_jumped(by: float, code: str, run: Run, repo: Path) -> None:
    for number in (1, 2):
        run("create", f"quay.io/x/app:{number}", WEB, ok=True)
    (repo / "cfs-tags/policy.toml").write_text(f'{KEEP_ONE}time = "logged"\n')
    with clock_moved(by):
        assert code in codes(run("policy", "check", "--json"))
        if by > 0:
            said = run("policy", "apply", "--json")
            assert (said.status, said.json["error"]["code"]) == (4, code)
            assert "--force" in run("policy", "apply").err
            assert run("resolve", "quay.io/x/app:1").status == 0
            said = run("policy", "apply", "--force", "--json")
            assert [row["name"] for row in said.result["tags"]] == ["quay.io/x/app:1"]
        else:
            assert run("policy", "apply", ok=True).out == "every tag stays\n", "all of them are of the future"


def test_a_policy_that_would_drop_something_by_a_clock_that_is_behind_is_refused(run: Run, repo: Path) -> None:
    for number in (1, 2):
        run("create", f"quay.io/x/app:{number}", WEB, ok=True)
    (repo / "cfs-tags/policy.toml").write_text(KEEP_ONE)

    with clock_moved(-2 * DAY):
        said = run("policy", "apply", "--json")
        assert (said.status, said.json["error"]["code"]) == (4, "clock-set-back")
        with Repository.open(repo, write=True) as opened:
            assert [row.name for row in opened.policy.apply(trust_clock=True)] == ["quay.io/x/app:1"]


def test_a_tag_that_moved_while_the_clock_was_behind_is_no_old_one(run: Run, repo: Path) -> None:
    for name in ("quay.io/x/app:2", "quay.io/x/app:3"):
        run("create", name, WEB, ok=True)
    with clock_moved(-YEARS):
        run("create", "quay.io/x/app:1", WEB, ok=True)
    (repo / "cfs-tags/policy.toml").write_text(f'{KEEP_ONE}time = "logged"\n')

    rows = {row["name"]: row for row in run("policy", "check", "--json").result}

    assert rows["quay.io/x/app:1"]["time"] >= rows["quay.io/x/app:3"]["time"]


@pytest.mark.parametrize("zone", ["", "Nowhere/None", "UTC0", "EAST-9", "WEST9"])
def test_without_a_time_zone_the_same_tags_stay_by_count(
    zone: str, run: Run, repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        run("create", f"quay.io/x/app:{number}", WEB, ok=True)
    (repo / "cfs-tags/policy.toml").write_text(KEEP_ONE.replace("= 1", "= 3"))
    try:
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        rows = run("policy", "check", "--json").result
    finally:
        monkeypatch.undo()
        time.tzset()

    assert {row["name"] for row in rows if not row["reasons"]} == {"quay.io/x/app:0", "quay.io/x/app:1"}


@pytest.mark.parametrize("created", ["2020-01-01T00:00:00", "2020-01-01", "0001-01-01T00:00:00Z", "soon", None])
@pytest.mark.parametrize("zone", ["WEST9", "EAST-9"])
def test_an_image_with_no_time_that_is_one_is_not_dropped(
    created: str | None, zone: str, run: Run, repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = app_image(tmp_path / "layout", "x", config={"created": created})
    run("import", image.source, "quay.io/x/app:old", ok=True)
    run("create", "quay.io/x/app:1", WEB, ok=True)
    (repo / "cfs-tags/policy.toml").write_text(KEEP_ONE)
    try:
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        rows = {row["name"]: row["reasons"] for row in run("policy", "check", "--json").result}
    finally:
        monkeypatch.undo()
        time.tzset()

    first = created is not None and created.startswith("0001") and zone == "EAST-9"
    assert rows["quay.io/x/app:old"] == ([] if first else ["no-time"])


# -- the grace time of deployments' refs -------------------------------------------------------------------------------


@pytest.fixture
def retired(call: Run, sysroot: Path) -> Callable[..., Any]:
    """Retires on the host, of which one deployment has gone."""
    places = ("--boot", "none", "--esp", "none", "--run", "none", "--booted", "none")

    def run(*words: str) -> Any:
        return call("--sysroot", sysroot, "retire", *words, *places, "--json")

    return run


def staged(call: Run, sysroot: Path, facts: Any) -> str:
    """A ref that an updater made for a deployment that is not there yet; returns its id."""
    name = next(one for one in facts["deployments"] if one != facts["booted"])
    manifest = facts["deployments"][name]["manifest"]
    for path in (sysroot / "state/deploy" / name, sysroot / "boot"):
        path.rename(path.with_name("gone-" + path.name))
    (sysroot / "state/deploy" / f"gone-{name}").rename(sysroot / "elsewhere")
    call("--sysroot", sysroot, "create", "--deployment", name, f"@{manifest}", ok=True)
    return str(name)


def result(said: Any, name: str) -> str:
    return str(next(row["result"] for row in said.result["deployments"] if row["id"] == name))


def test_a_new_ref_outlives_a_clock_that_was_set_forward(
    call: Run, sysroot: Path, facts: Any, retired: Callable[..., Any]
) -> None:
    name = staged(call, sysroot, facts)

    with clock_moved(YEARS):
        for words in ((), ("--dry-run",)):
            said = retired(*words)
            assert codes(said) == {"clock-ahead"}
            assert result(said, name) == "kept"
        assert result(retired("--force", "--dry-run"), name) == "retired"
        assert result(retired("--force"), name) == "retired"


def test_a_ref_that_was_made_while_the_clock_was_behind_waits_as_long_as_any(
    call: Run, run: Run, sysroot: Path, facts: Any, retired: Callable[..., Any]
) -> None:
    run("create", "t", WEB, ok=True)
    with clock_moved(-YEARS):
        name = staged(call, sysroot, facts)
        assert result(retired(), name) == "kept"

    assert result(retired(), name) == "kept"
    with clock_moved(2 * DAY):
        assert result(retired(), name) == "retired"


# -- the grace time of objects -----------------------------------------------------------------------------------------


def test_young_objects_outlive_a_clock_that_was_set_forward(run: Run) -> None:
    run("gc", "--no-sysroot", ok=True)
    run("delete", WEB, DB, ok=True)

    with clock_moved(YEARS):
        said = run("gc", "--no-sysroot", "--grace", "1h", "--dry-run", "--json")
        assert (codes(said), said.result["objects"]) == ({"clock-ahead"}, 0)
        assert run("gc", "--no-sysroot", "--grace", "1h", "--dry-run", "--force", "--json").result["objects"] > 0


# -- pins --------------------------------------------------------------------------------------------------------------


def test_a_pin_outlives_a_clock_that_was_set_forward_and_one_that_was_set_back(
    call: Run, run: Run, sysroot: Path, facts: Any, retired: Callable[..., Any], repo: Path
) -> None:
    run("create", "t", WEB, ok=True)
    with clock_moved(-YEARS), Repository.open(repo, write=True) as opened:
        opened.pins.pin(WEB, name="behind", until=timedelta(days=2))
    with Repository.open(repo, write=True) as opened:
        opened.pins.pin(DB, name="db", until=timedelta(days=2))
        assert {pin.name: pin.has_ended for pin in list_pins(opened)} == {"behind": False, "db": False}

    with clock_moved(YEARS), Repository.open(repo) as opened:
        assert run("gc", "--no-sysroot", "--json").result["refs"] == []
        assert {pin.name: pin.has_ended for pin in list_pins(opened)} == {"behind": False, "db": False}
        assert len(run("gc", "--no-sysroot", "--force", "--json").result["refs"]) > 1


def test_what_the_page_says_to_do_leads_out_of_the_doubt(run: Run, repo: Path) -> None:
    for number in (1, 2, 3):
        run("create", f"quay.io/x/app:{number}", WEB, ok=True)
    (repo / "cfs-tags/policy.toml").write_text(KEEP_ONE)
    dry = (("policy", "apply", "--dry-run", "--force"), ("gc", "--no-sysroot", "--dry-run", "--force"))
    with clock_moved(YEARS):
        said = run("maintain", "--no-sysroot", "--json")
        assert (said.status, [*said.json["result"]["failed"]]) == (4, ["policy"])
        for words in dry:
            run(*words, ok=True)
        assert run("maintain", "--no-sysroot").status == 4, "a dry run believes nothing"
        run("policy", "apply", "--force", ok=True)
        assert run("maintain", "--no-sysroot").status == 0
        run("create", "lent", WEB, "--expires", "1h", ok=True)
        run("pin", WEB, "--name", "mine", "--until", "1h", ok=True)

    assert "clock-set-back" in codes(run("gc", "--no-sysroot", "--json"))
    run("gc", "--no-sysroot", "--force", ok=True)
    assert not codes(run("gc", "--no-sysroot", "--json"))
    run("create", "lent", WEB, "--force", "--expires", "1h", ok=True)
    run("pin", WEB, "--name", "mine", "--until", "1h", ok=True)
    soon = datetime.now(UTC) + timedelta(hours=1, seconds=2)
    with Repository.open(repo) as opened:
        ends = [tag.ends for tag in opened.tags.list() if tag.ends is not None]
    assert len(ends) == 2
    assert all(end < soon for end in ends)


def test_what_was_seen_of_the_clock_and_cannot_be_read_is_not_unknown(run: Run, repo: Path) -> None:
    """The clock would be believed, and everything with an end would go."""
    run("pin", WEB, "--until", "30d", ok=True)
    run("create", "lease", DB, "--expires", "30d", ok=True)
    with clock_moved(YEARS), refused("clock"):
        said = run("gc", "--no-sysroot")
        dropped = run("retire", "--grace", "0", "--dry-run")

    assert (said.status, dropped.status) == (1, 1)
    assert "cfs-tags/clock" in said.err
    run("resolve", "lease", ok=True)
    with Repository.open(repo) as opened:
        assert [pin.name for pin in list_pins(opened)] == [WEB]


def test_what_is_done_is_done_where_what_was_seen_of_the_clock_cannot_be_read(run: Run) -> None:
    with refused("clock"):
        run("create", "new", DB, ok=True)
    run("resolve", "new", ok=True)
