"""``maintain`` on a recorded host: its steps, what it leaves out when nothing has changed, what it is not kept from."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from cfs_tags import Repository
from cfs_tags.fsck import objects
from cfs_tags.maintain import run as steps
from cfs_tags.maintain import settled
from cfs_tags.policy import files
from cli.conftest import Run
from support.images import app_image, pull_image
from support.peers import Cfsctl
from support.refusing import refused

WEB, DB = "quay.io/apps/web:1", "quay.io/apps/db:2"
STOPPED = ("--esp", "none", "--run", "none", "--booted", "none")


@pytest.fixture(autouse=True)
def _no_policy_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_SYSTEM", str(tmp_path / "etc.toml"))


@pytest.fixture
def maintain(call: Run, sysroot: Path) -> Run:
    def on_host(*words: str | Path, input: bytes = b"", ok: bool = False) -> Any:
        return call("--sysroot", sysroot, "maintain", *STOPPED, *words, input=input, ok=ok)

    return on_host


def settle() -> None:
    """Wait until a directory that was changed now gets another time stamp with its next change."""
    time.sleep(0.05)


@pytest.fixture
def at_rest(maintain: Run) -> Run:
    """``maintain`` where it has nothing to do any more."""
    for _ in range(2):
        settle()
        maintain("--check-every", "0", ok=True)
    return maintain


def every_object(repo: Path) -> set[str]:
    return {path.parent.name + path.name for path in (repo / "objects").glob("*/*")}


def test_it_adopts_collects_and_checks(maintain: Run, run: Run, repo: Path, facts: Any, cfsctl: Cfsctl) -> None:
    said = maintain("--check-every", "1s", "--json")

    assert set(said.result["adopted"]) == set(facts["deployments"])
    assert said.result["collected"]["objects"] > 0
    assert said.result["checked"]["objects"] == len(every_object(repo))
    assert said.result["failed"] == []
    assert cfsctl(repo, "fsck").returncode == 0
    assert [row["action"] for row in run("log", "--json").result][:2] == ["maintain", "collect"]
    assert run("fsck", "--content").status == 0


def test_a_dry_run_says_the_same_and_changes_nothing(maintain: Run, run: Run, repo: Path) -> None:
    before = every_object(repo), run("list", "--json").result
    would = maintain("--dry-run", "--json").result

    assert (every_object(repo), run("list", "--json").result) == before
    assert not (repo / "cfs-tags").exists()
    done = maintain("--json").result
    assert (would["adopted"], would["collected"]) == (done["adopted"], done["collected"])


def test_the_policy_is_applied(maintain: Run, run: Run, repo: Path) -> None:
    for number in (1, 2, 3):
        run("create", f"quay.io/x/app:{number}", WEB, ok=True)
    (repo / "cfs-tags/policy.toml").write_text('[[rule]]\ntags = "quay.io/x/*"\nkeep-last = 1\n')

    said = maintain("--json").result

    assert [row["name"] for row in said["dropped"]] == ["quay.io/x/app:1", "quay.io/x/app:2"]
    assert {row["name"] for row in run("trash", "--json").result} == {"@trash/quay.io/x/app:1", "@trash/quay.io/x/app:2"}
    assert maintain("--json").result["dropped"] == []


def test_where_nothing_has_changed_nothing_is_walked(at_rest: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(steps.gc, "collect")

    said = at_rest("--json").result

    assert (said["unchanged"], said["collected"]) == (True, None)


def without_a_tag(repo: Path) -> None:
    (repo / "streams/refs/oci/quay.io%2Fapps%2Fdb:2").unlink()


def with_a_lost_link(repo: Path) -> None:
    next(repo.glob("streams/oci-manifest-*")).unlink()


def with_an_object(repo: Path) -> None:
    (repo / "objects/00").mkdir(exist_ok=True)
    (repo / "objects/00" / ("1" * 126)).write_bytes(b"dead")


def without_an_object(repo: Path) -> None:
    next((repo / "objects").glob("*/*")).unlink()


def with_a_ref_deep_down(repo: Path) -> None:
    (repo / "images/refs/others/deep").mkdir(parents=True)


def with_a_tag_that_moved(repo: Path) -> None:
    path = repo / "streams/refs/oci/quay.io%2Fapps%2Fdb:2"
    (repo / "moved").symlink_to(os.readlink(path.parent / "quay.io%2Fapps%2Fweb:1"))
    (repo / "moved").rename(path)


CHANGES = [without_a_tag, with_a_lost_link, with_an_object, without_an_object, with_a_ref_deep_down, with_a_tag_that_moved]


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_has_changed_is_walked_again(change: Any, at_rest: Run, repo: Path) -> None:
    change(repo)
    settle()

    assert at_rest("--check-every", "0", "--json").json["result"]["unchanged"] is False


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_changed_in_the_moment_of_the_mark_is_not_forgotten(
    change: Any, at_rest: Run, repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file system gives the next change of a directory the time stamp of the one before: then there is no mark."""
    with Repository.open(repo) as opened:
        settle()
        before = settled.mark(opened)
        assert before != ""
        change(repo)
        with monkeypatch.context() as moment:
            now = time.time_ns()
            moment.setattr(time, "time_ns", lambda: now)  # reading may take longer than a tick
            assert settled.mark(opened) == ""
        settle()
        assert settled.mark(opened) not in ("", before)


def test_time_stamps_that_somebody_puts_back_are_noticed(at_rest: Run, repo: Path) -> None:
    with Repository.open(repo) as opened:
        settle()
        before, there = settled.mark(opened), (repo / "streams/refs/oci").stat()
        without_a_tag(repo)
        os.utime(repo / "streams/refs/oci", ns=(there.st_atime_ns, there.st_mtime_ns))
        settle()
        assert settled.mark(opened) not in ("", before)


def test_after_a_mark_nothing_was_changed_as_long_as_it_is_the_same_whatever_cfsctl_does(
    repo: Path, cfsctl: Cfsctl, tmp_path: Path
) -> None:
    """cfsctl pulls, tags and collects, and marks are taken all the time: what was looked at after one that is the last one's,
    too, is what is there in the end."""

    def there() -> set[tuple[str, str]]:
        found = set()
        for top in ("objects", "streams", "images"):
            for place, _, names in os.walk(repo / top):
                for path in (os.path.join(place, name) for name in names):
                    with suppress(OSError):  # it went meanwhile
                        found.add((path, os.readlink(path) if os.path.islink(path) else ""))
        return found

    images = [app_image(tmp_path / "layout", f"app{number}") for number in range(3)]
    seen: list[tuple[str, set[tuple[str, str]]]] = []

    enough = threading.Event()

    def others() -> None:
        for rounds in range(30):
            if rounds >= 3 and enough.is_set():
                return
            for image in images:
                pull_image(cfsctl, repo, image)
            for image in images:
                cfsctl(repo, "oci", "untag", image.ref)
            cfsctl(repo, "gc")

    with Repository.open(repo) as opened, ThreadPoolExecutor(1) as pool:
        running = pool.submit(others)
        while not running.done():
            seen.append((settled.mark(opened), there()))
            if len({mark for mark, _ in seen} - {""}) > 3:
                enough.set()
        running.result()
        settle()
        seen += [(settled.mark(opened), there())] * 2
    places: dict[str, list[int]] = {}
    for number, (mark, _) in enumerate(seen):
        places.setdefault(mark, []).append(number)
    assert len(places.keys() - {""}) > 3, "marks were taken in between"
    for mark, at in places.items():
        looked = [seen[number][1] for number in range(at[0], at[-1])] if mark else []
        assert all(one == looked[0] for one in looked)


def test_a_lease_that_runs_out_is_noticed_though_nothing_has_changed(at_rest: Run, run: Run, repo: Path) -> None:
    for seconds in (5, 20, 60):  # on a machine that is busy enough, the first lease may end while it is looked at
        begun = time.monotonic()
        run("create", f"leased:{seconds}", DB, "--expires", f"{seconds}s", ok=True)
        settle()
        looks = [at_rest("--json").result["unchanged"] for _ in range(2)]
        if time.monotonic() - begun < seconds:
            break
    assert looks == [False, True]
    time.sleep(max(0.0, begun + seconds + 1.1 - time.monotonic()))

    assert at_rest("--json").result["unchanged"] is False
    assert f"leased:{seconds}" not in run("list").out


def test_after_a_week_everything_is_walked_again(at_rest: Run, repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    for days, unchanged in ((6, True), (8, False), (-3650, False)):
        (repo / "cfs-tags/maintain.json").write_text(
            json.dumps(json.loads((repo / "cfs-tags/maintain.json").read_text()) | {"marked": max(now - days * 86400, 0)})
        )
        assert at_rest("--check-every", "0", "--dry-run", "--json").result["unchanged"] is unchanged


@pytest.mark.parametrize(
    "text", ["", "{}", "[1", '{"mark": 1}', '{"place": "../.."}', '{"checked": 1e300}', '{"wrong": ["../x"]}', "x" * (1 << 17)]
)
def test_a_mark_that_makes_no_sense_costs_a_walk(text: str, at_rest: Run, repo: Path) -> None:
    (repo / "cfs-tags/maintain.json").write_text(text)

    assert at_rest("--json").result["unchanged"] is False


def test_a_step_that_is_refused_does_not_keep_the_others_from_being_done(maintain: Run, repo: Path, tmp_path: Path) -> None:
    (repo / "streams/refs/oci/broken:1").symlink_to(f"../../oci-manifest-sha256:{'00' * 32}")
    (tmp_path / "etc.toml").write_text("[[rule]]\nkeep-lasst = 1\n")

    said = maintain("--check-every", "1s", "--json")

    assert said.status == 2, "that of the first step that failed"
    assert said.json["result"]["failed"] == ["policy", "collect"]
    assert [warning["code"] for warning in said.json["warnings"]] == ["invalid-policy", "broken-roots"]
    assert len(said.json["result"]["adopted"]) == 3
    assert said.json["result"]["checked"]["objects"] == len(every_object(repo))


def test_an_object_that_has_other_bytes_is_found(maintain: Run, repo: Path) -> None:
    maintain(ok=True)
    path = next(path for path in sorted((repo / "objects").glob("*/*")) if path.stat().st_size > 100)
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.write(b"\xff\x00flipped")

    said = maintain("--check-every", "1s", "--json")

    assert said.status == 6
    (found,) = said.json["result"]["checked"]["findings"]
    assert (found["code"], found["path"]) == ("wrong-object-digest", f"objects/{path.parent.name}/{path.name}")


def test_damage_stands_until_the_object_is_right_or_gone(maintain: Run, call: Run, sysroot: Path, repo: Path) -> None:
    for _ in range(2):
        settle()
        maintain("--check-every", "0", ok=True)
    first, second = sorted(path for path in (repo / "objects").glob("*/*") if path.stat().st_size > 100)[:2]
    whole = first.read_bytes()
    for path in (first, second):
        path.chmod(0o644)
        path.write_bytes(b"flipped" + path.read_bytes()[7:])
    assert maintain("--check-every", "1s").status == 6
    damaged = [f"objects/{path.parent.name}/{path.name}" for path in (first, second)]

    def shown() -> list[str]:
        problems = call("--sysroot", sysroot, "status", *STOPPED, "--json", ok=True).result["problems"]
        return [one["name"] for one in problems if one["kind"] == "object"]

    def figure() -> str:
        return str(call("--sysroot", sysroot, "metrics", "--no-space", *STOPPED, ok=True).out)

    for words in (("--check-every", "0"), ("--within", "1s"), ()):
        said = maintain(*words, "--json")
        assert said.status == 6
        assert [one["path"] for one in said.json["result"]["checked"]["findings"]] == damaged
        assert "cfs_tags_last_maintenance_findings 2.0" in figure()
    with refused("maintain.json"):
        said = maintain("--check-every", "1s", "--json")
        assert "check" in said.json["result"]["failed"]
        assert call("--sysroot", sysroot, "status", *STOPPED).status == 1
    assert shown() == damaged

    first.write_bytes(whole)
    assert shown() == damaged[1:]
    assert maintain("--check-every", "1s").status == 6, "the other one is damaged still"
    second.unlink()
    assert shown() == []
    said = maintain("--check-every", "0", "--json")
    assert said.json["result"]["checked"]["findings"] == []
    assert "cfs_tags_last_maintenance_findings 0.0" in figure()
    assert json.loads((repo / "cfs-tags/maintain.json").read_text())["wrong"] == []


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The objects that are read by checks."""
    names: list[str] = []
    check = objects.check_content
    monkeypatch.setattr(steps.checks, "check_content", lambda repo, some: names.extend(some) or check(repo, some))
    return names


def move_the_clock(monkeypatch: pytest.MonkeyPatch, days: float) -> None:
    real = time.time
    monkeypatch.setattr(steps.time, "time", lambda: real() + days * 86400)


def test_each_object_has_its_turn_once_in_the_time(
    maintain: Run, repo: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    maintain("--check-every", "0", ok=True)
    with monkeypatch.context() as clock:
        for day in range(30):
            move_the_clock(clock, day)
            maintain("--check-every", "30d", ok=True)
            clock.undo()

    assert sorted(read) == sorted(every_object(repo))


def test_a_second_run_right_after_checks_nothing(maintain: Run, read: list[str]) -> None:
    maintain("--check-every", "10d", ok=True)
    first = len(read)
    maintain("--check-every", "10d", ok=True)

    assert 0 < first == len(read)


def test_a_clock_that_was_set_forward_and_back_does_not_end_checking(
    maintain: Run, repo: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    maintain(ok=True)
    read.clear()
    with monkeypatch.context() as clock:
        move_the_clock(clock, 3650)
        maintain(ok=True)
    assert set(read) == every_object(repo), "once, not once for each month"
    assert len(read) == len(set(read))
    read.clear()
    maintain(ok=True)
    with monkeypatch.context() as clock:
        move_the_clock(clock, 31)
        maintain(ok=True)

    assert set(read) == every_object(repo)


def test_what_time_is_too_short_for_is_done_by_the_next_run(repo: Path, read: list[str]) -> None:
    options = {"no_sysroot": True, "check_every": timedelta(seconds=1)}
    with Repository.open(repo, write=True) as opened:
        short = opened.maintain(within=timedelta(0), **options)  # type: ignore[arg-type]
        assert short.checked.whole is False
        assert short.checked.objects == 0
        assert short.collected is not None
        assert short.collected.swept.objects == 0
        assert getattr(short.collected, "stopped", None) == "the time is over"
        rest = opened.maintain(**options)  # type: ignore[arg-type]

    assert rest.checked.whole
    assert rest.collected is not None
    assert rest.collected.swept.objects > 0
    assert set(read) == every_object(repo)


def test_it_collects_no_more_than_it_may(maintain: Run, repo: Path) -> None:
    before = every_object(repo)

    said = maintain("--free-bytes", "4096", "--json").result["collected"]

    assert said["stopped"] == "enough is free"
    assert len(before) - len(every_object(repo)) == said["objects"] == 1


def test_a_repository_that_may_only_be_read_is_refused(run: Run, repo: Path) -> None:
    with Repository.open(repo) as opened, pytest.raises(Exception, match="opened for reading") as refused:
        opened.maintain()
    assert getattr(refused.value, "code", "") == "read-only-repository"
    assert not os.path.exists(repo / "cfs-tags")
