"""Pins: what they keep, how they end, and what every other command says of them."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from cfs_tags import Repository
from cfs_tags.errors import RefusedError, UsageError
from cfs_tags.host import pins as keeping
from cfs_tags.tags.pins import list_pins
from cli.conftest import Run
from pins.conftest import Pinnable, contents, named_in, unlink_boot_objects
from support.peers import Cfsctl
from support.refusing import refused

WEB, DB = "quay.io/apps/web:1", "quay.io/apps/db:2"
TOPS = ("streams/refs/cfs-tags/pins", "streams/refs/cfs-tags/pin-configs", "images/refs/cfs-tags/pins")


def links(repo: Path) -> dict[str, str]:
    """The refs of pins: path and text."""
    return {
        str(path.relative_to(repo)): os.readlink(path) for top in TOPS for path in (repo / top).rglob("*") if path.is_symlink()
    }


def pins_of(run: Run) -> dict[str, Any]:
    return {row["name"]: row for row in run("pins", "--json", ok=True).result}


# -- every recorded host -----------------------------------------------------------------------------------------------


def test_a_pinned_deployment_is_kept_whole_whoever_deletes_and_collects(pinnable: Pinnable, cfsctl: Cfsctl) -> None:
    images = pinnable.images()
    whole = named_in(pinnable.repo, images["plain"]) | named_in(pinnable.repo, images["boot"])
    before = contents(pinnable.repo)
    pinnable.on_host("pin", pinnable.id, "--reason", "it worked")

    pinnable.delete()
    pinnable.on_host("retire", "--grace", "0")
    cfsctl(pinnable.repo, "gc")
    others = any((pinnable.root / "state/deploy").iterdir())  # without any, it is not known what is in use
    pinnable.on_host("gc", "--image-only") if others else pinnable.on("gc", "--no-sysroot")
    cfsctl(pinnable.repo, "gc")

    after = contents(pinnable.repo)
    assert {one: after.get(one) for one in whole} == {one: before[one] for one in whole}
    row = pinnable.row()
    assert row is not None
    assert (row["state"], row["version"] is not None, row["created"] is not None) == ("kept", True, True)
    assert [pin["reason"] for pin in row["pins"]] == ["it worked"]
    figures = pinnable.on_host("metrics", "--no-space").out
    assert 'cfs_tags_deployments{state="kept"} 1.0' in figures
    assert "cfs_tags_deployments_without_ref 0.0" in figures
    assert not [one for one in row["health"] if one["code"] not in ("ref-partial",)]
    cfsctl.assert_healthy(pinnable.repo)
    assert pinnable.on("fsck", "--content", ok=False).status == 0


def test_what_it_keeps_beside_is_what_was_there(pinnable: Pinnable) -> None:
    origin = pinnable.root / "state/deploy" / pinnable.id / f"{pinnable.id}.origin"
    wanted = origin.read_bytes() if origin.exists() else None
    row = pinnable.row()
    assert row is not None
    entries = [(entry["path"], Path(entry["path"]).read_bytes()) for entry in row["entries"]]

    pinnable.on_host("pin", pinnable.id, "--name", "x")

    (home,) = (pinnable.repo / "cfs-tags/pins").iterdir()
    record = json.loads((home / "pin.json").read_text())
    assert record["entries"] == [path for path, _ in entries]
    assert [(home / f"entry.{number}").read_bytes() for number in range(len(entries))] == [text for _, text in entries]
    assert ((home / "origin").read_bytes() if (home / "origin").exists() else None) == wanted
    images = pinnable.images()
    alone = named_in(pinnable.repo, images["plain"]) - named_in(pinnable.repo, images["boot"])
    assert {path.name for path in (home / "objects").iterdir()} == alone
    for path in (home / "objects").iterdir():
        assert path.samefile(pinnable.repo / "objects" / path.name[:2] / path.name[2:])


def test_after_unpinning_a_deployment_that_is_gone_is_collected_like_any_other(pinnable: Pinnable) -> None:
    pinnable.on_host("pin", pinnable.id)
    pinnable.delete()
    pinnable.on_host("retire", "--grace", "0")

    said = pinnable.on_host("unpin", pinnable.id[:12], "--json").result
    assert [one["done"] for one in said["pins"]] == ["unpinned"]

    assert not links(pinnable.repo)
    assert not os.listdir(pinnable.repo / "cfs-tags/pins")
    row = pinnable.row()
    assert row is None or row["state"] == "gone"


# -- making and removing -----------------------------------------------------------------------------------------------


def test_a_pin_of_a_tag_keeps_its_image_when_the_tag_goes(run: Run, repo: Path, cfsctl: Cfsctl, web: str) -> None:
    run("pin", WEB, "--reason", "shipped", ok=True)
    run("delete", WEB, ok=True)
    cfsctl(repo, "gc")

    assert run("resolve", f"@pin/{WEB}", ok=True).out.strip() == web
    assert run("fsck", "--content").status == 0
    assert run("create", WEB, f"@pin/{WEB}", ok=True)
    row = pins_of(run)[WEB]
    assert (row["manifest"], row["deployment"], row["reason"], row["expires"]) == (web, None, "shipped", None)


def test_the_same_again_is_unchanged_and_another_end_moves_it(run: Run, repo: Path) -> None:
    assert run("pin", WEB, "--json", ok=True).result["pins"][0]["done"] == "pinned"
    first = links(repo)
    assert run("pin", WEB, "--json", ok=True).result["pins"][0]["done"] == "unchanged"
    assert links(repo) == first
    assert run("pin", WEB, "--until", "2h", "--json", ok=True).result["pins"][0]["done"] == "moved"
    (row,) = pins_of(run).values()
    ends = datetime.fromisoformat(row["expires"])
    assert timedelta(hours=1, minutes=59) < ends - datetime.now(UTC) <= timedelta(hours=2, seconds=1)
    assert len(links(repo)) == len(first)
    assert run("pin", WEB, "--json", ok=True).result["pins"][0]["done"] == "moved"
    assert links(repo) == first


class _Refusing:
    """``os.readlink`` that the system interrupts: once, or for good."""

    def __init__(self, *, once: bool) -> None:
        self._once, self._come = once, 0
        self._original = os.readlink

    def __call__(self, path: Any, *, dir_fd: int | None = None) -> Any:
        if os.fspath(path).endswith("web:1") and not (self._once and self._come):
            self._come += 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return self._original(path, dir_fd=dir_fd)


def test_a_link_that_cannot_be_read_once_is_not_left_behind_when_a_pin_moves(run: Run, repo: Path) -> None:
    run("pin", WEB, ok=True)
    with patch.object(os, "readlink", _Refusing(once=True)), Repository.open(repo, write=True) as opened:
        assert len(list_pins(opened, exact=True)[0].links) == 2


@pytest.mark.parametrize("words", [["unpin", WEB], ["pin", WEB, "--until", "9d"], ["gc", "--no-sysroot"]])
def test_links_that_cannot_be_read_change_nothing(words: list[str], run: Run, repo: Path) -> None:
    """A pin whose links are unread is not one that is gone: neither they nor what is kept beside them go."""
    run("pin", WEB, ok=True)
    before, beside = links(repo), sorted(path for path in (repo / "cfs-tags/pins").rglob("*"))
    with patch.object(os, "readlink", _Refusing(once=False)):
        assert run(*words).status != 0
    assert links(repo) == before
    assert sorted(path for path in (repo / "cfs-tags/pins").rglob("*")) == beside


def test_a_name_that_keeps_something_else_is_refused(run: Run, repo: Path) -> None:
    run("pin", WEB, "--name", "mine", ok=True)
    before = links(repo)

    said = run("pin", DB, "--name", "mine", "--json")

    assert (said.status, said.json["error"]["code"]) == (4, "pin-exists")
    assert links(repo) == before
    run("pin", DB, "--name", "other", ok=True)
    run("unpin", "mine", "other", ok=True)
    assert not links(repo)


@pytest.mark.parametrize("name", ["", ".", "..", "@x", "-x", "a\nb", "x" * 256])
def test_names_that_no_tag_may_have_no_pin_has(name: str, run: Run, repo: Path) -> None:
    assert run("pin", WEB, f"--name={name}", "--json").json["error"]["code"] == "invalid-tag-name"
    assert not links(repo)


@pytest.mark.parametrize("until", ["soon", "0d", "2020-01-01", "-3d", "101y"])
def test_an_end_that_is_none_is_refused(until: str, run: Run, repo: Path) -> None:
    said = run("pin", WEB, f"--until={until}", "--json")
    assert (said.status, said.json["error"]["code"]) == (2, "invalid-argument")
    assert not links(repo)


def test_an_end_may_be_a_time(run: Run) -> None:
    run("pin", WEB, "--until", "2099-01-31T12:00:00Z", ok=True)
    assert pins_of(run)[WEB]["expires"] == "2099-01-31T12:00:00Z"


@pytest.mark.parametrize("text", ["nothing", "@pin/nothing", "abcdef", "@deployment/00"])
def test_what_is_no_pin_cannot_be_unpinned(text: str, run: Run, repo: Path) -> None:
    run("pin", WEB, ok=True)
    before = links(repo)
    said = run("unpin", WEB, text, "--json")
    assert (said.status, said.json["error"]["code"]) == (3, "pin-not-found")
    assert links(repo) == before


def test_dry_runs_change_nothing(run: Run, repo: Path) -> None:
    assert run("pin", WEB, "--dry-run", ok=True).out.startswith("would be pinned")
    assert not links(repo)
    run("pin", WEB, ok=True)
    before = links(repo), sorted(map(str, (repo / "cfs-tags").rglob("*")))
    assert run("unpin", WEB, "--dry-run", ok=True).out.startswith("would be unpinned")
    assert (links(repo), sorted(map(str, (repo / "cfs-tags").rglob("*")))) == before


def test_an_image_that_is_not_whole_is_not_pinned(run: Run, repo: Path) -> None:
    layer = run("show", WEB, "--json", ok=True).result["layers"][0]["object"]
    (repo / "objects" / layer[:2] / layer[2:]).unlink()
    said = run("pin", WEB, "--json")
    assert (said.status, said.json["error"]["code"]) == (4, "incomplete-target")
    assert not links(repo)


# -- the end of a pin --------------------------------------------------------------------------------------------------


def test_a_pin_that_has_ended_keeps_nothing_and_goes_at_the_next_collection(run: Run, repo: Path) -> None:
    run("pin", WEB, "--until", "1s", ok=True)
    run("delete", WEB, ok=True)
    time.sleep(2.1)
    assert pins_of(run)[WEB]["ended"]
    assert run("resolve", f"@pin/{WEB}").status == 3
    assert [one["code"] for one in run("fsck", "--json").result["findings"] if "pin" in one["code"]] == ["expired-pin"]

    run("gc", "--no-sysroot", ok=True)

    assert not links(repo)
    assert not os.listdir(repo / "cfs-tags/pins")
    assert not pins_of(run)
    assert run("why", WEB, "--json").status != 0
    actions = [line["action"] for line in run("log", f"@pin/{WEB}", "--json", ok=True).result]
    assert actions == ["expire", "pin"]


@pytest.mark.parametrize(("before", "ended"), [(1, False), (0, True)])
def test_every_command_has_it_end_at_the_same_second(before: int, ended: bool, run: Run, repo: Path) -> None:
    run("pin", WEB, "--until", "1h", ok=True)
    ends = datetime.fromisoformat(pins_of(run)[WEB]["expires"]).timestamp()

    with patch("time.time", lambda: ends - before):
        assert pins_of(run)[WEB]["ended"] is ended
        assert (run("resolve", f"@pin/{WEB}").status == 3) is ended
        assert any(one["code"] == "expired-pin" for one in run("fsck", "--json").result["findings"]) is ended
        run("gc", "--no-sysroot", ok=True)
    assert (not links(repo)) is ended


def test_what_stands_in_the_place_of_what_a_pin_keeps_beside_stops_no_revival_and_goes_with_the_pin(
    run: Run, repo: Path, tmp_path: Path
) -> None:
    run("pin", WEB, "--name", "mine", ok=True)
    (home,) = (repo / "cfs-tags/pins").iterdir()
    home.rename(tmp_path / "theirs")
    before = sorted((tmp_path / "theirs").rglob("*"))
    home.symlink_to(tmp_path / "theirs")
    (home.parent / "file").write_text("nothing of ours")
    (home.parent / "no pin's/pin.json/a/b").mkdir(parents=True)
    (home.parent / "no pin's/pin.json/a/link").symlink_to(tmp_path / "theirs")

    run("revive", "mine", "--export-only", "--to", tmp_path / "layout", ok=True)
    run("unpin", "mine", ok=True)

    assert not os.listdir(home.parent)
    assert sorted((tmp_path / "theirs").rglob("*")) == before
    run("pin", WEB, "--name", "mine", ok=True)


def test_a_pin_that_has_ended_can_be_made_anew(run: Run, repo: Path) -> None:
    run("pin", WEB, "--name", "mine", "--until", "1s", "--reason", "old", ok=True)
    time.sleep(2.1)
    assert run("pin", DB, "--name", "mine", "--json", ok=True).result["pins"][0]["done"] == "pinned"
    assert {path.split("/")[-2] for path in links(repo)} == {"always"}
    assert pins_of(run)["mine"]["reason"] is None


# -- what others say of it ---------------------------------------------------------------------------------------------


def test_every_command_knows_it(run: Run, web: str) -> None:
    run("pin", WEB, "--name", "mine", "--until", "9d", "--reason", "why not", ok=True)

    row = next(row for row in run("list", "--json", ok=True).result if row["home"] == "pin")
    assert (row["name"], row["digest"], row["owner"]) == ("@pin/mine", web, "pin")
    assert row["expires"] is not None
    chains = run("why", web, "--json", ok=True).result["chains"]
    assert any(chain[0]["name"].startswith("streams/refs/cfs-tags/pins/") for chain in chains)
    used = {one["name"]: one["owner"] for one in run("df", "--json", ok=True).result["names"]}
    assert used["@pin/mine"] == "pin"
    assert run("log", "@pin/mine", "--json", ok=True).result[0]["reason"] == "why not"
    assert "@pin/mine" in run("show", WEB, ok=True).out
    assert run("fsck").status == 0
    said = run("delete", "@pin/mine", "--json")
    assert (said.status, said.json["error"]["code"]) == (2, "invalid-argument")


def test_neither_a_pin_nor_a_lease_ends_a_fraction_of_a_second_early(repo: Path) -> None:
    whole = datetime.now(UTC).replace(microsecond=0)
    with Repository.open(repo, write=True) as opened:
        for part in (0.0, 0.001, 0.3, 0.999):
            wanted = whole + timedelta(seconds=100 + part)
            exact = whole + timedelta(seconds=100 + (part > 0))
            opened.tags.create("t/at:1", WEB, expires=wanted, force=True)
            assert opened.tags.get("t/at:1").ends == exact
            opened.pins.pin(WEB, name="at", until=wanted)
            assert [pin.ends for pin, _ in opened.pins.list()] == [exact]
            before = datetime.now(UTC)
            opened.pins.pin(WEB, name="at", until=timedelta(seconds=100))
            ((pin, _),) = opened.pins.list()
            assert before + timedelta(seconds=100) <= pin.ends <= datetime.now(UTC) + timedelta(seconds=101)
            time.sleep(0.27)


def test_policy_never_takes_what_is_pinned(run: Run, repo: Path, cfsctl: Cfsctl, tmp_path: Path) -> None:
    for number in range(4):
        run("create", f"quay.io/x/app:{number}", WEB, ok=True)
        run("create", f"quay.io/y/db:{number}", DB, ok=True)
    run("pin", "quay.io/x/app:0", ok=True)
    policy = tmp_path / "policy.toml"
    policy.write_text('[trash]\nkeep-for = "1s"\n[[rule]]\ntags = ["*"]\nkeep-last = 1\n')

    said = {row["name"]: row["reasons"] for row in run("policy", "check", "--file", policy, "--json", ok=True).result}
    assert said["quay.io/x/app:0"] == ["pinned"]
    run("policy", "apply", "--file", policy, ok=True)
    cfsctl(repo, "gc")

    assert run("fsck", "--content").status == 0
    assert run("resolve", "@pin/quay.io/x/app:0").status == 0


def test_a_part_that_is_missing_is_found(run: Run, repo: Path) -> None:
    run("pin", WEB, ok=True)
    (repo / TOPS[1] / "always" / WEB.replace("/", "%2F")).unlink()
    assert [one["code"] for one in run("fsck", "--json").json["result"]["findings"] if "pin" in one["code"]] == ["partial-pin"]
    assert run("pin", WEB, "--json", ok=True).result["pins"][0]["done"] == "moved"
    assert run("fsck").status == 0


def test_what_is_lost_beside_it_takes_nothing_with_it(run: Run, repo: Path) -> None:
    run("pin", WEB, "--reason", "x", ok=True)
    (record,) = (repo / "cfs-tags/pins").glob("*/pin.json")
    for damage in (b"", b"{", b'{"made": 1}', b"[]", b'{"entries": [1]}'):
        record.write_bytes(damage)
        assert pins_of(run)[WEB]["reason"] is None
        assert {(one["code"], one["path"]) for one in run("fsck", "--json").json["result"]["findings"]} == {
            ("damaged-state", str(record.relative_to(repo)))
        }
    record.unlink()
    assert run("fsck").status == 0
    run("unpin", WEB, ok=True)
    assert not links(repo)


# -- Python ------------------------------------------------------------------------------------------------------------


def test_the_library_has_what_the_commands_have(repo: Path, web: str) -> None:
    with Repository.open(repo, write=True) as opened:
        made = opened.pins.pin(WEB, name="mine", until=timedelta(days=90), reason="x", by="me")
        assert [(one.name, one.done, one.manifest) for one in made.results] == [("mine", "pinned", web)]
        (row,) = opened.pins.list()
        assert (row.pin.name, row.pin.manifest, row.record.reason, row.record.by) == ("mine", web, "x", "me")
        assert row.pin.ends is not None
        assert opened.pins.get("mine") == row
        with pytest.raises(UsageError):
            opened.pins.pin(WEB, until=timedelta(0))
        assert opened.pins.unpin("mine", dry_run=True).results[0].done == "unpinned"
        opened.pins.unpin("mine")
        assert opened.pins.list() == []
    with Repository.open(repo) as opened, pytest.raises(RefusedError):
        opened.pins.pin(WEB)


def test_the_objects_of_boot_that_a_newer_bootc_removes_stay_beside(pinnable: Pinnable) -> None:
    images = pinnable.images()
    pinnable.on_host("pin", pinnable.id)
    before = contents(pinnable.repo)
    pinnable.delete()

    gone = unlink_boot_objects(pinnable.repo, images)

    kept = {path.name: path.read_bytes() for path in (pinnable.repo / "cfs-tags/pins").glob("*/objects/*")}
    assert {one: kept.get(one) for one in gone} == {one: before[one] for one in gone}


# -- what cannot be read ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words", [["unpin", DB], ["pin", "quay.io/apps/web:1", "--name", "x"], ["gc", "--no-sysroot", "--keep-broken"]]
)
def test_what_pins_keep_stays_where_the_system_does_not_say_what_their_directory_is(
    words: list[str], run: Run, repo: Path
) -> None:
    run("pin", WEB, ok=True)
    run("pin", DB, "--until", "9d", ok=True)
    run("delete", WEB, ok=True)
    before, beside = contents(repo), sorted((repo / "cfs-tags/pins").rglob("*"))

    with refused("always"):
        assert run(*words).status != 0

    assert contents(repo) == before
    assert set(beside) <= set((repo / "cfs-tags/pins").rglob("*"))
    assert len(links(repo)) == 4


def test_what_is_beside_a_pin_stays_where_files_stand_in_the_place_of_its_links(run: Run, repo: Path) -> None:
    """So it is after a copy that followed links."""
    run("pin", WEB, ok=True)
    for path in links(repo):
        (repo / path).unlink()
        (repo / path).write_text("")
    beside = sorted((repo / "cfs-tags/pins").rglob("*"))

    run("pin", DB, ok=True)

    assert set(beside) <= set((repo / "cfs-tags/pins").rglob("*"))
    assert pins_of(run)[WEB]["manifest"] is None


def test_a_pin_whose_links_cannot_be_read_is_listed(run: Run) -> None:
    run("pin", WEB, ok=True)
    with refused("quay.io%2Fapps%2Fweb:1"):
        assert pins_of(run)[WEB]["manifest"] is None


@pytest.fixture
def pinned(sysroot: Path, call: Run) -> tuple[Run, str]:
    """A deployment of the example host that is pinned, and ``run`` on that host."""

    def on_host(command: str, *words: str | Path, ok: bool = False, input: bytes = b"") -> Any:
        return call("--sysroot", sysroot, command, "--run", "none", "--booted", "none", "--esp", "none", *words, ok=ok)

    name = on_host("deployments", "--json").result["deployments"][-1]["id"]
    on_host("pin", name, "--name", "kept", "--reason", "it worked", ok=True)
    return on_host, name


def test_the_refs_of_a_deployment_stay_where_its_pin_cannot_be_read(pinned: tuple[Run, str], sysroot: Path) -> None:
    """Those of its bound images, too, which no pin keeps."""
    on_host, name = pinned
    repo = sysroot / "composefs"
    on_host("migrate", ok=True)
    shutil.rmtree(sysroot / "state/deploy" / name)
    for entry in (sysroot / "boot").rglob("*.conf"):
        if name in entry.read_text():
            entry.unlink()
    bound = repo / "streams/refs/cfs-tags/bound" / name / "app"
    bound.parent.mkdir(parents=True)
    bound.symlink_to("../" * 4 + os.path.basename(os.readlink(next((repo / "streams/refs/oci").glob("*web:1")))))

    with refused("kept"):
        said = on_host("retire", "--grace", "0", ok=False)

    assert said.status == 1, said
    assert bound.is_symlink()
    on_host("retire", "--grace", "0", ok=True)
    assert bound.is_symlink(), "it is pinned"


def test_what_was_written_down_of_a_pin_and_cannot_be_read_is_not_written_anew(pinned: tuple[Run, str], sysroot: Path) -> None:
    on_host, name = pinned
    (record,) = (sysroot / "composefs/cfs-tags/pins").glob("*/pin.json")
    before = record.read_bytes()

    with refused("pin.json"):
        assert on_host("pin", name, "--name", "kept", "--until", "9d", "--reason", "other").status == 1

    assert record.read_bytes() == before


def test_what_cannot_be_read_of_the_host_is_said_and_takes_nothing_from_what_is_kept(
    pinned: tuple[Run, str], sysroot: Path
) -> None:
    on_host, name = pinned
    (home,) = (sysroot / "composefs/cfs-tags/pins").iterdir()
    before = {path.name: path.read_bytes() for path in home.glob("*") if path.is_file()}
    assert set(before) >= {"entry.0", "origin"}
    entry = os.path.basename(json.loads(before["pin.json"])["entries"][0])

    read = keeping._files_of_host

    for name_of_file in (entry, f"{name}.origin"):

        def refusing(*args: Any, refuse: str = name_of_file) -> Any:
            with refused(refuse):
                return read(*args)

        with patch.object(keeping, "_files_of_host", refusing):
            said = on_host("pin", name, "--name", "kept", "--json", ok=True)
        assert [one["code"] for one in said.json["warnings"]] == ["host-files-not-kept"]
    assert {path.name: path.read_bytes() for path in home.glob("*") if path.is_file()} == before
