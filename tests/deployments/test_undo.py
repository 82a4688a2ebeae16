"""``--write-origin`` and ``--undo``: what is added, what is put back, and what is left alone."""

from __future__ import annotations

import errno
import os
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.peers import Cfsctl
from support.sysroots import BOOTC, Host, origin_text
from support.trees import Node, tree

if TYPE_CHECKING:
    from deployments.conftest import On


def outside(host: Host) -> dict[str, Node]:
    return {path: node for path, node in tree(host.root).items() if not f"{path}/".startswith("composefs/cfs-tags/")}


def undo_files(host: Host) -> list[str]:
    path = host.repo / "cfs-tags/undo"
    return sorted(os.listdir(path)) if path.is_dir() else []


# -- origins -----------------------------------------------------------------------------------------------------------


def test_the_digest_is_added_and_not_a_byte_changed(on: On, three: Host) -> None:
    before = {name: three.origin(name).read_bytes() for name in ("same", "old", "new")}

    said = on(three, "migrate", "--write-origin", "--json").result

    added = f"\n[image]\nmanifest_digest = {three.pool.images['old'].manifest}\n".encode()
    assert three.origin("old").read_bytes() == before["old"] + added
    assert three.origin("same").read_bytes() == before["same"]
    assert said["origins"] == [str(three.origin("old").relative_to(three.root))]


def test_bootc_reads_the_same_there_as_where_it_wrote_the_digest_itself(on: On, three: Host) -> None:
    on(three, "migrate", "--write-origin", ok=True)

    rows = on(three, "deployments", "--json").result["deployments"]

    assert {row["id"]: row["health"] for row in rows} == {three.id(name): [] for name in ("same", "old", "new")}


def test_mode_owner_and_attributes_of_an_origin_stay(on: On, three: Host) -> None:
    path = three.origin("old")
    path.chmod(0o640)
    try:
        os.setxattr(path, "user.note", b"kept")
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        pytest.skip("this file system has no extended attributes")
    owner = (1234, 4321) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    os.chown(path, *owner)
    for words in (["migrate", "--write-origin"], ["migrate", "--undo"]):
        on(three, *words, ok=True)

        status = path.stat()
        assert (status.st_mode & 0o7777, status.st_uid, status.st_gid) == (0o640, *owner)
        assert os.getxattr(path, "user.note") == b"kept"


def test_undoing_restores_the_bytes_and_says_so(on: On, three: Host) -> None:
    before = outside(three)
    on(three, "migrate", "--write-origin", ok=True)
    assert undo_files(three) == [f"{three.id('old')}.origin", "migration.json"]

    said = on(three, "migrate", "--undo", "--json").result

    assert {row["result"] for row in said["undone"]} == {"removed", "restored"}
    assert [row["path"] for row in said["undone"] if row["result"] == "restored"] == [
        str(three.origin("old").relative_to(three.root))
    ]
    assert outside(three) == before
    assert "migration.json" not in undo_files(three)


def test_an_origin_that_was_changed_since_is_left_alone_and_named(on: On, three: Host) -> None:
    on(three, "migrate", "--write-origin", ok=True)
    three.origin("old").write_text(origin_text(three.pool.images["old"]) + "[new]\nkey=1\n")
    changed = three.origin("old").read_bytes()

    said = on(three, "migrate", "--undo", "--json").result

    assert three.origin("old").read_bytes() == changed
    assert {"path": str(three.origin("old").relative_to(three.root)), "result": "kept", "reason": "it was changed since"} in (
        said["undone"]
    )


def test_an_origin_that_is_gone_since_is_not_made_again(on: On, three: Host) -> None:
    on(three, "migrate", "--write-origin", ok=True)
    three.undeploy("old")

    on(three, "migrate", "--undo", "--force", ok=True)

    assert not three.state("old").exists()


def test_origins_are_written_later_where_the_refs_are_complete_already(on: On, three: Host) -> None:
    on(three, "migrate", ok=True)

    said = on(three, "migrate", "--write-origin", "--json").result

    assert said["refs"] == []
    assert len(said["origins"]) == 1


# -- refs --------------------------------------------------------------------------------------------------------------


def test_a_second_migration_that_changes_nothing_can_still_be_undone_to_the_start(on: On, three: Host) -> None:
    before = outside(three)
    on(three, "migrate", ok=True)
    on(three, "migrate", ok=True)

    on(three, "migrate", "--undo", ok=True)

    assert outside(three) == before


def test_only_the_last_migration_is_undone(on: On, three: Host) -> None:
    three.undeploy("new")
    (three.root / "run/composefs/staged-deployment").unlink()
    on(three, "migrate", ok=True)
    first = outside(three)
    three.deploy("new")
    deployed = outside(three)
    on(three, "migrate", ok=True)

    on(three, "migrate", "--undo", ok=True)

    after = outside(three)
    assert {path for path in after if path not in deployed} == set()
    assert {path for path in first if "refs/cfs-tags" in path} <= set(after)


def test_a_ref_that_was_moved_since_is_left_alone(on: On, three: Host) -> None:
    on(three, "migrate", ok=True)
    path = three.repo / "streams/refs/cfs-tags/deployments" / three.id("old")
    path.unlink()
    path.symlink_to(f"../../../oci-manifest-{three.pool.images['new'].manifest}")

    said = on(three, "migrate", "--undo", "--json").result

    assert os.readlink(path).endswith(three.pool.images["new"].manifest)
    row = next(row for row in said["undone"] if row["path"] == str(path.relative_to(three.repo)))
    assert (row["result"], row["reason"]) == ("kept", "it was moved since")


def test_directories_that_others_use_stay(on: On, three: Host) -> None:
    on(three, "migrate", ok=True)
    other = three.repo / "images/refs/other"
    other.symlink_to(f"../{three.id('old')}")

    on(three, "migrate", "--undo", ok=True)

    assert other.is_symlink()
    assert not (three.repo / "images/refs/cfs-tags").exists()


def test_force_is_refused_where_nothing_is_undone(on: On, three: Host) -> None:
    said = on(three, "migrate", "--force")

    assert said.status == 2
    assert "--force is for --undo" in said.err


def test_nothing_to_undo_is_not_found(on: On, three: Host) -> None:
    said = on(three, "migrate", "--undo", "--json")

    assert said.status == 3
    assert said.json["error"]["code"] == "nothing-to-undo"
    on(three, "migrate", ok=True)
    on(three, "migrate", "--undo", ok=True)
    assert on(three, "migrate", "--undo").status == 3


# -- what would be lost ------------------------------------------------------------------------------------------------


@pytest.fixture
def collected(on: On, three: Host, cfsctl: Cfsctl) -> Host:
    """Migrated, then bootc removed the tag of ``old``, which it cannot match, and the collector ran."""
    on(three, "migrate", ok=True)
    three.untag(BOOTC + three.pool.images["old"].manifest)
    cfsctl(three.repo, "gc")
    return three


def test_undoing_is_refused_where_nothing_else_keeps_the_content(on: On, collected: Host) -> None:
    before = tree(collected.root)

    for words in (("--undo",), ("--undo", "--dry-run")):
        said = on(collected, "migrate", *words)

        assert said.status == 4
        assert "undoing would lose content" in said.err
        assert collected.id("old")[:12] in said.err
        assert "--force" in said.err
    assert tree(collected.root) == before


def test_forced_it_leaves_a_tag_and_the_content_survives_the_collector(on: On, cfsctl: Cfsctl, collected: Host) -> None:
    said = on(collected, "migrate", "--undo", "--force", "--json").result
    cfsctl(collected.repo, "gc")

    tag = f"streams/refs/cfs-tags/tags/migrated%2F{collected.id('old')}"
    assert {"path": tag, "result": "made", "reason": "nothing else keeps this manifest"} in said["undone"]
    assert (collected.repo / tag).exists()
    assert collected.missing("old") == []
    assert collected.missing("same") == []
    cfsctl.assert_healthy(collected.repo)


def test_forced_and_migrated_again_the_tag_is_still_there(on: On, collected: Host) -> None:
    on(collected, "migrate", "--undo", "--force", ok=True)

    said = on(collected, "migrate", "--json").result

    assert {row["result"] for row in said["deployments"]} == {"migrate"}
    on(collected, "migrate", "--undo", ok=True)


def test_an_image_that_nothing_else_keeps_stays_when_forced(on: On, cfsctl: Cfsctl, three: Host) -> None:
    """Its manifest is gone: there is nothing to tag."""
    for stream in three.pool.images["old"].streams[:2]:
        (three.repo / "streams" / stream).unlink()
    three.untag(BOOTC + three.pool.images["old"].manifest)
    three.origin("old").unlink()
    on(three, "migrate", ok=True)

    assert on(three, "migrate", "--undo").status == 4
    on(three, "migrate", "--undo", "--force", ok=True)
    cfsctl(three.repo, "gc")

    assert three.missing("old", image_only=True) == []


# -- other file systems ------------------------------------------------------------------------------------------------


def test_a_state_directory_that_cannot_be_written_is_said(on: On, three: Host, tmp_path: Path) -> None:
    """The refs are made first, so the run that follows the repair has only the origin left to write."""
    home = three.state("old")
    try:
        subprocess.run(["chattr", "+i", home], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this file system has no immutable directories")
    try:
        said = on(three, "migrate", "--write-origin")
    finally:
        subprocess.run(["chattr", "-i", home], check=True)

    assert said.status == 1
    assert str(three.origin("old")) in said.err
    assert "manifest_digest" not in three.origin("old").read_text()
    on(three, "migrate", "--write-origin", ok=True)
    assert "manifest_digest" in three.origin("old").read_text()
    assert sorted(os.listdir(home)) == sorted(["etc", "var", three.origin("old").name, f"{three.id('old')}.imginfo"])


def test_a_terminal_shows_what_was_undone_a_line_for_each_deployment(on: On, three: Host) -> None:
    from support.terminal import show

    on(three, "migrate", "--write-origin", ok=True)
    (three.repo / "streams/refs/cfs-tags/configs" / three.id("same")).unlink()

    shown = show(["--sysroot", three.root, "migrate", *three.options, "--undo"], columns=200).text.splitlines()
    rows = [line for line in shown if re.match(r"[0-9a-f]{12} ", line)]
    assert [line[:12] for line in rows] == sorted(three.id(name)[:12] for name in ("same", "old", "new"))
    assert [("already gone" in line, "kept" in line) for line in rows if line.startswith(three.id("same")[:12])] == [
        (True, False)
    ]
    assert shown[-1] == "8 refs and 1 origin file taken back"
