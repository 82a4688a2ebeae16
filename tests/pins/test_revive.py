"""``revive``: a deployment that bootc deleted comes back from what a pin keeps, with the same config and the same id."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cfs_tags import Repository
from cfs_tags.apps import reviving
from cfs_tags.cli import session as sessions
from cfs_tags.errors import RefusedError
from cfs_tags.tags.pins import ORIGIN
from cli.conftest import Run
from pins.conftest import Pinnable, contents, named_in, object_path, unlink_boot_objects
from support.peers import Cfsctl
from support.refusing import refused
from support.serving import serving
from support.trees import copy_tree

WEB = "quay.io/apps/web:1"


def exported_config(layout: Path) -> str:
    """The digest of the config that a layout names, from its files."""
    (entry,) = json.loads((layout / "index.json").read_text())["manifests"]
    manifest = json.loads(blob(layout, entry["digest"]))
    for part in (entry["digest"], manifest["config"]["digest"], *(layer["digest"] for layer in manifest["layers"])):
        assert f"sha256:{hashlib.sha256(blob(layout, part)).hexdigest()}" == part
    return str(manifest["config"]["digest"])


def blob(layout: Path, digest: str) -> bytes:
    return (layout / "blobs" / digest.replace(":", "/")).read_bytes()


def id_of_pull(cfsctl: Cfsctl, repo: Path, source: str) -> str | None:
    """The EROFS image that the peer makes for booting, of an image that it pulls."""
    cfsctl(repo, "oci", "pull", "--bootable", source, "revived")
    return cfsctl.images_of(repo, "revived")[1]


def lost(pinnable: Pinnable, cfsctl: Cfsctl) -> None:
    """bootc deletes it, a newer one unlinks objects, and both collectors run."""
    images = pinnable.images()
    pinnable.delete()
    unlink_boot_objects(pinnable.repo, images)
    pinnable.on_host("retire", "--grace", "0")
    cfsctl(pinnable.repo, "gc")
    others = any((pinnable.root / "state/deploy").iterdir())
    pinnable.on_host("gc", "--image-only") if others else pinnable.on("gc", "--no-sysroot")
    cfsctl(pinnable.repo, "gc")


def test_what_was_deleted_comes_back_with_the_same_config_and_the_same_id(
    pinnable: Pinnable, cfsctl: Cfsctl, tmp_path: Path
) -> None:
    manifest = pinnable.on_host("lookup", pinnable.id, "--json").result["manifest"]
    config = pinnable.on("show", f"@{manifest}", "--json").result["config_digest"]
    meta = (pinnable.repo / "meta.json").read_bytes()
    before = contents(pinnable.repo)
    pinnable.on_host("pin", pinnable.id, "--name", "kept")
    lost(pinnable, cfsctl)
    layout = tmp_path / "layout"

    said = pinnable.on_host("revive", "kept", "--print", "--to", layout).lines
    commands = [shlex.split(line) for line in said if not line.startswith("#")]
    assert [words[0] for words in commands] == ["cfs-tag", "bootc"]
    assert any("/etc will be that of the booted deployment" in line for line in said)
    assert not layout.exists()
    assert commands[1] == ["bootc", "switch", "--transport", "oci", f"{layout}:{pinnable.id[:12]}"]
    assert pinnable._call(*commands[0][1:], ok=True)

    assert exported_config(layout) == config
    assert pinnable.on("fsck", "--content", ok=False).status == 0
    after = contents(pinnable.repo)
    for one in pinnable.images().values():
        for name in cfsctl(pinnable.repo, "image-objects", one, check=False).stdout.split():
            assert after[name.rpartition(":")[2]] == before[name.rpartition(":")[2]]
    fresh = tmp_path / "fresh"
    cfsctl(None, "init", "--insecure", "--algorithm", "fsverity-sha512-12", fresh)
    (fresh / "meta.json").write_bytes(meta)
    assert id_of_pull(cfsctl, fresh, f"oci:{layout}:{pinnable.id[:12]}") == pinnable.id
    assert id_of_pull(cfsctl, pinnable.repo, f"oci:{layout}:{pinnable.id[:12]}") == pinnable.id
    cfsctl.assert_healthy(pinnable.repo)


@pytest.fixture
def one(recorded_a: Pinnable) -> Pinnable:
    return recorded_a


@pytest.fixture
def recorded_a(recorded: Any, call: Run) -> Pinnable:
    """A deployment of host ``a`` that has files in /boot."""
    root = recorded("a")
    facts = json.loads((Path(__file__).parent.parent / "data/hosts/a.json").read_text())
    image = next(image for image in facts["images"] if image["boot_image"] != image["plain_image"])
    return Pinnable(root, image["boot_image"], call)


def test_objects_of_boot_that_are_gone_are_put_back(one: Pinnable, cfsctl: Cfsctl, tmp_path: Path) -> None:
    one.on_host("pin", one.id)
    before = contents(one.repo)
    gone = unlink_boot_objects(one.repo, one.images())
    assert gone
    one.delete()
    assert one.on("fsck", ok=False).status == 6

    said = one.on_host("revive", one.id, "--export-only", "--to", tmp_path / "out", "--json").result

    assert set(said["put_back"]) == gone
    assert (said["deployed"], said["deployment"], said["pins"]) == (False, one.id, [one.id[:12]])
    assert contents(one.repo) == before
    assert one.on("fsck", "--content", ok=False).status == 0


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def made_a_pipe(path: Path) -> None:
    os.mkfifo(path)


def made_a_link(path: Path) -> None:
    path.symlink_to("nowhere")


@pytest.mark.parametrize("spoil", [emptied, made_a_pipe, made_a_link])
@pytest.mark.parametrize("words", [("revive",), ("fsck", "--repair")])
def test_objects_that_have_no_bytes_any_more_are_put_back_too(
    words: tuple[str, ...], spoil: Callable[[Path], None], one: Pinnable, tmp_path: Path
) -> None:
    one.on_host("pin", one.id)
    before = contents(one.repo)
    gone = unlink_boot_objects(one.repo, one.images())
    for object_id in gone:
        spoil(object_path(one.repo, object_id))
    one.delete()

    if words == ("revive",):
        one.on_host("revive", one.id, "--export-only", "--to", tmp_path / "out")
    else:
        one.on(*words, ok=False)

    assert contents(one.repo) == before
    assert one.on("fsck", "--content", ok=False).status == 0


def test_one_repair_makes_the_links_too_of_which_a_pin_has_what_was_missing(one: Pinnable) -> None:
    one.on_host("pin", one.id)
    gone = [bytes.fromhex(object_id) for object_id in unlink_boot_objects(one.repo, one.images())]
    layers = (one.repo / "streams").glob("oci-layer-*")
    links = {path: os.readlink(path) for path in layers if any(one in path.read_bytes() for one in gone)}
    for path in links:
        path.unlink()

    one.on("fsck", "--repair")

    assert links
    assert {path: os.readlink(path) for path in links if path.is_symlink()} == links


def test_a_directory_in_the_place_of_an_object_stays_and_the_pin_is_no_reason_to_fail(one: Pinnable, tmp_path: Path) -> None:
    one.on_host("pin", one.id)
    for object_id in unlink_boot_objects(one.repo, one.images()):
        object_path(one.repo, object_id).mkdir()
    one.delete()

    said = one.on_host("revive", one.id, "--export-only", "--to", tmp_path / "out", "--json", ok=False)

    assert (said.status, said.json["error"]["code"]) == (4, "not-revivable")
    assert one.on("fsck", "--repair", ok=False).status == 6


def test_what_was_kept_and_is_nearly_all_holes_is_measured_in_no_time(one: Pinnable, tmp_path: Path) -> None:
    one.on_host("pin", one.id)
    unlink_boot_objects(one.repo, one.images())
    one.delete()
    for path in (one.repo / "cfs-tags/pins").glob("*/objects/*"):
        os.truncate(path, 1 << 43)
    started = time.process_time()

    said = one.on_host("revive", one.id, "--export-only", "--to", tmp_path / "out", "--json", ok=False)

    assert said.json["error"]["code"] == "not-revivable"
    assert time.process_time() - started < 5


def test_what_was_kept_and_is_damaged_is_not_put_back(one: Pinnable, tmp_path: Path) -> None:
    one.on_host("pin", one.id)
    gone = unlink_boot_objects(one.repo, one.images())
    one.delete()
    for path in (one.repo / "cfs-tags/pins").glob("*/objects/*"):
        path.write_bytes(b"x" + path.read_bytes()[1:])

    said = one.on_host("revive", one.id, "--export-only", "--to", tmp_path / "out", "--json", ok=False)

    assert (said.status, said.json["error"]["code"]) == (4, "not-revivable")
    assert said.json["error"]["facts"]["source"] == "docker://quay.io/example/n:latest"
    assert not [object_id for object_id in gone if object_path(one.repo, object_id).exists()]
    assert not (tmp_path / "out").exists()


def test_an_origin_that_the_system_does_not_give_is_not_one_that_was_not_kept(
    one: Pinnable, tmp_path: Path, cfsctl: Cfsctl
) -> None:
    one.on_host("pin", one.id, "--name", "kept")
    lost(one, cfsctl)
    words = ("revive", "kept", "--print", "--to", tmp_path / "layout")
    before = one.on_host(*words).lines

    with refused(ORIGIN):
        said = one.on_host(*words, ok=False)

    assert (said.status, "Input/output error" in said.err) == (1, True)
    assert one.on_host(*words).lines == before


def test_one_that_is_still_deployed_is_refused(one: Pinnable, tmp_path: Path) -> None:
    one.on_host("pin", one.id)
    words = ("revive", one.id, "--export-only", "--to", tmp_path / "out", "--json")
    said = one.on_host(*map(str, words), ok=False)
    assert (said.status, said.json["error"]["code"]) == (4, "still-deployed")
    done = one.on_host(*map(str, words), "--force").result
    assert done["etc"].endswith(f"state/deploy/{one.id}/etc")


def test_another_system_than_the_running_one_gets_no_deployment(one: Pinnable, tmp_path: Path, monkeypatch: Any) -> None:
    one.on_host("pin", one.id)
    one.delete()
    monkeypatch.setattr(sessions, "bootc", lambda: "/bin/false")
    said = one.on_host("revive", one.id, "--to", str(tmp_path / "out"), "--json", ok=False)
    assert (said.status, said.json["error"]["code"]) == (4, "not-running")
    assert not (tmp_path / "out").exists()


def test_without_bootc_it_says_what_to_do(one: Pinnable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one.on_host("pin", one.id)
    one.delete()
    monkeypatch.setenv("PATH", str(tmp_path))
    said = one.on_host("revive", one.id, "--json", ok=False)
    assert (said.status, said.json["error"]["code"]) == (1, "program-missing")
    assert "--export-only" in said.json["error"]["hint"]
    assert one.on_host("revive", "absent", "--json", ok=False).json["error"]["code"] == "tag-not-found"


@pytest.mark.parametrize("status", [0, 1])
def test_bootc_is_told_to_deploy_the_layout(
    status: int, one: Pinnable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program that stands for bootc here only writes down its words: what bootc makes of the layout cfsctl shows above."""
    one.on_host("pin", one.id)
    one.delete()
    bootc = tmp_path / "bin/bootc"
    bootc.parent.mkdir()
    bootc.write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/words\necho "no room" >&2\nexit {status}\n')
    bootc.chmod(bootc.stat().st_mode | stat.S_IXUSR)
    layout = tmp_path / "out"

    with Repository.open(one.repo, write=True, run="none", booted="none", esp="none") as repo:
        view = repo.deployments.view()
        live = view._replace(sysroot=view.sysroot._replace(mounts=()))
        monkeypatch.setattr(type(repo.deployments), "view", lambda self: live)
        if status:
            with pytest.raises(Exception, match="no room"):
                repo.deployments.revive(one.id, to=str(layout), bootc=str(bootc))
        else:
            done = repo.deployments.revive(one.id, to=str(layout), bootc=str(bootc))
            assert isinstance(done, reviving.Revived)
            assert done.deployed
    assert (tmp_path / "words").read_text().split() == ["switch", "--transport", "oci", f"{layout}:{one.id[:12]}"]
    assert exported_config(layout)
    if not status:
        logged = one.on("log", "--json").result[0]
        assert (logged["action"], logged["facts"]["deployment"], logged["facts"]["deployed"]) == ("revive", one.id, 1)


def test_a_tag_can_be_revived_too_and_dry_runs_change_nothing(run: Run, repo: Path, tmp_path: Path) -> None:
    before = contents(repo), sorted(os.listdir(repo))
    said = run("revive", WEB, "--print", "--to", tmp_path / "out", ok=True)
    assert "bootc switch --transport oci" in said.out
    planned = run("revive", WEB, "--dry-run", "--json", "--to", tmp_path / "out", ok=True).result
    assert (planned["dry_run"], planned["exported"]) == (True, None)
    assert (contents(repo), sorted(os.listdir(repo))) == before
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("kind", "code"), [("open", "open-to-others"), ("link", "open-to-others"), ("other", "foreign-owner")])
def test_nothing_is_deployed_from_a_directory_that_others_can_change(
    kind: str, code: str, run: Run, repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reviving, "_HOME", str(tmp_path / "lib/revive"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "lib/revive"))
    (tmp_path / "lib/revive").mkdir(parents=True)
    layout = Path(run("revive", WEB, "--dry-run", "--json", ok=True).result["layout"])
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    if kind == "link":
        layout.symlink_to(theirs)
    else:
        layout.mkdir()
        layout.chmod(0o777 if kind == "open" else 0o755)
    if kind == "other":
        if os.geteuid() != 0:
            pytest.skip("only root can give a directory away")
        os.chown(layout, 1234, 1234)

    said = run("revive", WEB, "--export-only", "--json")

    assert (said.status, said.json["error"]["code"]) == (4, code)
    assert not any(theirs.iterdir())
    if kind != "link":
        assert not any(layout.iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="the layouts of others are temporary")
def test_roots_layout_stands_where_nobody_cleans_up_and_nobody_else_may_write(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert run("revive", WEB, "--dry-run", "--json", ok=True).result["layout"].startswith("/var/lib/cfs-tags/revive/")

    monkeypatch.setattr(reviving, "_HOME", str(tmp_path / "cfs-tags/revive"))
    said = run("revive", WEB, "--export-only", ok=True)

    (layout,) = (tmp_path / "cfs-tags/revive").iterdir()
    assert exported_config(layout)
    assert f"; then rm -r {layout}" in said.out
    for place in (tmp_path / "cfs-tags", tmp_path / "cfs-tags/revive", layout):
        assert place.stat().st_mode & 0o022 == 0


def test_a_layout_that_bootc_would_look_for_elsewhere_is_refused(run: Run, tmp_path: Path) -> None:
    said = run("revive", WEB, "--export-only", "--to", tmp_path / "a:b", "--json")
    assert (said.status, said.json["error"]["code"]) == (2, "invalid-argument")
    assert not any(tmp_path.glob("a*"))


def test_the_library_plans_and_refuses(one: Pinnable, tmp_path: Path) -> None:
    one.on_host("pin", one.id, "--name", "mine")
    with Repository.open(one.repo, run="none", booted="none", esp="none") as repo:
        plan = repo.deployments.revive("mine", to=str(tmp_path / "x"), force=True, dry_run=True).plan
        assert (plan.deployment, plan.pins, plan.image) == (one.id, ("mine",), ("docker", "quay.io/example/n:latest"))
        assert plan.switch_back == ("bootc", "switch", "quay.io/example/n:latest")
        with pytest.raises(RefusedError):
            repo.deployments.revive("mine", force=True)


def test_a_repair_puts_back_what_a_pin_keeps_and_says_so_before(one: Pinnable) -> None:
    one.on_host("pin", one.id)
    before = contents(one.repo)
    gone = unlink_boot_objects(one.repo, one.images())
    damaged = contents(one.repo)
    assert one.on("fsck", ok=False).status == 6

    said = one.on("fsck", "--repair", "--dry-run", "--json").result
    assert {row["code"] for row in said["findings"] if row["repaired"]} >= {"missing-object", "content-missing"}
    assert contents(one.repo) == damaged
    one.on("fsck", "--repair")

    assert contents(one.repo) == before
    assert gone
    assert one.on("fsck", "--content").status == 0


def test_what_no_pin_keeps_is_fetched_from_another_host(one: Pinnable, tmp_path: Path) -> None:
    one.on_host("pin", one.id, "--name", "mine")
    other = copy_tree(one.repo, tmp_path / "other")
    images = one.images()
    before = contents(one.repo)
    one.delete()
    lost = named_in(one.repo, images["boot"]) | unlink_boot_objects(one.repo, images)
    for name in lost:
        object_path(one.repo, name).unlink(missing_ok=True)
    shutil.rmtree(next((one.repo / "cfs-tags/pins").glob("*/objects")))
    out = tmp_path / "out"
    words = ("revive", "mine", "--export-only", "--to", str(out), "--json")
    said = one.on_host(*words, ok=False)
    assert (said.status, said.json["error"]["code"]) == (4, "not-revivable")
    with serving(other, ["*"]) as served:
        source = f"http://{served.address}"
        assert one.on_host("revive", "mine", "--print", "--from", source).lines[1].startswith("# to be fetched: ")

        done = one.on_host(*words, "--from", source).result

    assert done["missing"] == []
    assert exported_config(out) == done["config_digest"]
    after = contents(one.repo)
    assert {name: after[name] for name in lost} == {name: before[name] for name in lost}
